"""Rows on the image side: steps of training from the cache and with a shared trunk, and inference."""

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from hrcf_lib import training
from hrcf_lib.apply import onnx
from hrcf_lib.speed import cost
from hrcf_lib.speed.measure import Sizes, annotate, draw, draw_images, duel, far, names_of, relative, seconds


def feature_cache(sizes: Sizes) -> dict:
    """A step of the image side from frozen features, against one that runs student and teacher in full."""
    return _image_step(sizes, cached=True)


def shared_trunk(sizes: Sizes) -> dict:
    """A step on augmented pictures: one pass of the trunk for both, against student and teacher in full."""
    return _image_step(sizes, cached=False)


def _image_step(sizes: Sizes, cached: bool) -> dict:
    model, B, K = sizes.model(), sizes.B, sizes.K
    vlp, names = model.vlp, names_of(K)
    training.only(model, "hcg")
    model.train()
    images, labels, t = draw_images(B, vlp.side), annotate(B, K), draw(K, vlp.D, scale=0.05)
    objective = training._Objective(model, "hcg", names, t)
    optimizer = torch.optim.AdamW(model.groups("hcg"), lr=0.0)

    @torch.no_grad()
    def frozen(twice: bool) -> tuple[Tensor, Tensor]:
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

    full = lambda: update(*frozen(twice=True))
    stored = frozen(twice=False)
    ours = (lambda: update(*stored)) if cached else (lambda: update(*frozen(twice=False)))
    row = duel(full, ours, repeats=3)
    model.config = model.config.replace(bf16=False)  # float32, where the two can be held against each other
    stored = frozen(twice=False)
    values, gradients = [], []
    for form in (full, ours):
        values.append(form())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad]))
    row |= {"max_abs_diff": far(*values), "grad_rel_diff": relative(*gradients)}
    row |= _arithmetic(cost.flops(model.config, names, B), cached)
    if cached:
        rounded = update(stored[0].half().float(), stored[1])
        row["note"] += f"; the loss moves by {far(values[0], rounded):.0e} where features are stored as float16"
    what = f"step of the image side, B = {B}, K = {K}, " + ("features in memory" if cached else "trunk shared")
    return row | {"what": what}


def _arithmetic(parts: dict[str, float], cached: bool) -> dict:
    """Operations of both steps, counted from shapes."""
    learn = sum(parts[name] for name in ("student", "student backward", "scores", "scores backward to regions"))
    trunk, teacher = parts["trunk"], parts["teacher"]
    plain_form, ours = 2 * trunk + teacher + learn, learn + (0 if cached else trunk + teacher)
    count = f"{plain_form / 1e9:.1f} against {ours / 1e9:.1f} GFLOP a picture allow {plain_form / ours:.1f} x"
    return {"note": count, "gflop_plain": plain_form / 1e9, "gflop_ours": ours / 1e9}


def inference_overhead(sizes: Sizes) -> dict:
    """HRCF from picture to scores, against the plain VLP's global embedding, both in bfloat16 where it is native."""
    return _overhead(sizes, sizes.B_inference)


def inference_single(sizes: Sizes) -> dict:
    """The same for one picture at a time, which the paper times too."""
    return _overhead(sizes, 1)


def _overhead(sizes: Sizes, B: int) -> dict:
    model = sizes.model().eval()
    vlp, t, images = model.vlp, draw(sizes.K_test, model.vlp.D, scale=0.05), draw_images(B, model.vlp.side)

    @torch.no_grad()
    def plain_vlp() -> Tensor:
        with model.autocast():
            return vlp.encode_image(images)

    row = duel(plain_vlp, lambda: model.score_embeddings(*model.embed(images), t), repeats=5)
    parts = cost.flops(model.config, names_of(8), B)
    more = (parts["student"] - parts["teacher"]) / (parts["trunk"] + parts["teacher"])
    overhead = 1 / row["ratio"]
    note = f"HRCF takes {overhead:.2f} x the plain forward; its image side has {more:.0%} more arithmetic"
    what = f"picture to scores against plain {vlp.name}, B = {B}, K = {sizes.K_test}"
    return row | {"what": what, "note": note, "overhead": overhead, "pictures_per_s": B / row["ours_s"]}


def inference_bf16(sizes: Sizes) -> dict:
    """HRCF's inference in bfloat16, where it is native, against float32."""
    exact, fast = sizes.model(bf16=False).eval(), sizes.model().eval()
    t, images = draw(sizes.K_test, exact.vlp.D, scale=0.05), draw_images(sizes.B_inference, exact.vlp.side)
    forms = [torch.no_grad()(lambda m=m: m.score_embeddings(*m.embed(images), t)) for m in (exact, fast)]
    row = duel(*forms, repeats=2) | {"max_abs_diff": far(*(form() for form in forms))}
    what = f"picture to scores in bfloat16 against float32, B = {len(images)}"
    return row | {"what": what, "note": "rounded, not exact: the difference is that of scores in -1..1"}


def inference_channels_last(sizes: Sizes) -> dict:
    """Inference with HCG's convolution weights in channels-last order, against as they are: tried, and left out."""
    return _variant(sizes, lambda model: model.gather.to(memory_format=torch.channels_last), "weights in channels-last")


def inference_compiled(sizes: Sizes) -> dict:
    """Inference through ``torch.compile``, against without: left to the user, as it takes a compiler and a minute."""
    return _variant(sizes, lambda model: setattr(model, "embed", torch.compile(model.embed)), "torch.compile")


def _variant(sizes: Sizes, change, what: str) -> dict:
    usual, other = sizes.model().eval(), sizes.model().eval()
    change(other)
    t, images = draw(sizes.K_test, usual.vlp.D, scale=0.05), draw_images(sizes.B_inference, usual.vlp.side)
    forms = [torch.no_grad()(lambda m=m: m.score_embeddings(*m.embed(images), t)) for m in (usual, other)]
    start, _ = seconds(forms[1])
    row = duel(*forms, repeats=5) | {"max_abs_diff": far(*(form() for form in forms))}
    note = f"the first call takes {start:.0f} s; the default is without"
    return row | {"what": f"picture to scores, B = {len(images)}, {what} (as ours) against without", "note": note}


def inference_onnx(sizes: Sizes) -> dict:
    """The exported file in onnxruntime (as ours), against PyTorch: both on the CPU, in float32, with as many threads.

    Needs the extra ``onnx``.
    """
    model, names = sizes.model(bf16=False).eval().cpu(), names_of(sizes.K)
    t = draw(sizes.K, model.vlp.D, scale=0.05).cpu()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "classifier.onnx"
        told, session = onnx.export(model, names, path, t, reference=False), onnx.open_session(path)
        forms = {}
        for B in (1, sizes.B_inference):
            images = draw_images(B, model.vlp.side).cpu() / 255
            plain_form = torch.no_grad()(lambda images=images: model.score_embeddings(*model.embed(images), t))
            forms[B] = plain_form, lambda images=images: session.run(["scores"], {"images": images.numpy()})[0]
        single = duel(*forms[1], repeats=5)["ratio"]
        row = duel(*forms[B], repeats=5) | {"max_abs_diff": far(forms[B][0](), torch.from_numpy(forms[B][1]()))}
    threads, size = torch.get_num_threads(), told["bytes"] / 1e6
    note = f"{single:.2f} x for one picture; {threads} threads each; a file of {size:.0f} MB"
    what = f"picture to scores in onnxruntime against PyTorch, float32, CPU, B = {B}, K = {sizes.K}"
    return row | {"what": what, "note": note, "ratio_single": single, "file_mb": size, "threads": threads}
