"""Rows on the text side: the shared prefix of prompts, sentences without one, and a step of the prompt phase."""

import torch
from torch import Tensor

from hrcf_lib import training
from hrcf_lib.prompts import KINDS, PromptLearner
from hrcf_lib.speed import plain
from hrcf_lib.speed.compare import compare_times, max_difference, relative_difference, seconds
from hrcf_lib.speed.inputs import Sizes, label_names, random_images, random_labels, random_normal
from hrcf_lib.vlp import encode_tokens


def prompt_prefix(sizes: Sizes) -> dict:
    """Label embeddings, forward and backward: the shared prefix once, against whole sentences of 77 tokens."""
    vlp, names = sizes.model().vlp, label_names(sizes.K)
    found = []
    for kind in KINDS:  # all kinds on a few names; they take equally long
        found.append(_differences(*(form() for form in _forms(vlp, kind, names[:8], sizes.part))))
    some = names[: sizes.part]
    whole, ours = _forms(vlp, "hybrid", some, sizes.part)
    found.append(_differences(whole(), ours()))
    row, _ = compare_times(whole, _forms(vlp, "hybrid", names, sizes.part)[1], share=len(some) / len(names))
    row |= {key: max(f[key] for f in found) for key in ("max_abs_diff", "grad_rel_diff")}
    what = f"{len(names)} names, text tower of {vlp.name}, forward and backward, hybrid prompt"
    note = f"plain form timed on {len(some)} names, times {len(names) / len(some):.3g}"
    return row | {"what": what, "note": f"{note}; differences: the largest of these and of all kinds on 8 names"}


def _forms(vlp, kind: str, names: list[str], part: int):
    """The plain form and ours. Each returns embeddings of ``names`` and the gradients of the prompt's parameters."""
    prompt = PromptLearner(vlp, kind).to(vlp.mean.device)
    weights = random_normal(len(names), vlp.D)

    def whole():  # in parts, whose gradients add up
        parts = [slice(first, first + part) for first in range(0, len(names), part)]
        return torch.cat([_backward(plain.label_embeddings(prompt, vlp, names[p]), weights[p]) for p in parts])

    def with_gradients(form):
        prompt.zero_grad(set_to_none=True)
        return form(), [p.grad for p in prompt.parameters()]

    return lambda: with_gradients(whole), lambda: with_gradients(lambda: _backward(prompt(vlp, names), weights))


def _backward(t: Tensor, weights: Tensor) -> Tensor:
    """The values of ``t``; where it has a gradient, that of its weighted sum is computed."""
    if t.requires_grad:
        (t * weights).sum().backward()
    return t.detach()


def _differences(a: tuple, b: tuple) -> dict:
    gradients = max(map(relative_difference, a[1], b[1]), default=0.0)
    return {"max_abs_diff": max_difference(a[0], b[0]), "grad_rel_diff": gradients}


def class_prompts(sizes: Sizes) -> dict:
    """Sentences that share no prefix: cut after the end of the longest, against 77 tokens."""
    vlp, names = sizes.model().vlp, label_names(sizes.K)[: 2 * sizes.part]
    texts = [f"{name} is in the scene" for name in names]
    start, end = vlp.tokenizer.sot_token_id, vlp.tokenizer.eot_token_id
    rows = [[start, *vlp.token_ids(text), end] for text in texts]
    padded = torch.tensor([row + [0] * (vlp.context_length - len(row)) for row in rows], device=vlp.mean.device)
    last = torch.tensor([len(row) - 1 for row in rows], device=padded.device)
    with torch.no_grad():
        forms = (
            lambda: encode_tokens(vlp.model, vlp.model.token_embedding(padded), last),
            lambda: vlp.encode_text(texts),
        )
        row, results = compare_times(*forms)
    what = f"{len(texts)} sentences without a common beginning, forward"
    return row | {"max_abs_diff": max_difference(*results), "what": what}


def prompt_phase(sizes: Sizes) -> dict:
    """A step of the prompts from stored embeddings of pictures, against one that runs the image side.

    ``embeddings.fix_image_side`` stores them in phases of several epochs on frozen features, where each picture is
    embedded once.
    """
    model, B, names = sizes.model(), sizes.B, label_names(sizes.K)
    training.only(model, "prompts")
    model.train()
    images, labels = random_images(B, model.vlp.side), random_labels(B, len(names))
    e_p = random_normal(B, model.vlp.D)
    objective = training.Objective(model, "prompts", names, None)
    stored = model.embed(images)

    def update(images) -> Tensor:
        """The loss, followed by the gradients of the prompt."""
        model.zero_grad()
        loss = objective(images, e_p, labels, B)[0]
        loss.backward()
        return torch.cat([loss.detach()[None], *(p.grad.flatten() for p in model.prompt.parameters())])

    def whole() -> Tensor:
        with torch.no_grad(), model.autocast():
            trunk = model.vlp.trunk(images)
        return update(trunk)

    row, (a, b) = compare_times(whole, lambda: update(stored))
    row |= {"max_abs_diff": max_difference(a[:1], b[:1]), "grad_rel_diff": relative_difference(a[1:], b[1:])}
    weights = random_normal(len(names), model.vlp.D)
    share = seconds(lambda: _backward(model.label_embeddings(names), weights)) / row["ours_s"]
    what = f"step of the prompts, B = {B}, K = {len(names)}: image side at rest against run on the pictures"
    return row | {"what": what, "note": f"the text tower alone takes {share:.0%} of our step", "text_share": share}
