"""Training and evaluating on pictures themselves: augmentation, streamed shards, one order for all processes."""

import random

import numpy as np
import official_formats
import pytest
import synthetic
import torch
from PIL import Image

from hrcf_lib import data, methods
from hrcf_lib.config import names_where
from hrcf_lib.data import mojiscenes
from hrcf_lib.data.feeds.features import extract
from hrcf_lib.data.feeds.order import BatchOrder
from hrcf_lib.data.feeds.pictures import Pictures, StreamedPictures, augmentation
from hrcf_lib.data.official import nus_wide
from hrcf_lib.evaluation import evaluate
from hrcf_lib.methods.plain_vlp import zero_shot
from hrcf_lib.training import train

RAND = "rand-m9-mstd0.5-inc1"


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A NUS-WIDE tree of 24 pictures in the common form, and its root."""
    root = tmp_path_factory.mktemp("nus")
    official_formats.nus_wide(root / "source", n=24)
    return nus_wide.prepare(root / "source", root / "out")


@pytest.fixture(scope="module")
def model():
    return synthetic.model()


@pytest.fixture(scope="module")
def dataset(table):
    return data.load(table, side=112, split="train", hide_unseen=True)


def views(source, order):
    """Every view of a pass by its row: picture and labels."""
    found = {}
    for rows, (images,), labels in source.batches(order):
        assert len(rows) == len(images) == len(labels)
        for row, image, y in zip(rows, images, labels):
            assert row not in found
            found[row] = (image, y)
    return found


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(x, y) for row in a for x, y in zip(a[row], b[row]))


# -- the order ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_processes_share_every_batch(world):
    whole = BatchOrder(4, seed=7).batches(10)
    shares = [BatchOrder(4, seed=7, rank=rank, world=world).rows(10) for rank in range(world)]
    for step, rows in enumerate(whole):
        assert sorted(torch.cat([share[step] for share in shares]).tolist()) == sorted(rows.tolist())
    assert sorted(torch.cat(whole).tolist()) == list(range(10)) and [len(rows) for rows in whole] == [4, 4, 2]
    rest = BatchOrder(4, seed=7, skip=2).rows(10)
    assert len(rest) == 1 and torch.equal(rest[0], whole[2]) and BatchOrder(4).steps(10) == 3


def test_without_a_seed_pictures_come_in_their_order():
    assert [rows.tolist() for rows in BatchOrder(3).batches(7)] == [[0, 1, 2], [3, 4, 5], [6]]


# -- views -------------------------------------------------------------------------------------------------------------


def test_without_augmentation_views_are_the_items(dataset, model):
    source = Pictures(dataset, model.vlp)
    found = views(source, BatchOrder(5))
    assert list(found) == list(range(16))
    for row, (image, y) in found.items():
        assert torch.equal(image, dataset[row][0]) and torch.equal(y, dataset[row][1])
    assert torch.equal(source.labels, torch.stack([y for _, y in found.values()]).to(torch.int8))


def test_a_view_depends_on_seed_and_row_alone(dataset, model):
    source = Pictures(dataset, model.vlp, RAND)
    once = views(source, BatchOrder(5, seed=1))
    random.random(), np.random.random(), torch.rand(1)  # noqa: NPY002
    assert equal(once, views(Pictures(dataset, model.vlp, RAND, workers=2), BatchOrder(7, seed=1)))
    other = views(source, BatchOrder(5, seed=2))
    assert not any(torch.equal(once[row][0], other[row][0]) for row in once)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    source.view(0, 3)
    assert random.getstate() == states[0] and np.random.get_state()[1].tolist() == states[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])


def test_a_view_is_of_its_picture(dataset, model):
    """RandAugment moves colours and crops, and labels stay; most of the views differ from the plain picture."""
    source = Pictures(dataset, model.vlp, RAND)
    found = views(source, BatchOrder(4, seed=0))
    for row, (image, y) in found.items():
        assert image.shape == (3, 112, 112) and image.dtype == torch.uint8
        assert torch.equal(y, dataset.label_vector(row))
    assert sum(torch.equal(image, dataset[row][0]) for row, (image, _) in found.items()) <= 1
    assert views(source, BatchOrder(4)).keys() == set(range(16)), "a pass without a seed is not augmented"
    assert torch.equal(views(source, BatchOrder(4))[3][0], dataset[3][0])


def test_fill_colour_is_the_vlps_mean(model):
    """timm fills what a rotation uncovers with the mean that it is given: grey for the mini VLP, not ImageNet's."""
    from hrcf_lib.data.feeds.pictures import augmentation

    ops = augmentation(RAND, model.vlp).transforms
    fill = [op.hparams["img_mean"] for t in ops if hasattr(t, "ops") for op in t.ops]
    assert set(fill) == {(128, 128, 128)}


