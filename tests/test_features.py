"""The cache of frozen features: told apart by weights and data, never half written, close to float32."""

import json
import re

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from hrcf_lib import features, vlp
from hrcf_lib.data.mojiscenes import MojiScenes
from hrcf_lib.features import extract
from hrcf_lib.labels import LabelSpace

SPACE = LabelSpace(["cat", "dog"], ["bus"])


class Pictures(Dataset):
    """``n`` random pictures of 4 x 4 pixels; stops at picture ``fails_at`` as a killed run would."""

    def __init__(self, n=7, seed=0, fails_at=None):
        self.n, self.seed, self.fails_at, self.read = n, seed, fails_at, 0

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        if i == self.fails_at:
            raise KeyboardInterrupt
        self.read += 1
        rng = np.random.default_rng([self.seed, i])
        return torch.from_numpy(rng.integers(0, 256, (3, 4, 4), dtype=np.uint8)), torch.tensor([1.0, -1.0, 0.0])

    def fingerprint(self):
        return {"pictures": self.n, "seed": self.seed}


class Tower:
    """Stands for a VLP: tokens of the right shape, made from the pictures."""

    N, C, side, name = 2, 6, 4, "tower"

    def __init__(self, weight=1.0):
        self.weight, self.mean, self.hash = weight, torch.zeros(3, 1, 1), f"hash {weight}"

    def trunk(self, images):
        x = images.float().flatten(1)[:, :30].reshape(-1, 5, 6) / 255
        return x * self.weight

    def teacher(self, trunk):
        return trunk.mean(dim=1)


def files(folder):
    return sorted(p.name for p in folder.iterdir())


def test_shapes_types_and_order():
    data = Pictures()
    f = extract(Tower(), data, SPACE, batch=3)
    x = torch.stack([data[i][0] for i in range(7)])
    assert len(f) == 7 and f.trunk.shape == (7, 5, 6) and f.trunk.dtype == np.float16
    assert torch.equal(torch.from_numpy(f.trunk), Tower().trunk(x).half())
    assert torch.equal(f.teacher, Tower().teacher(Tower().trunk(x))), "e_p is made before anything is rounded"
    assert f.teacher.dtype == torch.float32
    assert f.labels.tolist() == [[1, -1, 0]] * 7 and f.space == SPACE


def test_batch_takes_rows_in_the_order_asked_for(tmp_path):
    for folder in (None, tmp_path, tmp_path):
        f = extract(Tower(), Pictures(), SPACE, folder)
        trunk, teacher, labels = f.batch(torch.tensor([5, 0, 5]))
        assert trunk.dtype == torch.float32
        assert torch.equal(trunk, torch.from_numpy(np.array(f.trunk[[5, 0, 5]])).float())
        assert torch.equal(teacher, f.teacher[[5, 0, 5]]) and len(labels) == 3
        trunk.zero_()  # a copy: the cache stays as it is
        assert f.trunk[5].any()


def test_the_second_time_it_is_read_not_computed(tmp_path):
    first = extract(Tower(), Pictures(), SPACE, tmp_path)
    data = Pictures()
    again = extract(Tower(), data, SPACE, tmp_path)
    assert data.read == 0
    for f in (first, again):
        assert isinstance(f.trunk, np.memmap) and not f.trunk.flags.writeable
    assert np.array_equal(first.trunk, again.trunk)
    assert torch.equal(first.teacher, again.teacher) and torch.equal(first.labels, again.labels)
    fresh = extract(Tower(), data, SPACE)
    assert np.array_equal(first.trunk, fresh.trunk) and torch.equal(first.teacher, fresh.teacher)
    assert len(files(tmp_path)) == 2


def test_other_weights_data_or_names_are_another_cache(tmp_path):
    runs = [(Tower(), Pictures(), SPACE), (Tower(2.0), Pictures(), SPACE), (Tower(), Pictures(seed=1), SPACE)]
    runs += [(Tower(), Pictures(6), SPACE), (Tower(), Pictures(), LabelSpace(["cat", "dog"], ["car"]))]
    for n, (tower, data, space) in enumerate(runs, 1):
        f = extract(tower, data, space, tmp_path)
        assert data.read == len(data) and f.space == space
        assert len(files(tmp_path)) == 2 * n


