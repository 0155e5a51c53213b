r"""Models on disk and on the Hugging Face hub: weights, config and a model card, in one folder.

``model.safetensors``  what was trained; the frozen VLP is not in it
``config.json``        method, config, hashes of the VLP and of the weights, seen labels
``README.md``          the model card, in the form that the hub reads
``<name>.json``        extras of a model, such as ``calibration.json``

The card says only what is known from config, VLP and labels or given by the caller. It has numbers only if they were
passed in, each with the protocol that made it.
"""

import re
import sys
import warnings
from contextlib import nullcontext
from html import escape
from importlib.resources import files
from pathlib import Path

import open_clip
import pandas as pd
from huggingface_hub import EvalResult, ModelCard, ModelCardData, snapshot_download
from pandas.api.types import is_numeric_dtype
from torch import Tensor

from hrcf_lib import config as configs
from hrcf_lib import protocols, vlp
from hrcf_lib.data.images import RESIZED
from hrcf_lib.engine.files import new_folder, read_json, write_json, write_text
from hrcf_lib.engine.hashes import check_tensors
from hrcf_lib.engine.messages import user_path
from hrcf_lib.engine.weights import read_tensors, write_tensors
from hrcf_lib.labels import check_names

FILES = ("config.json", "model.safetensors")  # what a folder has to hold
EXTRAS = ("calibration",)  # what may lie beside them as ``<name>.json``
CARD = "README.md"
HUB = "hf://"  # in front of a name on the hub
PAGE = re.compile(r"https?://(?:www\.)?huggingface\.co/([\w-][\w.-]*/[\w-][\w.-]*)")
REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")  # owner/name; no path that begins with . or /


