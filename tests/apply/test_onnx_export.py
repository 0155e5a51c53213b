"""ONNX export: onnxruntime computes what PyTorch and ``classify`` do, and a file that differs never stays."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import synthetic
import torch
from PIL import Image

from hrcf_lib import methods
from hrcf_lib.apply import onnx as onnx_export
from hrcf_lib.apply.predict import classify
from hrcf_lib.data.images import read_image
from hrcf_lib.data.mojiscenes.scenes import draw
from hrcf_lib.methods import registry
from hrcf_lib.speed import table
from hrcf_lib.speed.inputs import Sizes

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

REFERENCE = ("cat", "dog", "bus", "sun", "tree", "boat")
LABELS = ["zebra", "dog", "moon", "ship", "rain", "côté", "hat"]  # one of the reference, six new ones


def shorten(model, blocks: int = 1):
    """The ViT cut to its last blocks, so that an export takes a few seconds."""
    tower = model.vlp.model.visual.transformer
    tower.resblocks = tower.resblocks[-blocks:]
    return model


@pytest.fixture(scope="module")
def model():
    model = shorten(synthetic.model(), blocks=2)
    model.reference_labels = REFERENCE
    with torch.no_grad():
        model.gather.conv2.weight.normal_(0, 0.05, generator=torch.Generator().manual_seed(0))
    return model.train()  # the mode that it is exported from and left in


@pytest.fixture(scope="module")
def made(model, tmp_path_factory):
    """A file of seven labels inside the reference, what ``export`` returned, and the graph of torch's exporter."""
    path, graphs, real = tmp_path_factory.mktemp("onnx") / "new" / "classifier.onnx", [], onnx_export._program
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_export, "_program", lambda *given: graphs.append(real(*given)) or graphs[0])
        report = onnx_export.export(model, LABELS, path)
    return path, report, graphs[0]


@pytest.fixture(scope="module")
def exported(made):
    """The file, and what ``export`` returned."""
    return made[:2]


@pytest.fixture
def copied(exported, tmp_path):
    """The file as a protobuf that a test may damage, and where to save it."""
    return onnx.load(exported[0]), tmp_path / "copy.onnx"


def run(path, images: np.ndarray) -> np.ndarray:
    return onnxruntime.InferenceSession(path).run(["scores"], {"images": images})[0]


def metadata(path) -> dict[str, str]:
    return onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map


def compare(path, model) -> dict:
    """The file compared with a model as ``export`` does it."""
    return onnx_export._compare(path, onnx_export._scorer(model, LABELS, None, True), 1e-4, path.name)


def scenes(n: int) -> list[Image.Image]:
    return [Image.fromarray(draw("test", i, 0).image) for i in range(n)]


# What a file computes -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_scores_are_those_of_classify(model, exported):
    training = [module.training for module in model.modules()]
    assert training[0], "export leaves the model in the mode it was in"
    pictures = scenes(4)
    x = torch.stack([read_image(p, model.vlp.side) for p in pictures]).numpy().astype(np.float32) / 255
    scores = run(exported[0], x)  # (4, 7)
    frame = classify(pictures, LABELS, model, top_k=len(LABELS))
    model.train()
    for i, (_, part) in enumerate(frame.groupby("image")):
        assert [LABELS[k] for k in (-scores[i]).argsort()[:5]] == part.label.tolist()[:5]
        for row in part.itertuples():
            assert scores[i, LABELS.index(row.label)] == pytest.approx(row.score, abs=1e-4)


def test_any_number_of_pictures(exported):
    x = np.random.default_rng(0).uniform(size=(9, 3, 112, 112)).astype(np.float32)
    whole = run(exported[0], x)
    assert whole.shape == (9, len(LABELS)) and whole.dtype == np.float32
    for n in (1, 2):
        np.testing.assert_allclose(run(exported[0], x[:n]), whole[:n], atol=1e-5)


def test_what_export_returns(exported):
    path, report = exported
    assert report["labels"] == 7 and report["pictures"] >= 4 and report["bytes"] == path.stat().st_size
    assert 0 <= report["max_abs_diff"] < 1e-4 and 0 < report["largest"] <= 1
    assert [p.name for p in path.parent.iterdir()] == ["classifier.onnx"], "one file, and no temporary one"


def test_the_metadata_say_what_a_caller_needs(model, exported):
    about = metadata(exported[0])
    assert json.loads(about["labels"]) == LABELS and about["side"] == "112" and about["scored_among"] == "12"
    assert about["resize"] == "crop" and "centre cut out" in about["input"]
    assert "float32 in 0..1" in about["input"] and json.loads(about["mean"]) == model.vlp.mean.flatten().tolist()
    assert about["method"] == "hrcf" and about["vlp_hash"] == model.vlp.hash and json.loads(about["reference"])
    assert "vlp_weights" not in json.loads(about["config"]), "a path of this machine"


