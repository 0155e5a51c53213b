"""TorchScript archives: their tensors are those that torch reads, and nothing in them is ever run."""

import pickle
import warnings
import zipfile
from pathlib import Path

import clip_files
import pytest
import torch

from hrcf_lib.engine import torchscript, weights


@pytest.fixture(autouse=True)
def quiet():
    """TorchScript is on its way out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Odd(torch.nn.Module):
    """Parameters, buffers, a shared module, a view, plain values and lists."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)
        self.again = self.layer
        self.norm = torch.nn.BatchNorm1d(2)
        self.register_buffer("view", torch.arange(12.0).view(3, 4)[:, 1:3].T)
        self.register_buffer("empty", torch.empty(0, 3))
        self.register_buffer("one", torch.tensor(7))
        self.names, self.factor = ["a", "b"], 1.702

    def forward(self, x: torch.Tensor):
        return self.norm(self.again(x)) * self.factor


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=lambda dtype: str(dtype)[6:]
)
def test_tensors_are_those_that_torch_reads(tmp_path, dtype):
    torch.manual_seed(0)
    torch.jit.script(Odd().to(dtype).eval()).save(tmp_path / "odd.pt")
    expected = torch.jit.load(tmp_path / "odd.pt").state_dict()
    found = weights.read_tensors(tmp_path / "odd.pt")
    assert found.keys() == expected.keys() and len(found) == 12
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


def test_a_traced_model_is_read_as_a_scripted_one(tmp_path):
    layer = torch.nn.Sequential(torch.nn.Linear(2, 2), clip_files.QuickGELU())
    torch.jit.trace(layer, torch.zeros(1, 2)).save(tmp_path / "w.pt")
    assert torch.equal(weights.read_tensors(tmp_path / "w.pt")["0.weight"], layer[0].weight)
    assert {"Linear", "QuickGELU"} <= torchscript.class_names(tmp_path / "w.pt")


def test_the_code_is_not_read(tmp_path):
    torch.jit.script(Odd()).save(tmp_path / "w.pt")
    rewrite(tmp_path / "w.pt", "/code/", b"def forward(: this is no code")
    with pytest.raises(RuntimeError):
        torch.jit.load(tmp_path / "w.pt")
    assert "layer.weight" in weights.read_tensors(tmp_path / "w.pt")


