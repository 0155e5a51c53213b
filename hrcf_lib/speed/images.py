"""Rows on the image side: steps of training from the cache and with a shared trunk, and inference."""

import tempfile
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from hrcf_lib import training
from hrcf_lib.apply import onnx
from hrcf_lib.speed import cost
from hrcf_lib.speed.compare import compare_times, max_difference, relative_difference, seconds
from hrcf_lib.speed.inputs import Sizes, label_names, random_images, random_labels, random_normal


def feature_cache(sizes: Sizes) -> dict:
    """A step of the image side from frozen features, against one that runs student and teacher in full."""
    return _image_step(sizes, cached=True)


def shared_trunk(sizes: Sizes) -> dict:
    """A step on augmented pictures with one pass of the trunk, against one that runs student and teacher in full."""
    return _image_step(sizes, cached=False)


def step(model, side: str, B: int, names):
    """Two calls that make up a step of training on random pictures, at a rate of 0.

    ``frozen(twice=False)`` -> trunk tokens and e_p, whose trunk is computed once more for the teacher if ``twice``;
    ``update(trunk, e_p)`` -> the loss, after the backward pass and the optimizer.
    """
    vlp = model.vlp
    training.only(model, side)
    model.train()
    images, labels = random_images(B, vlp.side), random_labels(B, len(names))
    t = random_normal(len(names), vlp.D, scale=0.05) if side == "hcg" else None
    objective = training.Objective(model, side, names, t)
    optimizer = torch.optim.AdamW(model.groups(side), lr=0.0)

    @torch.no_grad()
    def frozen(twice: bool = False) -> tuple[Tensor, Tensor]:
        with model.autocast():
            trunk = vlp.trunk(images)
            e_p = vlp.teacher(vlp.trunk(images) if twice else trunk)
        return trunk.float(), e_p.float()

    def update(trunk: Tensor, e_p: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = objective(trunk, e_p, labels, B)[0]
        loss.backward()
        optimizer.step()
        return loss.detach()

    return frozen, update


def _image_step(sizes: Sizes, cached: bool) -> dict:
    model, B, K = sizes.model(), sizes.B, sizes.K
    names = label_names(K)
    frozen, update = step(model, "hcg", B, names)
    full = lambda: update(*frozen(twice=True))
    stored = frozen(twice=False)
    ours = (lambda: update(*stored)) if cached else (lambda: update(*frozen(twice=False)))
    row, _ = compare_times(full, ours)
    model.config = model.config.replace(bf16=False)  # both forms agree exactly in float32 only
    stored = frozen(twice=False)
    values, gradients = [], []
    for form in (full, ours):
        values.append(form())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad]))
    row |= {"max_abs_diff": max_difference(*values), "grad_rel_diff": relative_difference(*gradients)}
    row |= _arithmetic(cost.flops(model.config, names, B), cached)
    if cached:
        rounded = update(stored[0].half().float(), stored[1])
        row["note"] += f"; the loss moves by {max_difference(values[0], rounded):.0e} with features stored as float16"
    what = f"step of the image side, B = {B}, K = {K}, " + ("features in memory" if cached else "trunk shared")
    return row | {"what": what}


def _arithmetic(parts: dict[str, float], cached: bool) -> dict:
    """Operations of both steps, counted from shapes."""
    learn = sum(parts[name] for name in ("student", "student backward", "scores", "scores backward to regions"))
    trunk, teacher = parts["trunk"], parts["teacher"]
    plain_form, ours = 2 * trunk + teacher + learn, learn + (0 if cached else trunk + teacher)
    note = f"{plain_form / 1e9:.1f} against {ours / 1e9:.1f} GFLOP a picture allow {plain_form / ours:.1f} x"
    return {"note": note, "gflop_plain": plain_form / 1e9, "gflop_ours": ours / 1e9}


def inference_overhead(sizes: Sizes) -> dict:
    """HRCF from picture to scores, against the plain VLP's global embedding, both in bfloat16 where it is native."""
    return _overhead(sizes, sizes.B_inference)


def inference_single(sizes: Sizes) -> dict:
    """The same for one picture at a time, which the paper times too."""
    return _overhead(sizes, 1)


def _overhead(sizes: Sizes, B: int) -> dict:
    model = sizes.model().eval()
    images, ours = _from_pixels(sizes, model, B)

    @torch.no_grad()
    def plain_vlp() -> Tensor:
        with model.autocast():
            return model.vlp.encode_image(images)

    row, _ = compare_times(plain_vlp, ours)
    parts = cost.flops(model.config, label_names(8), B)
    more = (parts["student"] - parts["teacher"]) / (parts["trunk"] + parts["teacher"])
    overhead = 1 / row["ratio"]
    note = f"HRCF takes {overhead:.2f} x the plain forward; its image side has {more:.0%} more arithmetic"
    what = f"picture to scores against plain {model.vlp.name}, B = {B}, K = {sizes.K_test}"
    return row | {"what": what, "note": note, "overhead": overhead, "pictures_per_s": B / row["ours_s"]}


