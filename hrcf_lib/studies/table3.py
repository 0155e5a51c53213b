r"""Table III of HRCF: kinds of prompts, and why they matter or not.

The rows of the paper and the other readings of two of them; what a trained image side scores with other words in place
of its prompt; how far training moves the label embeddings.
"""

import pandas as pd
import torch
import torch.nn.functional as F

from hrcf_lib import evaluation, prompts
from hrcf_lib.data.feeds.embeddings import embed
from hrcf_lib.methods.plain_vlp import SIMILARITIES
from hrcf_lib.studies import records

PRINTED = ("fixed", "tuning", "learnable", "hybrid")  # rows of the paper, in its order
SAME_WORDS = "tuning, words of fixed"  # the paper does not say which template its row "tuning" has; ours is MKT's
VARIANTS = {kind: {"prompt": kind} for kind in (*PRINTED, "coop")}
VARIANTS[SAME_WORDS] = {"prompt": "tuning", "tuning_template": "hrcf"}
AGAINST = {f"hybrid against {kind}": ("hybrid", kind) for kind in VARIANTS if kind != "hybrid"}
FROM_FIXED = {f"{kind} against fixed": (kind, "fixed") for kind in VARIANTS if kind != "fixed"}
SENTENCES = {  # that a trained prompt is exchanged for
    "the name alone": "{}",
    "a photo of a ...": "a photo of a {}.",
    "there is a ...": "there is a {}.",
    "... in the scene (MKT)": "There is a {} in the scene",
    "multi-label (HRCF's fixed prompt)": f"{prompts.START} there is a {{}}.",
    "a small ...": "a small {}.",
    "... outdoors": "a {} outdoors.",
}
_READ_AS = {"coop": "learnable", SAME_WORDS: "tuning"}  # another reading -> the row of the paper


def published() -> pd.DataFrame:
    """The paper's row for each name of ``VARIANTS``; other readings of a row have the same."""
    printed = records.published("hrcf_table3_prompts").set_axis(PRINTED)
    return printed.loc[[_READ_AS.get(name, name) for name in VARIANTS]].set_axis(list(VARIANTS))


def paper_differences(pairs: dict, metric: str = "mAP") -> dict[str, float]:
    """Label -> what the first variant of its pair is above the second in the paper, in points of ``metric`` (ZSL)."""
    printed = published()[metric]
    return {label: printed[kind] - printed[against] for label, (kind, against) in pairs.items()}


def at_start(model) -> prompts.PromptLearner:
    """The prompt of ``model`` as it was before training."""
    config = model.config
    learner = prompts.PromptLearner(model.vlp, config.prompt, config.prompt_vectors, config.tuning_template)
    return learner.to(model.vlp.mean.device)


@torch.no_grad()
def by_words(model, data, tasks=("ZSL", "GZSL"), sentences=None, scorer=None) -> pd.DataFrame:
    """mAP in percent with the model's own prompt, with that prompt as it started, and with hand-written sentences.

    The image side stays as it was trained, with its own prompt. ``sentences``: name -> text with ``{}``, by default
    ``SENTENCES``; ``scorer`` replaces the model's own scores. One row per prompt, one column per task. Raises what
    ``evaluate`` raises, and ``ValueError`` for a word that the VLP never saw.
    """
    sentences = SENTENCES if sentences is None else sentences
    held, start, config = embed(model.eval(), data), at_start(model), model.config
    texts = {"as trained": model.label_embeddings, "as it started": lambda names: start(model.vlp, names)}
    for name, words in sentences.items():
        texts[name] = lambda names, words=words: model.vlp.encode_text([words.format(n) for n in names])
    score = scorer or model.score_embeddings
    views = {task: evaluation.label_view(data.space, task).names for task in tasks}
    rows = {}
    for name, text in texts.items():
        values = {task: evaluation.score_all(held, text(names), score) for task, names in views.items()}
        rows[name] = evaluation.table_rows(data, tasks, values.get, config.ks, config.protocol)["mAP"]
    return pd.DataFrame(rows).T.rename_axis("prompt").rename_axis(None, axis=1)


def by_cosine(e_g, regions, t):
    """The plain VLP's scores as Pre-CLIP has them, for ``by_words`` of an untrained model: (B, D), (K, D) -> (B, K)."""
    return SIMILARITIES["cosine"](e_g, t)


@torch.no_grad()
def moved(model, names) -> dict[str, float]:
    r"""How far training moved the embeddings of ``names`` from where their prompt started.

    ``cosine``: mean of t_k to its start; ``distance``: mean length of the move m_k, as a share of the start's length;
    ``alike``: share in 0..1 of the squared moves that all labels make together, $\|\bar m\|^2$ over the mean of
    $\|m_k\|^2$. A move that all make alike changes no difference between labels.
    """
    before, after = at_start(model)(model.vlp, names), model.label_embeddings(names)  # (K, D) each
    move = after - before
    found = {
        "cosine": F.cosine_similarity(before, after).mean(),
        "distance": (move.norm(dim=1) / before.norm(dim=1)).mean(),
        "alike": move.mean(dim=0).square().sum() / move.square().sum(dim=1).mean().clamp(min=1e-12),
    }
    return {name: float(value) for name, value in found.items()}