def test_a_file_of_torch_save_is_no_archive(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(b"PK")
    assert not torchscript.is_archive(tmp_path / "a.pt") and not torchscript.is_archive(tmp_path / "b.pt")


# What an archive may hold that none of torch does ---------------------------------------------------------------------


def rewrite(path: Path, part: str, content: bytes) -> None:
    """Replace each file of a zip whose name has ``part`` in it."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, old in parts.items():
            archive.writestr(name, content if part in name else old)


class Trap:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


TREE = b"\x80\x02c__torch__\nM\n)\x81}("  # a module, and the beginning of what is set on it


def hostile() -> dict[str, tuple[bytes, str]]:
    """Name -> (a pickle, what is said of it)."""
    storage = b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
    tensor = b"X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n" + storage
    end = b"\x89ccollections\nOrderedDict\n)RtRub."
    number = lambda n: b"J" + n.to_bytes(4, "little", signed=True)
    place = lambda offset, size, stride: (
        TREE + tensor + number(offset) + number(size) + b"\x85" + stride + b"\x85" + end
    )
    return {
        "a function": (b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.", "asks for os.system, which is no part"),
        "of torch": (b"\x80\x02ctorch\nload\nX\x01\x00\x00\x00a\x85R.", "asks for torch.load, which"),
        "of builtins": (b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.", "asks for builtins.eval, which"),
        "an attribute": (b"\x80\x04\x8c\x07torch.x\x8c\x08__init__\x93.", "asks for torch.x.__init__, which"),
        "no module": (b"\x80\x02}.", "holds a dict and no module"),
        "cut": (TREE, "damaged"),
        "no storage": (b"\x80\x02(X\x04\x00\x00\x00elseK\x00K\x00K\x00K\x00tQ.", "'else' where a storage"),
        "a circle": (b"\x80\x02c__torch__\nM\n)\x81q\x00}X\x01\x00\x00\x00ah\x00sb.", "module 'a' holds itself"),
        "beyond the end": (place(3, 2, b"K\x01"), "damaged"),
        "more than there is": (place(0, 2**31 - 1, b"K\x00"), "more numbers than its storage"),
        "negative": (place(-1, 2, b"K\x01"), "damaged"),
    }


@pytest.mark.parametrize("kind", hostile())
def test_what_no_model_has_is_refused(tmp_path, kind):
    content, message = hostile()[kind]
    layer = torch.nn.Module()
    layer.register_buffer("w", torch.arange(4.0))
    torch.jit.script(layer).save(tmp_path / "w.pt")
    rewrite(tmp_path / "w.pt", "/data.pkl", content)
    with pytest.raises(ValueError, match=f"w.pt cannot be read as plain tensors: .*{message}"):
        weights.read_tensors(tmp_path / "w.pt")


def test_a_trap_is_not_sprung(tmp_path):
    torch.jit.script(Odd()).save(tmp_path / "w.pt")
    rewrite(tmp_path / "w.pt", "/data.pkl", pickle.dumps(Trap(tmp_path / "sprung"), protocol=2))
    with pytest.raises(ValueError, match="Path.*which is no part of a tree of modules|asks for"):
        weights.read_tensors(tmp_path / "w.pt")
    assert not (tmp_path / "sprung").exists()


def test_names_that_multiply_are_refused(tmp_path, monkeypatch):
    """Twenty modules, each of which has the next twice, would have a million names."""
    monkeypatch.setattr(torchscript, "MOST_PARTS", 1000)
    content = b"\x80\x02c__torch__\nM\n)\x81q\x00"
    for i in range(1, 21):
        module = b"c__torch__\nM\n)\x81q" + bytes([i])
        content += module + b"}(X\x01\x00\x00\x00ah" + bytes([i - 1]) + b"X\x01\x00\x00\x00bh" + bytes([i - 1]) + b"ub"
    torch.jit.script(Odd()).save(tmp_path / "w.pt")
    rewrite(tmp_path / "w.pt", "/data.pkl", content + b".")
    with pytest.raises(ValueError, match="more than 1,000 modules and tensors, which no model has"):
        weights.read_tensors(tmp_path / "w.pt")


def test_a_flipped_bit_and_a_missing_storage_are_told(tmp_path):
    path = clip_files.openai({"a.weight": torch.arange(64.0), "b": torch.ones(8)}, tmp_path / "w.pt", half=False)
    whole = path.read_bytes()
    at = whole.index(torch.arange(64.0).numpy().tobytes()) + 40
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
    with pytest.raises(ValueError, match="w.pt cannot be read as plain tensors: .*CRC"):
        weights.read_tensors(path)
    path.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="w.pt cannot be read as plain tensors: .*damaged"):
        weights.read_tensors(path)
    path.write_bytes(whole)
    rewrite(path, "/data/0", b"short")
    with pytest.raises(ValueError, match="storage 0 has 5 bytes"):
        weights.read_tensors(path)


def test_an_archive_of_another_kind_of_machine_is_refused(tmp_path, monkeypatch):
    path = clip_files.openai({"a": torch.ones(2)}, tmp_path / "w.pt")
    monkeypatch.setattr(torchscript.sys, "byteorder", "big")
    with pytest.raises(ValueError, match="byte order of another kind of machine"):
        weights.read_tensors(path)


def test_a_pickle_beyond_reason_is_not_read(tmp_path, monkeypatch):
    path = clip_files.openai({"a": torch.ones(2)}, tmp_path / "w.pt")
    monkeypatch.setattr(torchscript, "LARGEST_PICKLE", 100)
    with pytest.raises(ValueError, match="data.pkl has .* bytes, which no model needs"):
        weights.read_tensors(path)
