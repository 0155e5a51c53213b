"""Files of weights: nothing is unpickled, what is wrong is named, and a file is whole or the old one."""

import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hrcf_lib.engine import files


class Trap:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_nothing_is_ever_unpickled(tmp_path):
    torch.save({"state_dict": {"a": torch.zeros(2)}, "args": Trap(tmp_path / "sprung")}, tmp_path / "a.pt")
    with pytest.raises(
        ValueError, match="a.pt cannot be read as plain tensors: .*never does; save its state dict as .safetensors"
    ):
        files.read_tensors(tmp_path / "a.pt")
    assert not (tmp_path / "sprung").exists()
    torch.load(tmp_path / "a.pt", weights_only=False)
    assert (tmp_path / "sprung").exists()  # the trap does work


@pytest.mark.filterwarnings("ignore:.*looks like a TorchScript archive")
def test_torchscript_archives_are_refused(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is on its way out
        torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(tmp_path / "ViT-B-16.pt")
    with pytest.raises(ValueError, match="ViT-B-16.pt cannot be read as plain tensors"):
        files.read_tensors(tmp_path / "ViT-B-16.pt")


@pytest.mark.parametrize("name", ["cut.safetensors", "cut.pt"])
def test_a_damaged_file_is_named(tmp_path, name):
    write = save_file if name.endswith("safetensors") else torch.save
    write({"a": torch.zeros(1000)}, tmp_path / name)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:500])
    with pytest.raises(ValueError, match=f"{name} cannot be read as plain tensors: .*damaged"):
        files.read_tensors(tmp_path / name)


@pytest.mark.parametrize("content", [[torch.zeros(2)], {"epoch": 3}, {"state_dict": {"a": 1.0}}, torch.zeros(2)])
def test_a_file_without_a_state_dict_is_named(tmp_path, content):
    torch.save(content, tmp_path / "odd.pt")
    with pytest.raises(ValueError, match="odd.pt does not hold a state dict"):
        files.read_tensors(tmp_path / "odd.pt")


def test_writing_that_breaks_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    files.write_tensors({"a": torch.arange(6.0).view(2, 3).T}, path)
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]

    def killed(state, part):
        Path(part).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "save_file", killed)
    with pytest.raises(KeyboardInterrupt):
        files.write_tensors({"a": torch.zeros(3, 2)}, path)
    assert torch.equal(files.read_tensors(path)["a"], torch.arange(6.0).view(2, 3).T)


def test_weights_that_do_not_fit_are_listed_and_nothing_is_loaded():
    module = torch.nn.Linear(3, 2)
    before = module.weight.clone()
    with pytest.raises(ValueError) as error:
        files.load_into(module, {"weight": torch.zeros(2, 4), "extra": torch.zeros(5)}, "a.safetensors")
    assert str(error.value).splitlines() == [
        "a.safetensors: these weights do not fit the config:",
        "  missing bias (2,)",
        "  unexpected extra (5,)",
        "  weight is (2, 4), expected (2, 3)",
    ]
    assert torch.equal(module.weight, before)


def test_runs_that_write_the_same_file_have_temporary_names_of_their_own(tmp_path):
    path = tmp_path / "shard"
    with files.replacing_alone(path) as one, files.replacing_alone(path) as two:
        assert one != two
        one.write_text("one")
        two.write_text("two")
    assert path.read_text() == "one", "the outer one is renamed last"
    with pytest.raises(KeyboardInterrupt), files.replacing_alone(path) as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert [file.name for file in tmp_path.iterdir()] == ["shard"] and path.read_text() == "one"
