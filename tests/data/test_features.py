"""The cache of frozen features: told apart by weights and data, never half written, resumable, close to float32."""

import json
import os
import shutil
import signal
import threading
from collections import namedtuple
from pathlib import Path

import numpy as np
import PIL
import processes
import pytest
import torch
from torch.utils.data import Dataset

from hrcf_lib import vlp
from hrcf_lib.data.feeds import features, store
from hrcf_lib.data.feeds.features import FrozenFeatures, extract
from hrcf_lib.data.feeds.order import BatchOrder, read_ahead
from hrcf_lib.data.feeds.store import Shards
from hrcf_lib.data.mojiscenes.scenes import MojiScenes
from hrcf_lib.engine import files, hashes
from hrcf_lib.labels import LabelSpace

SPACE = LabelSpace(["cat", "dog"], ["bus"])
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "features_18af21e"
WHOLE = {"about.json", "00000.trunk", "00000.safetensors"}
SHARDED = WHOLE | {f"0000{s}.{kind}" for s in (1, 2) for kind in ("trunk", "safetensors")}  # 7 pictures by 3


class Pictures(Dataset):
    """``n`` random pictures of 4 x 4 pixels; at picture ``fails_at`` it stops as an interrupted run would."""

    def __init__(self, n=7, seed=0, fails_at=None, fail=KeyboardInterrupt):
        self.n, self.seed, self.fails_at, self.fail, self.read = n, seed, fails_at, fail, []

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        if i == self.fails_at:
            raise self.fail
        self.read.append(i)
        rng = np.random.default_rng([self.seed, i])
        return torch.from_numpy(rng.integers(0, 256, (3, 4, 4), dtype=np.uint8)), torch.tensor([1.0, -1.0, 0.0])

    def fingerprint(self):
        return {"pictures": self.n, "seed": self.seed}


class Tower:
    """Stands for a VLP: tokens of the right shape, made from the pictures."""

    N, C, D, side, trained_blocks, name = 2, 6, 6, 4, 1, "tower"

    def __init__(self, weight=1.0):
        self.weight, self.mean, self.hash = weight, torch.zeros(3, 1, 1), f"hash {weight}"

    def trunk(self, images):
        x = images.float().flatten(1)[:, :30].reshape(-1, 5, 6) / 255
        return x * self.weight

    def teacher(self, trunk):
        return trunk.mean(dim=1)


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(store, "SHARD", 3)


def names(folder):
    return {p.name for p in folder.iterdir()}


def home(folder) -> Path:
    """The only cache in a folder."""
    (only,) = folder.iterdir()
    return only


def equal(a: FrozenFeatures, b: FrozenFeatures) -> bool:
    """Whether two sets of features agree bit for bit."""
    pairs = [(a.trunk[:], b.trunk[:]), (a.teacher, b.teacher), (a.labels, b.labels)]
    return a.space == b.space and all(x.dtype == y.dtype and torch.equal(x, y) for x, y in pairs)


# -- what is in it -----------------------------------------------------------------------------------------------------


def test_shapes_types_and_order():
    data = Pictures()
    f = extract(Tower(), data, SPACE, batch=3)
    x = torch.stack([data[i][0] for i in range(7)])
    assert len(f) == 7 and f.trunk.shape == (7, 5, 6) and f.trunk.dtype == torch.float16
    assert torch.equal(f.trunk[:], Tower().trunk(x).half())
    assert torch.equal(f.teacher, Tower().teacher(Tower().trunk(x))), "e_p is made before anything is rounded"
    assert f.teacher.dtype == torch.float32
    assert f.labels.tolist() == [[1, -1, 0]] * 7 and f.space == SPACE


def test_an_index_of_the_trunk_reads_across_shards():
    whole = torch.arange(7 * 2 * 3).view(7, 2, 3).bfloat16()
    trunk = Shards(list(whole.split(3)))
    assert trunk.shape == (7, 2, 3) and trunk.dtype == torch.bfloat16 and len(trunk) == 7
    rows = [6, 0, 3, 2, 2]
    for index in (rows, np.array(rows), torch.tensor(rows), slice(None), slice(2, 6), 5, torch.tensor(5), []):
        plain = index if isinstance(index, slice) else torch.as_tensor(index, dtype=torch.long)
        assert torch.equal(trunk[index], whole[plain])
    part = trunk.take(rows)
    assert part.shape == (5, 2, 3) and torch.equal(part[[1, 4]], whole[[0, 2]])
    assert torch.equal(part.take([4, 0])[:], whole[[2, 6]])
    with pytest.raises(IndexError):
        part[5]
    trunk[[0, 1]].zero_()
    trunk[3].zero_()
    assert torch.equal(trunk[:], whole), "what an index gives is a copy"