def _from_pixels(sizes: Sizes, model, B: int):
    """B pictures, and a call that scores them with random label embeddings."""
    images, t = random_images(B, model.vlp.side), random_normal(sizes.K_test, model.vlp.D, scale=0.05)
    return images, torch.no_grad()(lambda: model.score_embeddings(*model.embed(images), t))


def inference_bf16(sizes: Sizes) -> dict:
    """Inference in bfloat16, where it is native, against float32."""
    forms = sizes.model(bf16=False).eval(), sizes.model().eval()
    note = "rounded, not exact: the difference is that of scores in -1..1"
    return _variant(sizes, *forms, "in bfloat16 against float32", note)


def inference_channels_last(sizes: Sizes) -> dict:
    """Inference with HCG's convolution weights in channels-last order, against contiguous ones (the default)."""
    usual, other = sizes.model().eval(), sizes.model().eval()
    other.gather.to(memory_format=torch.channels_last)
    return _variant(sizes, usual, other, "weights in channels-last (as ours) against without")


def inference_compiled(sizes: Sizes) -> dict:
    """Inference through ``torch.compile``, against without (the default: compiling needs a compiler and a minute)."""
    usual, other = sizes.model().eval(), sizes.model().eval()
    other.embed = torch.compile(other.embed)
    return _variant(sizes, usual, other, "torch.compile (as ours) against without")


def _variant(sizes: Sizes, usual, other, what: str, note: str = "") -> dict:
    """The same model in two ways, from picture to scores."""
    forms = [_from_pixels(sizes, model, sizes.B_inference)[1] for model in (usual, other)]
    first = seconds(forms[1])
    row, results = compare_times(*forms)
    row |= {"max_abs_diff": max_difference(*results), "what": f"picture to scores, B = {sizes.B_inference}, {what}"}
    return row | {"note": note or f"the first call takes {first:.0f} s; the default is without"}


def attention(sizes: Sizes) -> dict:
    """Attention of the block that is trained, forward and backward: in float32, against bfloat16 (as ours)."""
    vlp = sizes.model().vlp
    heads = vlp.model.visual.transformer.resblocks[-1].attn.num_heads
    shape = sizes.B, heads, 1 + vlp.N**2, vlp.C // heads  # (B, heads, 1 + N^2, C / heads)

    def form(dtype: torch.dtype, kind: SDPBackend | None = None):
        q, k, v = (random_normal(*shape, seed=seed).to(dtype).requires_grad_() for seed in range(3))

        def run() -> Tensor:
            with sdpa_kernel(kind) if kind else nullcontext():
                out = scaled_dot_product_attention(q, k, v)
            out.sum().backward()
            return out.detach().float()

        return run

    plain_form, ours = form(torch.bfloat16), form(torch.float32)
    row, results = compare_times(plain_form, ours)
    unfused = compare_times(plain_form, form(torch.bfloat16, SDPBackend.MATH))[0]["ratio"]
    what = f"attention in float32 against bfloat16 (as ours), {' x '.join(map(str, shape))}, forward and backward"
    note = f"{unfused:.2f} x unfused in bfloat16; open_clip's block computes it in the type of the products around it"
    return row | {"max_abs_diff": max_difference(*results), "what": what, "note": note}


def inference_onnx(sizes: Sizes) -> dict:
    """The exported file in onnxruntime (as ours), against PyTorch: both on the CPU, in float32, with as many threads.

    Needs the extra ``onnx``.
    """
    model, names = sizes.model(bf16=False).eval().cpu(), label_names(sizes.K)
    t = random_normal(sizes.K, model.vlp.D, scale=0.05).cpu()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "classifier.onnx"
        exported, session = onnx.export(model, names, path, t, reference=False), onnx.open_session(path)
        forms = {}
        for B in (1, sizes.B_inference):
            images = random_images(B, model.vlp.side).cpu() / 255
            plain_form = torch.no_grad()(lambda images=images: model.score_embeddings(*model.embed(images), t))
            forms[B] = plain_form, lambda images=images: session.run(["scores"], {"images": images.numpy()})[0]
        single = compare_times(*forms[1])[0]["ratio"]
        row, (expected, scores) = compare_times(*forms[B])
        row["max_abs_diff"] = max_difference(expected, torch.from_numpy(scores))
    threads, size = torch.get_num_threads(), exported["bytes"] / 1e6
    note = f"{single:.2f} x for one picture; {threads} threads each; a file of {size:.0f} MB"
    what = f"picture to scores in onnxruntime against PyTorch, float32, CPU, B = {B}, K = {sizes.K}"
    return row | {"what": what, "note": note, "ratio_single": single, "file_mb": size, "threads": threads}