def test_an_interrupted_run_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        extract(Tower(), Pictures(fails_at=5), SPACE, tmp_path, batch=2)
    assert files(tmp_path) == []
    data = Pictures()
    extract(Tower(), data, SPACE, tmp_path)
    assert data.read == 7


def test_what_a_killed_run_leaves_is_not_read(tmp_path, monkeypatch):
    f = extract(Tower(), Pictures(), SPACE, tmp_path)
    trunk, small = (tmp_path / name for name in files(tmp_path)[::-1])
    assert trunk.name.endswith(".trunk.npy") and small.suffix == ".npz"
    expected = np.array(f.trunk)
    for gone in (small, trunk):  # killed between the two renames, or cleaned up by halves
        del f
        gone.unlink()
        (tmp_path / "0123.trunk.99.part").write_bytes(b"half")
        data = Pictures()
        f = extract(Tower(), data, SPACE, tmp_path)
        assert data.read == 7 and np.array_equal(f.trunk, expected)


def test_two_runs_at_once_write_two_files(tmp_path, monkeypatch):
    """The second run starts while the first is in the middle."""
    real, seen = features._run, []

    def run(vlp, dataset, space, path, batch, workers):
        result = real(vlp, dataset, space, path, batch, workers)
        seen.append(path.name)
        if len(seen) == 1:
            with monkeypatch.context() as other:
                other.setattr(features.os, "getpid", lambda: 1)
                extract(Tower(), Pictures(), SPACE, tmp_path)
        return result

    monkeypatch.setattr(features, "_run", run)
    f = extract(Tower(), Pictures(), SPACE, tmp_path)
    assert len(set(seen)) == 2
    monkeypatch.undo()
    assert np.array_equal(f.trunk, extract(Tower(), Pictures(), SPACE).trunk)
    assert len(files(tmp_path)) == 2


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match="the dataset is empty"):
        extract(Tower(), Pictures(0), SPACE)
    with pytest.raises(ValueError, match="annotates 3 labels, the label space has 2 names"):
        extract(Tower(), Pictures(), LabelSpace(["cat", "dog"]))
    for weight in (1e9, float("nan")):
        with pytest.raises(ValueError, match="features of picture 0 are NaN or beyond float16"):
            extract(Tower(weight), Pictures(), SPACE, tmp_path)
    nameless = torch.utils.data.Subset(Pictures(), [0, 1])
    with pytest.raises(ValueError, match="Subset has no fingerprint"):
        extract(Tower(), nameless, SPACE, tmp_path)
    assert len(extract(Tower(), nameless, SPACE)) == 2
    assert files(tmp_path) == []


def test_the_mini_vlp_on_mojiscenes(tmp_path):
    """The real towers, random weights: teacher exact, rounding of the tokens bounded where it ends up."""
    tower = vlp.load("hrcf-mini", pretrained=False)
    data = MojiScenes("train", 4)
    f = extract(tower, data, data.labels, tmp_path, batch=4)
    images = torch.stack([data[i][0] for i in range(4)])
    with torch.no_grad():
        exact = tower.trunk(images)
        assert torch.equal(f.teacher, tower.encode_image(images))
        rounded = f.batch(torch.arange(4))[0]
        assert ((rounded - exact).abs() <= exact.abs() * 2**-11 + 2**-24).all()
        e_p, close = tower.teacher(exact), tower.teacher(rounded)
        assert (e_p - close).norm() < 1e-3 * e_p.norm()
    assert torch.equal(f.labels[:, data.labels.n_seen :], torch.zeros(4, len(data.labels.unseen)))
    assert re.fullmatch(r"[0-9a-f]{16}\.npz", files(tmp_path)[0])


def test_fingerprint_of_mojiscenes():
    def key(split="val", size=3, **changes):
        return json.dumps(MojiScenes(split, size, **changes).fingerprint())

    assert key() == key()
    keys = [key(), key("test"), key(size=4), key(seed=1), key(side=56), key("train"), key("train", tag_noise=0.1)]
    assert len(set(keys)) == len(keys)