def test_batch_takes_rows_in_the_order_asked_for(tmp_path, small_shards):
    for folder in (None, tmp_path, tmp_path):
        f = extract(Tower(), Pictures(), SPACE, folder)
        trunk, teacher, labels = f.batch(torch.tensor([5, 0, 5]))
        assert trunk.dtype == torch.float32
        assert torch.equal(trunk, f.trunk[[5, 0, 5]].float())
        assert torch.equal(teacher, f.teacher[[5, 0, 5]]) and len(labels) == 3
        trunk.zero_()  # a copy: the cache stays as it is
        assert f.trunk[5].any()


def test_batches_are_those_of_features_in_one_piece(tmp_path, small_shards):
    whole, stored = extract(Tower(), Pictures(), SPACE), extract(Tower(), Pictures(), SPACE, tmp_path)
    assert len(stored.trunk.parts) == 3 and len(whole.trunk.parts) == 1
    exact = Tower().trunk(torch.stack([Pictures()[i][0] for i in range(7)])).half()
    shuffled, resumed, shared = BatchOrder(3, seed=1), BatchOrder(2, seed=1, skip=2), BatchOrder(2, 3, rank=1, world=3)
    for order in (BatchOrder(2), shuffled, resumed, shared):
        expected = order.rows(7)
        for source in (whole, stored):
            found = list(source.batches(order))
            assert len(found) == len(expected)
            for own, (rows, inputs, labels) in zip(expected, found):
                assert torch.equal(rows, own) and torch.equal(inputs[0], exact[own])
                assert torch.equal(inputs[1], whole.teacher[own]) and torch.equal(labels, whole.labels[own])
                assert torch.equal(source.tokens(Tower(), inputs), exact[own].float())
                assert torch.equal(source.frozen(Tower(), inputs)[1], whole.teacher[own])


def test_some_pictures_stay_where_they_are(tmp_path, small_shards, monkeypatch):
    f = extract(Tower(), Pictures(), SPACE, tmp_path)
    everything, teacher, labels = f.trunk[:], f.teacher, f.labels.clone()
    labels[:, 0] = torch.arange(7)
    f.labels = labels
    monkeypatch.setattr(Shards, "__getitem__", None)  # from here on, reading is an error
    first, mixed = f.take(range(4)), f.take([6, 2], labels_of=[0, 1]).take([1])
    for part in (first, mixed):
        assert all(a.data_ptr() == b.data_ptr() for a, b in zip(part.trunk.parts, f.trunk.parts))
    monkeypatch.undo()
    assert torch.equal(first.trunk[:], everything[:4]) and torch.equal(first.teacher, teacher[:4])
    assert torch.equal(mixed.trunk[:], everything[[2]]) and torch.equal(mixed.teacher, teacher[[2]])
    assert first.labels[:, 0].tolist() == [0, 1, 2, 3] and mixed.labels[:, 0].tolist() == [1]


@pytest.mark.parametrize("stored", [False, True])
def test_rounding_is_that_of_float16(tmp_path, small_shards, stored):
    data, tower = Pictures(), Tower(1 / 3)
    f = extract(tower, data, SPACE, tmp_path if stored else None)
    exact = tower.trunk(torch.stack([data[i][0] for i in range(7)]))
    rounded = f.batch(torch.arange(7))[0]
    assert f.identity()["precision"] == "float16"
    assert ((rounded - exact).abs() <= exact.abs() * 2**-11).all()
    assert torch.equal(f.trunk[:], exact.half()) and torch.equal(f.teacher, tower.teacher(exact))
    if stored:
        assert (home(tmp_path) / "00000.trunk").stat().st_size == 3 * 5 * 6 * 2


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


# -- the cache ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "batch"), [(3, 2), (3, 64), (4, 4), (7, 3), (100, 64)])
def test_the_second_time_it_is_read_not_computed(tmp_path, monkeypatch, size, batch):
    monkeypatch.setattr(store, "SHARD", size)
    data = Pictures()
    first = extract(Tower(), data, SPACE, tmp_path, batch)
    assert data.read == list(range(7)), "each picture once, in order"
    again = extract(Tower(), data, SPACE, tmp_path, batch)
    assert data.read == list(range(7))
    assert [len(part) for part in again.trunk.parts] == [len(part) for part in torch.arange(7).split(size)]
    assert equal(first, again) and equal(first, extract(Tower(), data, SPACE))
    assert len(names(home(tmp_path))) == 1 + 2 * len(again.trunk.parts)


