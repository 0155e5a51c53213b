"""Partial labels: the published random numbers, and masks that stay with their pictures."""

import numpy as np
import pytest
import torch
from official_formats import save_json
from test_data_common import SPACE, write

from hrcf_lib import config as configs
from hrcf_lib import data
from hrcf_lib.data import hide_labels
from hrcf_lib.data.labelled_folder import label_matrix
from hrcf_lib.data.official.checks import label_list


def test_masks_are_those_of_sarb():
    numbers = np.array([0.5488, 0.7152, 0.6028, 0.5449])
    for p in np.arange(1, 10) / 10:
        np.random.seed(0)  # noqa: NPY002 the published code
        published = np.random.random((3, 4)) < p  # noqa: NPY002
        mask = hide_labels.known_mask(3, 4, p)
        assert np.array_equal(mask, published) and np.array_equal(mask[0], numbers < p)
    assert hide_labels.known_mask(3, 4, 1).all()


def test_masks_nest_and_do_not_depend_on_later_rows():
    masks = [hide_labels.known_mask(200, 30, p) for p in (0.1, 0.5, 0.9)]
    assert (masks[0] <= masks[1]).all() and (masks[1] <= masks[2]).all()
    assert np.allclose([mask.mean() for mask in masks], [0.1, 0.5, 0.9], atol=0.02)
    assert np.array_equal(hide_labels.known_mask(50, 30, 0.5), masks[1][:50])
    assert not np.array_equal(hide_labels.known_mask(200, 30, 0.5, seed=1), masks[1])
    big = hide_labels.known_mask(5, 2**21, 0.5)  # more than one block
    assert np.array_equal(big, np.random.RandomState(0).random_sample((5, 2**21)) < 0.5)


@pytest.mark.parametrize("p", [0, -0.1, 1.1, float("nan"), "0.5", None])
def test_bad_proportions(p):
    with pytest.raises(ValueError, match="give the share of labels that are known"):
        hide_labels.known_mask(3, 4, p)


@pytest.mark.parametrize("seed", [-1, "a", 1.5, None, 2**32])
def test_bad_seeds(seed):
    for call in (
        lambda: hide_labels.known_mask(3, 4, 0.5, seed),
        lambda: hide_labels.single_positive(np.ones((2, 2)), seed),
        lambda: hide_labels.hide_all_but_one([], seed),
        lambda: hide_labels.train_val(10, seed=seed),
    ):
        with pytest.raises(ValueError, match=f"seed = {seed!r}: give a whole number from 0 to"):
            call()
    with pytest.raises(ValueError, match="share = '0.2': give the share of the pictures"):
        hide_labels.train_val(10, "0.2")


def test_single_positive_consumes_the_stream_as_published():
    rng = np.random.default_rng(0)
    y = np.where(rng.random((40, 12)) < 0.3, 1, -1)
    y[5] = -1
    generator, expected = np.random.RandomState(1200), np.zeros(y.shape, bool)
    for i in range(len(y)):
        positives, negatives = list(np.flatnonzero(y[i] == 1)), list(np.flatnonzero(y[i] != 1))
        generator.shuffle(positives)
        generator.shuffle(negatives)
        expected[i, positives[:1]] = True
    known = hide_labels.single_positive(y)
    assert np.array_equal(known, expected) and known.sum() == (y > 0).any(1).sum() < 40 and (y[known] == 1).all()
    with pytest.raises(ValueError, match=r"column 2 of row 1 reads 0 \(1 such entries\).*starts from complete labels"):
        hide_labels.single_positive(np.array([[1, -1, 1], [-1, -1, 0]]))
    with pytest.raises(ValueError, match=r"labels of shape \(2,\): .* starts from a table"):
        hide_labels.single_positive(np.ones(2))


def test_train_val():
    order = np.random.RandomState(1200).permutation(5717)
    train, val = hide_labels.train_val(5717)
    assert len(val) == 1143 and val.tolist() == sorted(order[-1143:]) and train.tolist() == sorted(order[:-1143])
    with pytest.raises(ValueError, match="0.2 of 2 pictures leaves 2 for training and 0 for validation"):
        hide_labels.train_val(2)


def test_a_mask_stays_with_its_pictures_when_others_are_missing(tmp_path):
    complete = [(str(k), [k % 3], [c for c in range(3) if c != k % 3]) for k in range(30)]
    whole = data.load(write(tmp_path / "whole", rows=complete), split="train")
    hidden = hide_labels.hide(whole, 0.5)
    mask = np.zeros((30, 3), bool)  # an unseen label is hidden altogether
    mask[:, : SPACE.n_seen] = hide_labels.known_mask(30, SPACE.n_seen, 0.5)
    y = torch.stack([hidden.label_vector(i) for i in range(30)])
    assert torch.equal(y, torch.stack([whole.label_vector(i) for i in range(30)]) * torch.from_numpy(mask))
    assert hidden.labels == SPACE and len(hidden) == 30
    gaps = hide_labels.hide(whole.take([3, 10, 29]), 0.5)  # what is left of a re-crawl
    assert torch.equal(torch.stack([gaps.label_vector(i) for i in range(3)]), y[[3, 10, 29]])
    with pytest.warns(UserWarning, match="27 pictures of the official list are missing"):
        hide_labels.hide_all_but_one(whole.take([3, 10, 29]))
    one = hide_labels.hide_all_but_one(whole)
    positives = torch.tensor([float(k % 3 < SPACE.n_seen) for k in range(30)])
    assert (torch.stack([one.label_vector(i) for i in range(30)]).sum(1) == positives).all()
    assert len({hidden.fingerprint(), one.fingerprint(), hide_labels.hide(whole, 0.6).fingerprint()}) == 3


