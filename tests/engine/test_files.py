"""Files of weights: nothing is unpickled, what is wrong is named, and a file is whole or the old one."""

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


@pytest.mark.parametrize("write", [save_file, torch.save], ids=["safetensors", "torch"])
@pytest.mark.parametrize("name", ["w.bin", "w.safetensors", "w"])
def test_the_bytes_of_a_file_say_what_it_is(tmp_path, write, name):
    write({"a": torch.arange(3)}, tmp_path / name)
    assert files.read_tensors(tmp_path / name)["a"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "content, message",
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n", "pointer of Git LFS.*git lfs pull"),
        ("<!DOCTYPE html><html>", "a page of HTML, not the weights"),
        ("", "damaged"),
    ],
)
def test_what_only_stands_for_weights_is_told(tmp_path, content, message):
    (tmp_path / "w.bin").write_text(content)
    with pytest.raises(ValueError, match=f"w.bin cannot be read as plain tensors: .*{message}"):
        files.read_tensors(tmp_path / "w.bin")


@pytest.mark.parametrize("nest", [["state_dict"], ["model"], ["model_state_dict"], ["module"], ["model", "state_dict"]])
def test_the_state_dict_of_a_training_checkpoint_is_found(tmp_path, nest):
    content = {"a": torch.arange(3)}
    for entry in reversed(nest):
        content = {"epoch": 3, entry: content, "optimizer": {"state": {}}}
    torch.save(content, tmp_path / "w.pt")
    assert files.read_tensors(tmp_path / "w.pt").keys() == {"a"}


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "_orig_mod.module.", "model.module._orig_mod."]
)
def test_prefixes_in_front_of_every_name_are_left_out(prefix):
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    state = {name: torch.full_like(value, 3) for name, value in module.state_dict().items()}
    files.load_into(module, {prefix + name: value for name, value in state.items()}, "w.pt")
    assert all((p == 3).all() for p in module.parameters())


def test_parts_that_were_compiled_or_sharded_have_their_own_names():
    bare = ["visual.conv1.weight", "visual.a.b", "c"]
    wrapped = ["visual._orig_mod.conv1.weight", "visual._fsdp_wrapped_module.a._checkpoint_wrapped_module.b", "c"]
    assert list(files.unwrapped(dict.fromkeys(wrapped))) == bare


def test_names_that_are_a_models_own_stay():
    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = torch.nn.Linear(2, 1)

    own = Own()
    files.load_into(own, {name: torch.ones_like(value) for name, value in own.state_dict().items()}, "w.pt")
    assert own.model.weight.tolist() == [[1, 1]]
    two = {"a._orig_mod.b": 1, "a.b": 2}
    assert files.unwrapped(two) == two, "two names would become one"


def test_of_the_weights_of_another_model_the_first_faults_are_listed():
    module = torch.nn.Sequential(*(torch.nn.Linear(1, 1) for _ in range(15)))
    with pytest.raises(ValueError, match="missing 0.weight") as error:
        files.load_into(module, {}, "w.pt")
    assert len(str(error.value).splitlines()) == 22 and str(error.value).endswith("and 10 more")


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