def test_a_cache_made_before_the_packages_is_read_not_computed(tmp_path, small_shards, monkeypatch):
    """Made at commit 18af21e by ``extract(Tower(), Pictures(), SPACE, folder)`` in shards of 3 pictures."""
    shutil.copytree(GOLDEN, tmp_path / "features")
    (key,) = (path.name for path in GOLDEN.iterdir())
    about = json.loads((GOLDEN / key / "about.json").read_text("utf-8"))
    monkeypatch.setattr(PIL, "__version__", about["reading"].removeprefix("Pillow "))
    data = Pictures()
    old = extract(Tower(), data, SPACE, tmp_path / "features")
    assert data.read == [] and equal(old, extract(Tower(), Pictures(), SPACE))
    extract(Tower(), Pictures(), SPACE, tmp_path / "anew")
    assert names(tmp_path / "anew" / key) == SHARDED, "the same key"
    for file in ("about.json", "00000.trunk", "00002.trunk"):
        assert (tmp_path / "anew" / key / file).read_bytes() == (GOLDEN / key / file).read_bytes()


def test_the_map_never_changes_the_file(tmp_path):
    f = extract(Tower(), Pictures(), SPACE, tmp_path)
    before = (home(tmp_path) / "00000.trunk").read_bytes()
    f.trunk.parts[0].zero_()
    assert (home(tmp_path) / "00000.trunk").read_bytes() == before and any(before)


def test_anything_else_is_another_cache(tmp_path):
    class Wide(Tower):
        side = 8

    class Other(Tower):
        name = "other"

    class Deep(Tower):
        trained_blocks = 2

    runs = [(tower, Pictures(), SPACE) for tower in (Tower(), Tower(2.0), Wide(), Other(), Deep())]
    runs += [(Tower(), Pictures(seed=1), SPACE), (Tower(), Pictures(6), SPACE)]
    runs += [(Tower(), Pictures(), LabelSpace(["cat", "dog"], ["car"]))]
    for n, (tower, data, space) in enumerate(runs, 1):
        f = extract(tower, data, space, tmp_path)
        assert len(data.read) == len(data) and f.space == space
        assert equal(f, extract(tower, data, space))
        assert len(names(tmp_path)) == n


def test_another_release_of_what_resizes_pictures_is_another_cache(tmp_path, monkeypatch):
    extract(Tower(), Pictures(), SPACE, tmp_path)
    monkeypatch.setattr(PIL, "__version__", "0.1")
    data = Pictures()
    extract(Tower(), data, SPACE, tmp_path)
    assert len(data.read) == 7 and len(list(tmp_path.iterdir())) == 2


def test_rows_are_numbers_and_no_mask():
    with pytest.raises(ValueError, match=r"not a mask: give mask.nonzero"):
        extract(Tower(), Pictures(), SPACE).take(np.array([True, False, True]))


def test_another_form_of_the_files_is_another_cache(tmp_path, monkeypatch):
    for n, (name, value) in enumerate([("FORM", store.FORM), ("FORM", 99), ("SHARD", 2)], 1):
        monkeypatch.setattr(store, name, value)
        data = Pictures()
        extract(Tower(), data, SPACE, tmp_path)
        assert len(data.read) == 7 and len(names(tmp_path)) == n


def test_about_says_what_the_features_are(tmp_path):
    extract(Tower(), Pictures(), SPACE, tmp_path)
    path = home(tmp_path) / "about.json"
    about = json.loads(path.read_text("utf-8"))
    assert about.pop("what").startswith("frozen features of hrcf_lib")
    expected = {"VLP": "tower", "weights": "hash 1.0", "picture side": 4, "precision": "float16", "tokens": [5, 6]}
    expected |= {"labels": ["cat", "dog", "bus"], "data": {"pictures": 7, "seed": 0}, "pictures": 7}
    expected["reading"] = f"Pillow {PIL.__version__}"
    assert about == expected | {"form": store.FORM, "pictures a shard": store.SHARD}


