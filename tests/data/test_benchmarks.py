"""Data sets by name, and the paper's whole setting on a generated NUS-WIDE, with a tiny CLIP of the same form."""

import json

import numpy as np
import official_formats
import open_clip
import pytest
import torch
from safetensors.torch import save_file

from hrcf_lib import config, data, protocols
from hrcf_lib.data import mojiscenes
from hrcf_lib.data.feeds import sources as feed_sources
from hrcf_lib.data.feeds.feed import Feed
from hrcf_lib.data.feeds.pictures import Pictures, StreamedPictures
from hrcf_lib.methods import plain_vlp
from hrcf_lib.model import HRCF
from hrcf_lib.studies import one_run
from hrcf_lib.training import train

TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 224, "layers": 2, "width": 64, "patch_size": 16, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Prepared data sets by name."""
    root = tmp_path_factory.mktemp("prepared")
    official_formats.nus_wide(root / "nus", n=24)
    data.prepare("nus_wide", root / "nus", root / "data" / "nus_wide")
    official_formats.coco(root / "coco")
    data.prepare("coco_48_17", root / "coco", root / "data" / "coco_48_17")
    return root / "data"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Changes to a config: a CLIP of OpenAI's form, 224 pixels and 14 x 14 patches, and its random checkpoint."""
    root = tmp_path_factory.mktemp("tiny")
    (root / "tiny-ViT-16.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(str(root / "tiny-ViT-16.json"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = open_clip.create_model("tiny-ViT-16", pretrained=None).state_dict()
    save_file({name: value.contiguous() for name, value in weights.items()}, root / "tiny.safetensors")
    return {"vlp": "tiny-ViT-16", "vlp_weights": str(root / "tiny.safetensors"), "workers": 0}


def test_every_data_set_of_a_config_has_a_name():
    from hrcf_lib.data.benchmarks import PREPARE

    assert {*PREPARE, "mojiscenes"} == set(config.choices("dataset"))
    assert set(config.choices("protocol")) == set(protocols.PROTOCOLS)
    assert config.open_images().protocol == "per_class_and_pooled" and config.nus_wide().protocol == "per_class"


def test_mojiscenes_are_those_of_the_config():
    base = config.mini().replace(train_size=30, test_size=20, data_seed=3, tag_noise=0.5)
    assert data.splits(base) == ["train", "val", "test", "test-line"]
    for split, n in (("train", 30), ("test-line", 20)):
        ours = data.open_split(base, split)
        assert len(ours) == n and ours.seed == 3 and (split != "train" or ours.tag_noise == 0.5)
    assert torch.equal(data.open_split(base, "test")[0][0], mojiscenes.MojiScenes("test", 20, 3)[0][0])
    for split in data.splits(base):
        other = data.open_split(base.replace(vocabulary_seed=2), split)
        assert other.labels == mojiscenes.label_space(split, 2) != data.open_split(base, split).labels
        assert other.vocabulary_seed == 2 and (split != "train" or other.tag_noise == 0.5)


def test_coverage_is_that_of_the_pictures_that_are_asked_about():
    base = config.mini().replace(train_size=30, test_size=20)
    for split in data.splits(base):
        some = data.open_split(base.replace(coverage=0.2), split)
        default = data.open_split(base, split)
        assert default.law == mojiscenes.SceneLaw() and some.law.coverage == (0.8 if split == "train" else 0.2)
        assert (some.fingerprint() == default.fingerprint()) == (split == "train"), "training is the same"


def test_prepared_splits(folder):
    base = config.nus_wide()
    assert data.splits(base, folder) == ["train", "test"]
    train_split = data.open_split(base, "train", folder, side=224)
    assert len(train_split) == 16 and train_split[0][0].shape == (3, 224, 224)
    hidden = torch.stack([train_split.label_vector(i) for i in range(16)])[:, 925:]
    assert (hidden == 0).all() and (data.open_split(base, "test", folder).label_vector(0)[925:] != 0).all()
    few = data.open_split(base.replace(train_size=5), "train", folder)
    again = data.open_split(base.replace(train_size=5), "train", folder)
    other = data.open_split(base.replace(train_size=5, data_seed=1), "train", folder)
    assert len(few) == 5 and list(few.files) == list(again.files) != list(other.files)
    order = [list(train_split.files).index(file) for file in few.files]
    assert order == sorted(order)
    coco = data.open_split(config.coco_48_17(), "test", folder)
    assert (coco.labels.n_seen, len(coco.labels.unseen)) == (48, 17)


def test_what_is_not_there_is_named(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match=r"no prepared open_images in .*: run notebook 01 with dataset = 'open"):
        data.splits(config.open_images(), tmp_path)
    with pytest.raises(ValueError, match="has no split.*'val'"):
        data.open_split(config.nus_wide(), "val", folder)
    with pytest.raises(ValueError, match="unknown data set.*nus_wide"):
        data.prepare("nuswide", tmp_path)


def test_choices_never_look_at_unseen_labels_of_test(folder, tiny):
    model = HRCF(config.nus_wide().smoke().replace(**tiny))
    sources = {split: feed_sources.source(model, split, folder) for split in ("train", "test")}
    val, tasks = feed_sources.validation(sources)
    assert tasks == ("seen",) and len(val) == 16 and (val.labels[:, 925:] == 0).all()
    assert feed_sources.validation(sources | {"val": sources["test"]}) == (sources["test"], ("seen",))
    few = HRCF(config.mini().smoke().replace(train_size=4, val_size=4, test_size=4))
    moji = {s: feed_sources.source(few, s) for s in ("train", "val", "test")}
    assert feed_sources.validation(moji) == (moji["val"], ("ZSL", "GZSL"))


def test_sources_follow_the_config(folder, tiny):
    model = HRCF(config.nus_wide().smoke().replace(**tiny))
    training, test = feed_sources.source(model, "train", folder), feed_sources.source(model, "test", folder)
    assert isinstance(training, Pictures) and (training.augment, test.augment) == ("rand-m9-mstd0.5-inc1", "none")
    model.config = model.config.replace(stream=True)
    stream = feed_sources.source(model, "train", folder)
    assert isinstance(stream, StreamedPictures)
    with pytest.raises(ValueError, match="cannot be chosen by row: set stream to False"):
        stream.take([0])
    model.config = model.config.replace(augment="none", stream=False)
    frozen = feed_sources.source(model, "train", folder)
    assert all(isinstance(feed, Feed) for feed in (training, test, stream, frozen))
    assert (frozen.augment, frozen.trained_blocks, training.trained_blocks) == ("none", 1, None)
    assert frozen.trunk.shape == (16, 197, 64) and frozen.labels.shape == (16, 1006)
    assert frozen.trunk.dtype == torch.float16


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_the_papers_setting_runs_from_files_to_a_record(folder, tiny, tmp_path, stream):
    """Only VLP and sizes differ from ``nus_wide()``: 925 / 81 labels, RandAugment, alternate phases, bf16."""
    small = config.nus_wide().smoke().replace(**tiny, stream=stream)
    table = one_run.run(small, folder, tmp_path)
    assert table.images.tolist() == [8, 8] and table.labels.tolist() == [81, 1006]
    assert np.isfinite(table[["mAP", "F1@3"]].astype(float)).all(axis=None)
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["config"]["augment"] == "rand-m9-mstd0.5-inc1" and record["config"]["stream"] is stream
    assert len(HRCF.from_pretrained(tmp_path / "model").reference_labels) == 925


def test_parts_of_a_source_keep_pictures_and_labels(folder, tiny):
    model = HRCF(config.nus_wide().smoke().replace(**tiny, augment="none"))
    frozen = feed_sources.source(model, "train", folder)
    pictures = Pictures(data.open_split(model.config, "train", folder, 224), model.vlp)
    for whole in (frozen, pictures):
        part, mixed = whole.take([3, 1]), whole.take([3, 1], labels_of=[0, 2])
        assert torch.equal(part.labels, whole.labels[[3, 1]]) and torch.equal(mixed.labels, whole.labels[[0, 2]])
        assert len(part.take([1])) == 1 and torch.equal(part.take([1]).labels, whole.labels[[1]])
        assert part.identity() != mixed.identity() != whole.identity()
    assert torch.equal(pictures.take([3, 1]).view(1, None)[1], pictures.view(1, None)[1])
    e_p = plain_vlp.teacher_embeddings(model.vlp, pictures.take([3, 1]))
    torch.testing.assert_close(e_p, frozen.take([3, 1]).teacher)
    model.config = model.config.replace(phases=(("hcg", 1, 2),), bf16=False)
    history = train(model, pictures.take([3, 1], labels_of=[0, 2]))
    assert len(history) == 1