class Pretrained:
    r"""Saving and loading of a ``Method``, which is what this is mixed into."""

    def save_pretrained(self, folder: str | Path, metrics=None, training=None, licence: str | None = None) -> Path:
        r"""Write weights, config, model card and ``extras`` into ``folder``; the frozen VLP is not written.

        ``metrics`` (a table of ``evaluate``, or a dict split -> table), ``training`` and ``licence`` go on the card:
        see ``model_card``. Returns the folder, which is made if need be: a new one is whole or not there, in one that
        exists other files stay, and weights and config that a killed process left of two models are told apart by the
        hash in the config. Raises ``ValueError`` for metrics without a protocol and for an extra of an unknown name,
        before anything is written; ``OSError`` where the disk is full.
        """
        card = model_card(self, metrics, training, licence)
        if unknown := set(self.extras) - set(EXTRAS):
            raise ValueError(f"extras has {sorted(unknown)[0]!r}: a model is saved with {', '.join(EXTRAS)} alone")
        folder = user_path(folder, "the model's folder")
        if folder.is_file():
            raise NotADirectoryError(f"{folder} is a file, and no folder: choose another folder for the model")
        with nullcontext(folder) if folder.exists() else new_folder(folder) as part:
            weights = write_tensors(self.trainable_state(), part / "model.safetensors")
            about = {"method": self.config.method, "config": self.config.to_dict(), "vlp_hash": self.vlp.hash}
            about |= {"weights_hash": weights, "reference_labels": self.reference_labels}
            write_json(part / "config.json", about)
            for name in EXTRAS:
                path = part / f"{name}.json"
                write_json(path, self.extras[name]) if name in self.extras else path.unlink(missing_ok=True)
            write_card(card, part)
        return folder

    @classmethod
    def from_pretrained(cls, folder: str | Path, **changes) -> "Pretrained":
        r"""The model saved in ``folder``, in evaluation mode; ``changes`` replace config values.

        ``folder`` may also be ``hf://owner/name``, a repository of the Hugging Face hub. Raises ``FileNotFoundError``
        that says what is missing, ``ValueError`` if method, config, weights, extras or VLP do not fit, and what
        ``vlp.load`` raises.
        """
        about = read_about(folder := find_folder(folder))
        if about["method"] != cls.Config.method:
            raise ValueError(
                f"{folder} holds a {about['method']!r}, not {cls.Config.method!r}: use methods.load(folder)"
            )
        try:
            config = configs.from_dict(about["config"], cls.Config)
            expected, seen = about["vlp_hash"], about["reference_labels"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{folder / 'config.json'} is not a config of save_pretrained: {error}") from error
        extras = {name: read_extra(folder, name) for name in EXTRAS if (folder / f"{name}.json").is_file()}
        weights = read_weights(folder, about)
        model = cls(config.replace(**changes))
        if model.vlp.hash != expected and expected == vlp.FIRST_MINI:
            raise ValueError(
                f"{folder} was trained on the first hrcf-mini (hash {expected}), whose place another has taken: train "
                "the model again, or open the folder with the version of hrcf that wrote it"
            )
        if model.vlp.hash != expected:
            raise ValueError(
                f"{folder} was trained on {config.vlp} with hash {expected}, the {model.vlp.name} here has "
                f"{model.vlp.hash}: give the same VLP (vlp, vlp_weights, side)"
            )
        model.load_trainable(weights, folder / "model.safetensors")
        model.reference_labels, model.extras = tuple(seen), extras
        return model.eval()


ABOUT = {"config": dict, "vlp_hash": str, "reference_labels": list, "method": str}  # what ``config.json`` has to say


def read_about(folder: Path) -> dict:
    """What ``config.json`` of a folder says, with the name of the method. Raises ``ValueError`` for another file."""
    path = folder / "config.json"
    try:
        about = {"method": "hrcf"} | read_json(path)  # older folders name no method
        for name, kind in ABOUT.items():
            if not isinstance(about.get(name), kind):
                raise ValueError(f"its {name} is {str(about.get(name))[:60]!r}, where a {kind.__name__} should be")
        if about["reference_labels"]:
            check_names(about["reference_labels"], "its reference_labels")
    except ValueError as error:
        raise ValueError(f"{path} is not a config of save_pretrained: {error}") from error
    return about


def read_weights(folder: Path, about: dict) -> dict[str, Tensor]:
    """The weights of a folder. Raises ``ValueError`` if they are damaged, or not those of ``about`` (``read_about``),
    which folders saved before there were hashes do not say."""
    path = folder / "model.safetensors"
    state = read_tensors(path)
    try:
        check_tensors(state, path, about.get("weights_hash"))
    except ValueError as error:
        raise ValueError(
            f"{error}: {folder} holds weights and the config of two models, as when saving was interrupted; save the "
            "model again, or put copies of both files back"
        ) from error
    return state


def read_extra(folder: Path, name: str) -> dict:
    """The values in ``<name>.json`` of a folder. Raises ``ValueError`` for a file that is damaged."""
    path = folder / f"{name}.json"
    try:
        return read_json(path)
    except ValueError as error:
        raise ValueError(
            f"{path} is not a {name} ({error}): delete it (the model loads without it), or make it anew"
        ) from error


def find_folder(source: str | Path) -> Path:
    """A folder of ``save_pretrained`` on this machine. ``hf://owner/name`` is fetched from the Hugging Face hub first,
    which is said; no other name is ever asked for there, as a mistyped folder may be somebody's repository.

    Raises ``FileNotFoundError`` that says which file or repository is missing, and ``ValueError`` for ``hf://`` with
    something else.
    """
    if str(source).startswith(HUB):
        return _checked_folder(_fetched(str(source).removeprefix(HUB)))
    if page := PAGE.match(str(source)):
        raise FileNotFoundError(f"{source} is a page, and no folder: a repository of the hub is {HUB}{page[1]}")
    if str(source).startswith("hf:"):
        raise ValueError(f"{source}: a repository of the Hugging Face hub is given as text, {HUB}owner/name")
    folder = user_path(source, "the model's folder")
    if not folder.exists():
        hint = f"; a repository of the Hugging Face hub is {HUB}{source}" if REPOSITORY.fullmatch(str(source)) else ""
        raise FileNotFoundError(f"there is no folder {source} here: correct the path{hint}")
    return _checked_folder(folder)


def _fetched(name: str) -> Path:
    """The folder in the hub's cache of a repository, fetched as far as it is not there."""
    if not REPOSITORY.fullmatch(name):
        raise ValueError(f"{HUB}{name}: give the owner and the name of a repository, as in {HUB}owner/name")
    cached_only = not vlp.online()
    print(f"asking {'the cache of ' * cached_only}the Hugging Face hub for {name}", file=sys.stderr)
    wanted = [*FILES, *(f"{extra}.json" for extra in EXTRAS)]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted, local_files_only=cached_only))
    except Exception as error:  # no such repository, no access, no network: every kind of its own
        reason = str(error).strip().splitlines()[0]
        if cached_only:
            reason = "its cache has none, and there is no network (or HF_HUB_OFFLINE is set)"
        raise FileNotFoundError(f"the Hugging Face hub gave no repository {name}: {reason}") from error


