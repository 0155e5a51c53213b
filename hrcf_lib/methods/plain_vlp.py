r"""Pre-CLIP (Table V of HRCF), CLIP-ML (Table I of OVML-VLP): the VLP unchanged, one global embedding per picture.

$$s_k = e_p \cdot \bar t_k, \qquad \bar t_k = \frac{1}{|T|} \sum_{\tau \in T} \mathrm{TextTower}(\tau(name_k))$$

**The papers** give numbers and no prompt. **Released code**: none; MKT's and BiAM's repositories do not hold it.
**We** score a single template or the mean over an ensemble T, as CLIP's authors do (Radford et al., ICML 2021, Sec.
3.1.4, there of unit length), by dot product, cosine or softmax over the labels; the choice is made on val.
"""

from dataclasses import dataclass

import numpy as np
import open_clip
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import normalize
from tqdm.auto import tqdm

from hrcf_lib.config import setting
from hrcf_lib.data.feeds.features import FrozenFeatures
from hrcf_lib.data.feeds.order import BatchOrder
from hrcf_lib.engine.messages import check_known
from hrcf_lib.evaluation import label_view, table_rows
from hrcf_lib.labels import check_names
from hrcf_lib.method import Method
from hrcf_lib.methods.settings import MethodConfig
from hrcf_lib.regions import HierarchicalClueGathering

PROMPTS = {  # name -> templates, whose embeddings are averaged
    "name": ["{}"],
    "photo": ["a photo of a {}."],
    "drawing": ["a drawing of a {}."],
    "there is": ["there is a {}."],
    "multi-label": ["A photo for multi-label classification, there is a {}."],
    "ensemble": ["a photo of a {}.", "a drawing of a {}.", "a picture of a {}.", "there is a {}.", "this is a {}."],
}
CLIP_PROMPTS = {  # the seven of 80 that CLIP's authors found to do as well on ImageNet; the mini VLP lacks their words
    "openai": [template("{}") for template in open_clip.SIMPLE_IMAGENET_TEMPLATES]
}
SIMILARITIES = {  # global embeddings (B, D), label embeddings (K, D) -> (B, K)
    "dot": lambda e, t: e @ t.T,
    "cosine": lambda e, t: normalize(e, dim=-1) @ normalize(t, dim=-1).T,
    "softmax": lambda e, t: (e @ t.T).softmax(dim=-1),
}


@dataclass(frozen=True)
class PreCLIPConfig(MethodConfig):
    """Nothing is trained; only ``prompt_set`` and ``similarity`` are chosen."""

    method = "pre_clip"

    prompt_set: str = "photo"  # key of ``PROMPTS`` (a single template, or "ensemble") or of ``CLIP_PROMPTS``
    similarity: str = setting("dot", scores=True)  # key of ``SIMILARITIES``
    regions: bool = setting(False, weights=False, before=False)  # HRCF's, before any training, for maps alone

    def __post_init__(self):
        super().__post_init__()
        check_known([self.prompt_set], [*PROMPTS, *CLIP_PROMPTS], "unknown prompt_set")
        check_known([self.similarity], list(SIMILARITIES), "unknown similarity")


