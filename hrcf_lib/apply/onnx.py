r"""A classifier of a fixed list of labels as one ONNX file, which runs where there is no PyTorch.

    python -m hrcf_lib.apply.onnx runs/mini/model labels.txt classifier.onnx

The file holds trunk, image side and scores; text tower and prompts stay behind: the label embeddings are constants in
it. Softmax, region selection and norms run over the labels, so another list of labels is another export. As in
``predict.classify`` they are scored inside the reference vocabulary, and only the given ones come out.

``images``  (B, 3, side, side), any B: RGB, float32 in 0..1 (or uint8 in 0..255), not normalised: that is in the file
``scores``  (B, K) float32, in the order of the labels, comparable within a picture

Its metadata say the rest (``about``). With onnxruntime alone, on a square picture (``data.images.read_image`` resizes
the shorter side, bicubic, and cuts out the centre):

>>> session = onnxruntime.InferenceSession("classifier.onnx")  # doctest: +SKIP
>>> about = session.get_modelmeta().custom_metadata_map  # doctest: +SKIP
>>> side, labels = int(about["side"]), json.loads(about["labels"])  # doctest: +SKIP
>>> x = np.float32(Image.open("a.jpg").convert("RGB").resize((side, side), Image.Resampling.BICUBIC))  # doctest: +SKIP
>>> scores = session.run(["scores"], {"images": x.transpose(2, 0, 1)[None] / np.float32(255)})[0]  # doctest: +SKIP
>>> [labels[k] for k in scores[0].argsort()[::-1][:5]]  # doctest: +SKIP

Needs the extra ``onnx``. B pictures, K labels, V labels that are scored (reference and own), D embedding width.
"""

import argparse
import copy
import json
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrcf_lib import __version__
from hrcf_lib.apply.vocabulary import beside_reference
from hrcf_lib.engine.files import replacing_alone
from hrcf_lib.labels import check_names
from hrcf_lib.method import Method
from hrcf_lib.methods import registry

TOLERANCE = 1e-4  # largest difference of scores in -1..1; of larger scores this share of the largest
TIE = 1e-6  # scores of two labels that differ by less, as a share of the largest, are equal in float32
LIMIT = 2**31  # bytes that one ONNX file can hold


class Scorer(nn.Module):
    r"""What is exported: pictures (B, 3, side, side) -> scores (B, K) of the labels in ``columns``.

    ``t`` (V, D) are the embeddings of all labels that are scored, constants of the graph.
    """

    def __init__(self, model: Method, t: Tensor, columns: list[int]):
        super().__init__()
        self.model, self.columns = model, columns
        self.register_buffer("t", t)

    def forward(self, images: Tensor) -> Tensor:
        """In the precision of the weights, without autocast."""
        e_g, regions = self.model.image_embeddings(self.model.vlp.trunk(images))
        s = self.model.score_embeddings(e_g, regions, self.t)  # (B, V)
        return s if self.columns == list(range(len(self.t))) else s[:, self.columns]  # (B, K)


def export(
    model: Method,
    labels,
    path: str | Path,
    embeddings: Tensor | None = None,
    reference: bool = True,
    uint8: bool = False,
    tolerance: float = TOLERANCE,
) -> dict:
    r"""Write a classifier of ``labels`` to ``path``, and hold it against PyTorch (``check``) before it gets its name.

    Args:
        model: an ``HRCF`` or any other ``Method``; exported in evaluation mode and float32, and left as it was.
        labels: K names, any number from 1.
        path: of the file; one that is there stays unless the new one passes.
        embeddings: (K, D) of the labels, such as means over several prompts, in place of the model's own.
        reference: score inside the model's reference vocabulary, as ``predict.classify``; ``False``: the labels among
            themselves, as ``Method.score``.
        uint8: the file takes uint8 pictures in place of float32.
        tolerance: see ``check``.

    Returns what ``check`` does, and ``bytes``, the size of the file.

    Raises ``ModuleNotFoundError`` without the extra ``onnx``; ``ValueError`` for names or embeddings that do not fit, a
    method that PyTorch cannot export, more than 2 GiB, or scores that differ from PyTorch's; nothing is left behind.
    """
    _extra()
    path = Path(path)
    with _ready(model) as ready, torch.no_grad():
        scorer = _scorer(ready, labels, embeddings, reference)
        about = _about(ready, check_names(labels), len(scorer.t), reference, uint8)
        program = _program(scorer, _pictures(ready.vlp.side, uint8)[:3])
        _fits(program, model.title)
        path.parent.mkdir(parents=True, exist_ok=True)
        program.model.metadata_props.update(about)
        with replacing_alone(path) as part:
            program.save(part, external_data=False)
            del program  # as large as the weights
            told = _compare(part, scorer, tolerance, path)
    return told | {"bytes": path.stat().st_size}


