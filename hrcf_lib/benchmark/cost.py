r"""How far each stage is from what the machine can do: its arithmetic and its traffic against measured limits.

Arithmetic: floating-point operations of matrix products, convolutions and attention, by PyTorch's own counter, against
the rate of a large matrix product here, in the type that the stage computes in. Traffic: bytes that all operations read
and write, each by itself, against the rate at which a large array is copied here. What stays in a cache between two
operations is counted and costs little, so the share of traffic can exceed 1; it is a bound for code without fusion.
"""

from collections.abc import Callable

import pandas as pd
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hrcf_lib import budget, devices, scores
from hrcf_lib.benchmark.measure import Sizes, annotate, draw, draw_images, names_of, seconds
from hrcf_lib.losses import ranking_loss


class Traffic(TorchDispatchMode):
    """Counts the bytes that operations read and write while it is entered; views move nothing."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        read, written = _tensors((args, kwargs)), _tensors(result)
        places = {x.untyped_storage().data_ptr() for x in read}
        is_view = written and all(x.untyped_storage().data_ptr() in places for x in written)
        if function._schema.is_mutable or not is_view:
            self.bytes += sum(map(_size, read + written))
        return result


def _tensors(tree) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


def _size(x: Tensor) -> int:
    return min(x.numel() * x.element_size(), x.untyped_storage().nbytes())  # an expanded tensor is read once


def machine(n: int = 4096, megabytes: int = 512) -> dict[str, float]:
    """Rates of this machine: GFLOP/s of an n x n matrix product in float32 and bfloat16, GB/s of a large copy."""
    rates, device = {}, devices.best()
    for name, dtype in {"float32": torch.float32, "bfloat16": torch.bfloat16}.items():
        a = torch.randn(n, n, device=device, dtype=dtype)
        rates[name] = 2e-9 * n**3 / _fastest(lambda a=a: a @ a)
    x = torch.ones(megabytes * 250_000, device=device)
    y = torch.empty_like(x)
    return rates | {"GB/s": 2e-9 * x.numel() * x.element_size() / _fastest(lambda: y.copy_(x))}


def _fastest(run: Callable, repeats: int = 5) -> float:
    run()
    return min(seconds(run)[0] for _ in range(repeats))


def stages(sizes: Sizes) -> dict[str, Callable]:
    """The stages of training and inference by name, each a call; B pictures and K labels of NUS-WIDE."""
    model = sizes.model().train()
    vlp, names, B = model.vlp, names_of(sizes.K), sizes.B
    vlp.requires_grad_(False)
    images, t = draw_images(B, vlp.side), draw(sizes.K, vlp.D, scale=0.05)
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

    quiet, labels = torch.no_grad(), annotate(B, sizes.K)
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
    """A row a stage: type, GFLOP, GB moved, seconds, GFLOP/s, and the shares of both limits (of ``machine``)."""
    rates, rows = rates or machine(), {}
    image_type = "bfloat16" if devices.native_bf16(devices.best()) else "float32"
    for name, run in stages(sizes).items():
        dtype = image_type if name.startswith(("trunk", "teacher", "student")) else "float32"
        taken = _fastest(run, repeats=3)
        fused = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # an attention in one piece would be counted as nothing
        try:
            with Traffic() as traffic:
                operations, _ = budget.count(run)
        finally:
            torch.backends.mha.set_fastpath_enabled(fused)
        row = {"type": dtype, "GFLOP": operations / 1e9, "GB": traffic.bytes / 1e9, "seconds": taken}
        row["GFLOP/s"] = row["GFLOP"] / taken
        row["share of peak arithmetic"] = row["GFLOP/s"] / rates[dtype]
        row["share of peak traffic"] = row["GB"] / taken / rates["GB/s"]
        rows[name] = row
    return pd.DataFrame(rows).T.rename_axis("stage").infer_objects()
