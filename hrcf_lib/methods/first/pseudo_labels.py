r"""Pseudo-labels from category prototypes: a memory of what present labels look like decides about unknown ones.

memory of regions -> ``Memory.prototypes`` -> ``estimate`` -> ``thresholds`` -> ``pseudo_labels`` -> ``prototypes.fill``

The functions are pure; all that changes while training lies in the buffers of ``Memory``, so a checkpoint holds it. B
pictures, K labels, M places of a label in the memory, D embedding width; v_c is the region of label c in a picture, t_c
its text embedding, p_c its visual prototype. Labels are -1 (absent), 0 (unknown), +1 (present).

Source: TRM-ML (Ma et al., ACM MM 2024), Eqs. 7-12; ``trm_ml.py`` says what is theirs and what is ours.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrcf_lib.engine import chunks

PRESENT, OTHER = 0, 1  # rows of ``Memory.level``
WHICH = ("both", "visual", "text")  # prototypes that unknown labels are compared with


class Memory(nn.Module):
    r"""For each label the last M regions that showed it, and how alike present and other labels are to prototypes.

    Args:
        labels: K.
        places: M.
        width: D.
        rate: of the moving averages, in [0, 1): the weight of what was there before.

    Buffers: ``bank`` (K, M, D) of unit length, ``seen`` (K,) regions ever put in, ``level`` (2, K) moving averages of
    estimates of present and of other labels, ``known`` (2, K) whether there is one yet, ``steps`` () updates so far.
    """

    def __init__(self, labels: int, places: int, width: int, rate: float):
        super().__init__()
        self.rate = rate
        self.register_buffer("bank", torch.zeros(labels, places, width))
        self.register_buffer("seen", torch.zeros(labels, dtype=torch.long))
        self.register_buffer("level", torch.zeros(2, labels))
        self.register_buffer("known", torch.zeros(2, labels, dtype=torch.bool))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def add(self, regions: Tensor, classes: Tensor) -> None:
        """Put regions (n, D) of labels (n,) into the memory; each label forgets its oldest beyond M."""
        places = self.bank.shape[1]
        order = classes.argsort(stable=True)
        classes, regions = classes[order], F.normalize(regions[order].float(), dim=1)
        number = classes.bincount(minlength=len(self.seen))  # (K,) new ones of each label
        rank = torch.arange(len(classes), device=classes.device) - (number.cumsum(0) - number)[classes]  # (n,)
        last = rank >= number[classes] - places  # of more than M at once the last M: no place is written twice
        self.bank[classes[last], (self.seen[classes] + rank)[last] % places] = regions[last]
        self.seen += number

    def prototypes(self, t: Tensor) -> Tensor:
        r"""Visual prototypes p_c (K, D) of unit length: the mean of what the memory holds of a label (Eq. 7).

        A label that it holds nothing of has its text embedding t_c (K, D) in place.
        """
        mean = F.normalize(self.bank.sum(dim=1), dim=1)  # (K, D); empty places are 0
        return torch.where(self.seen[:, None] > 0, mean, F.normalize(t.detach(), dim=1))

    @torch.no_grad()
    def update(self, e: Tensor, labels: Tensor) -> None:
        r"""Moving averages of estimates e (B, K) of labels known to be present, and of the others (Eqs. 11-12).

        "Others" are known to be absent or unknown: where single positives are known nothing else is at hand, and
        nearly all of them are absent. Nothing hidden is looked at. A label's first value is taken as it is.
        """
        for row, mask in ((PRESENT, labels == 1), (OTHER, labels != 1)):
            number = mask.sum(dim=0)  # (K,)
            mean = (e * mask).sum(dim=0) / number.clamp(min=1)
            old = torch.where(self.known[row], self.level[row], mean)
            self.level[row] = torch.where(number > 0, self.rate * old + (1 - self.rate) * mean, self.level[row])
            self.known[row] |= number > 0
        self.steps += 1

    def thresholds(self, high: float, low: float) -> tuple[Tensor, Tensor]:
        r"""Above which an unknown label is present, and up to which it is absent: two (K,).

        .. math:: \theta_c^+ = \max(x_c, \bar x), \quad x_c = m_c + w^+ (1 - m_c), \qquad
            \theta_c^- = o_c + w^- (m_c - o_c)

        of the moving averages m_c of present labels and o_c of others, with ``high`` and ``low`` for the weights, both
        in [0, 1): 0 and 0 give m_c and o_c themselves. As x_c goes from m_c towards 1, an estimate of 1 always passes.
        The mean x of all labels is a floor: where a label's regions show nothing yet, m_c is hardly above o_c, and
        everything would pass. A label without an average has the mean of those that have one; with none at all the
        thresholds are infinite and nothing passes them.
        """
        m, o = (_filled(level, known) for level, known in zip(self.level, self.known))  # (K,)
        if not self.known.any(dim=1).all():
            return torch.full_like(m, torch.inf), torch.full_like(m, -torch.inf)
        x = m + high * (1 - m)
        return torch.maximum(x, x.mean()), o + low * (m - o)


def _filled(level: Tensor, known: Tensor) -> Tensor:
    return level.where(known, level[known].mean() if known.any() else level.new_zeros(()))


@torch.no_grad()
def estimate(v: Tensor, visual: Tensor, text: Tensor, columns: slice, sharpness: float, which: str = "both") -> Tensor:
    r"""How sure it is that the region of a label shows that label and no other (Eqs. 8-9): (B, k) in [0, 1].

    .. math:: e_c = \frac12 \sum_{P \in \{p, t\}}
        \frac{\exp(\kappa \cos(v_c, P_c))}{\sum_{c'} \exp(\kappa \cos(v_c, P_{c'}))}

    Args:
        v: (B, k, D), regions of the labels ``columns`` of all K.
        visual, text: (K, D), prototypes p and t.
        sharpness: kappa.
        which: "both", "visual" or "text".
    """
    kinds = {"both": (visual, text), "visual": (visual,), "text": (text,)}[which]
    P = torch.stack([F.normalize(kind, dim=1) for kind in kinds]).mean(dim=0)  # (K, D): P_c . v_c is the mean cosine
    v = sharpness * F.normalize(v, dim=-1)
    parts = v.split(chunks.fitting(chunks.PAIRS, v.shape[1] * len(P)))  # pictures at a time: (b, k, K) can be large
    total = torch.cat([(part @ P.T).logsumexp(dim=-1) for part in parts])  # (B, k)
    return ((v * P[columns]).sum(dim=-1) - total).exp()


def pseudo_labels(e: Tensor, high: Tensor, low: Tensor) -> Tensor:
    r"""Estimates (B, K) and thresholds (K,) -> +1 above ``high``, -1 up to ``low``, 0 between (Eq. 10, as meant).

    >>> pseudo_labels(torch.tensor([[0.9, 0.5, 0.1]]), torch.full((3,), 0.8), torch.full((3,), 0.2))
    tensor([[ 1.,  0., -1.]])
    """
    return (e > high).float() - ((e <= low) & (e <= high)).float()
