r"""What HRCF costs, beside the paper: trained parameters, the time of an epoch and of inference. All cells are text."""

import pandas as pd

from hrcf_lib.data.official import nus_wide
from hrcf_lib.report.effects import runs_of
from hrcf_lib.report.records import MAIN, METRICS, PROMPTS, SPEED, TRAINED, Missing, Records, printed
from hrcf_lib.report.tables import DATA, HEAD, OTHERS, scores
from hrcf_lib.studies.records import gpu_rows, published

COUNTED = "ours (ViT-B/16, counted)"
OTHER = "notebook 05 makes it"  # ours of another method
ELSEWHERE = "not timed at this size: see costs on the mini VLP"  # ours of another method, where notebook 05 has run
SIDES = {"image_encoder_M": "image side", "text_encoder_M": "text side", "all_M": "all"}
ON_THE_VLP = ("MKT", "HRCF")  # methods of Table VI that stand on CLIP there, as here
TITLES = {"LESA (M=10)": "LESA"}  # a row whose name says more than the title of our method
UNUSED = {"MKT": "MKT with the unused MLP"}  # a method -> its second row: the paper counts what the forward never uses


def prompt_costs(sources) -> pd.DataFrame:
    """The other half of Table III: trained numbers, and the time of an epoch."""
    runs, rows = runs_of("Table III"), []
    for row in published("hrcf_table3_prompts").to_dict("records"):
        (_, kind, _), text = runs[row["prompt"]], row["trainable_params"]
        n = _value(sources[0], SPEED, "prompts", kind, "numbers that learn")
        cells = {"prompt": row["prompt"], "the paper: numbers that learn": text}
        cells[COUNTED] = _text(n, "{:,.0f}")
        cells["as printed"] = "" if isinstance(n, Missing) else _yes(printed(n, text))
        cells["the paper (NUS-WIDE, its GPU): minutes an epoch"] = f"{row['train_minutes_per_epoch']:g}"
        for records in sources:
            seconds = _value(records, PROMPTS, "prompts", kind, "seconds_per_epoch")
            cells[f"ours ({records.data}): seconds an epoch"] = _text(seconds, "{:.3g}")
        rows.append(cells)
    return pd.DataFrame(rows)


def _value(records: Records, notebook: str, title: str, row: str, column: str) -> float | Missing:
    """One number of a table whose first column names the rows, or why there is none."""
    try:
        frame = records.table(notebook, title, [column])
    except Missing as why:
        return why
    found = frame[frame.iloc[:, 0] == row][column].dropna()
    return float(found.iloc[0]) if len(found) else Missing(f"the record of notebook {notebook[:2]} has no row {row!r}")


def _text(value: float | Missing, form: str) -> str:
    return str(value) if isinstance(value, Missing) else form.format(value)


def _yes(same: bool) -> str:
    return "yes" if same else "no"


def table6(sources) -> pd.DataFrame:
    """Trained parameters in millions, as printed and as counted from the modules of ViT-B/16; then F1 and mAP (ZSL).

    A method with parts that the paper counts but that are never used has a second row, which includes them.
    """
    rows, sides = [], " / ".join(SIDES.values())
    for row in published("hrcf_table6_parameters").to_dict("records"):
        paper = ["" if pd.isna(row[side]) else f"{row[side]:g}" for side in SIDES]
        for name, ours, same in _counted(sources[0], row["method"], paper):
            cells = {"method": name, f"the paper: {sides}, M": " / ".join(paper)}
            cells |= {f"{COUNTED}, M": ours, "as printed": same}
            cells[f"the paper ({DATA}, ZSL): {HEAD}"] = " / ".join(f"{row[metric]:.1f}" for metric in METRICS)
            for records in sources:
                known = row["method"] in ON_THE_VLP
                ours = scores(records, [MAIN, TRAINED], (row["method"], ""), "ZSL") if known else OTHERS
                cells[f"ours ({records.data}, ZSL): {HEAD}"] = ours
            rows.append(cells)
    return pd.DataFrame(rows)


