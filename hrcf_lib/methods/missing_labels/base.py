r"""Parts of the methods for missing labels: the loss of known labels, learnt contexts, and a learnt likeness.

B pictures, K labels, M context vectors, C width of the text tower, D embedding width.
"""

import math
from functools import partial

import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import Tensor, nn

from hrcf_lib.data.feeds.order import BatchOrder
from hrcf_lib.engine.messages import did_you_mean
from hrcf_lib.labels import check_names
from hrcf_lib.method import Method, finite
from hrcf_lib.methods.losses import asymmetric_loss
from hrcf_lib.prompts import START, encode_names, keys_and_values
from hrcf_lib.vlp import check_length

SCALES = (3.0, 10.0, 30.0)  # 1 / temperature, from which the fit starts
FITTED = 256  # pictures that temperature and offset are fitted to before training


class Partial(Method):
    r"""A method whose scores are logits, trained on the known labels of each picture; the ViT is frozen.

    With ``unknown`` "ignored" nothing depends on what an unknown label would have been. A score of ``threshold`` or
    more is a yes: a probability of 1/2.
    """

    threshold = 0.0
    trained_blocks = 0

    def begin(self, data) -> None:
        r"""Fit temperature and offset to the known labels of ``FITTED`` pictures before anything else learns.

        Cosines of a VLP lie in a narrow band of its own. From a temperature and an offset that do not fit it every
        label is far too likely or too rare, and the shared parameters then learn to move all scores at once and lose
        what the VLP knows. The method's own classification loss is minimised over these two numbers. Where no absent
        label is known (single positives), unknown ones count as absent here, and here alone.
        """
        if not isinstance(likeness := getattr(self, "likeness", None), Likeness):
            return  # a method without, as ASL
        x, y = first_scores(self, data)  # (n, K) x 2
        if not (y == -1).any():
            y = y.where(y != 0, -torch.ones_like(y))
        learnt = any("likeness.offset".startswith(part) for part in self.trainable[self.config.trains])
        likeness.fit(x, lambda s: self.classification(self.probabilities(self.spread(s)), y), learnt)

    def spread(self, s: Tensor) -> Tensor:
        """Logits of ``likeness`` (B, K) -> scores (B, K); here the same."""
        return s

    def probabilities(self, scores: Tensor) -> Tensor:
        """Logits (B, K) -> probabilities (B, K)."""
        return scores.sigmoid()

    def usable(self, labels: Tensor) -> Tensor:
        """Pictures with a known label; all of them where unknown ones count as absent."""
        if self.config.unknown == "negative":
            return torch.ones(len(labels), dtype=torch.bool, device=labels.device)
        return (labels != 0).any(dim=1)

    def losses(self, e_g: Tensor, regions: Tensor, t: Tensor, labels: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        """The loss of the known labels. Raises ``FloatingPointError`` for scores that are not finite."""
        s = finite(self.score_embeddings(e_g, regions, t))  # (B, K)
        return {"classification": self.classification(self.probabilities(s), labels)}

    def classification(self, p: Tensor, labels: Tensor) -> Tensor:
        """Asymmetric loss or binary cross-entropy of probabilities (B, K), a mean over the pictures."""
        c = self.config
        if c.unknown == "negative":
            labels = labels.where(labels != 0, -torch.ones_like(labels))
        shape = (c.gamma_positive, c.gamma_negative, c.shift) if c.loss == "asymmetric" else (0.0, 0.0, 0.0)
        return asymmetric_loss(p, labels, *shape)

    def weights(self, side: str) -> dict[str, float]:
        """The one part of the loss."""
        return {"classification": 1.0}

    def lr_scale(self, side: str, name: str) -> float:
        """Where both sides learn at once, the text side learns at ``prompt_lr``."""
        return self.config.prompt_lr / self.config.lr if side == "both" and name.startswith(self.text_prefixes) else 1.0

    def columns(self, names) -> list[int]:
        r"""Places of names among ``config.categories``.

        Raises ``ValueError`` that names one it was not built for, and what ``check_names`` refuses.
        """
        known = {name: k for k, name in enumerate(self.config.categories)}
        for name in (names := check_names(names)):
            if name not in known:
                hint = did_you_mean(name, list(known), "see model.config.categories")
                raise ValueError(
                    f"{self.title} answers for the {len(known)} labels it was built for, {name!r} is not among them; "
                    f"{hint}, or take a method for open labels such as HRCF"
                )
        return [known[name] for name in names]


def check_categories(config) -> None:
    """Raise ``ValueError`` for a config without categories, for a method that learns something for each."""
    if not config.categories:
        raise ValueError(
            f"{config.method} learns something for each label: give the labels' names, as in "
            f"methods.build({config.method!r}, config, categories=sources.categories(config))"
        )


class Contexts(nn.Module):
    r"""Prompts [v_1 .. v_M] name . -> (K, D), with one context for all labels or one for each.

    Args:
        vlp: the frozen text tower (not kept: it is passed to ``forward``).
        M: number of context vectors.
        number: of contexts: 1, shared by all names, or one per label.
        std: deviation of the normal numbers that the vectors start from; 0: they start from ``words``.
        words: whose token embeddings, repeated to length, they then start from.

    Source: CoOp (Zhou et al., IJCV 2022), Eq. 2, its "unified" and its "class-specific" context with the name at the
    end. There vectors start from normal numbers of deviation 0.02, or from words.
    """

    def __init__(self, vlp, M: int, number: int = 1, std: float = 0.0, words: str = START):
        super().__init__()
        table = vlp.model.token_embedding.weight.detach()
        ids = vlp.token_ids(words)
        start = torch.randn(number, M, table.shape[1]) * std if std else table[[ids[m % len(ids)] for m in range(M)]]
        self.vectors = nn.Parameter(start.expand(number, -1, -1).clone())  # (1 or K, M, C)

    def forward(self, vlp, names, columns=None) -> Tensor:
        r"""Embeddings (K, D) of names, not of unit length; ``columns`` are the contexts they have, or None for one.

        Raises ``ValueError`` for names that the text tower does not know, or that are too long with their context.
        """
        names, table = check_names(names), vlp.model.token_embedding.weight
        start, end = table[[vlp.tokenizer.sot_token_id]], table[[vlp.tokenizer.eot_token_id]]  # (1, C)
        tail = torch.cat([table[vlp.token_ids(".")], end])  # (T, C)
        spelt, M = vlp.spelt(names), self.vectors.shape[1]
        for name, ids in zip(names, spelt, strict=True):
            check_length(name, 1 + M + len(ids) + len(tail), vlp.context_length)
        if columns is None:
            past = keys_and_values(vlp.model, torch.cat([start, self.vectors[0]]))
            return encode_names(vlp.model, spelt, tail, past)
        head = torch.cat([start.expand(len(names), 1, -1), self.vectors[columns]], dim=1)  # (K, 1 + M, C)
        return encode_names(vlp.model, spelt, tail, head=head)


class Likeness(nn.Module):
    r"""Logits from cosines: :math:`s = \cos(a, b) / \tau + \beta`, with a temperature and an offset that are learnt.

    A cosine alone, over a temperature, says "present" of everything that is not orthogonal; the offset says how rare a
    label is. (Ours, after SigLIP, Zhai et al., ICCV 2023; the papers here leave it open.)

    Args:
        tau: temperature at the start, above 0.
        offset: at the start.
        learnt: whether the offset is; otherwise it is a buffer and stays.
    """

    def __init__(self, tau: float, offset: float, learnt: bool = True):
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(-math.log(tau)))
        offset = torch.tensor(float(offset))
        self.offset = nn.Parameter(offset) if learnt else nn.Buffer(offset)

    def forward(self, cosines: Tensor) -> Tensor:
        """Cosines (B, K) -> logits (B, K)."""
        return cosines * self.log_scale.exp() + self.offset

    @torch.no_grad()
    def fit(self, cosines: Tensor, loss, offset: bool = True) -> None:
        """Take temperature and offset at which ``loss`` of the logits is least (SciPy's Nelder-Mead, several starts).

        No gradients are used: at the start sigmoids may be saturated, and the asymmetric loss has a kink. The
        temperature stays within 0.001 and 1, beyond which training could not move anything, and without ``offset`` the
        offset stays as it is. Where the loss is not lower in the end nothing changes.
        """
        params = [self.log_scale, self.offset]
        now = [p.item() for p in params]
        bounds = [(0.0, math.log(1000)), (-1000, 1000) if offset else (now[1], now[1])]
        value = lambda x: loss(cosines * math.exp(x[0]) + x[1]).item()
        even = lambda scale: -scale * cosines.mean().item() if offset else now[1]  # logits are spread around 0, then
        starts = [(math.log(scale), even(scale)) for scale in SCALES]
        corners = [[(a, b), (a + 0.5, b), (a, b - 1)] for a, b in starts]
        search = partial(minimize, value, method="Nelder-Mead", bounds=bounds)
        ends = [search(own[0], options={"initial_simplex": own}) for own in corners]
        found = min(ends, key=lambda end: end.fun)
        if found.fun < value(now):
            for p, x in zip(params, found.x, strict=True):
                p.fill_(x)