def test_about_is_checked(tmp_path):
    extract(Tower(), Pictures(), SPACE, tmp_path)
    path = home(tmp_path) / "about.json"
    text = path.read_text("utf-8")
    path.write_text(text.replace("hash 1.0", "hash 7.0"))
    with pytest.raises(ValueError, match="other features.*\n  weights: there hash 7.0, here hash 1.0\ndelete the"):
        extract(Tower(), Pictures(), SPACE, tmp_path)
    path.write_text(text[:40])
    with pytest.raises(ValueError, match="about.json is damaged .*: delete the folder"):
        extract(Tower(), Pictures(), SPACE, tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match="has shards and no about.json: delete the folder"):
        extract(Tower(), Pictures(), SPACE, tmp_path)


# -- interrupted -------------------------------------------------------------------------------------------------------


def test_an_interrupted_run_goes_on_after_its_last_whole_shard(tmp_path, small_shards):
    expected = extract(Tower(), Pictures(), SPACE)
    for fails_at, read, there in ((1, [0], 0), (5, [0, 1, 2, 3, 4], 1), (6, [3, 4, 5], 2)):
        data = Pictures(fails_at=fails_at)
        with pytest.raises(KeyboardInterrupt):
            extract(Tower(), data, SPACE, tmp_path, batch=1)
        assert data.read == read
        found = names(home(tmp_path)) if there else names(tmp_path)
        assert len(found) == (1 + 2 * there if there else 0), "whole shards, and nothing else"
        assert not any(name.endswith(".part") for name in found)
    data = Pictures()
    assert equal(extract(Tower(), data, SPACE, tmp_path, batch=1), expected)
    assert data.read == [6] and names(home(tmp_path)) == SHARDED


class Kills(Pictures):
    """At picture 4, the process that reads them."""

    def __getitem__(self, i):
        if i == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(i)


def die_at_picture_four(folder) -> None:
    store.SHARD = 3
    extract(Tower(), Kills(), SPACE, folder, batch=1)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_run_goes_on_after_its_last_whole_shard(tmp_path, small_shards):
    assert processes.run(die_at_picture_four, tmp_path) == [-signal.SIGKILL]
    (part,) = home(tmp_path).glob("*.part")
    assert names(home(tmp_path)) == WHOLE | {part.name} and part.name.startswith("00001.trunk.")
    data = Pictures()
    f = extract(Tower(), data, SPACE, tmp_path)
    assert data.read == [3, 4, 5, 6] and equal(f, extract(Tower(), data, SPACE))
    assert names(home(tmp_path)) == SHARDED, "what the killed process left is cleared away"


def test_only_what_is_missing_is_made_anew(tmp_path, small_shards):
    expected = extract(Tower(), Pictures(), SPACE, tmp_path)
    expected = FrozenFeatures(expected.trunk[:], expected.teacher, expected.labels, SPACE)
    for gone, rows in (("00001.trunk", [3, 4, 5]), ("00002.safetensors", [6]), ("00000.trunk", [0, 1, 2])):
        (home(tmp_path) / gone).unlink()
        data = Pictures()
        assert equal(extract(Tower(), data, SPACE, tmp_path), expected)
        assert data.read == rows and names(home(tmp_path)) == SHARDED


def test_two_runs_at_once_do_no_harm(tmp_path, small_shards, monkeypatch):
    """A whole second run takes place while the first is in the middle of a shard."""
    parts, real = [], Pictures.__getitem__

    def read(self, i):
        if i == 4 and not parts:
            parts.extend(p.name for p in home(tmp_path).glob("*.part"))
            with monkeypatch.context() as other:
                other.setattr(files.os, "getpid", lambda: 1)
                extract(Tower(), Pictures(), SPACE, tmp_path, batch=1)
            assert names(home(tmp_path)) == SHARDED | set(parts)
        return real(self, i)

    monkeypatch.setattr(Pictures, "__getitem__", read)
    f = extract(Tower(), Pictures(), SPACE, tmp_path, batch=1)
    assert [part.rpartition("-")[0] for part in parts] == [f"00001.trunk.{os.getpid()}"]
    assert equal(f, extract(Tower(), Pictures(), SPACE)) and names(home(tmp_path)) == SHARDED


