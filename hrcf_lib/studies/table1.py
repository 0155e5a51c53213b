"""Table I of HRCF beside ours: which published row belongs to which of our methods, and what it was measured on.

Ours all stand on one VLP. A row that was published on another backbone is set beside ours by its CLIP form, where
somebody has printed one (OVML-VLP, Table II); four rows have none.
"""

import pandas as pd

from hrcf_lib.studies import records

CLIP, IMAGENET = "CLIP", "ImageNet backbone, word vectors"
SOTA, ON_CLIP = "hrcf_table1_sota", "ovml_table2_clip_backbones_nuswide"
ROWS = {  # our title -> published table, its name there, what it was measured on; in the order of Table I
    "Pre-CLIP": ("hrcf_table5_preclip", "Pre-CLIP", CLIP),
    "LESA": (SOTA, "LESA (M=10)", IMAGENET),
    "ZS-SDL": (ON_CLIP, "CLIP-ZSSDL", CLIP),
    "BiAM": (ON_CLIP, "CLIP-BiAM", CLIP),
    "Gen-MLZSL": (SOTA, "Gen-MLZSL", IMAGENET),
    "(ML)2P-Encoder": (SOTA, "(ML)2P-Encoder", IMAGENET),
    "OVML-VLP": (SOTA, "OVML-VLP", CLIP),
    "CLIP-FT": (SOTA, "CLIP-FT", CLIP),
    "MKT": (SOTA, "MKT", CLIP),
    "HRCF": (SOTA, "HRCF", CLIP),
}
METRICS = ("F1@3", "F1@5", "mAP")
NOT_RUN = "is left out"


def printed() -> pd.DataFrame:
    """One row per method of ``ROWS``: (task, metric) -> what is published on NUS-WIDE, in percent; ``features``."""
    rows = {}
    for title, (table, name, features) in ROWS.items():
        frame = records.published(table).rename(columns={"model": "method", "F1_small": "F1@3", "F1_large": "F1@5"})
        if "dataset" in frame:
            frame = frame[frame["dataset"].eq("NUS-WIDE")]
        own = frame[frame["method"].eq(name)].set_index("task")
        rows[title] = {(task, m): own.loc[task, m] for task in ("ZSL", "GZSL") for m in METRICS}
        rows[title]["features", ""] = features
    frame = pd.DataFrame.from_dict(rows, orient="index")
    return frame.set_axis(pd.MultiIndex.from_tuples(frame.columns), axis=1)


def differences(ours: str = "HRCF", metric: str = "mAP") -> dict[tuple[str, str], float]:
    """(``"HRCF against MKT"``, task) -> how far HRCF's published value is above the other's, in percentage points."""
    values = printed()
    others = [title for title in ROWS if title != ours]
    return {
        (f"{ours} against {title}", task): values.loc[ours, (task, metric)] - values.loc[title, (task, metric)]
        for title in others
        for task in ("ZSL", "GZSL")
    }


def in_order(summary: pd.DataFrame, task: str) -> pd.DataFrame:
    """The rows of one task of ``compare.summary``, one per method of ``ROWS``; one that was not run says so."""
    own = summary.droplevel("setting")[task]
    return own.reindex(list(ROWS)).astype(object).fillna(NOT_RUN).rename_axis(task)


def beside(summary: pd.DataFrame, task: str) -> pd.DataFrame:
    """Our F1@3, F1@5 and mAP of a task, the published ones beside them, and what those were measured on."""
    theirs, ours = printed(), in_order(summary, task)[list(METRICS)]
    frame = pd.concat({"ours": ours, "published": theirs[task]}, axis=1).rename_axis(task)
    frame["published on", ""] = theirs["features", ""]
    return frame
