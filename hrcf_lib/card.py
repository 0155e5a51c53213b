r"""The model card beside saved weights: ``README.md`` in the form that the Hugging Face hub reads.

Everything on it is known: from the config, the VLP and the labels of the model, or given by the caller. Numbers stand
on it only if they were passed in, each with the protocol that made it; what nobody said is left out, or said to be so.
"""

import inspect
import re
import sys
import warnings
from pathlib import Path

import open_clip
import pandas as pd
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from pandas.api.types import is_numeric_dtype

import hrcf_lib
from hrcf_lib import protocols
from hrcf_lib.engine.files import replacing

FILE = "README.md"
MARK = "<!-- written by save_pretrained of hrcf; without this line the file is yours and is not written again -->"
TASK = "zero-shot-image-classification"  # the hub's task that takes any list of labels
COUNTS = ("images", "labels")  # columns of ``evaluate`` that are no metrics
DATA = {  # dataset of the config -> name and what it is
    "mojiscenes": ("MojiScenes", "synthetic scenes of 2 to 6 OpenMoji drawings on textures and backgrounds"),
    "nus_wide": ("NUS-WIDE", "photographs of Flickr, 925 seen and 81 unseen labels"),
    "open_images": ("Open Images V4", "photographs, 7,186 seen and 400 unseen labels"),
    "coco_48_17": ("COCO 48/17", "photographs, 48 seen and 17 unseen labels"),
    "coco": ("COCO", "photographs, 80 labels"),
    "voc": ("PASCAL VOC", "photographs, 20 labels"),
    "folder": ("pictures of a folder", "the trainer's own pictures and labels"),
}
LICENCES = {"mojiscenes": "cc-by-sa-4.0"}  # of what was learnt from, where this library brings it along
CREDIT = (
    "All emojis of MojiScenes are designed by [OpenMoji](https://openmoji.org), the open-source emoji and icon "
    "project; licence of the drawings: CC BY-SA 4.0."
)


def card(model, metrics=None, training=None, licence: str | None = None) -> ModelCard:
    r"""The card of a ``Method``.

    Args:
        metrics: the table of ``evaluation.evaluate`` (a row a task, with its ``protocol``; percent), measured on the
            data set of the config; or a dict split -> table, such as ``{"test": table}``. None: no number is claimed.
        training: the history that ``train`` returns, of which each phase becomes a row; or a dict of plain values, such
            as ``results.origin()``.
        licence: of the weights, as the hub writes it ("mit"). By default that of the drawings for MojiScenes, and none
            for other data, whose terms this library does not know.

    Raises ``ValueError`` for a table without protocol, with an unknown one, or without a metric.
    """
    tables = {split: _checked(table) for split, table in _splits(metrics).items()}
    licence = licence or LICENCES.get(model.config.dataset)
    parts = [f"# {_name(model)}", MARK, _method(model), _use(model), _data(model), *_evaluation(tables)]
    parts += [*_training(training), _limits(model), _licence(model, licence)]
    front = _front(model, tables, licence).to_yaml()
    return ModelCard(f"---\n{front}\n---\n\n" + "\n\n".join(parts) + "\n")


def write(made: ModelCard, folder: str | Path) -> Path:
    r"""Write a ``card`` into ``folder``; returns its path.

    A ``README.md`` without the line ``MARK`` is somebody's own: it stays, with a warning.
    """
    path = Path(folder) / FILE
    if path.is_file() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
        warnings.warn(f"{path} was not written by save_pretrained and stays as it is: it may not fit", stacklevel=3)
        return path
    with replacing(path) as part:
        part.write_text(made.content, encoding="utf-8")
    return path


# What the hub reads -----------------------------------------------------------------------------------------------