def test_text_tower_and_teacher_stay_behind(model, exported):
    """Beside the trunk and the image side there is next to nothing in the file: no token table, no last block."""
    needed = sum(p.numel() for n, p in model.named_parameters() if not n.startswith(("vlp.", "prompt.")))
    visual = model.vlp.model.visual
    needed += sum(p.numel() for n, p in visual.named_parameters() if not n.startswith("transformer.resblocks.1."))
    assert exported[0].stat().st_size < 4 * needed * 1.1 + 200_000


@pytest.mark.slow
def test_uint8_labels_alone_and_embeddings_of_ones_own(model, tmp_path):
    path, names = tmp_path / "own.onnx", LABELS[:3]
    t = torch.randn(3, model.vlp.D, generator=torch.Generator().manual_seed(1))
    report = onnx_export.export(model, names, path, embeddings=t, reference=False, uint8=True)
    assert report["labels"] == 3 and metadata(path)["scored_among"] == "3"
    x = torch.randint(256, (2, 3, 112, 112), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    np.testing.assert_allclose(run(path, x.numpy()), model.score(x, t), atol=1e-4)


def test_embeddings_take_the_place_of_the_models_own(model):
    """Inside the reference too, and of a label that is one of it."""
    t = torch.randn(2, model.vlp.D, generator=torch.Generator().manual_seed(1))
    scorer = onnx_export._scorer(model, ["moon", "dog"], t, True)
    with torch.no_grad():
        own = model.label_embeddings(REFERENCE)
    assert scorer.columns == [6, 1] and torch.equal(scorer.t[[6, 1]], t)
    assert torch.equal(scorer.t[[0, 2, 3, 4, 5]], own[[0, 2, 3, 4, 5]])


@pytest.mark.slow
@pytest.mark.parametrize("name", methods.names("compared"))
def test_every_method(name, tmp_path):
    model = shorten(methods.build(name, synthetic.config(), pretrained=False))
    model.reference_labels = REFERENCE
    report = onnx_export.export(model, LABELS, tmp_path / f"{name}.onnx")
    assert report["max_abs_diff"] <= 1e-4 * max(1, report["largest"])


# What is refused ----------------------------------------------------------------------------------------------------


def test_damaged_weights_are_found(model, copied):
    file, path = copied
    onnx.save(file, path)
    assert compare(path, model)["max_abs_diff"] < 1e-4
    weights = max(file.graph.initializer, key=lambda w: len(w.raw_data))
    values = onnx.numpy_helper.to_array(weights) * 1.05
    weights.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), weights.name))
    onnx.save(file, path)
    with pytest.raises(ValueError, match=r"(?s)copy.onnx: scores differ from PyTorch's: .*up to 0.0001 allowed"):
        compare(path, model)


def test_a_file_of_another_model_is_found(exported):
    other = shorten(synthetic.model(seed=1), blocks=2)
    other.reference_labels = REFERENCE
    with pytest.raises(ValueError, match="scores differ"):
        compare(exported[0], other)


def test_an_export_that_differs_leaves_what_was_there(model, made, tmp_path, monkeypatch):
    """The largest weights are damaged on the way to the file."""
    import onnx_ir  # which onnxscript brings

    path, graph = tmp_path / "classifier.onnx", made[2].model.graph
    path.write_bytes(b"of before")
    weights = max(graph.initializers.values(), key=lambda value: value.const_value.size)
    damaged = onnx_ir.tensor(np.float32(1.05) * weights.const_value.numpy(), name=weights.name)
    monkeypatch.setattr(weights, "const_value", damaged)
    monkeypatch.setattr(onnx_export, "_program", lambda *given: made[2])
    with pytest.raises(ValueError, match="classifier.onnx: scores differ"):
        onnx_export.export(model, LABELS, path)
    assert [p.name for p in tmp_path.iterdir()] == ["classifier.onnx"] and path.read_bytes() == b"of before"


@pytest.mark.parametrize(
    ("labels", "embeddings", "message"),
    [
        ([], None, "labels is empty"),
        (["dog", "Dog"], None, "read alike by the text tower"),
        (["dog", "cat"], torch.zeros(3, 128), r"embeddings \(3, 128\) of 2 labels: give \(2, 128\)"),
        (["dog", "cat"], torch.zeros(2, 64), r"embeddings \(2, 64\) of 2 labels: give \(2, 128\)"),
    ],
)
def test_labels_that_are_refused(model, tmp_path, labels, embeddings, message):
    with pytest.raises(ValueError, match=message):
        onnx_export.export(model, labels, tmp_path / "a.onnx", embeddings)
    assert model.training and not list(tmp_path.iterdir())


class Odd(torch.nn.Module):
    """Scores depend on the pictures in a way that no graph has."""

    model = SimpleNamespace(title="Odd")

    def forward(self, images):
        return images if images.sum() > 0 else -images