@torch.no_grad()
def first_scores(model, data, number: int = FITTED, batch: int = 64) -> tuple[Tensor, Tensor]:
    r"""Cosines that ``model.likeness`` takes, and labels, for ``number`` pictures of a pass: two (n, K)."""
    asked, found, columns, labels = [], [], data.space.columns("seen"), []
    t = model.label_embeddings(data.space.seen)
    hook = model.likeness.register_forward_pre_hook(lambda _, args: asked.append(args[0].float()))
    training = model.training
    try:
        model.eval()
        for _, inputs, y in data.batches(BatchOrder(batch, model.config.seed)):
            trunk, _ = data.frozen(model.vlp, inputs, model.config.bf16)
            with model.autocast():
                e_g, regions = model.image_embeddings(trunk)
            model.score_embeddings(e_g.float(), regions.float(), t)
            found.append(torch.cat(asked, dim=1))  # of labels that were taken in parts
            asked.clear()
            labels.append(y[:, columns].to(t.device))
            if sum(map(len, labels)) >= number:
                break
    finally:
        hook.remove()
        model.train(training)
    return torch.cat(found)[:number], torch.cat(labels)[:number]


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Of all pairs: (..., J, D), (K, D) -> (..., J, K)."""
    return F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T


def softmax_logits(s: Tensor) -> Tensor:
    r"""Logits (B, K) of a softmax over labels: $\log p_k / (1 - p_k) = s_k - \log \sum_{c \neq k} \exp s_c$.

    Raises ``ValueError`` for a single label, whose probability is 1 whatever the picture shows.
    """
    if s.shape[1] < 2:
        raise ValueError("prediction = 'softmax' compares labels with each other: ask for two or more")
    best = s.argmax(dim=1, keepdim=True)  # (B, 1), whose p may be 1 up to rounding
    p = s.softmax(dim=1).scatter(1, best, 0.0)  # at most 1/2
    others = s.logsumexp(dim=1, keepdim=True) + torch.log1p(-p)  # (B, K)
    return s - others.scatter(1, best, s.scatter(1, best, -torch.inf).logsumexp(dim=1, keepdim=True))