def check(
    path: str | Path, model: Method, embeddings: Tensor | None = None, tolerance: float = TOLERANCE, top_k: int = 5
) -> dict:
    r"""Hold a file of ``export`` against the model it was made of, on pictures of coarse to fine noise.

    One picture at a time and all together; ``embeddings`` as in ``export``. Returns ``pictures``, ``max_abs_diff``,
    ``largest`` (absolute score) and ``same_top`` (how many best labels were compared).

    Raises ``ValueError`` that says by how much, if a score is off by more than ``tolerance`` (of scores beyond -1..1:
    that share of the largest), or one of the ``top_k`` best labels is another, where their scores in PyTorch differ
    at all in float32. ``FileNotFoundError`` for no file, ``ModuleNotFoundError`` without the extra ``onnx``.
    """
    _extra()
    known = about(path)
    with _ready(model) as ready, torch.no_grad():
        scorer = _scorer(ready, json.loads(known["labels"]), embeddings, json.loads(known["reference"]))
        return _compare(path, scorer, tolerance, path, top_k)


def about(path: str | Path) -> dict[str, str]:
    r"""The metadata of a file of ``export``, all text.

    ``labels`` JSON list; ``side`` pixels; ``input`` what pictures are; ``mean`` and ``std`` JSON, as applied inside;
    ``reference`` true or false, ``scored_among`` number of labels in softmax and norms; ``method``, ``vlp``,
    ``vlp_hash``, ``config`` (JSON), ``hrcf`` its version.
    """
    return open_session(path).get_modelmeta().custom_metadata_map


def _about(model: Method, names: list[str], scored: int, reference: bool, uint8: bool) -> dict[str, str]:
    side, numbers = model.vlp.side, "uint8 in 0..255" if uint8 else "float32 in 0..1"
    config = {name: value for name, value in model.config.to_dict().items() if name != "vlp_weights"}  # may be a path
    return {
        "labels": json.dumps(names, ensure_ascii=False),
        "side": str(side),
        "input": f"RGB pictures (B, 3, {side}, {side}), {numbers}; shorter side resized (bicubic), centre cut out",
        "mean": json.dumps(model.vlp.mean.flatten().tolist()),
        "std": json.dumps(model.vlp.std.flatten().tolist()),
        "reference": json.dumps(reference),
        "scored_among": str(scored),
        "method": model.config.method,
        "vlp": model.vlp.name,
        "vlp_hash": model.vlp.hash,
        "config": json.dumps(config, ensure_ascii=False),
        "hrcf": __version__,
    }


@contextmanager
def _ready(model: Method):
    """The model as it is exported: on the CPU, in float32 and evaluation mode; afterwards in the mode it was in."""
    if model.vlp.mean.device.type != "cpu":
        model = copy.deepcopy(model).cpu()
    training = model.training
    model.eval()
    try:
        yield model.under(model.config.replace(bf16=False))
    finally:
        model.train(training)


def _scorer(model: Method, labels, embeddings: Tensor | None, reference: bool) -> Scorer:
    """Names and columns as ``predict.classify`` has them. Raises ``ValueError`` for embeddings of another shape."""
    labels = check_names(labels)
    asked = beside_reference(model, labels) if reference else None
    names, columns = (asked.names, asked.columns) if reference else (labels, list(range(len(labels))))
    if embeddings is None:
        return Scorer(model, model.label_embeddings(names), columns).eval()
    embeddings = embeddings.detach().to("cpu", torch.float32)
    known = list(model.reference_labels) if reference else []
    t = model.label_embeddings(known) if known else embeddings[:0]  # (V, D) without the user's new ones
    if embeddings.ndim != 2 or len(embeddings) != len(labels) or embeddings.shape[1:] != t.shape[1:]:
        width = t.shape[1] if t.ndim == 2 else model.vlp.D
        raise ValueError(f"embeddings {tuple(embeddings.shape)} of {len(labels)} labels: give ({len(labels)}, {width})")
    t = torch.cat([t, t.new_zeros(len(names) - len(known), t.shape[1])])  # (V, D)
    t[columns] = embeddings
    return Scorer(model, t, columns).eval()


def _program(scorer: Scorer, images: Tensor):
    """The graph as torch's exporter makes it. Raises ``ValueError`` if it cannot."""
    try:
        program = torch.onnx.export(
            scorer,
            (images,),
            dynamo=True,
            verbose=False,
            input_names=["images"],
            output_names=["scores"],
            dynamic_shapes={"images": {0: "B"}},
            custom_translation_table={torch.ops.aten.sort.stable: _sort()},
        )
    except torch.onnx.OnnxExporterError as error:
        reason = next((line for line in reversed(str(error).splitlines()) if "Error" in line), str(error)[:200])
        raise ValueError(f"torch.onnx cannot export {scorer.model.title}: {reason.strip()}") from error
    return program


def _fits(program, title: str) -> None:
    """Raise ``ValueError`` for a graph that holds for one size of the batch, or is more than one file can hold."""
    batch = program.model.graph.inputs[0].shape[0]
    if isinstance(batch, int):
        raise ValueError(f"the graph of {title} holds for {batch} pictures alone: write x.shape[0], not len(x), in it")
    weights = (value.const_value for value in program.model.graph.initializers.values())
    size = sum(value.nbytes for value in weights if value is not None)
    if size >= LIMIT:
        raise ValueError(f"{size / 2**30:.1f} GiB of weights: one ONNX file holds 2 GiB; take a smaller VLP than this")


