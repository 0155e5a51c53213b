"""Files: nothing is unpickled, what is wrong is named, a file is whole or the old one, and one process writes."""

import errno
import importlib
import os
import re
import shutil
import signal
import time
import zipfile
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import processes
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from hrcf_lib.engine import files, hashes, weights


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
        weights.read_tensors(tmp_path / "a.pt")
    assert not (tmp_path / "sprung").exists()
    torch.load(tmp_path / "a.pt", weights_only=False)
    assert (tmp_path / "sprung").exists()  # the trap does work


@pytest.mark.parametrize("write", [save_file, torch.save], ids=["safetensors", "torch"])
@pytest.mark.parametrize("name", ["w.bin", "w.safetensors", "w"])
def test_the_bytes_of_a_file_say_what_it_is(tmp_path, write, name):
    write({"a": torch.arange(3)}, tmp_path / name)
    assert weights.read_tensors(tmp_path / name)["a"].tolist() == [0, 1, 2]


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
        weights.read_tensors(tmp_path / "w.bin")


@pytest.mark.parametrize("nest", [["state_dict"], ["model"], ["model_state_dict"], ["module"], ["model", "state_dict"]])
def test_the_state_dict_of_a_training_checkpoint_is_found(tmp_path, nest):
    content = {"a": torch.arange(3)}
    for entry in reversed(nest):
        content = {"epoch": 3, entry: content, "optimizer": {"state": {}}}
    torch.save(content, tmp_path / "w.pt")
    assert weights.read_tensors(tmp_path / "w.pt").keys() == {"a"}


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "_orig_mod.module.", "model.module._orig_mod."]
)
def test_prefixes_in_front_of_every_name_are_left_out(prefix):
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    state = {name: torch.full_like(value, 3) for name, value in module.state_dict().items()}
    weights.load_into(module, {prefix + name: value for name, value in state.items()}, "w.pt")
    assert all((p == 3).all() for p in module.parameters())


def test_parts_that_were_compiled_or_sharded_have_their_own_names():
    bare = ["visual.conv1.weight", "visual.a.b", "c"]
    wrapped = ["visual._orig_mod.conv1.weight", "visual._fsdp_wrapped_module.a._checkpoint_wrapped_module.b", "c"]
    assert list(weights.unwrapped(dict.fromkeys(wrapped))) == bare


def test_names_that_are_a_models_own_stay():
    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = torch.nn.Linear(2, 1)

    own = Own()
    weights.load_into(own, {name: torch.ones_like(value) for name, value in own.state_dict().items()}, "w.pt")
    assert own.model.weight.tolist() == [[1, 1]]
    two = {"a._orig_mod.b": 1, "a.b": 2}
    assert weights.unwrapped(two) == two, "two names would become one"


def test_of_the_weights_of_another_model_the_first_faults_are_listed():
    module = torch.nn.Sequential(*(torch.nn.Linear(1, 1) for _ in range(15)))
    with pytest.raises(ValueError, match="missing 0.weight") as error:
        weights.load_into(module, {"extra": torch.zeros(1)}, "w.pt")
    assert str(error.value).splitlines()[-2:] == ["  and 10 more", "  unexpected extra (1,)"]
    assert len(str(error.value).splitlines()) == 23


@pytest.mark.parametrize("name", ["cut.safetensors", "cut.pt"])
def test_a_damaged_file_is_named(tmp_path, name):
    write = save_file if name.endswith("safetensors") else torch.save
    write({"a": torch.zeros(1000)}, tmp_path / name)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:500])
    with pytest.raises(ValueError, match=f"{name} cannot be read as plain tensors: .*damaged"):
        weights.read_tensors(tmp_path / name)


@pytest.mark.parametrize("content", [[torch.zeros(2)], {"epoch": 3}, {"state_dict": {"a": 1.0}}, torch.zeros(2)])
def test_a_file_without_a_state_dict_is_named(tmp_path, content):
    torch.save(content, tmp_path / "odd.pt")
    with pytest.raises(ValueError, match="odd.pt does not hold a state dict"):
        weights.read_tensors(tmp_path / "odd.pt")