def _checked_folder(folder: Path) -> Path:
    for file in FILES:
        if not (folder / file).is_file():
            raise FileNotFoundError(f"{folder} holds no {file}: give a folder that save_pretrained wrote")
    return folder


# The model card -------------------------------------------------------------------------------------------------------

MARK = "<!-- written by save_pretrained of hrcf; without this line the file is yours and is not written again -->"
TEMPLATE = "assets/model_card.md.jinja"
TASK = "zero-shot-image-classification"  # the hub's task that takes any list of labels
COUNTS = ("images", "labels")  # columns of ``evaluate`` that are not metrics
DATA = {  # dataset of the config -> name and what it is
    "mojiscenes": (
        "MojiScenes",
        "synthetic scenes of 1 to 3 OpenMoji drawings on painted sky, sea, walls and the like",
    ),
    "nus_wide": ("NUS-WIDE", "photographs of Flickr, 925 seen and 81 unseen labels"),
    "open_images": ("Open Images V4", "photographs, 7,186 seen and 400 unseen labels"),
    "coco_48_17": ("COCO 48/17", "photographs, 48 seen and 17 unseen labels"),
    "coco": ("COCO", "photographs, 80 labels"),
    "voc": ("PASCAL VOC", "photographs, 20 labels"),
    "folder": ("pictures of a folder", "the trainer's own pictures and labels"),
}
LICENCES = {"mojiscenes": "cc-by-sa-4.0"}  # of what was learnt from, where this library brings it along


def model_card(model, metrics=None, training=None, licence: str | None = None) -> ModelCard:
    r"""The card of a ``Method``, from the template in ``TEMPLATE``.

    Args:
        metrics: the table of ``evaluation.evaluate`` (one row per task, with its ``protocol``; percent), measured on
            the data set of the config; or a dict split -> table, such as ``{"test": table}``. None: no number is
            claimed.
        training: the history that ``train`` returns, of which each phase becomes a row; or a dict of plain values, such
            as ``records.origin()``.
        licence: of the weights, as the hub writes it ("mit"). By default that of the drawings for MojiScenes, and none
            for other data, whose terms this library does not know.

    Raises ``ValueError`` for a table without protocol, with an unknown one, or without a metric.
    """
    given = {} if metrics is None else metrics if isinstance(metrics, dict) else {"": metrics}
    tables = {split: _checked(table) for split, table in given.items()}
    config, seen = model.config, model.reference_labels
    licence = licence or LICENCES.get(config.dataset)
    data, what = DATA[config.dataset]
    used = sorted({name for table in tables.values() for name in table["protocol"]})
    return ModelCard.from_template(
        _front(model, tables, licence),
        template_str=(files("hrcf_lib") / TEMPLATE).read_text(encoding="utf-8"),
        name=f"{model.title} on {data}",
        text=text,
        code=code,
        mark=MARK,
        about=model.about,
        config=config,
        vlp=model.vlp,
        resized=RESIZED[config.resize],
        changed=_changed(config),
        source=_source(model),
        numbers=f"{sum(p.numel() for p in model.trainable_state().values()):,}",
        examples=repr(list(seen[:2]) or ["zebra", "bus"]),
        data=data,
        what=what,
        pictures=f"at most {config.train_size:,}" if config.train_size else "all",
        seen=seen,
        tables={split: markdown(table.reset_index()) for split, table in tables.items()},
        protocols={name: protocols.named(name).words for name in used},
        training=_training(training),
        licence=licence,
        openmoji=config.dataset == "mojiscenes" or model.vlp.name == "hrcf-mini",
    )