def _front(model, tables: dict[str, pd.DataFrame], licence: str | None) -> ModelCardData:
    plain = licence is None or re.fullmatch(r"[a-z0-9][a-z0-9.-]*", licence)  # as the hub abbreviates licences
    terms = {"license": licence} if plain else {"license": "other", "license_name": licence}
    found = [result for split, table in tables.items() for result in _results(model, split, table)]
    return ModelCardData(
        library_name="hrcf",
        pipeline_tag=TASK,
        tags=["open-vocabulary", "multi-label-classification", "clip", model.config.method.replace("_", "-")],
        base_model=_repository(model),
        model_name=_name(model) if found else None,
        eval_results=found or None,
        **terms,
    )


def _results(model, split: str, table: pd.DataFrame) -> list[EvalResult]:
    """A result for each task and metric that is a number, as it was given."""
    data, (name, _) = model.config.dataset, DATA[model.config.dataset]
    return [
        EvalResult(
            task_type=TASK,
            dataset_type=data,
            dataset_name=name,
            dataset_config=str(task),
            dataset_split=split or None,
            metric_type=metric,
            metric_name=f"{metric}, {task}",
            metric_value=float(row[metric]),
            metric_args={"protocol": row["protocol"]},
        )
        for task, row in table.iterrows()
        for metric in _metrics(table)
        if pd.notna(row[metric])
    ]


def _repository(model) -> str | None:
    """The hub's repository of the VLP's weights, if they are a tag of open_clip that has one."""
    tag = open_clip.get_pretrained_cfg(model.config.vlp, str(model.config.vlp_weights)) or {}
    return tag.get("hf_hub", "").rpartition("/")[0] or None


# What people read -------------------------------------------------------------------------------------------------


def _name(model) -> str:
    return f"{model.title} on {DATA[model.config.dataset][0]}"


def _method(model) -> str:
    """Its first line of documentation, what of its config was changed, and the VLP that it needs."""
    config, vlp = model.config, model.vlp
    module = hrcf_lib if config.method == "hrcf" else sys.modules[type(model).__module__]
    line = (inspect.getdoc(module) or inspect.getdoc(type(model)) or model.title).splitlines()[0]
    changes = {name: value for name, value in config.changes().items() if name not in ("name", "vlp_weights")}
    changed = ", ".join(f"`{name} = {value!r}`" for name, value in changes.items()) or "nothing changed"
    if config.vlp_weights is None:
        source = "weights that ship with hrcf" if vlp.name == "hrcf-mini" else "no weights named"
    else:
        source = f"weights `{Path(config.vlp_weights).name}`"  # a path of some machine says nothing elsewhere
    return (
        f"{line}\n\n"
        f"* Preset `{config.name}`: {changed}. All of it: `config.json`.\n"
        f"* Frozen vision-language model (VLP): `{vlp.name}`, {source}, hash `{vlp.hash}`. It is not in this folder; "
        "loading refuses another one.\n"
        f"* {sum(p.numel() for p in model.trainable_state().values()):,} numbers in `model.safetensors`; pictures of "
        f"{vlp.side} x {vlp.side} pixels."
    )


def _use(model) -> str:
    names = list(model.reference_labels[:2]) or ["zebra", "bus"]
    return (
        "## Use\n\n```python\nfrom hrcf_lib import baselines, classify\n\n"
        'model = baselines.load("FOLDER")  # this folder, or its name on the hub\n'
        f'classify("pictures/", {names!r}, model)  # any labels, seen or not\n```'
    )


def _data(model) -> str:
    """What it was trained on, as far as config and labels say."""
    config, seen = model.config, model.reference_labels
    name, what = DATA[config.dataset]
    if not seen:
        return f"## Data\n\nNo training is on record: the weights have no seen labels. Preset for {name} ({what})."
    number = f"at most {config.train_size:,}" if config.train_size else "all"
    lines = [f"* {name}: {what}.", f"* Training pictures: {number} of its training split."]
    if config.tag_noise:
        lines.append(f"* {config.tag_noise:.0%} of the positive training labels were dropped (`tag_noise`).")
    some = ", ".join(seen[:10]) + (", ..." if len(seen) > 10 else "")
    lines.append(f"* {len(seen):,} seen labels (all in `config.json`): {some}.")
    return "## Data\n\n" + "\n".join(lines)


