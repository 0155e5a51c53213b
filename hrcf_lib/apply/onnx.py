r"""A classifier of a fixed list of labels as one ONNX file, which runs where there is no PyTorch.

    python -m hrcf_lib.apply.onnx runs/mini/model labels.txt classifier.onnx

The file holds trunk, image side and scores; text tower and prompts stay behind: the label embeddings are constants in
it. Softmax, region selection and norms run over the labels, so another list of labels is another export. As in
``predict.classify`` they are scored inside the reference vocabulary, and only the given ones come out.

``images``  (B, 3, side, side), any B: RGB, float32 in 0..1 (or uint8 in 0..255), not normalised: that is in the file
``scores``  (B, K) float32, in the order of the labels, comparable within a picture

With onnxruntime alone, on a square picture without transparency (others are made square as ``resize`` of the file's
metadata says, and what is transparent is laid on white; see ``data.images.read_image``):

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
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrcf_lib import __version__
from hrcf_lib.apply.vocabulary import beside_reference
from hrcf_lib.data.images import RESIZED
from hrcf_lib.engine.files import replacing
from hrcf_lib.engine.messages import user_path
from hrcf_lib.method import Method
from hrcf_lib.methods import registry

TOLERANCE = 1e-4  # largest difference of scores in -1..1; of larger scores this share of the largest
LIMIT = 2**31  # bytes that one ONNX file can hold


class Scorer(nn.Module):
    r"""What is exported: pictures (B, 3, side, side) -> scores (B, K) of ``labels``.

    ``t`` (V, D) are the embeddings of all labels that are scored, constants of the graph; ``columns`` are the K places
    of ``labels`` among them.
    """

    def __init__(self, model: Method, t: Tensor, labels: list[str], columns: list[int]):
        super().__init__()
        self.model, self.labels, self.columns = model, labels, columns
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
    r"""Write a classifier of ``labels`` to ``path``; the file gets its name after it was compared with PyTorch.

    It is compared on eight pictures of noise, all together and one by one. (``torch.onnx.export(verify=True)`` would
    log a warning from a difference of 5e-3, for one size of the batch, before there is a file.)

    Args:
        model: an ``HRCF`` or any other ``Method``; exported in evaluation mode and float32, and left as it was.
        labels: K names, any number from 1, or a file of them, as for ``predict.classify``.
        path: of the file; one that is there stays unless the new one passes.
        embeddings: (K, D) of the labels, such as means over several prompts, in place of the model's own.
        reference: score inside the model's reference vocabulary, as ``predict.classify``; ``False``: the labels among
            themselves, as ``Method.score``.
        uint8: the file takes uint8 pictures in place of float32.
        tolerance: the largest difference of a score, absolute for scores in -1..1, else as a share of the largest.

    Returns a dict: ``labels`` (K), ``pictures`` compared, ``max_abs_diff`` and ``largest`` absolute score among them,
    and ``bytes`` of the file.

    Raises ``ModuleNotFoundError`` without the extra ``onnx``; ``ValueError`` for names or embeddings that do not fit, a
    method that PyTorch cannot export, more than 2 GiB, or scores that differ from PyTorch's; nothing is left behind.
    """
    _onnxruntime()
    path = user_path(path, "the ONNX file")
    if isinstance(labels, (str, os.PathLike)) and path.exists() and path.samefile(Path(labels).expanduser()):
        raise ValueError(f"{path} is the file of labels, which would be lost: give the ONNX file another name")
    scorer = _scorer(model, labels, embeddings, reference)
    with replacing(path) as part:  # a place that cannot be written is refused before the work
        program = _program(scorer, _pictures(model.vlp.side, uint8)[:3])
        program.model.metadata_props.update(_metadata(scorer, reference, uint8))
        program.save(part, external_data=False)
        del program  # as large as the weights
        compared = _compare(part, scorer, tolerance, path)
    return {"labels": len(scorer.labels)} | compared | {"bytes": path.stat().st_size}


@torch.no_grad()
def _scorer(model: Method, labels, embeddings: Tensor | None, reference: bool) -> Scorer:
    """A float32 copy on the CPU. Raises as ``beside_reference``, and ``ValueError`` for embeddings of another shape."""
    words = beside_reference(model, labels)
    model = copy.deepcopy(model).cpu().eval()
    model = model.under(model.config.replace(bf16=False))
    known, new = (words.reference, words.new) if reference else ([], words.labels)
    columns = words.columns if reference else list(range(len(new)))
    if embeddings is None:
        return Scorer(model, model.label_embeddings(known + new), words.labels, columns).eval()
    parts = [model.label_embeddings(known)] if known else []  # the text tower need not know the user's names
    K, width = len(words.labels), parts[0].shape[1] if known else embeddings.shape[-1]
    if embeddings.shape != (K, width):
        raise ValueError(f"embeddings {tuple(embeddings.shape)} of {K} labels: give ({K}, {width})")
    t = torch.cat([*parts, torch.zeros(len(new), width)])  # (V, D)
    t[columns] = embeddings.detach().to("cpu", torch.float32)
    return Scorer(model, t, words.labels, columns).eval()


@torch.no_grad()
def _program(scorer: Scorer, images: Tensor):
    """The graph, for any number of pictures. Raises ``ValueError`` if torch or one ONNX file cannot hold it."""
    title = scorer.model.title
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
        raise ValueError(f"torch.onnx cannot export {title}: {reason.strip()}") from error
    batch = program.model.graph.inputs[0].shape[0]
    if isinstance(batch, int):
        raise ValueError(f"the graph of {title} holds for {batch} pictures alone: write x.shape[0], not len(x), in it")
    weights = (value.const_value for value in program.model.graph.initializers.values())
    size = sum(value.nbytes for value in weights if value is not None)
    if size >= LIMIT:
        raise ValueError(f"{size / 2**30:.1f} GiB of weights: one ONNX file holds 2 GiB; take a smaller VLP than this")
    return program


def _sort():
    """``aten.sort.stable``, which torch's exporter lacks: TopK of all entries, whose ties go to the lower index."""
    from onnxscript import opset18 as op

    def sort_stable(self, stable=None, dim: int = -1, descending: bool = False):
        n = op.Shape(self, start=dim, end=dim + 1) if dim != -1 else op.Shape(self, start=dim)
        return op.TopK(self, n, axis=dim, largest=int(descending), sorted=1)

    return sort_stable