def write_card(card: ModelCard, folder: str | Path) -> Path:
    r"""Write a card into ``folder``; returns its path.

    A ``README.md`` without the line ``MARK`` is somebody's own: it stays, with a warning.
    """
    path = Path(folder) / CARD
    if path.is_file() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
        warnings.warn(f"{path} was not written by save_pretrained and stays as it is: it may not fit", stacklevel=3)
        return path
    write_text(path, card.content)
    return path


def _front(model, tables: dict[str, pd.DataFrame], licence: str | None) -> ModelCardData:
    """What the hub reads: tags, licence, and each metric of each task as it was given."""
    plain = licence is None or re.fullmatch(r"[a-z0-9][a-z0-9.-]*", licence)  # as the hub abbreviates licences
    terms = {"license": licence} if plain else {"license": "other", "license_name": licence}
    name = DATA[model.config.dataset][0]
    found = [
        EvalResult(
            task_type=TASK,
            dataset_type=model.config.dataset,
            dataset_name=name,
            dataset_config=str(task),
            dataset_split=split or None,
            metric_type=metric,
            metric_name=f"{metric}, {task}",
            metric_value=float(row[metric]),
            metric_args={"protocol": row["protocol"]},
        )
        for split, table in tables.items()
        for task, row in table.iterrows()
        for metric in _metrics(table)
        if pd.notna(row[metric])
    ]
    tag = open_clip.get_pretrained_cfg(model.config.vlp, str(model.config.vlp_weights)) or {}
    return ModelCardData(
        library_name="hrcf",
        pipeline_tag=TASK,
        tags=["open-vocabulary", "multi-label-classification", "clip", model.config.method.replace("_", "-")],
        base_model=tag.get("hf_hub", "").rpartition("/")[0] or None,
        model_name=f"{model.title} on {name}" if found else None,
        eval_results=found or None,
        **terms,
    )


def _changed(config) -> str:
    """What of the preset was changed, as code; paths of some machine are left out."""
    changes = {name: value for name, value in config.changes().items() if name not in ("name", "vlp_weights")}
    return ", ".join(code(f"{name} = {value!r}") for name, value in changes.items()) or "nothing changed"


def _source(model) -> str:
    """Where the VLP's weights come from; of a path only the file's name, as its folders mean nothing elsewhere."""
    if model.config.vlp_weights is None:
        return "weights that ship with hrcf" if model.vlp.name == "hrcf-mini" else "no weights named"
    return f"weights {code(Path(model.config.vlp_weights).name)}"


def _training(training) -> str:
    """Each phase as a row, or each value as a line."""
    if training is None or not len(training):
        return ""
    if not isinstance(training, pd.DataFrame):
        return "\n".join(f"* {text(key)}: {text(value)}" for key, value in training.items())
    losses = list(training.columns[list(training.columns).index("lr") + 1 : list(training.columns).index("seconds")])
    phases = training.groupby("phase", sort=False)
    rows = phases[["side", *losses]].last()
    rows.insert(1, "steps", phases.size())
    return "Losses are those of a phase's last step.\n\n" + markdown(rows.reset_index())


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


def markdown(table: pd.DataFrame) -> str:
    """A table as Markdown, numbers with two decimals at most (pandas' own needs a package more)."""
    rows = [list(map(str, table)), ["---"] * table.shape[1]]
    rows += [[_cell(value) for value in row] for row in table.itertuples(index=False)]
    return "\n".join("| " + " | ".join(map(text, row)) + " |" for row in rows)


def text(value) -> str:
    """A name of somebody's as plain text in a line of Markdown, whatever is in it: no markup, no HTML, no new cell."""
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", escape(" ".join(str(value).split()), quote=False))


def code(value) -> str:
    """A value as inline code of Markdown, which backticks in it do not end."""
    line = " ".join(str(value).split())
    if "`" not in line:
        return f"`{line}`"
    fence = "`" * (1 + max(map(len, re.findall("`+", line))))
    return f"{fence} {line} {fence}"


def _cell(value) -> str:
    if isinstance(value, float):
        return "" if pd.isna(value) else f"{value:.2f}".rstrip("0").rstrip(".")
    return str(value)
