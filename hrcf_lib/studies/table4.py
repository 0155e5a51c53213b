r"""Table IV of HRCF: with and without distillation, the weight of that loss, and the forms of the ranking loss.

How near the trained global embedding stays to the VLP's, and what the ranking loss sees of the scores.
"""

import pandas as pd
import torch
import torch.nn.functional as F

from hrcf_lib import evaluation, losses
from hrcf_lib.data.feeds.embeddings import embed
from hrcf_lib.data.feeds.order import BatchOrder
from hrcf_lib.studies import records

WITHOUT = "weight 0"
VARIANTS = {"HRCF": {}, WITHOUT: {"distillation": 0.0}}
SETTINGS = {  # at test time: both parts of Eq. 14, or one of them
    "": {},
    "global score alone": {"lam_at_test": 0.0},
    "regions alone": {"lam_at_test": 1.0},
}
AGAINST = {"distillation": ("HRCF", WITHOUT)}
PARTS = {s or "both parts (HRCF)": (("HRCF", s), (WITHOUT, s)) for s in SETTINGS}
FORMS = {  # of Eqs. 14 and 15: scores divided by their norm or not, and what the sum over pairs is divided by
    f"{word}, {reduction}": {"normalize_fusion": norm, "ranking_reduction": reduction}
    for word, norm, reductions in (  # normalised, "pairs" is "violations": no pair ever reaches the margin
        ("normalised", True, ("violations", "sum")),
        ("raw", False, ("violations", "pairs", "sum")),
    )
    for reduction in reductions
}
DEFAULT_FORM = "normalised, violations"


def weighted(weights) -> dict[str, dict]:
    """Name -> changes of the config for each weight of the distillation loss; 1 is "HRCF"."""
    return {"HRCF" if w == 1 else f"weight {w:g}": {"distillation": float(w)} for w in weights}


def paper_differences(metrics) -> dict[tuple[str, str], float]:
    """(metric, task) -> what distillation is worth in the paper, in points of those ``metrics`` that it prints."""
    rows = records.published("hrcf_table4_distillation").set_index(["model", "task"])
    gain = lambda task: rows.loc[("HRCF", task)] - rows.loc[("HRCF (w/o L_kd)", task)]
    return {(m, task): gain(task)[m] for task in ("ZSL", "GZSL") for m in metrics if m in rows}


@torch.no_grad()
def drift(model, data, batch: int = 128) -> dict[str, float]:
    r"""How far the global embedding e_g has gone from the frozen VLP's e_p, over the pictures of a feed.

    ``cosine`` of the two; ``loss``: the mean absolute difference, which is Eq. 5 divided by D; ``norm``: length of e_g
    over that of e_p. Means over pictures.
    """
    parts = []
    for _, inputs, _ in data.batches(BatchOrder(batch)):
        tokens, e_p = data.frozen(model.vlp, inputs)
        e_g, _ = model.image_embeddings(tokens)
        lengths = e_g.norm(dim=1) / e_p.norm(dim=1)
        gone = (e_g - e_p).abs().mean(dim=1)  # (b,)  Eq. 5, divided by D
        parts.append(torch.stack([F.cosine_similarity(e_g, e_p), gone, lengths], dim=1).cpu())  # (b, 3)
    return dict(zip(("cosine", "loss", "norm"), torch.cat(parts).mean(dim=0).tolist()))


@torch.no_grad()
def seen_by_the_loss(model, data) -> dict[str, float]:
    """What the ranking loss sees of a trained model: means over the pictures of a feed, seen labels, all regions.

    ``spread``: largest less smallest score of a picture; ``violated``: share of the pairs (present, absent) within the
    margin, in 0..1; ``ranking``: the loss in the form that the model was trained with.
    """
    held, y = embed(model.train(), data), data.labels[:, data.space.columns("seen")]
    s = evaluation.score_all(held, model.label_embeddings(data.space.seen), model.score_embeddings)  # (n, K)
    model.eval()
    spread = float((s.amax(dim=1) - s.amin(dim=1)).mean())
    loss = float(losses.ranking_loss(s, y, model.config.ranking_reduction))
    return {"spread": spread, "violated": losses.violated_share(s, y), "ranking": loss}


def at_the_end(outcomes: dict) -> pd.DataFrame:
    """Both parts of the loss of each run of ``studies.run_all``, means over the last 50 steps and over seeds."""
    rows = {key: outcome.about["training"]["last"] for key, outcome in outcomes.items()}
    frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis(["variant", "seed"])
    return frame.groupby("variant", sort=False).mean().add_suffix(", last steps")