def _sort():
    """``aten.sort.stable``, which torch's exporter lacks: TopK of all entries, whose ties go to the lower index."""
    from onnxscript import opset18 as op

    def sort_stable(self, stable=None, dim: int = -1, descending: bool = False):
        n = op.Shape(self, start=dim, end=dim + 1) if dim != -1 else op.Shape(self, start=dim)
        return op.TopK(self, n, axis=dim, largest=int(descending), sorted=1)

    return sort_stable


def _pictures(side: int, uint8: bool, n: int = 8) -> Tensor:
    """Noise from one colour a picture to one a pixel: (n, 3, side, side), always the same."""
    rng = torch.Generator().manual_seed(0)
    grains = [max(1, side * i // (n - 1)) for i in range(n)]  # cells along a side
    cells = [torch.rand(1, 3, grain, grain, generator=rng) for grain in grains]
    images = torch.cat([F.interpolate(x, size=(side, side), mode="nearest") for x in cells])  # (n, 3, side, side)
    return (255 * images).round().to(torch.uint8) if uint8 else images


def _compare(path, scorer: Scorer, tolerance: float, name, top_k: int = 5) -> dict:
    """``check`` of the file at ``path``, which errors call ``name``."""
    session = open_session(path)
    uint8 = session.get_inputs()[0].type == "tensor(uint8)"
    images = _pictures(scorer.model.vlp.side, uint8)
    expected = scorer.model.score_embeddings(*scorer.model.embed(images), scorer.t)[:, scorer.columns]  # (B, K)
    try:
        parts = [session.run(["scores"], {"images": x.numpy()})[0] for x in (images, *images.split(1))]
    except Exception as error:  # onnxruntime has an exception of its own for each kind of failure
        raise ValueError(f"{name} does not run in onnxruntime: {error}") from error
    largest = expected.abs().max().item()
    allowed, k = tolerance * max(1.0, largest), min(top_k, expected.shape[1])
    worst = 0.0
    for found in (torch.from_numpy(parts[0]), torch.cat([torch.from_numpy(x) for x in parts[1:]])):
        difference = (found - expected).abs().max().item() if found.shape == expected.shape else float("nan")
        if not difference <= allowed:
            raise ValueError(
                f"{name}: scores differ from PyTorch's by up to {difference:.2g}, where {allowed:.2g} is allowed"
            )
        ranks, gap = _best_differ(expected, found, k, TIE * max(1.0, largest))
        if ranks:
            raise ValueError(f"{name}: among the {k} best labels {ranks} differ from PyTorch's, by up to {gap:.2g}")
        worst = max(worst, difference)
    return {"pictures": len(images), "max_abs_diff": worst, "largest": largest, "same_top": k}


def _best_differ(expected: Tensor, found: Tensor, k: int, tie: float) -> tuple[int, float]:
    """How many of the ``k`` best labels of all pictures (B, K) are others, and how far apart these are at most."""
    ours, theirs = (expected.gather(1, s.topk(k, dim=1).indices) for s in (expected, found))  # (B, k)
    gaps = (ours - theirs).abs()
    return int((gaps > tie).sum()), gaps.max().item()


def open_session(path):
    """The file in onnxruntime, on the CPU, with as many threads as PyTorch has. Raises for a file that is none."""
    onnxruntime = _extra()
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist: onnx_export.export writes it")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of onnxruntime's own kinds
        raise ValueError(f"{path} cannot be read as an ONNX model: {error}") from error


def _extra():
    """onnxruntime. Raises ``ModuleNotFoundError`` naming the extra, if one of its three packages is missing."""
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}: ONNX export needs the extra: pip install 'hrcf[onnx]'") from error
    return onnxruntime


def read_labels(path: str | Path) -> list[str]:
    """Label names of a text file, one a line; empty lines are passed over. Raises ``ValueError`` as ``check_names``."""
    lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    return check_names([line for line in lines if line.strip()], str(path))


def main(words=None) -> None:
    """The command line; an error of the user's ends it with one line that says what to mend."""
    parser = argparse.ArgumentParser(prog="python -m hrcf_lib.apply.onnx", description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of save_pretrained, or owner/name on the Hugging Face hub")
    parser.add_argument("labels", type=Path, help="text file, a label a line")
    parser.add_argument("out", type=Path, help="ONNX file to write")
    parser.add_argument("--uint8", action="store_true", help="take uint8 pictures in 0..255, not float32 in 0..1")
    parser.add_argument("--alone", action="store_true", help="score labels among themselves, without the reference")
    given = parser.parse_args(words)
    try:
        labels = read_labels(given.labels)
        told = export(registry.load(given.model), labels, given.out, reference=not given.alone, uint8=given.uint8)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        parser.exit(2, f"{error}\n")
    print(
        f"{given.out}: {len(labels)} labels, {told['bytes'] / 1e6:.1f} MB; on {told['pictures']} pictures scores are "
        f"within {told['max_abs_diff']:.0e} of PyTorch's, and the {told['same_top']} best labels the same"
    )


if __name__ == "__main__":
    main()