@pytest.mark.parametrize(
    "content, message",
    [
        (b'{"a": [1, 2', "cut, damaged or no JSON"),
        (b"", "cut, damaged or no JSON"),
        (b"\xff{}", "cut, damaged or no JSON .*utf-8"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"a":' * 100_000, "nested too deep"),
        (b"[1]", "holds a list, where an object should be"),
        (b"3", "holds a int, where an object should be"),
    ],
    ids=["cut", "empty", "bytes", "deep list", "deep object", "list", "number"],
)
def test_json_that_is_none_is_named(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=f"a.json cannot be read: it .*{message.removeprefix('it ')}"):
        files.read_json(tmp_path / "a.json")


def test_json_beyond_reason_is_not_read(tmp_path, monkeypatch):
    (tmp_path / "a.json").write_text('{"a": 1}')
    assert files.read_json(tmp_path / "a.json") == {"a": 1}
    monkeypatch.setattr(files, "LARGEST_JSON", 5)
    with pytest.raises(ValueError, match="a.json cannot be read: .*more than 5 bytes"):
        files.read_json(tmp_path / "a.json")


def test_writing_that_breaks_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    weights.write_tensors({"a": torch.arange(6.0).view(2, 3).T}, path)
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]

    def killed(state, part, metadata):
        Path(part).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(weights, "save_file", killed)
    with pytest.raises(KeyboardInterrupt):
        weights.write_tensors({"a": torch.zeros(3, 2)}, path)
    assert torch.equal(weights.read_tensors(path)["a"], torch.arange(6.0).view(2, 3).T)


def test_weights_that_do_not_fit_are_listed_and_nothing_is_loaded():
    module = torch.nn.Linear(3, 2)
    before = module.weight.clone()
    with pytest.raises(ValueError) as error:
        weights.load_into(module, {"weight": torch.zeros(2, 4), "extra": torch.zeros(5)}, "a.safetensors")
    assert str(error.value).splitlines() == [
        "a.safetensors: these weights do not fit the config:",
        "  missing bias (2,)",
        "  unexpected extra (5,)",
        "  weight is (2, 4), expected (2, 3)",
    ]
    assert torch.equal(module.weight, before)


def test_runs_that_write_the_same_file_have_temporary_names_of_their_own(tmp_path):
    path = tmp_path / "shard"
    with files.replacing(path) as one, files.replacing(path) as two:
        assert one != two
        one.write_text("one")
        two.write_text("two")
    assert path.read_text() == "one", "the outer one is renamed last"
    with pytest.raises(KeyboardInterrupt), files.replacing(path) as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert [file.name for file in tmp_path.iterdir()] == ["shard"] and path.read_text() == "one"


@pytest.mark.skipif(os.name == "nt", reason="permissions of Unix")
def test_what_is_written_is_private_until_it_has_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "plain").write_text("")
    (tmp_path / "folder").mkdir()
    plain, folder = ((tmp_path / name).stat().st_mode for name in ("plain", "folder"))
    with files.replacing(tmp_path / "a.safetensors") as part:
        save_file({"a": torch.zeros(2)}, part)
        assert part.parent.stat().st_mode & 0o777 == 0o700
    files.write_json(tmp_path / "a.json", {})
    with files.new_folder(tmp_path / "model") as part:
        assert part.parent.stat().st_mode & 0o777 == 0o700
    assert {(tmp_path / name).stat().st_mode for name in ("a.safetensors", "a.json")} == {plain}
    assert (tmp_path / "model").stat().st_mode == folder


def test_a_new_folder_is_whole_or_not_there(tmp_path):
    with pytest.raises(KeyboardInterrupt), files.new_folder(tmp_path / "a" / "model") as part:
        (part / "half").write_text("")
        raise KeyboardInterrupt
    assert not list((tmp_path / "a").iterdir())
    with files.new_folder(tmp_path / "model") as part:
        (part / "whole").write_text("")
        assert not (tmp_path / "model").exists()
    with pytest.raises(FileExistsError, match="was made by somebody else"), files.new_folder(tmp_path / "model"):
        pass
    assert (tmp_path / "model" / "whole").exists()


