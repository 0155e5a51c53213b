r"""Multimodal category prototypes of TRM-ML: what present labels look like, and what that says of unknown ones.

queues of pixel vectors, text of the first stage -> ``similarities`` -> ``decide`` with two thresholds -> ``fill``

All that changes while training lies in the buffers of ``Prototypes``, so a checkpoint holds it. B pictures, K
categories, l places of a category's queue, k vectors that a picture gives, D embedding width; F_c is the region feature
of category c in a picture, v_cj the vectors of its queue, T_c its text prototype. Labels are -1 (absent), 0 (unknown),
+1 (present). Cosines lie in [-1, 1]; NaN is "there is none yet".

Source: Ma et al., ACM MM 2024, Eqs. 7-12. ``trm_ml.py`` says what is printed, what is a reading and what is ours.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WHICH = ("both", "visual", "text")  # prototypes that unknown labels are compared with (Table 6)
VISUAL, TEXT = 0, 1  # modalities, the first dimension of similarities and thresholds
PRESENT, ABSENT = 0, 1  # the two thresholds of a category and a modality


class Prototypes(nn.Module):
    r"""The visual memory, the text prototypes, and a pair of thresholds for each category and modality.

    Args:
        categories: K.
        places: l, length of a queue.
        width: D.
        rate: eta of Eq. 11, in [0, 1): the weight of what a threshold was before.

    Buffers: ``bank`` (K, l, D) vectors of unit length, 0 where a place is empty; ``stored`` (K,) vectors ever put in;
    ``text`` (K, D) of unit length and ``frozen`` (), whether it holds the text of the first stage; ``averages``
    (2, 2, K) by modality and kind, and ``known`` (2, 2, K), whether there is one yet; ``steps`` () updates so far,
    ``start`` () updates after which pseudo-labels are made.
    """

    def __init__(self, categories: int, places: int, width: int, rate: float):
        super().__init__()
        self.rate = rate
        self.register_buffer("bank", torch.zeros(categories, places, width))
        self.register_buffer("stored", torch.zeros(categories, dtype=torch.long))
        self.register_buffer("text", torch.zeros(categories, width))
        self.register_buffer("frozen", torch.zeros((), dtype=torch.bool))
        self.register_buffer("averages", torch.zeros(2, 2, categories))
        self.register_buffer("known", torch.zeros(2, 2, categories, dtype=torch.bool))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("start", torch.zeros((), dtype=torch.long))

    @property
    def started(self) -> bool:
        """Whether the first stage is over."""
        return bool(self.steps >= self.start)

    @property
    def number(self) -> Tensor:
        """(K,) vectors that each queue holds now."""
        return self.stored.clamp(max=self.bank.shape[1])

    @property
    def thresholds(self) -> Tensor:
        """(2, 2, K) by modality and kind, NaN until there is one."""
        return self.averages.where(self.known, torch.nan)

    @torch.no_grad()
    def add(self, vectors: Tensor, classes: Tensor) -> None:
        """Put vectors (n, k, D) of pictures that show the categories (n,) into their queues, first in first out.

        Of more than l vectors of a category at once the last l stay.
        """
        places = self.bank.shape[1]
        classes = classes.repeat_interleave(vectors.shape[1])  # (n k,)
        order = classes.argsort(stable=True)
        classes, vectors = classes[order], F.normalize(vectors.flatten(0, 1)[order].float(), dim=1)
        new = classes.bincount(minlength=len(self.stored))  # (K,)
        rank = torch.arange(len(classes), device=classes.device) - (new.cumsum(0) - new)[classes]  # (n k,)
        last = rank >= new[classes] - places  # no place is written twice
        self.bank[classes[last], (self.stored[classes] + rank)[last] % places] = vectors[last]
        self.stored += new

    @torch.no_grad()
    def end_first_stage(self, texts: Tensor) -> None:
        """Keep a copy of the texts g+ (K, D) as text prototypes, from the first call in which ``started`` is true."""
        if self.started and not self.frozen:
            self.text.copy_(F.normalize(texts, dim=1))
            self.frozen.fill_(True)

    def centres(self, texts: Tensor) -> Tensor:
        r"""What a region feature of unit length is multiplied by to get its similarities: (2, K, D).

        The mean over a queue of cosines with each stored vector (Eq. 8) is the product with the mean of those vectors
        at unit length, which is itself not of unit length: :math:`\frac1l \sum_j \hat F \cdot \hat v_j`. Rows of
        categories without a stored vector are NaN. The text is the one that was kept, before that ``texts`` (K, D).
        """
        mean = self.bank.sum(dim=1) / self.number[:, None]  # (K, D)  0 / 0 where nothing is stored
        return torch.stack([mean, self.text if self.frozen else F.normalize(texts.detach(), dim=1)])

    @torch.no_grad()
    def update(self, s: Tensor, labels: Tensor, unknown_absent: bool = False) -> None:
        r"""Move the thresholds by the similarities s (2, B, K) of known labels (B, K), Eqs. 9 and 11.

        .. math:: \theta_c^\pm \leftarrow \eta \theta_c^\pm + (1 - \eta)
            \operatorname{mean}_{i: y_{ic} = \pm 1} s_{ic}

        The first mean is taken as it is; a batch without such a label changes nothing, nor does a similarity that is
        NaN. With ``unknown_absent`` every label that is not known to be present counts for the lower threshold: where
        single positives are known there is no other (ours).
        """
        absent = labels != 1 if unknown_absent else labels == -1
        for kind, mask in ((PRESENT, labels == 1), (ABSENT, absent)):
            part = mask & s.isfinite()  # (2, B, K)
            number = part.sum(dim=1)  # (2, K)
            mean = s.where(part, 0.0).sum(dim=1) / number.clamp(min=1)  # (2, K)  Eq. 9
            old = torch.where(self.known[:, kind], self.averages[:, kind], mean)
            moved = self.rate * old + (1 - self.rate) * mean  # Eq. 11
            self.averages[:, kind] = torch.where(number > 0, moved, self.averages[:, kind])
            self.known[:, kind] |= number > 0
        self.steps += 1

    def decisions(self, s: Tensor, which: str = "both", margin: float = 0.0) -> Tensor:
        r"""Similarities (2, B, K) -> pseudo-labels (B, K) in -1/0/+1: Eq. 10 for each modality, Eq. 12 for both.

        ``margin`` (ours; 0 in the paper) moves the upper threshold up by that share of the distance between both
        thresholds, and the lower one down.
        """
        upper, lower = self.thresholds.unbind(dim=1)  # (2, K) each
        step = margin * (upper - lower).abs()
        visual, text = (decide(s[m], (upper + step)[m], (lower - step)[m]) for m in (VISUAL, TEXT))  # (B, K) each
        return {"visual": visual, "text": text, "both": torch.where(visual == text, visual, 0.0)}[which]  # Eq. 12


def decide(similarity: Tensor, present: Tensor, absent: Tensor) -> Tensor:
    r"""What two thresholds say of an unknown label (Eq. 10, as meant).

    .. math:: \tilde y = \begin{cases} 1 & \bar s \ge \theta^+ \text{ and } \bar s \ge \theta^- \\
        -1 & \bar s \le \theta^- \text{ and } \bar s \le \theta^+ \\ 0 & \text{otherwise} \end{cases}

    Args:
        similarity: (B, K), mean cosine of a region with the category's prototypes.
        present, absent: (K,), the upper and the lower threshold, in either order of size: between them nothing is said.

    Returns:
        (B, K) in -1/0/+1, of the type of ``similarity``. A similarity or a threshold that is NaN, not known yet, gives
        0. In print the comparison with :math:`\theta^-` is turned round in both cases, so that no similarity is ever
        called present where :math:`\theta^+` is the larger.

    Raises ``ValueError`` for shapes that do not fit.

    >>> decide(torch.tensor([[0.9, 0.5, 0.1, 0.9]]), torch.tensor([0.8, 0.8, 0.8, torch.nan]), torch.full((4,), 0.2))
    tensor([[ 1.,  0., -1.,  0.]])
    """
    if similarity.ndim != 2 or not present.shape == absent.shape == similarity.shape[1:]:
        shapes = ", ".join(str(tuple(x.shape)) for x in (similarity, present, absent))
        raise ValueError(f"similarity, present and absent of shapes {shapes}: give (B, K), (K,) and (K,)")
    up = (similarity >= present) & (similarity >= absent)  # (B, K)
    down = (similarity <= absent) & (similarity <= present)
    known = similarity.new_zeros(similarity.shape)
    return known.masked_fill(down, -1.0).masked_fill(up, 1.0)


def fill(labels: Tensor, pseudo: Tensor) -> Tensor:
    """Pseudo-labels where the label is unknown; what is known stays. Both (B, K).

    >>> fill(torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[-1.0, 1.0, 1.0]]))
    tensor([[ 1.,  1., -1.]])
    """
    return labels.where(labels != 0, pseudo.to(labels.dtype))
