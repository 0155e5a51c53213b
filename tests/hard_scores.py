"""Scores and labels of every kind that is hard for a loss, and its value with its gradient."""

import torch


def value_and_grad(loss, scores, *args, **kwargs):
    scores = scores.detach().clone().requires_grad_()
    value = loss(scores, *args, **kwargs)
    (grad,) = torch.autograd.grad(value, scores)
    return value.detach(), grad


def draw(kind, seed):
    """Scores and labels of a hard kind, in float64."""
    g = torch.Generator().manual_seed(seed)
    B, K = 5, 1 if kind == "K=1" else 2 if kind == "K=2" else 23
    scores = torch.randn(B, K, generator=g, dtype=torch.float64) * 1.5
    labels = torch.randint(-1, 2, (B, K), generator=g)
    if kind == "ties and exact margins":  # halves: many equal scores, many differences of exactly 1
        scores = (scores * 2).round() / 2
    elif kind == "all equal":
        scores = torch.zeros_like(scores)
    elif kind == "all positive":
        labels = torch.ones_like(labels)
    elif kind == "all negative":
        labels = -torch.ones_like(labels)
    elif kind == "all unknown":
        labels = torch.zeros_like(labels)
    elif kind == "unknown columns":
        labels[:, ::3] = 0
    elif kind == "mixed rows":
        labels[0], labels[1], labels[2] = 1, -1, 0
    elif kind == "no violation":
        scores = labels * 5.0 + scores.clamp(-1, 1)
    elif kind == "large":
        scores = scores * 100
    elif kind == "offset":
        scores = scores + 1e6
    return scores, labels


KINDS = [
    *("plain", "ties and exact margins", "all equal", "all positive", "all negative", "all unknown"),
    *("unknown columns", "mixed rows", "no violation", "large", "offset", "K=1", "K=2"),
]