def test_every_operation_of_randaugment_takes_the_highest_magnitude(model):
    """Magnitude 9 with deviation 0.5 is cut at 10, where "posterize" keeps no bit: one draw in 43."""
    image = Image.new("RGB", (64, 48), (200, 100, 50))
    ops = [op for step in augmentation(RAND, model.vlp).transforms for op in getattr(step, "ops", ())]
    assert len(ops) > 10
    for op in ops:
        op.prob, op.magnitude, op.magnitude_std = 1, 10, 0
        assert op(image).size == image.size


def test_augmentation_needs_originals(model):
    class Bare(torch.utils.data.Dataset):
        labels = synthetic.SPACE

    with pytest.raises(ValueError, match=r"Bare has no original\(i\)"):
        Pictures(Bare(), model.vlp, RAND)


# -- streamed ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2, 4])
def test_streamed_rows_come_once_and_in_one_order(table, model, world):
    source = StreamedPictures(table, model.vlp, RAND, buffer=5)
    whole = [rows for rows, _, _ in source.batches(BatchOrder(4, seed=3))]
    shares = [[rows for rows, _, _ in source.batches(BatchOrder(4, 3, 0, rank, world))] for rank in range(world)]
    assert len(source) == 16 and len(whole) == 4
    for step, rows in enumerate(whole):
        assert sorted(file for share in shares for file in share[step]) == sorted(rows)
    assert len({file for rows in whole for file in rows}) == 16
    other = [rows for rows, _, _ in source.batches(BatchOrder(4, seed=4))]
    assert other != whole and [rows for rows, _, _ in source.batches(BatchOrder(4, seed=3, skip=2))] == whole[2:]


def test_another_shuffle_buffer_is_another_run(table, model):
    one, two = (StreamedPictures(table, model.vlp, buffer=size).identity() for size in (4, 8))
    assert {key for key in one if one[key] != two[key]} and not set(one) & set(names_where(weights=False))


def test_streamed_views_are_those_of_the_table(table, dataset, model):
    streamed = views(StreamedPictures(table, model.vlp), BatchOrder(5))
    whole = views(Pictures(dataset, model.vlp), BatchOrder(5))
    assert list(streamed) == list(dataset.files)
    assert all(torch.equal(a, b) for x, y in zip(streamed.values(), whole.values()) for a, b in zip(x, y))


def test_a_batch_that_does_not_divide_is_refused(table, model):
    with pytest.raises(ValueError, match="batch of 4 .* evenly between 3 processes: choose another"):
        next(StreamedPictures(table, model.vlp).batches(BatchOrder(4, world=3)))


def test_a_table_without_pictures_is_refused(tmp_path, model):
    official_formats.nus_wide(tmp_path / "source", n=6, pictures=False)
    out = nus_wide.prepare(tmp_path / "source", tmp_path / "out", images=False)
    with pytest.raises(ValueError, match="prepared without pictures; give images"):
        StreamedPictures(out, model.vlp)


# -- training and evaluation -------------------------------------------------------------------------------------------