def _evaluation(tables: dict[str, pd.DataFrame]) -> list[str]:
    """One table a split, in percent as given, and what its protocols compute."""
    if not tables:
        return ["## Evaluation\n\nNo numbers were given."]
    parts = ["## Evaluation"]
    for split, table in tables.items():
        parts.append(f"Split `{split}`, in percent:" if split else "In percent; the split was not named:")
        parts.append(_markdown(table.reset_index()))
    used = sorted({name for table in tables.values() for name in table["protocol"]})
    parts.append("\n".join(f"* `{name}`: {protocols.named(name).words}." for name in used))
    return parts


def _training(training) -> list[str]:
    """Each phase as a row, or each value as a line."""
    if training is None or not len(training):
        return []
    if not isinstance(training, pd.DataFrame):
        return ["## Training\n\n" + "\n".join(f"* {key}: {value}" for key, value in training.items())]
    losses = list(training.columns[list(training.columns).index("lr") + 1 : list(training.columns).index("seconds")])
    phases = training.groupby("phase", sort=False)
    rows = phases[["side", *losses]].last()
    rows.insert(1, "steps", phases.size())
    return ["## Training\n\nLosses are those of a phase's last step.", _markdown(rows.reset_index())]


def _limits(model) -> str:
    """What the VLP knows, and what scores are."""
    vlp = model.vlp
    if vlp.name == "hrcf-mini":
        knows = (
            "The mini VLP knows OpenMoji drawings and the words of the MojiScenes vocabulary, and nothing else: it is "
            "for experiments, not for photographs. A label with another word is an error."
        )
    else:
        knows = f"`{vlp.name}` was trained elsewhere: what it never saw, or saw labelled wrongly, is not mended here."
    return (
        f"## Limits\n\n* {knows}\n* A label may have up to {vlp.context_length} tokens, prompt included.\n"
        "* Scores rank the labels of one picture; they are no probabilities, and depend on the labels scored together: "
        "`classify` scores any list inside the seen labels.\n"
        f"* Pictures are resized to {vlp.side} x {vlp.side}: what is small in the whole is easily missed."
    )


def _licence(model, licence: str | None) -> str:
    said = f"{licence}." if licence else "not stated; the data they learnt from have terms of their own."
    lines = [f"* Weights: {said}", "* Code (hrcf): MIT."]
    lines += [f"* {CREDIT}"] if model.config.dataset == "mojiscenes" or model.vlp.name == "hrcf-mini" else []
    return "## Licence\n\n" + "\n".join(lines)


# Tables -----------------------------------------------------------------------------------------------------------


def _splits(metrics) -> dict[str, pd.DataFrame]:
    return {} if metrics is None else metrics if isinstance(metrics, dict) else {"": metrics}


def _checked(table: pd.DataFrame) -> pd.DataFrame:
    """The table with its tasks in the index."""
    if not isinstance(table, pd.DataFrame) or "protocol" not in table:
        raise ValueError("metrics without a column 'protocol': give the table of evaluate, or name what made it")
    for name in table["protocol"]:
        protocols.named(name)
    table = table.set_index("task") if "task" in table else table.rename_axis("task")
    if isinstance(table.index, pd.RangeIndex):
        raise ValueError("metrics whose rows have no task: give the table of evaluate, with ZSL or GZSL in its index")
    if not len(table) or not _metrics(table):
        raise ValueError(f"metrics has no number in its columns {', '.join(map(str, table.columns))}: leave it out")
    return table


def _metrics(table: pd.DataFrame) -> list[str]:
    return [name for name in table if name not in COUNTS and is_numeric_dtype(table[name])]


def _markdown(table: pd.DataFrame) -> str:
    """A table of the hub's kind; numbers with two decimals at most, none where there is none."""
    rows = [list(map(str, table)), ["---"] * table.shape[1]]
    rows += [[_cell(value) for value in row] for row in table.itertuples(index=False)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def _cell(value) -> str:
    if isinstance(value, float):
        return "" if pd.isna(value) else f"{value:.2f}".rstrip("0").rstrip(".")
    return str(value)