def damage(how: str, folder: Path) -> None:
    """Do to a cache of shards of 3, 3 and 1 pictures what a disk, or a wrong copy, does."""
    paths = [folder / f"0000{s}.{kind}" for s in (0, 1) for kind in ("trunk", "safetensors")]
    trunk, small = paths[:2]
    flips = {"a token's bit": (trunk, 77), "a label's bit": (small, -1), "the teacher's bit": (small, -20)}
    if how in flips:
        path, at = flips[how]
        content = bytearray(path.read_bytes())
        content[at] ^= 1
        path.write_bytes(content)
    elif how.startswith("cut"):
        path = trunk if how == "cut tokens" else small
        path.write_bytes(path.read_bytes()[:-1])
    elif how == "foreign embeddings":
        small.write_bytes(b"something else")
    for one in {"tokens swapped": (0,), "shards swapped": (0, 1)}.get(how, ()):
        first, second = (paths[at].read_bytes() for at in (one, one + 2))
        paths[one].write_bytes(second)
        paths[one + 2].write_bytes(first)


@pytest.mark.parametrize(
    "how",
    [
        "a token's bit",
        "the teacher's bit",
        "a label's bit",
        "cut tokens",
        "cut embeddings",
        "foreign embeddings",
        "tokens swapped",
        "shards swapped",
    ],
)
def test_a_damaged_shard_is_computed_again_with_a_warning(tmp_path, small_shards, how):
    expected = extract(Tower(), Pictures(), SPACE)
    extract(Tower(), Pictures(), SPACE, tmp_path)
    damage(how, home(tmp_path))
    data = Pictures()
    with pytest.warns(UserWarning, match=r"0000[01]\.\w+ is .*: these features are computed again") as told:
        assert equal(extract(Tower(), data, SPACE, tmp_path), expected)
    assert data.read == [0, 1, 2, 3, 4, 5][: 6 if "swapped" in how else 3] and len(told) == 1
    data = Pictures()
    assert equal(extract(Tower(), data, SPACE, tmp_path), expected) and data.read == []


def test_shards_of_another_cache_are_told(tmp_path, small_shards):
    """Those of another VLP, both files of them: each is whole."""
    expected = extract(Tower(), Pictures(), SPACE)
    extract(Tower(), Pictures(), SPACE, tmp_path / "a")
    extract(Tower(2.0), Pictures(), SPACE, tmp_path / "b")
    for name in ("00001.trunk", "00001.safetensors"):
        shutil.copy(home(tmp_path / "b") / name, home(tmp_path / "a") / name)
    with pytest.warns(UserWarning, match="00001.safetensors is another file .shard"):
        assert equal(extract(Tower(), Pictures(), SPACE, tmp_path / "a"), expected)


def test_tokens_are_read_through_once_and_by_one_process_of_a_machine(tmp_path, small_shards, monkeypatch):
    extract(Tower(), Pictures(), SPACE, tmp_path)
    monkeypatch.setattr(hashes, "hash_file", lambda path: pytest.fail("it was checked when it was written"))
    extract(Tower(), Pictures(), SPACE, tmp_path)
    (home(tmp_path) / "00000.trunk").touch()
    monkeypatch.setenv("LOCAL_RANK", "1")
    extract(Tower(), Pictures(), SPACE, tmp_path)


def test_progress_starts_at_what_is_there(tmp_path, small_shards, monkeypatch):
    shown, real = [], features.tqdm

    def tqdm(**more):
        bar = real(**more | {"disable": False, "file": open(os.devnull, "w")})
        shown.append(bar)
        return bar

    monkeypatch.setattr(features, "tqdm", tqdm)
    with pytest.raises(KeyboardInterrupt):
        extract(Tower(), Pictures(fails_at=5), SPACE, tmp_path, batch=2)
    extract(Tower(), Pictures(), SPACE, tmp_path, batch=2)
    extract(Tower(), Pictures(), SPACE, tmp_path)
    assert [(bar.initial, bar.n, bar.total) for bar in shown] == [(0, 5, 7), (3, 7, 7)]


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match="the dataset is empty"):
        extract(Tower(), Pictures(0), SPACE)
    for folder in (None, tmp_path):
        with pytest.raises(ValueError, match="annotates 3 labels, the label space has 2 names"):
            extract(Tower(), Pictures(), LabelSpace(["cat", "dog"]), folder)
        for weight in (1e9, float("nan")):
            with pytest.raises(ValueError, match="features of picture 0 are NaN or beyond float16"):
                extract(Tower(weight), Pictures(), SPACE, folder)
    nameless = torch.utils.data.Subset(Pictures(), [0, 1])
    with pytest.raises(ValueError, match="Subset has no fingerprint"):
        extract(Tower(), nameless, SPACE, tmp_path)
    assert len(extract(Tower(), nameless, SPACE)) == 2
    assert names(tmp_path) == set()