def test_coles_order_of_coco(tmp_path, recwarn):
    """Annotated images only, by their ids as text: 10 comes before 9."""
    folder = coco_like(tmp_path, ids=[9, 100, 20, 10, 3], blank=[20], annotated_only=True)
    train = data.load(folder / "coco", split="train")
    assert list(train.ids) == ["9", "100", "10", "3"]
    order = hide_labels.official_order(train, "coco")
    hidden = hide_labels.hide_all_but_one(train, order=order)
    y = np.stack([train.label_vector(train.ids[:].index(id)).numpy() for id in ("10", "100", "3", "9")])
    expected = hide_labels.single_positive(y)
    assert np.array_equal(hidden.known[order], expected) and not len(recwarn)
    assert not np.array_equal(hide_labels.hide_all_but_one(train).known, hidden.known)
    for wrong in ([0, 1, 2], [0, 1, 2, 2]):
        with pytest.raises(ValueError, match="order has to name each of the 4 pictures once"):
            hide_labels.hide_all_but_one(train, order=wrong)


def coco_like(tmp_path, ids=range(1, 41), blank=range(10, 41, 10), **settings):
    """The folder of prepared data sets, with a COCO of pictures ``ids`` in each split; ``blank`` ones show nothing."""
    categories = [{"id": k, "name": name} for k, name in enumerate(label_list("coco80.txt"), 1)]
    for split in ("train", "val"):
        first = 10_000 * (split == "val")
        images = [{"id": first + i, "file_name": f"{split}{i}.jpg"} for i in ids]
        shown = [i for i in ids if i not in blank]
        rows = [{"image_id": first + i, "category_id": c} for i in shown for c in range(1, 81) if i * c % 7 < 3]
        content = {"images": images, "annotations": rows, "categories": categories}
        save_json(tmp_path / "coco" / f"instances_{split}2014.json", content)
    data.coco.prepare(tmp_path / "coco", tmp_path / "data" / "coco", images=False, **settings)
    return tmp_path / "data"


def test_a_part_of_train_is_held_out_as_cole_does(tmp_path, recwarn):
    folder = coco_like(tmp_path, annotated_only=True)
    config = configs.coco_48_17().replace(dataset="coco", stream=False, single_positive=True)
    assert data.splits(config, folder) == ["train", "test"]
    config = config.replace(held_out=0.2)
    assert data.splits(config, folder) == ["train", "test", "val"]
    train, val, whole = (
        data.open_split(c, split, folder)
        for c, split in [(config, "train"), (config, "val"), (config.replace(held_out=0.0), "train")]
    )
    as_text = sorted(whole.ids[:])
    rows = hide_labels.train_val(36, 0.2)
    assert (len(train), len(val)) == (29, 7)
    assert sorted(val.ids[:]) == [as_text[i] for i in rows[1]] and sorted(train.ids[:]) == [as_text[i] for i in rows[0]]
    assert (label_matrix(val) != 0).all(), "its labels are complete"
    hidden = label_matrix(hide_labels.hide_as(config, train))
    texts = train.ids[:]
    y = np.stack([train.label_vector(texts.index(i)).numpy() for i in sorted(texts)])
    expected = hide_labels.single_positive(y)
    assert np.array_equal(hidden[[texts.index(i) for i in sorted(texts)]] == 1, expected)
    assert not [w for w in recwarn if "official list are missing" in str(w.message) or "annotated" in str(w.message)]
    assert len(data.open_split(config.replace(train_size=5, val_size=3), "train", folder)) == 5
    mask = hide_labels.known_mask(40, 80, 0.5)  # by official row, whatever is held out
    half = label_matrix(hide_labels.hide(train, 0.5)).numpy()
    assert np.array_equal(half != 0, mask[train.rows])


def test_coco_with_pictures_that_show_nothing_is_told_apart_from_coles_lists(tmp_path):
    folder = coco_like(tmp_path)
    config = configs.coco_48_17().replace(dataset="coco", stream=False, single_positive=True)
    with pytest.warns(UserWarning, match="4 pictures of coco show no label .* prepare it with annotated_only=True"):
        hide_labels.hide_as(config, data.open_split(config, "train", folder))


def test_what_cannot_be_held_out(tmp_path):
    with pytest.raises(ValueError, match=r"held_out = 0.2 of mojiscenes, which has a val of its own: set it to 0"):
        configs.mini().replace(held_out=0.2)
    with pytest.raises(ValueError, match=r"held_out = 0.2 of a stream, which is not divided"):
        configs.nus_wide().replace(held_out=0.2, stream=True)
    write(tmp_path / "folder", splits=("train", "val", "test"))
    config = configs.nus_wide().replace(dataset="folder", held_out=0.2)
    for ask in (data.splits, lambda *a: data.open_split(a[0], "val", a[1])):
        with pytest.raises(ValueError, match="held_out = 0.2 of folder, which has a val of its own"):
            ask(config, tmp_path)


def test_a_mask_falls_on_one_split(tmp_path):
    both = data.load(write(tmp_path / "out", splits=("train", "test")))
    with pytest.raises(ValueError, match=r"the table holds test, train: hide labels of one split"):
        hide_labels.hide(both, 0.5)
    with pytest.raises(ValueError, match=r"a mask \(2, 3\) for 8 pictures x 3 labels"):
        hide_labels.Hidden(both, np.ones((2, 3), bool))
