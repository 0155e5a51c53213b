r"""Each fast path beside the plain form it replaces: times of both, their ratio, and how far the numbers differ.

    python -m hrcf_lib.speed [--out FILE.json] [--rows prompt_prefix,map_metric]

Sizes are those of the paper: ViT-B/16 (random weights, since speed does not depend on them), 925 and 7,186 labels. Each
row runs in a process of its own, so that its peak of memory is its own. The two forms of a row take turns, so that a
machine that slows down slows both. ``--out`` gets a JSON list with one object per row:

``name``           one of ``ROWS``
``ratio``          seconds of the plain form / seconds of ours, of one run
``max_abs_diff``   largest difference of what the two compute
``grad_rel_diff``  largest difference of gradients, divided by the largest entry of the plain form's
``peak_mb``        memory that our form takes beyond what was held before, 10^6 bytes; of the GPU, if there is one
``plain_s``, ``ours_s``  the two times: medians of at least five
``plain_spread``, ``ours_spread``  their interquartile ranges, divided by them
``what``, ``note``  what was compared, and remarks

A row whose plain form cannot run at that size says in its note how its time was obtained. ``HRCF_SIZE=smoke`` shrinks
everything to seconds; ratios mean nothing then.
"""

import pandas as pd

from hrcf_lib.config import is_smoke
from hrcf_lib.engine.messages import check_known
from hrcf_lib.speed import images, loading, scoring, text
from hrcf_lib.speed.inputs import Sizes
from hrcf_lib.speed.own_process import run_stage

ROWS = {
    row.__name__: row
    for row in (
        *(text.prompt_prefix, text.class_prompts, scoring.ranking_loss, scoring.ranking_loss_large),
        *(images.feature_cache, images.shared_trunk, loading.cached_epoch, text.prompt_phase),
        *(scoring.hsa_memory, scoring.hsa_training),
        *(images.inference_overhead, images.inference_single, images.inference_bf16),
        *(images.inference_channels_last, images.inference_compiled, images.inference_onnx, images.attention),
        *(scoring.map_metric, loading.loader),
    )
}
COLUMNS = ["name", "ratio", "max_abs_diff", "grad_rel_diff", "peak_mb", "plain_s", "ours_s"]
COLUMNS += ["plain_spread", "ours_spread", "what", "note", "error"]


def run(names=tuple(ROWS), sizes: Sizes | None = None, show=lambda row: print(line(row), flush=True)) -> pd.DataFrame:
    r"""The rows ``names`` of the speed table, in order; ``show`` is called with each as it is ready.

    One row per name, with the columns of ``COLUMNS`` and further ones that some rows have. A row that fails has its
    ``error``, and the others are still run. Raises ``ValueError`` for an unknown name, with the nearest known one.
    """
    check_known(names, list(ROWS), "unknown row")
    sizes, rows = sizes or Sizes.of(is_smoke()), []
    for name in names:
        result = run_stage(name, ROWS[name], sizes, preload=[__name__])
        row = {"name": name} | {key: result[key] for key in result if key not in ("stage", "peak_gb", "gpu_gb")}
        rows.append(row)
        show(row)
    frame = pd.DataFrame(rows)
    return frame.reindex(columns=COLUMNS + [column for column in frame if column not in COLUMNS])


def line(row: dict) -> str:
    """A row as text for a screen."""
    if row.get("error"):
        return f"{row['name']:20} FAILED: {row['error']}"
    differ = [f"{key} {row[key]:.0e}" for key in ("max_abs_diff", "grad_rel_diff") if row.get(key) is not None]
    peak = [f"{row['peak_mb']:,.0f} MB"] if row.get("peak_mb") is not None else []
    note = [row["note"]] if row.get("note") else []
    spread = [f"spread {row['plain_spread']:.0%} and {row['ours_spread']:.0%}"]
    head = f"{row['name']:20} {row['ratio']:8.2f} x  {row['what']}"
    return f"{head}\n{'':33}" + "; ".join(spread + differ + peak + note)