PHASES = (("hcg", 1, 8), ("prompts", 1, 8))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hrcf", "clip_ft", "mkt", "ovml_vlp", "biam"])
def test_unaugmented_pictures_train_as_their_features_do(name, dataset):
    """The same losses, but for the rounding of stored features to float16, wherever a method leaves the ViT."""
    own = {"ranking_reduction": "violations"}  # a mean over pictures
    build = lambda: methods.build(name, synthetic.config(phases=PHASES), pretrained=False, **own)
    model, twin = build(), build()
    history = train(model, Pictures(dataset, model.vlp))
    other = train(twin, extract(twin.vlp, dataset, dataset.labels))
    assert list(history) == list(other) and len(history) == len(other) > 1
    first = history.columns.get_loc("lr") + 1
    for part in history.columns[first : history.columns.get_loc("seconds")]:
        near = 0.05 if part != "ranking" else 0.01 if name == "biam" else 2e-3  # Adam and batch norm of a few pictures
        np.testing.assert_allclose(history[part], other[part], atol=near)
        rounding = 2e-5  # of a loss, of features in float16: OVML-VLP's is 21
        np.testing.assert_allclose(history[part][0], other[part][0], atol=near / 10, rtol=rounding)
    assert history.ranking.nunique() > 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clip_ft", "ovml_vlp"])
def test_methods_learn_from_augmented_pictures(name, dataset):
    changes = {"phases": PHASES, "augment": RAND}
    model = methods.build(name, synthetic.config(**changes), pretrained=False)
    before = synthetic.weights(model)
    history = train(model, Pictures(dataset, model.vlp, RAND))
    assert np.isfinite(history.ranking).all()
    assert not synthetic.same(before, synthetic.weights(model)) and synthetic.same(
        {n: v for n, v in before.items() if n.startswith("vlp.")},
        {n: v for n, v in synthetic.weights(model).items() if n.startswith("vlp.")},
    )


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_augmented_training_is_resumed_to_the_same_bits(table, dataset, tmp_path, stream):
    def source(model):
        return StreamedPictures(table, model.vlp, RAND, buffer=5) if stream else Pictures(dataset, model.vlp, RAND)

    changes = {"phases": (("hcg", 2, 8), ("prompts", 1, 8)), "augment": RAND, "stream": stream}
    whole = synthetic.model(**changes)
    history = train(whole, source(whole))
    assert len(history) == 6
    for stop_after in (1, 2, None):
        model = synthetic.model(**changes)
        again = train(model, source(model), tmp_path, stop_after=stop_after)
    assert again.ranking.equals(history.ranking)
    assert synthetic.same(synthetic.weights(model), synthetic.weights(whole))
    if not stream:
        with pytest.raises(ValueError, match="another run.*\n  pictures: there 16, here 15"):
            train(synthetic.model(**changes), Pictures(dataset.take(range(15)), model.vlp, RAND), tmp_path)


def test_config_and_pictures_agree_on_augmentation(dataset):
    model = synthetic.model(augment=RAND)
    with pytest.raises(ValueError, match="augment = 'rand.*needs other pictures than Pictures with augment 'none'"):
        train(model, Pictures(dataset, model.vlp))
    with pytest.raises(ValueError, match="augment = 'none' .* Pictures with augment 'rand"):
        train(synthetic.model(), Pictures(dataset, model.vlp, RAND))


def test_pictures_without_a_positive_seen_label_are_an_error(tmp_path, model):
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text("file,labels\na.png,\n")
    nothing = Pictures(data.load(tmp_path, labels=["cat"]), model.vlp)
    with pytest.raises(ValueError, match="no picture has a positive seen label"):
        train(synthetic.model(), nothing)


@pytest.mark.slow
def test_evaluation_of_pictures_is_that_of_their_features(model):
    scenes = mojiscenes.MojiScenes("test", 40)
    pictures, features = Pictures(scenes, model.vlp), extract(model.vlp, scenes, scenes.labels)
    assert torch.equal(pictures.labels.float(), features.labels)
    for a, b in (
        (evaluate(model, pictures), evaluate(model, features)),
        (zero_shot(model.vlp, pictures, "photo", "dot"), zero_shot(model.vlp, features, "photo", "dot")),
    ):
        columns = ["mAP", "F1@1", "images", "labels"] if "F1@1" in a else ["mAP", "images", "labels"]
        np.testing.assert_allclose(a[columns].astype(float), b[columns].astype(float), atol=1.0)