def test_a_method_that_cannot_be_exported_is_named():
    with pytest.raises(ValueError, match="torch.onnx cannot export Odd: "):
        onnx_export._program(Odd().eval(), torch.ones(3, 2))


def test_a_graph_of_one_batch_is_refused(monkeypatch):
    graph = SimpleNamespace(inputs=[SimpleNamespace(shape=(3, 3, 112, 112))], initializers={})
    monkeypatch.setattr(
        torch.onnx, "export", lambda *given, **more: SimpleNamespace(model=SimpleNamespace(graph=graph))
    )
    with pytest.raises(ValueError, match=r"graph of Odd holds for 3 pictures alone: write x.shape\[0\]"):
        onnx_export._program(Odd(), torch.ones(3, 2))


def test_more_than_one_file_can_hold_is_refused(model, made, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.onnx, "export", lambda *given, **more: made[2])
    monkeypatch.setattr(onnx_export, "LIMIT", 1_000_000)
    with pytest.raises(ValueError, match="one ONNX file holds 2 GiB"):
        onnx_export.export(model, LABELS, tmp_path / "large.onnx")
    assert not list(tmp_path.iterdir())


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.onnx does not exist"):
        onnx_export.open_session(tmp_path / "nowhere.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ValueError, match="text.onnx cannot be read as an ONNX model"):
        onnx_export.open_session(tmp_path / "text.onnx")


def test_a_place_that_cannot_be_written_is_refused_before_the_work(model, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "_program", lambda *_: pytest.fail("it was exported"))
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file is a file, and no folder: choose another folder"):
        onnx_export.export(model, ["owl"], tmp_path / "file" / "o.onnx")
    with pytest.raises(IsADirectoryError, match="is a folder: give the name of a file"):
        onnx_export.export(model, ["owl"], tmp_path)


def test_the_extra_is_named_where_it_is_missing(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'hrcf\[onnx\]'"):
        onnx_export.export(model, LABELS, tmp_path / "a.onnx")


# Command and benchmark ----------------------------------------------------------------------------------------------


def test_the_command(tmp_path, monkeypatch, capsys):
    given = []
    report = {"labels": 3, "pictures": 8, "max_abs_diff": 2e-7, "largest": 0.3, "bytes": 2_500_000}
    monkeypatch.setattr(registry, "load", lambda folder: f"model of {folder}")
    monkeypatch.setattr(onnx_export, "export", lambda *words, **more: given.append((words, more)) or report)
    names, out = tmp_path / "labels.txt", tmp_path / "out.onnx"
    onnx_export.main(["a-folder", str(names), str(out), "--alone", "--uint8"])
    assert given == [(("model of a-folder", names, out), {"reference": False, "uint8": True})]
    assert "out.onnx: 3 labels, 2.5 MB; on 8 pictures scores are within 2e-07" in capsys.readouterr().out


def test_the_command_reads_a_file_of_labels(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(registry, "load", lambda folder: model)
    names, scorers = tmp_path / "labels.txt", []
    monkeypatch.setattr(onnx_export, "_program", lambda scorer, images: scorers.append(scorer) or 1 / 0)
    names.write_text("\ufeffzebra\n\ndog \ncôté\n", encoding="utf-8")
    with pytest.raises(ZeroDivisionError):
        onnx_export.main(["a-folder", str(names), "out.onnx"])
    assert scorers[0].labels == ["zebra", "dog", "côté"]
    table = tmp_path / "labels.csv"
    table.write_text("label\nzebra\ndog\n", encoding="utf-8")
    with pytest.raises(ZeroDivisionError):
        onnx_export.main(["a-folder", str(table), "out.onnx"])
    assert scorers[1].labels == ["zebra", "dog"], "the header is no label"
    names.write_text("dog\nDog\n")
    with pytest.raises(SystemExit) as stopped:
        onnx_export.main(["a-folder", str(names), "out.onnx"])
    assert stopped.value.code == 2 and "'dog' (labels.txt, line 1)" in capsys.readouterr().err


@pytest.mark.slow
def test_the_benchmark_holds_onnxruntime_against_pytorch(monkeypatch):
    whole = Sizes.model
    monkeypatch.setattr(Sizes, "model", lambda self, **changes: shorten(whole(self, **changes), blocks=1))
    row = table.ROWS["inference_onnx"](Sizes.of(smoke=True))
    assert row["ratio"] == pytest.approx(row["plain_s"] / row["ours_s"]) and row["ratio_single"] > 0
    assert row["max_abs_diff"] < 1e-4 and "onnxruntime against PyTorch" in row["what"] and "MB" in row["note"]


def test_the_file_of_labels_is_not_written_over(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_text("owl\n")
    with pytest.raises(ValueError, match="is the file of labels, which would be lost: give the ONNX file another name"):
        onnx_export.export(None, path, path)
    assert path.read_text() == "owl\n"