class PreCLIP(Method):
    """The plain VLP: ``train`` has nothing to learn and takes no step."""

    title, Config = "Pre-CLIP", PreCLIPConfig
    about = "Pre-CLIP: the VLP unchanged, one global embedding per picture."
    trainable = {"images": (), "prompts": ()}
    trained_blocks = 0

    def build(self) -> None:
        """Nothing but the VLP; for maps the merges of HRCF that its grid takes, at their start."""
        merges = min(self.config.merges, (self.vlp.N - 1) // 4) if self.vlp.is_vit else 0
        gathers = self.config.regions and merges
        self.gather = HierarchicalClueGathering(self.vlp.C, self.vlp.N, merges) if gathers else None

    def image_embeddings(self, trunk: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, 1 + N^2, C) after the last block -> e_p (B, D), and no regions (B, 0, D).

        With ``config.regions``, those of an untrained HRCF, or of a grid too small for merges and of a ResNet its N^2
        positions: (B, J, D).
        """
        e_p = self.vlp.teacher(trunk)  # (B, D)
        if not self.config.regions:
            return e_p, e_p[:, None][:, :0]
        if self.gather is None:
            return e_p, self.vlp.dense(trunk)  # (B, N*N, D)
        visual = self.vlp.model.visual
        return e_p, self.gather(visual.ln_post(trunk[:, 1:])) @ visual.proj  # (B, J, D)

    @property
    def map_kind(self) -> str | None:
        """Votes of the regions, if there are any."""
        return "votes" if self.config.regions else None

    @property
    def region_sides(self) -> list[int]:
        """One map per level of regions, or the one of the positions."""
        return self.gather.sides if self.gather is not None else super().region_sides

    @torch.no_grad()
    def label_embeddings(self, names) -> Tensor:
        """(K, D): the mean over the templates of ``prompt_set``. Raises ``ValueError`` as ``VLP.encode_text``."""
        return prompted(self.vlp, check_names(names), self.config.prompt_set)

    def score_embeddings(self, e_g: Tensor, regions: Tensor, label_embeddings: Tensor) -> Tensor:
        """(B, D), no regions, (K, D) -> (B, K)."""
        return SIMILARITIES[self.config.similarity](e_g, label_embeddings)


def prompted(vlp, names, prompt: str) -> Tensor:
    """(K, D) mean embedding of each name over the templates of a prompt of ``PROMPTS`` or ``CLIP_PROMPTS``."""
    templates = (PROMPTS | CLIP_PROMPTS)[prompt]
    return torch.stack([vlp.encode_text([text.format(n) for n in names]) for text in templates]).mean(0)


@torch.no_grad()
def zero_shot(
    vlp, data, prompt: str, score: str, tasks=("ZSL", "GZSL"), ks=(3, 5), protocol="per_class"
) -> pd.DataFrame:
    """The plain VLP (Pre-CLIP of Table V): global embedding against a prompt of ``PROMPTS``. One row per task."""
    return _zero_shot(vlp, data, prompt, [score], tasks, ks, protocol, teacher_embeddings(vlp, data))[score]


@torch.no_grad()
def teacher_embeddings(vlp, data) -> Tensor:
    """e_p (n, D) of all pictures on the CPU; of frozen features they are at hand."""
    if isinstance(data, FrozenFeatures):
        return data.teacher
    order = BatchOrder(64)
    show = tqdm(data.batches(order), "plain VLP", order.steps(len(data)), disable=None, leave=False)
    return torch.cat([data.frozen(vlp, inputs)[1].cpu() for _, inputs, _ in show])


def _zero_shot(vlp, data, prompt, kinds, tasks, ks, protocol, e_p) -> dict[str, pd.DataFrame]:
    """The table of each kind of score; texts are encoded once per task."""
    t = {task: prompted(vlp, label_view(data.space, task).names, prompt).cpu() for task in tasks}
    return {
        kind: table_rows(data, tasks, lambda task, kind=kind: SIMILARITIES[kind](e_p, t[task]), ks, protocol)
        for kind in kinds
    }


@torch.no_grad()
def best_zero_shot(vlp, data, tasks=("ZSL", "GZSL"), protocol="per_class") -> tuple[str, str, pd.DataFrame]:
    """Prompt and score of highest mean mAP over the tasks on ``data`` (give it val), and the whole search."""
    search, e_p = {}, teacher_embeddings(vlp, data)
    for prompt in PROMPTS:
        for score, table in _zero_shot(vlp, data, prompt, SIMILARITIES, tasks, (), protocol, e_p).items():
            search[prompt, score] = {f"mAP {task}": table.loc[task, "mAP"] for task in table.index}
    frame = pd.DataFrame(search).T
    prompt, score = frame.mean(axis=1).idxmax()
    return prompt, score, frame.rename_axis(["prompt", "score"]).astype(np.float64)