# -- what processes leave ----------------------------------------------------------------------------------------------


def die_while_writing(path) -> None:
    with files.replacing(path) as part:
        part.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_what_a_killed_process_left_goes_when_the_same_file_is_written(tmp_path):
    path = tmp_path / "a.json"
    assert processes.run(die_while_writing, path) == [-signal.SIGKILL]
    (left,) = tmp_path.iterdir()
    strange = left.with_name(left.name.replace("a.json.", "b.json."))
    shutil.copytree(left, strange)
    (tmp_path / "a.json.part").write_text("a download of somebody's")
    files.write_json(path, {})
    assert {p.name for p in tmp_path.iterdir()} == {"a.json", "a.json.part", strange.name}
    files.remove_abandoned(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"a.json", "a.json.part"}


def test_what_others_are_writing_stays(tmp_path):
    path, tag = tmp_path / "a.json", "0123456789abcdef"
    far, mine = tmp_path / f"a.json.1-{tag}.part", tmp_path / f"a.json.{os.getpid()}-{files._machine()}01234567.part"
    for part in (far, mine):
        part.mkdir()
    files.write_json(path, {})
    assert far.exists() and mine.exists(), "the first is another machine's, and was made just now"
    for part in (far, mine):
        os.utime(part, (time.time() - 2 * files.ABANDONED,) * 2)
    files.write_json(path, {})
    assert not far.exists() and not mine.exists(), "this process began later than what it would have left"


def test_one_process_at_a_time_writes_to_a_folder(tmp_path):
    with files.alone(tmp_path / "out"), files.alone(tmp_path / "out"):
        with ThreadPoolExecutor(1) as other, pytest.raises(files.InUse, match="another run writes to .*out: wait"):
            other.submit(files.alone(tmp_path / "out").__enter__).result()
    with ThreadPoolExecutor(1) as other:
        other.submit(files.alone(tmp_path / "out").__enter__).result()


# -- damage ------------------------------------------------------------------------------------------------------------


def writes(folder) -> dict:
    """Name -> function of a number that writes a file of that kind, of another content for another number."""
    tensors = lambda i: {"a": torch.arange(6.0) + i, "b": torch.tensor([i])}
    return {
        "w.safetensors": lambda i: weights.write_tensors(tensors(i), folder / "w.safetensors"),
        "c.pt": lambda i: weights.save_checkpoint({"state": tensors(i), "step": i}, folder / "c.pt"),
    }


def reads(path):
    return (
        weights.read_tensors(path)
        if path.suffix == ".safetensors"
        else weights.read_checkpoint(path, ("state", "step"))
    )


@pytest.mark.parametrize("name", ["w.safetensors", "c.pt"])
@pytest.mark.parametrize("how", ["flipped", "cut", "empty", "foreign", "zip"])
def test_damage_is_named_with_what_to_do(tmp_path, name, how):
    path = tmp_path / name
    writes(tmp_path)[name](0)
    content = path.read_bytes()
    if how == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.txt", "hello")
    else:
        path.write_bytes({"cut": content[:-7], "empty": b"", "foreign": b"hello", "flipped": content}[how])
    for at in np.linspace(0, len(content) - 1, 40).astype(int) if how == "flipped" else [None]:
        if at is not None:
            path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        try:
            found = reads(path)
        except ValueError as error:
            assert str(error).startswith(str(path)) and "damaged" in str(error)
            continue
        assert how == "flipped", "nothing else can be read"
        found = found if name == "w.safetensors" else found["state"]
        assert torch.equal(found["a"], torch.arange(6.0)) and found["b"] == 0, f"byte {at} changes what is read"


@pytest.mark.parametrize("state", [{"step": 1}, [1, 2]])
def test_a_checkpoint_of_something_else_is_named(tmp_path, state):
    torch.save(state, tmp_path / "c.pt")
    with pytest.raises(ValueError, match="c.pt is damaged, or no checkpoint of this library .it lacks (state|names).*"):
        weights.read_checkpoint(tmp_path / "c.pt", ("state", "step"))


