"""Rows on the text side: the shared beginning of prompts, sentences without one, and a step of the prompt phase."""

import torch
from torch import Tensor

from hrcf_lib import training
from hrcf_lib.prompts import KINDS, PromptLearner
from hrcf_lib.speed import plain
from hrcf_lib.speed.measure import Sizes, annotate, draw, draw_images, duel, far, names_of, relative, seconds
from hrcf_lib.vlp import encode_tokens


def prompt_prefix(sizes: Sizes) -> dict:
    """Label embeddings, forward and backward: the shared beginning once, against whole sentences of 77 tokens."""
    vlp, names, found = sizes.model().vlp, names_of(sizes.K), []
    for kind in KINDS:  # their differences on a few names; what they cost is the same
        found.append(_apart(*(form() for form in _twins(vlp, kind, names[:8], sizes.part))))
    last = {}  # what each form computed when it was timed
    whole, shared = _twins(vlp, "hybrid", names, sizes.part)
    forms = lambda: last.update(whole=whole()), lambda: last.update(shared=shared())
    row = duel(*forms, repeats=3 if torch.cuda.is_available() else 1, warm=False)
    found.append(_apart(last["whole"], last["shared"]))
    row |= {key: max(f[key] for f in found) for key in ("max_abs_diff", "grad_rel_diff")}
    what = f"{len(names)} names, text tower of {vlp.name}, forward and backward, hybrid prompt"
    return row | {"what": what, "note": "differences: the largest of this and of all four kinds on 8 names"}


def _twins(vlp, kind: str, names: list[str], part: int):
    """Two functions that give embeddings of ``names`` and gradients of one prompt: whole sentences, and ours."""
    prompt = PromptLearner(vlp, kind).to(vlp.mean.device)
    weights = draw(len(names), vlp.D)

    def whole():  # the gradient of a part is added before the next part starts
        parts = [slice(first, first + part) for first in range(0, len(names), part)]
        return torch.cat([_backward(plain.label_embeddings(prompt, vlp, names[p]), weights[p]) for p in parts])

    def fresh(form):
        prompt.zero_grad(set_to_none=True)
        return form(), [p.grad for p in prompt.parameters()]

    return lambda: fresh(whole), lambda: fresh(lambda: _backward(prompt(vlp, names), weights))


def _backward(t: Tensor, weights: Tensor) -> Tensor:
    """Gradient of the weighted sum of ``t``, where something is learnt; returns the values."""
    if t.requires_grad:
        (t * weights).sum().backward()
    return t.detach()


def _apart(a: tuple, b: tuple) -> dict:
    return {"max_abs_diff": far(a[0], b[0]), "grad_rel_diff": max(map(relative, a[1], b[1]), default=0.0)}


def class_prompts(sizes: Sizes) -> dict:
    """Sentences that share no beginning: cut after the end of the longest, against 77 tokens."""
    vlp, names = sizes.model().vlp, names_of(sizes.K)[: 8 * sizes.part]
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
        row = duel(*forms, repeats=3 if torch.cuda.is_available() else 1)
        row["max_abs_diff"] = far(*(form() for form in forms))
    return row | {"what": f"{len(texts)} sentences without a common beginning, forward"}


def prompt_phase(sizes: Sizes) -> dict:
    """A step of the prompts with the image side at rest, against one that runs it on the pictures.

    It rests in phases of several epochs on stored features (``embeddings.rest``), each picture embedded once before.
    """
    model, B, names = sizes.model(), sizes.B, names_of(sizes.K)
    training.only(model, "prompts")
    model.train()
    images, labels, e_p = draw_images(B, model.vlp.side), annotate(B, len(names)), draw(B, model.vlp.D)
    objective = training._Objective(model, "prompts", names, None)
    at_rest = model.embed(images)

    def update(images) -> Tensor:
        model.zero_grad()
        loss = objective(images, e_p, labels, B)[0]
        loss.backward()
        return torch.cat([loss.detach()[None], *(p.grad.flatten() for p in model.prompt.parameters())])

    def whole() -> Tensor:
        with torch.no_grad(), model.autocast():
            trunk = model.vlp.trunk(images)
        return update(trunk)

    row = duel(whole, lambda: update(at_rest), repeats=3)
    weights = draw(len(names), model.vlp.D)
    text, _ = seconds(lambda: _backward(model.label_embeddings(names), weights))
    a, b = whole(), update(at_rest)
    row |= {"max_abs_diff": far(a[:1], b[:1]), "grad_rel_diff": relative(a[1:], b[1:])}
    note = f"the text tower alone takes {text / row['ours_s']:.0%} of our step"
    what = f"step of the prompts, B = {B}, K = {len(names)}: image side at rest against run on the pictures"
    return row | {"what": what, "note": note, "text_share": text / row["ours_s"]}
