r"""What OVML-VLP's attention and its contrastive loss are worth: Table III of its paper, and the masks of its Fig. 3.

The table is a set of configs for ``studies.run_all``. For the figure, which shows masks trained with and without the
contrastive loss, ``figures.maps.all_labels`` draws one row per model, ``figures.maps.heads`` every head of one. That
masks are *more diverse* is measured here by how alike those of a picture's labels are, that they are *more accurate* by
``studies.localisation``.
"""

import torch
from torch import Tensor
from torch.nn import functional

from hrcf_lib.config import Config
from hrcf_lib.data.feeds.feed import Feed, check_feed
from hrcf_lib.data.feeds.order import BatchOrder
from hrcf_lib.methods import registry

ROWS = {  # of Table III, as it prints them -> method, and what it changes
    "CLIP-ML": ("pre_clip", {"similarity": "cosine"}),  # Eq. 1
    "CLIP, fine-tuned": ("clip_ft", {}),
    "attention": ("ovml_vlp", {"contrastive": 0.0}),
    "attention, L_con": ("ovml_vlp", {}),
}


def table3(base: Config, changes: dict[str, dict] | None = None) -> dict[str, Config]:
    r"""Rows of Table III -> configs in the experiment of ``base``, in the order of print, for ``studies.run_all``.

    ``changes``: of a method's config by name, such as ``{"ovml_vlp": {"lr": 6e-3}}``; what a row itself changes stays
    so. The weight of L_con is that of the config. The paper fine-tunes the whole image tower and does not say by which
    loss; here it is the ranking loss of ``clip_ft``, which needs a ViT.
    """
    changes = changes or {}
    return {row: registry.configure(name, base, **changes.get(name, {}) | own) for row, (name, own) in ROWS.items()}


def likeness(masks: Tensor, present: Tensor) -> Tensor:
    r"""How alike the masks of a picture's present labels are: their mean cosine over all pairs, in 0..1.

    1 if all look at the same places. (B, K, J) not below 0, (B, K) bool -> (B,), NaN where fewer than two are present.
    Raises ``ValueError`` for shapes that do not fit.

    >>> masks = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]])
    >>> likeness(masks, torch.tensor([[True, True, True]])), likeness(masks, torch.tensor([[True, False, True]]))
    (tensor([0.3333]), tensor([1.]))
    """
    if masks.ndim != 3 or present.shape != masks.shape[:2]:
        raise ValueError(f"masks {tuple(masks.shape)} and present {tuple(present.shape)}: give (B, K, J) and (B, K)")
    n = present.sum(dim=1)  # (B,)
    u = functional.normalize(masks, dim=2) * present[:, :, None]  # (B, K, J)
    pairs = u.sum(dim=1).square().sum(dim=1) - u.square().sum(dim=(1, 2))  # (B,), each pair twice
    return torch.where(n > 1, pairs / (n * (n - 1)).clamp(min=1), torch.nan)


@torch.no_grad()
def mask_likeness(model, data: Feed, task: str = "GZSL", batch: int = 64) -> float:
    r"""The mean ``likeness`` of ``model.maps`` over the pictures of a split that show at least two labels of a task.

    Raises ``ValueError`` for a method whose maps are no attention, features of another depth of the ViT, or a split in
    which no picture has two labels of the task.
    """
    if model.map_kind != "attention":
        raise ValueError(f"{model.title} has no attention masks (its map_kind is {model.map_kind!r}): give OVML-VLP")
    check_feed(model, data)
    view, found = data.space.view(task), []
    t = model.label_embeddings(view.names)  # (K, D)
    for _, inputs, labels in data.batches(BatchOrder(batch)):
        _, regions = model.image_embeddings(data.tokens(model.vlp, inputs))
        present = labels[:, view.columns] == 1  # (b, K)
        found.append(likeness(model.maps(regions.float(), t).cpu(), present))
    found = torch.cat(found)
    if found.isnan().all():
        raise ValueError(f"no picture has two labels of {task}: their masks cannot be compared")
    return found.nanmean().item()