def _metadata(scorer: Scorer, reference: bool, uint8: bool) -> dict[str, str]:
    """What a caller of the file needs, all text; ``labels``, ``mean``, ``std``, ``reference``, ``config`` are JSON."""
    vlp, settings = scorer.model.vlp, scorer.model.config.to_dict()
    settings.pop("vlp_weights", None)  # may be a path of this machine
    pixels = f"RGB pictures (B, 3, {vlp.side}, {vlp.side}), {'uint8 in 0..255' if uint8 else 'float32 in 0..1'}"
    return {
        "labels": json.dumps(scorer.labels, ensure_ascii=False),
        "side": str(vlp.side),
        "input": f"{pixels}; {RESIZED[scorer.model.config.resize]}",
        "resize": scorer.model.config.resize,
        "mean": json.dumps(vlp.mean.flatten().tolist()),  # applied inside
        "std": json.dumps(vlp.std.flatten().tolist()),
        "reference": json.dumps(reference),
        "scored_among": str(len(scorer.t)),  # labels in softmax and norms
        "method": scorer.model.config.method,
        "vlp": vlp.name,
        "vlp_hash": vlp.hash,
        "config": json.dumps(settings, ensure_ascii=False),
        "hrcf": __version__,
    }


def _pictures(side: int, uint8: bool, n: int = 8) -> Tensor:
    """Noise, always the same, from one colour per picture to one per pixel: (n, 3, side, side)."""
    rng = torch.Generator().manual_seed(0)
    grains = [max(1, side * i // (n - 1)) for i in range(n)]  # cells along a side
    cells = [torch.rand(1, 3, grain, grain, generator=rng) for grain in grains]
    images = torch.cat([F.interpolate(x, size=(side, side), mode="nearest") for x in cells])  # (n, 3, side, side)
    return (255 * images).round().to(torch.uint8) if uint8 else images


@torch.no_grad()
def _compare(path, scorer: Scorer, tolerance: float, name) -> dict:
    """Compare the file at ``path``, which errors call ``name``, with PyTorch. Raises ``ValueError`` if it differs."""
    session = open_session(path)
    images = _pictures(scorer.model.vlp.side, session.get_inputs()[0].type == "tensor(uint8)")
    expected = scorer.model.score_embeddings(*scorer.model.embed(images), scorer.t)[:, scorer.columns]  # (B, K)
    largest, differences = expected.abs().max().item(), []
    for batches in ([images], images.split(1)):
        try:
            parts = [session.run(["scores"], {"images": x.numpy()})[0] for x in batches]
        except Exception as error:  # onnxruntime has an exception of its own for each kind of failure
            raise ValueError(f"{name} does not run in onnxruntime: {error}") from error
        found = torch.cat([torch.from_numpy(part) for part in parts])
        try:
            torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * max(1.0, largest))
        except AssertionError as error:
            raise ValueError(f"{name}: scores differ from PyTorch's: {error}") from error
        differences.append((found - expected).abs().max().item())
    return {"pictures": len(images), "max_abs_diff": max(differences), "largest": largest}


def open_session(path):
    """The file in onnxruntime, on the CPU, with as many threads as PyTorch has.

    Raises ``FileNotFoundError`` for no file and ``ValueError`` for one that is not an ONNX model.
    """
    onnxruntime = _onnxruntime()
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist: hrcf_lib.apply.onnx.export writes it")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has an exception of its own for each kind of failure
        raise ValueError(f"{path} cannot be read as an ONNX model: {error}") from error


def _onnxruntime():
    """onnxruntime. Raises ``ModuleNotFoundError`` naming the extra, if one of its three packages is missing."""
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}: ONNX export needs the extra: pip install 'hrcf[onnx]'") from error
    return onnxruntime


def main(words=None) -> None:
    """The command line; a user's error ends it with one line that says what to fix."""
    parser = argparse.ArgumentParser(prog="python -m hrcf_lib.apply.onnx", description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of save_pretrained, or hf://owner/name")
    parser.add_argument("labels", type=Path, help="file of labels: .txt, .csv, .tsv or .json, as for classify")
    parser.add_argument("out", type=Path, help="ONNX file to write")
    parser.add_argument("--uint8", action="store_true", help="take uint8 pictures in 0..255, not float32 in 0..1")
    parser.add_argument("--alone", action="store_true", help="score labels among themselves, without the reference")
    given = parser.parse_args(words)
    try:
        model = registry.load(given.model)
        made = export(model, given.labels, given.out, reference=not given.alone, uint8=given.uint8)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        parser.exit(2, f"{error}\n")
    print(
        f"{given.out}: {made['labels']} labels, {made['bytes'] / 1e6:.1f} MB; on {made['pictures']} pictures "
        f"scores are within {made['max_abs_diff']:.0e} of PyTorch's"
    )


if __name__ == "__main__":
    main()