def test_a_bad_picture_is_named_by_its_own_row_after_a_resume(tmp_path, small_shards):
    class Breaks(Tower):
        def trunk(self, images):
            return super().trunk(images).masked_fill((images == Pictures()[5][0]).all(), torch.nan)

    for read in ([0, 1, 2, 3, 4, 5], [3, 4, 5]):
        data = Pictures()
        with pytest.raises(ValueError, match="features of picture 5 are NaN"):
            extract(Breaks(), data, SPACE, tmp_path, batch=1)
        assert data.read == read


def test_a_full_disk_is_an_error_before_the_work(tmp_path, small_shards, monkeypatch):
    """Seven pictures of 5 x 6 float16 tokens, 6 embedding dimensions and 3 labels need 672 bytes."""
    need, usage = 7 * (5 * 6 * 2 + 4 * (6 + 3)), namedtuple("usage", "total used free")
    monkeypatch.setattr(store.shutil, "disk_usage", lambda path: usage(0, 0, need - 1))
    data = Pictures()
    with pytest.raises(OSError, match="of 7 pictures need 0.00 GB and .* has 0.00 GB free: give another folder"):
        extract(Tower(), data, SPACE, tmp_path)
    assert not data.read and names(tmp_path) == set()
    monkeypatch.setattr(store.shutil, "disk_usage", lambda path: usage(0, 0, need))
    extract(Tower(), data, SPACE, tmp_path)
    monkeypatch.setattr(store.shutil, "disk_usage", lambda path: usage(0, 0, need // 7))
    (home(tmp_path) / "00002.trunk").unlink()  # only one picture is missing
    assert len(extract(Tower(), data, SPACE, tmp_path)) == 7


def test_fingerprint_of_mojiscenes():
    def key(split="val", size=3, **changes):
        return json.dumps(MojiScenes(split, size, **changes).fingerprint())

    assert key() == key()
    keys = [key(), key("test"), key(size=4), key(seed=1), key(side=56), key("train"), key("train", tag_noise=0.1)]
    assert len(set(keys)) == len(keys)


# -- reading ahead -----------------------------------------------------------------------------------------------------


def test_the_next_is_read_while_the_current_is_used():
    begun = [threading.Event() for _ in range(4)]

    def read(i):
        begun[i].set()
        return 10 * i

    found = []
    for value in read_ahead(read, range(4)):
        found.append(value)
        at = len(found)
        assert at == 4 or begun[at].wait(timeout=180), "nobody asked for it yet"
        assert not any(event.is_set() for event in begun[at + 1 :]), "one ahead, no more"
    assert found == [0, 10, 20, 30] and list(read_ahead(read, [])) == []


def test_an_error_comes_in_the_place_of_its_result():
    def read(i):
        if i == 2:
            raise KeyError("two")
        return i

    ahead = read_ahead(read, range(5))
    assert [next(ahead), next(ahead)] == [0, 1]
    with pytest.raises(KeyError, match="two"):
        next(ahead)
    assert list(ahead) == []


def test_an_abandoned_iterator_leaves_no_thread():
    f = extract(Tower(), Pictures(), SPACE)
    before = threading.active_count()
    for end in ("used up", "left", "closed"):
        batches = f.batches(BatchOrder(2))
        next(batches)
        assert threading.active_count() == before + 1
        if end == "used up":
            list(batches)
        elif end == "closed":
            batches.close()
        del batches
        assert threading.active_count() == before


def test_features_and_labels_are_of_the_same_pictures():
    tokens, teacher, labels = torch.zeros(4, 5, 2), torch.zeros(4, 3), torch.zeros(4, 3)
    held = FrozenFeatures(tokens.numpy(), teacher.numpy(), labels.numpy(), SPACE)
    assert all(isinstance(x, torch.Tensor) for x in (held.teacher, held.labels)) and len(held) == 4
    with pytest.raises(ValueError, match="tokens of 4, teacher embeddings of 3, labels of 4 pictures: give all three"):
        FrozenFeatures(tokens, teacher[:3], labels, SPACE)
    with pytest.raises(ValueError, match="labels of 5 pictures"):
        FrozenFeatures(tokens, teacher, torch.zeros(5, 3), SPACE)
    with pytest.raises(ValueError, match=r"labels \(4, 2\) of a LabelSpace with 3 names"):
        FrozenFeatures(tokens, teacher, labels[:, :2], SPACE)