def _counted(records: Records, method: str, paper: list[str]) -> list[tuple[str, str, str]]:
    """(row, ours, whether it is as printed) of a method; ours is the reason where there is none."""
    if method == "HRCF":
        numbers = [_value(records, SPEED, "parameters", "HRCF, counted here", side) for side in SIDES]
        return [(method, " / ".join(_text(n, "{:.6f}") for n in numbers), _as_printed(numbers, paper))]
    found = []
    for name, title in ((method, TITLES.get(method, method)), (UNUSED.get(method),) * 2):
        try:
            frame = records.table(MAIN, "parameters", ["method", *SIDES.values()]).set_index("method")
        except Missing as why:
            return [(method, str(why), "")]
        if title in frame.index:
            numbers = frame.loc[title, list(SIDES.values())].astype(float)
            texts = ["" if pd.isna(n) else f"{n:.6f}" for n in numbers]
            found.append((name, " / ".join(texts), _as_printed(numbers, paper)))
    return found or [(method, f"the record of notebook 05 has no row {method!r}", "")]


def _as_printed(numbers, paper: list[str]) -> str:
    """Whether all numbers round to the printed ones (none or 0 where nothing is printed); empty if one is missing."""
    if any(isinstance(n, Missing) for n in numbers):
        return ""
    same = [printed(n, text) if text and not pd.isna(n) else not text and not n > 0 for n, text in zip(numbers, paper)]
    return _yes(all(same))


def times(sources) -> pd.DataFrame:
    """Inference: one picture, and as many as NUS-WIDE's test set has. Ours has random weights and needs no data.

    Times on a GPU are those of ``gpu.json`` among the records (``python -m hrcf_lib.speed.gpu``): pixels to scores in
    bfloat16, for one picture and for 471 at a time, as in the paper.
    """
    frame, on_gpu = published("hrcf_inference_time"), sources[0].gpu()
    gpu, head, rows = frame["gpu"].iloc[0], f"ours (ViT-B/16, {_machine(sources[0])})", []
    other = ELSEWHERE if sources[0].has(MAIN) else OTHER
    for method, single, whole in frame.iloc[:, :3].itertuples(index=False):
        ours = [
            _value(sources[0], SPEED, "times", name, "HRCF, ours") for name in ("one picture, s", "a test set, hours")
        ]
        texts = (_text(ours[0], "{:.3g} s"), _text(ours[1], "{:.3g} h")) if method == "HRCF" else (other, other)
        cells = {"method": method, f"the paper ({gpu}): a picture": f"{single:g} ms", f"{head}: a picture": texts[0]}
        cells |= {f"the paper (NUS-WIDE, {gpu}): a test set": f"{whole:g} s", f"{head}: as many pictures": texts[1]}
        rows.append(cells | _on_gpu(on_gpu, method))
    return pd.DataFrame(rows)


def _on_gpu(record: dict | None, method: str) -> dict[str, str]:
    """A picture, and a test set in batches of 471, of a method on the GPU of ``records.gpu_record``."""
    rows = gpu_rows(record, "inference")
    device = (record["stages"].get("machine", {}).get("device") or record["device"]) if record else "a GPU"
    head, cells = f"ours (ViT-B/16, {device})", {}
    forms = {"a picture": (1, "{:.3g} ms", 1), "as many pictures": (471, "{:.3g} s", nus_wide.IMAGES["test"] / 1000)}
    for title, (batch, form, times) in forms.items():
        name = f"{method}, bfloat16, B = {batch}"
        ms = rows["ms"].get(name, float("nan")) if "ms" in rows else float("nan")
        cells[f"{head}: {title}"] = "not measured" if pd.isna(ms) else form.format(ms * times)
    return cells


def mini_costs(sources) -> pd.DataFrame:
    """What methods cost on the mini VLP, in one run on one machine; it is never set beside the paper's."""
    try:
        frame = sources[0].table(MAIN, "costs", ["method", "training_seconds", "ms_per_picture"])
        machine = sources[0].record(MAIN)["device"]
    except Missing as why:
        return pd.DataFrame([{"method": "all", "ours (mini VLP)": str(why)}])
    head = f"ours (mini VLP, {machine})"
    cells = {"method": frame["method"], f"{head}: training": frame["training_seconds"].map("{:.3g} s".format)}
    return pd.DataFrame(cells | {f"{head}: a picture": frame["ms_per_picture"].map("{:.3g} ms".format)})


def _machine(records: Records) -> str:
    try:
        return records.record(SPEED)["device"]
    except Missing:
        return "no record"
