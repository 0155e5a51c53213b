r"""What a training costs before it is run: floating-point operations of its parts, counted from shapes.

The parts of a step run on the ``meta`` device, where tensors have shapes and no numbers, under PyTorch's own counter of
operations (matrix products, convolutions and attention; a multiplication and an addition are two). So the count follows
the code: what is frozen has no backward pass, and what is computed a second time counts twice.

A step of the image side is trunk + teacher + student forward and backward + scores; one of the prompts is trunk +
teacher + student forward + scores + label embeddings forward and backward. Symbols: B pictures a step, K labels.
"""

import math
from collections.abc import Callable, Sequence

import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from hrcf_lib.config import TRAINABLE, Config
from hrcf_lib.data import nus_wide
from hrcf_lib.model import HRCF
from hrcf_lib.names import check_known

PICTURES = {  # of training; Open Images: those with human labels, as LESA's code lists them, of 9,011,219
    "nus_wide": nus_wide.IMAGES["train"],
    "open_images": 5_501_586,
}


def count(run: Callable) -> tuple[int, object]:
    """Floating-point operations of ``run()``, and what it returns."""
    with FlopCounterMode(display=False) as counter:
        result = run()
    return counter.get_total_flops(), result


def flops(config: Config, names: Sequence[str], B: int) -> dict[str, float]:
    r"""Operations of each part of a step with B pictures and the labels ``names``.

    Per picture: ``trunk`` (11 of 12 blocks), ``teacher`` (the last block, frozen), ``student`` and ``student
    backward`` (its copy, HCG and head), ``scores`` (HSA), ``scores backward to regions`` or ``to labels``. Per step:
    ``label embeddings`` and ``label embeddings backward``. In bfloat16 where ``config.bf16``: trunk to student
    backward.
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
    for learns, which in (("regions", (e_g, regions)), ("labels", (t,))):
        for tensor in (e_g, regions, t):
            tensor.requires_grad_(any(tensor is other for other in which))
        both, _ = count(lambda: model.score_embeddings(e_g, regions, t).sum().backward())
        parts[f"scores backward to {learns}"] = both - parts["scores"]
    parts = {name: value / B for name, value in parts.items()}
    return parts | {"label embeddings": text, "label embeddings backward": text_backward}


def per_step(parts: dict[str, float], side: str, B: int) -> tuple[float, float]:
    """Operations of one step of a phase that trains ``side``: (image side, scores and label embeddings)."""
    image = parts["trunk"] + parts["teacher"] + parts["student"]
    if side == "hcg":  # the label embeddings are computed once a phase
        return B * (image + parts["student backward"]), B * (parts["scores"] + parts["scores backward to regions"])
    text = parts["label embeddings"] + parts["label embeddings backward"]
    return B * image, B * (parts["scores"] + parts["scores backward to labels"]) + text


def budget(
    config: Config, names: Sequence[str], tflops: float = 60.0, tflops_f32: float = 10.0, measured: dict | None = None
) -> pd.DataFrame:
    r"""Hours of the whole training of ``config`` on one GPU, a row a side and a sum: an estimate, or as measured.

    Args:
        config: its data set is a key of ``PICTURES``, the number of pictures of an epoch.
        names: the seen labels.
        tflops: 10^12 operations a second that the GPU sustains in the image side (bfloat16), not its peak. The
            default is a fifth of an A100's peak.
        tflops_f32: the same for scores and label embeddings (float32); half of an A100's peak.
        measured: seconds a step of each side on a GPU, used in place of the estimate.

    Decoding pictures is not counted: it runs beside the GPU, if the machine has the cores for it. Raises ``ValueError``
    for a data set without a published number of pictures.
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
