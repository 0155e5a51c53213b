r"""What training costs: operations counted from shapes, hours on one GPU, and how far each stage is from the limits.

Arithmetic is the number of floating-point operations of matrix products, convolutions and attention, by PyTorch's own
counter. ``cost`` compares it with the rate of a large matrix product on this machine, in the type that the stage
computes in. Traffic is the number of bytes that all operations read and write, compared with the rate at which a large
array is copied. Data that stay in a cache between two operations are counted but cost little, so the share of traffic
can exceed 1; it is a bound for code without fusion.
"""

import math
from collections.abc import Callable, Sequence

import pandas as pd
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from hrcf_lib import scores
from hrcf_lib.config import TRAINABLE, Config
from hrcf_lib.data.official import nus_wide
from hrcf_lib.engine import devices
from hrcf_lib.engine.messages import check_known
from hrcf_lib.losses import ranking_loss
from hrcf_lib.model import HRCF
from hrcf_lib.speed.compare import fastest
from hrcf_lib.speed.inputs import Sizes, label_names, random_images, random_labels, random_normal


class Traffic(TorchDispatchMode):
    """Context that counts the bytes that operations read and write. Views move nothing."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.bytes += self.moved(function, args, kwargs, result)
        return result

    @staticmethod
    def moved(function, args, kwargs, result) -> int:
        """Bytes that one call reads and writes."""
        read, written = _tensors((args, kwargs)), _tensors(result)
        storages = {x.untyped_storage().data_ptr() for x in read}
        is_view = written and all(x.untyped_storage().data_ptr() in storages for x in written)
        return sum(map(_size, read + written)) if function._schema.is_mutable or not is_view else 0


def _tensors(tree) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


def _size(x: Tensor) -> int:
    return min(x.numel() * x.element_size(), x.untyped_storage().nbytes())  # an expanded tensor is read once


def machine(n: int = 4096, megabytes: int = 512) -> dict[str, float]:
    """Rates of this machine: GFLOP/s of an n x n matrix product in float32 and in bfloat16, GB/s of a large copy."""
    rates, device = {}, devices.best()
    for name, dtype in {"float32": torch.float32, "bfloat16": torch.bfloat16}.items():
        a = torch.randn(n, n, device=device, dtype=dtype)
        rates[name] = 2e-9 * n**3 / fastest(lambda a=a: a @ a, repeats=5)
    x = torch.ones(megabytes * 250_000, device=device)
    y = torch.empty_like(x)
    return rates | {"GB/s": 2e-9 * x.numel() * x.element_size() / fastest(lambda: y.copy_(x), repeats=5)}


def stages(sizes: Sizes) -> dict[str, Callable]:
    """Stage name -> call, of training and inference, for B pictures and K labels of NUS-WIDE."""
    model = sizes.model().train()
    vlp, names, B = model.vlp, label_names(sizes.K), sizes.B
    vlp.requires_grad_(False)
    images, t = random_images(B, vlp.side), random_normal(sizes.K, vlp.D, scale=0.05)
    with torch.no_grad(), model.autocast():
        trunk = vlp.trunk(images)
    e_g, regions = model.embed(images)

    def student() -> Tensor:
        with model.autocast():
            e_g, regions = model.image_embeddings(trunk)
        return e_g.float().sum() + regions.float().sum()

    def in_bf16(run: Callable) -> Callable:
        def inside():
            with torch.no_grad(), model.autocast():
                return run()

        return inside

    quiet, labels = torch.no_grad(), random_labels(B, sizes.K)
    score = lambda r: scores.score(e_g, r, t, model.config, select=False)
    s = score(regions).detach()
    return {
        "trunk": in_bf16(lambda: vlp.trunk(images)),
        "teacher": in_bf16(lambda: vlp.teacher(trunk)),
        "student": quiet(student),
        "student, with backward": lambda: student().backward(),
        "HSA": quiet(lambda: score(regions)),
        "HSA, with backward": lambda: score(regions.detach().requires_grad_()).sum().backward(),
        "ranking loss, with backward": lambda: ranking_loss(s.detach().requires_grad_(), labels).backward(),
        "label embeddings": quiet(lambda: model.label_embeddings(names)),
        "label embeddings, with backward": lambda: (model.label_embeddings(names) * t).sum().backward(),
    }


def cost(sizes: Sizes, rates: dict[str, float] | None = None) -> pd.DataFrame:
    """One row per stage: type, GFLOP, GB moved, seconds, GFLOP/s, and shares of the two limits ``rates``.

    ``rates`` are those of ``machine``, which is called if they are not given.
    """
    rates, rows = rates or machine(), {}
    image_type = "bfloat16" if devices.native_bf16(devices.best()) else "float32"
    for name, run in stages(sizes).items():
        dtype = image_type if name.startswith(("trunk", "teacher", "student")) else "float32"
        taken = fastest(run, repeats=3)
        fused = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # the counter does not see fused attention
        try:
            with Traffic() as traffic:
                operations, _ = count(run)
        finally:
            torch.backends.mha.set_fastpath_enabled(fused)
        row = {"type": dtype, "GFLOP": operations / 1e9, "GB": traffic.bytes / 1e9, "seconds": taken}
        row["GFLOP/s"] = row["GFLOP"] / taken
        row["share of peak arithmetic"] = row["GFLOP/s"] / rates[dtype]
        row["share of peak traffic"] = row["GB"] / taken / rates["GB/s"]
        rows[name] = row
    return pd.DataFrame(rows).T.rename_axis("stage").infer_objects()


PICTURES = {  # of an epoch
    "nus_wide": nus_wide.IMAGES["train"],
    "open_images": 5_501_586,  # of 9,011,219: those with human labels, as LESA's code lists them
}


def count(run: Callable) -> tuple[int, object]:
    """Number of floating-point operations of ``run()``, and its result."""
    with FlopCounterMode(display=False) as counter:
        result = run()
    return counter.get_total_flops(), result


def flops(config: Config, names: Sequence[str], B: int) -> dict[str, float]:
    r"""Floating-point operations of each part of a step with B pictures and the labels ``names``.

    Per picture: ``trunk`` (11 of 12 blocks), ``teacher`` (the last block, frozen), ``student`` and ``student
    backward`` (its copy, HCG and head), ``scores`` (HSA), ``scores backward to regions`` or ``to labels``. Per step:
    ``label embeddings`` and ``label embeddings backward``. With ``config.bf16``, trunk to
    student backward run in bfloat16.
    """
    model = HRCF(config, pretrained=False).to("meta").train()
    side = model.vlp.side
    images = torch.empty(B, 3, side, side, device="meta")
    parts = {}
    for name, p in model.named_parameters():
        p.requires_grad_(name.startswith(TRAINABLE["hcg"] + TRAINABLE["prompts"]))
    parts["trunk"], trunk = count(lambda: model.vlp.trunk(images))
    parts["teacher"], _ = count(lambda: model.vlp.teacher(trunk))
    parts["student"], (e_g, regions) = count(lambda: model.image_embeddings(trunk))
    parts["student backward"], _ = count(lambda: (e_g.sum() + regions.sum()).backward())
    e_g, regions = e_g.detach(), regions.detach()
    text, t = count(lambda: model.label_embeddings(names))
    text_backward, _ = count(lambda: t.sum().backward())
    t = t.detach()
    parts["scores"], _ = count(torch.no_grad()(lambda: model.score_embeddings(e_g, regions, t)))
    for learns in ("regions", "labels"):
        for tensor in (e_g, regions):
            tensor.requires_grad_(learns == "regions")
        t.requires_grad_(learns == "labels")
        both, _ = count(lambda: model.score_embeddings(e_g, regions, t).sum().backward())
        parts[f"scores backward to {learns}"] = both - parts["scores"]
    parts = {name: value / B for name, value in parts.items()}
    return parts | {"label embeddings": text, "label embeddings backward": text_backward}


def per_step(parts: dict[str, float], side: str, B: int) -> tuple[float, float]:
    """Operations of one step of a phase that trains ``side``: of the image side, and of scores and label embeddings."""
    image = parts["trunk"] + parts["teacher"] + parts["student"]
    if side == "hcg":  # label embeddings are computed once per phase
        return B * (image + parts["student backward"]), B * (parts["scores"] + parts["scores backward to regions"])
    text = parts["label embeddings"] + parts["label embeddings backward"]
    return B * image, B * (parts["scores"] + parts["scores backward to labels"]) + text


def budget(
    config: Config, names: Sequence[str], tflops: float = 60.0, tflops_f32: float = 10.0, measured: dict | None = None
) -> pd.DataFrame:
    r"""Hours of the whole training of ``config`` on one GPU: one row per side, and the sum.

    Args:
        config: its data set is a key of ``PICTURES``.
        names: the seen labels.
        tflops: 10^12 operations per second that the GPU sustains in the image side (bfloat16). This is not its peak;
            the default is a fifth of an A100's peak.
        tflops_f32: the same for scores and label embeddings (float32); half of an A100's peak.
        measured: side -> seconds per step on a GPU, used in place of the estimate.

    Decoding of pictures is not counted: it runs at the same time, if the machine has enough cores. Raises
    ``ValueError`` for a data set without a published number of pictures.
    """
    check_known([config.dataset], list(PICTURES), "no number of training pictures for")
    rows = []
    for side in TRAINABLE:
        phases = [p for p in config.phases if p.trains == side]
        if not phases:
            continue
        B, epochs = phases[0].batch, sum(p.epochs for p in phases)
        steps = epochs * math.ceil(PICTURES[config.dataset] / B)
        image, text = per_step(flops(config, names, B), side, B)
        seconds = image / (tflops * 1e12) + text / (tflops_f32 * 1e12)
        how = f"estimate at {tflops:g} and {tflops_f32:g} TFLOP/s"
        if measured and measured.get(side):
            seconds, how = measured[side], "measured seconds a step"
        row = {"side": side, "epochs": epochs, "batch": B, "steps": steps, "bf16 TFLOP a step": image / 1e12}
        row |= {"f32 TFLOP a step": text / 1e12, "seconds a step": seconds, "pictures a second": B / seconds}
        rows.append(row | {"hours": steps * seconds / 3600, "basis": how})
    total = {"side": "all", "steps": sum(r["steps"] for r in rows), "hours": sum(r["hours"] for r in rows)}
    return pd.DataFrame([*rows, total])