def test_a_checkpoint_is_never_unpickled(tmp_path):
    torch.save({"state": Trap(tmp_path / "sprung")}, tmp_path / "c.pt")
    with pytest.raises(ValueError, match="c.pt is damaged, or no checkpoint"):
        weights.read_checkpoint(tmp_path / "c.pt", ("state",))
    assert not (tmp_path / "sprung").exists()


def test_hashes_see_names_types_shapes_and_numbers():
    x = torch.arange(6, dtype=torch.int32)
    states = [{"a": x}, {"b": x}, {"a": x.view(2, 3)}, {"a": x.view(torch.float32)}, {"a": x + 1}, {"a": x[:0]}]
    states += [{"a": x, "b": x}, {"a": torch.tensor(1.0)}, {"a": torch.tensor(True)}, {"a": x.bfloat16()}]
    assert len(set(map(hashes.hash_tensors, states))) == len(states)
    assert hashes.hash_tensors({"a": x, "b": x.flip(0).flip(0)}) == hashes.hash_tensors({"b": x, "a": x})


# -- full disks --------------------------------------------------------------------------------------------------------


def full(*, free: int):
    return lambda path: namedtuple("usage", "total used free")(0, 0, free)


@pytest.mark.parametrize(
    ("write", "error"),
    [
        ("write_text", OSError(errno.ENOSPC, "No space left on device")),
        ("save_file", SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")),
        ("save", RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 576 vs 534")),
    ],
)
def test_a_full_disk_is_said_in_one_line_and_leaves_nothing(tmp_path, monkeypatch, write, error):
    def fails(first, second, *more, **_):
        Path(first if write == "write_text" else second).touch()
        raise error

    place, kind = {"write_text": (Path, ".json"), "save_file": (weights, ".safetensors"), "save": (torch, ".pt")}[write]
    monkeypatch.setattr(place, write, fails)
    call = {".json": files.write_json, ".safetensors": lambda p, s: weights.write_tensors(s, p)}
    call[".pt"] = lambda p, s: weights.save_checkpoint(s, p)
    state = {"a": torch.zeros(10**6)} if kind != ".json" else {"a": "b" * 4 * 10**6}
    monkeypatch.setattr(files.shutil, "disk_usage", full(free=300_000))
    with pytest.raises(
        OSError, match=rf"^\S+a{kind} cannot be written: 4.0 MB are needed, 0.3 MB are free in .*; make"
    ):
        call[kind](tmp_path / f"a{kind}", state)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(files.shutil, "disk_usage", full(free=10**12))
    with pytest.raises(type(error), match=re.escape(str(error))):  # it was another disk
        call[kind](tmp_path / f"a{kind}", state)


def test_a_full_disk_names_a_file_of_a_new_folder_as_it_would_be_called(tmp_path, monkeypatch):
    monkeypatch.setattr(files.shutil, "disk_usage", full(free=1000))
    with pytest.raises(OSError, match=f"^{re.escape(str(tmp_path / 'model' / 'a.json'))} cannot be written: "):
        with files.new_folder(tmp_path / "model") as part, files.full_disk_named(part / "a.json"):
            raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())


def test_a_quota_is_told_like_a_full_disk(tmp_path):
    with pytest.raises(OSError, match="a.csv cannot be written: .* MB are free in .*, or its quota is used up; make"):
        with files.full_disk_named(tmp_path / "a.csv"):
            raise OSError(errno.EDQUOT, "Disk quota exceeded")


def test_weights_that_are_none_are_told_in_the_users_words(tmp_path):
    state = {"a": torch.zeros(100)}
    os.mkfifo(tmp_path / "fifo.pt")
    torch.save({"state_dict": state, "args": Trap(tmp_path)}, tmp_path / "more.pt")
    torch.save({"ema": state, "epoch": 3}, tmp_path / "names.pt")
    torch.save(state, tmp_path / "cut.pt")
    whole = (tmp_path / "cut.pt").read_bytes()
    (tmp_path / "flipped.pt").write_bytes(whole.replace(bytes(400), bytes(399) + b"\1"))
    (tmp_path / "cut.pt").write_bytes(whole[:-100])
    (tmp_path / "empty.pt").touch()
    (tmp_path / "text.pt").write_text("hello world, this is a text")
    for name, words in {
        "": "it is a folder, not a file of weights",
        "fifo.pt": "a FIFO, a socket or a device",
        "more.pt": "it holds a .*, which is neither a tensor nor a plain value",
        "names.pt": "names.pt does not hold a state dict .*; 'ema' is a dict, 'epoch' is a int: save the state dict",
        "flipped.pt": "its part .* is not what was written",
        "cut.pt": "its end is missing",
        "empty.pt": "it is empty",
        "text.pt": "its bytes are none of a file of weights",
    }.items():
        with pytest.raises(ValueError, match=words) as error:
            weights.read_tensors(tmp_path / name)
        assert "load failed" not in str(error.value) and "weights_only" not in str(error.value)


def test_weights_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no.pt: there is no such file; correct the path"):
        weights.read_tensors(tmp_path / "no.pt")


def test_whole_numbers_and_tensors_without_numbers_are_no_weights():
    layer = torch.nn.BatchNorm1d(2)
    state = {name: x.double() for name, x in layer.state_dict().items()}  # counts of batches too
    weights.load_into(layer, state, "a.pt")
    for odd, words in (
        (torch.ones(2).int(), "weight has torch.int32, expected"),
        (torch.ones(2).to("meta"), "without"),
    ):
        with pytest.raises(ValueError, match=words):
            weights.load_into(layer, state | {"weight": odd}, "a.pt")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a place where nobody can make a folder")
def test_a_folder_that_cannot_be_made_is_named():
    with pytest.raises(OSError, match="^/proc/none/below cannot be made .*: choose another folder"):
        files.make_folder("/proc/none/below")


def test_what_is_no_path_of_weights_is_refused():
    for path, kind, says in (
        (None, TypeError, "the file of weights is a NoneType: give a path"),
        ("", ValueError, "the file of weights is an empty text"),
        ("https://example.org/w.pt", ValueError, "the file of weights is the address .*nothing is downloaded"),
    ):
        with pytest.raises(kind, match=says):
            weights.read_tensors(path)


@pytest.mark.parametrize(
    "name", ["report.__main__", "speed.__main__", "speed.dry_run", "speed.gpu", "speed.operations"]
)
def test_a_command_refuses_a_file_that_it_cannot_write_before_its_work(name, tmp_path, capsys):
    command = importlib.import_module(f"hrcf_lib.{name}")
    (tmp_path / "file").touch()
    for out, says in (
        (tmp_path, "is a folder: give the name of a file"),
        (tmp_path / "file" / "o", "file is a file, and"),
    ):
        with pytest.raises(SystemExit) as stop:
            command.main(["--out", str(out)])
        assert stop.value.code == 2 and says in capsys.readouterr().err


def test_a_folder_is_no_file_and_a_file_no_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(IsADirectoryError, match="is a folder: give the name of a file"), files.replacing(tmp_path):
        pass
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with (
            pytest.raises(NotADirectoryError, match="file is a file, and no folder: choose another"),
            files.alone(path),
        ):
            pass


def test_json_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1}', encoding="utf-8-sig")
    assert files.read_json(tmp_path / "a.json") == {"a": 1}


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENAMETOOLONG])
def test_a_place_that_takes_no_file_is_named_as_the_user_named_it(tmp_path, monkeypatch, number):
    make = Path.mkdir

    def refuses(path, *more, **named):
        if path.suffix == ".part":
            raise OSError(number, os.strerror(number), str(path))
        make(path, *more, **named)

    monkeypatch.setattr(Path, "mkdir", refuses)
    with pytest.raises(
        OSError, match=rf"^{tmp_path}/a.json cannot be written \({os.strerror(number)}\): choose another"
    ):
        files.write_json(tmp_path / "a.json", {})
    assert not list(tmp_path.iterdir())
