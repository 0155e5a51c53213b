r"""COCO 2014 and 2017, 80 labels; as the zero-shot benchmark 48 seen / 17 unseen; and any data set in COCO's form.

``annotations/instances_{train,val}{year}.json`` hold ``images`` (id, file_name), ``categories`` (id, name) and
``annotations`` (image_id, category_id). Ids of categories have gaps: a label's column is its rank among them, which for
the official files is the order of ``coco80.txt``. A label is present if its category has any annotation, crowds
included, and absent otherwise; it is unknown only where the file does not list its category. The official val set is
the split test here, as everyone evaluates on it. All images are kept, in the order of ``images`` (SST, SARB); DualCoOp
and Cole keep annotated ones only. Sources: their code.
"""

import json
from collections import defaultdict
from pathlib import Path

from tqdm.auto import tqdm

from hrcf_lib.data import table_writer
from hrcf_lib.data.official import checks
from hrcf_lib.engine.messages import check_known, did_you_mean, list_some
from hrcf_lib.labels import LabelSpace

IMAGES = {2014: {"train": 82_783, "test": 40_504}, 2017: {"train": 118_287, "test": 5_000}}  # published numbers
SPLITS = {"train": "train", "test": "val"}  # ours -> official
LABELS = ("80", "48/17", "file")


def prepare(
    source, out, year: int | None = None, labels: str = "80", images=None, annotated_only=False, drop_unseen=False
) -> Path:
    r"""Write COCO in the common form to ``out``: splits train and test (the official val), or the one that is there.

    Args:
        source: folder that the official archives were unpacked in.
        out: folder to make; see ``table_format`` for what it holds, ``table_writer`` for interrupted runs.
        year: 2014 or 2017; by default the one whose files are there, 2014 if both are.
        labels: "80": all seen. "48/17": the zero-shot split of Bansal et al. (2018); the other 15 categories are left
            out, and unseen labels stay in the table (``load(..., hide_unseen=True)`` hides them from training).
            "file": the categories of the files, whatever they are, by rank of their id.
        images: root of the pictures, by default ``images`` below ``source`` if there is one, else ``source``; in it
            ``train2014/<file_name>`` or ``<file_name>``. False writes the labels alone.
        annotated_only: leave out images without any annotation.
        drop_unseen: leave training images out that show an unseen category.

    Annotations of images or categories that the file does not list, and missing pictures, are counted and named in
    ``skipped.csv``.

    Raises:
        FileNotFoundError: no such folder, or no ``instances_*.json`` of that year below it.
        ValueError: a file that is not JSON of this form, categories other than the 80, an image id or file name twice
            in one file, or in both (with "file" only the name counts: ids may begin anew in each file).
    """
    if year not in (None, *IMAGES):
        raise ValueError(f"COCO has no year {year!r}; known: 2014, 2017")
    check_known([labels], LABELS, "unknown labels")
    files = checks.Source(source, (".json",), prune=[f"{s}{y}" for s in ("train", "val", "test") for y in IMAGES])
    if year is None:
        there = (y for y in IMAGES if any(files.get(f"instances_{other}{y}.json") for other in SPLITS.values()))
        year = next(there, 2014)
    names = {name: f"instances_{other}{year}.json" for name, other in SPLITS.items()}
    paths = {name: path for name, file in names.items() if (path := files.get(file)) is not None}
    if not paths:
        files.need(names["train"], archive=f"annotations_trainval{year}.zip")
    notes = [f"{file} is missing: no split {name}" for name, file in names.items() if name not in paths]
    root = checks.image_root(files.folder, images, ("images", "."))

    content = {name: read_instances(path) for name, path in paths.items()}
    categories = {name: _categories(paths[name], c["categories"]) for name, c in content.items()}
    space = label_space(labels, categories, paths)
    left_out = [n for named in categories.values() for n in named.values() if n not in space.names]
    notes += [f"categories left out: {', '.join(dict.fromkeys(left_out))}"] * bool(left_out)
    checks.disjoint({name: [str(i["file_name"]) for i in c["images"]] for name, c in content.items()}, "image files")
    if labels != "file":
        checks.disjoint({name: [str(i["id"]) for i in c["images"]] for name, c in content.items()}, "image ids")
    unlisted = {name: set(space.names) - set(named.values()) for name, named in categories.items()}
    notes += [
        f"{paths[name].name} lists no category {list_some(sorted(lacking))}: unknown in {name}"
        for name, lacking in unlisted.items()
        if lacking
    ]

    settings = {"year": year, "labels": labels, "annotated_only": annotated_only, "drop_unseen": drop_unseen}
    key = {"source": files.state(), **settings}
    with table_writer.writing(
        out, f"coco{year}", source, space, root, key, {"settings": settings, "notes": notes}
    ) as table:
        for name, c in content.items():
            if table.done(name):
                continue
            folder = f"{SPLITS[name]}{year}"
            with table.split(name, folder, IMAGES[year][name]) as split:
                present = _present(c, categories[name], split)
                for image in tqdm(c["images"], desc=f"COCO {folder}", disable=None, leave=False):
                    shown = present.get(image["id"], set())
                    if annotated_only and not shown:
                        split.drop(str(image["id"]), "image without annotation")
                    elif drop_unseen and name == "train" and shown & set(space.unseen):
                        split.drop(str(image["id"]), "training image with an unseen category")
                    else:
                        places = (f"{folder}/{image['file_name']}", image["file_name"])
                        positives = [k for k, label in enumerate(space.names) if label in shown]
                        negatives = [k for k, label in enumerate(space.names) if label not in shown | unlisted[name]]
                        split.add(str(image["id"]), places, positives, negatives)
    return Path(out)


def label_space(labels: str, categories: dict[str, dict[int, str]], paths: dict[str, Path]) -> LabelSpace:
    """The label space of one of ``LABELS``; ``ValueError`` where the categories of the files do not fit it."""
    if labels == "file":
        first, *others = categories
        for other in others:
            checks.same_list(list(categories[other].values()), list(categories[first].values()), str(paths[other]))
        return LabelSpace(list(categories[first].values()))
    known = checks.label_list("coco80.txt")
    for split, named in categories.items():
        for name in named.values():
            if name not in known:
                hint = did_you_mean(name, known, "not one of COCO's 80")
                raise ValueError(
                    f"{paths[split]} has the category {name!r}: {hint}; correct it, or pass labels='file' to take the "
                    "categories of the file as they are"
                )
        if len(named) == len(known):
            checks.same_list(list(named.values()), known, f"{paths[split]}, categories by id")
    if labels == "80":
        return LabelSpace(known)
    return LabelSpace(checks.label_list("coco_seen48.txt"), checks.label_list("coco_unseen17.txt"))


def read_instances(path: Path) -> dict:
    """A file in COCO's form. Raises ``ValueError`` naming what it lacks or lists twice."""
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): truncated? download it again") from error
    for name, keys in (
        ("images", ("id", "file_name")),
        ("annotations", ("image_id", "category_id")),
        ("categories", ()),
    ):
        rows = content.get(name) if isinstance(content, dict) else None
        if not isinstance(rows, list):
            raise ValueError(f"{path} has no list {name!r}: it is not a file of instances; take instances_*.json")
        for i, row in enumerate(rows):
            lacking = [
                k for k in keys if not isinstance(row, dict) or not isinstance(row.get(k), (int, str)) or row[k] == ""
            ]
            if lacking:
                raise ValueError(f"{path}: {name}[{i}] has no {' and no '.join(lacking)}; correct the file")
    checks.unique([image["id"] for image in content["images"]], f"{path} lists the image ids", "keep one of each")
    checks.unique([image["file_name"] for image in content["images"]], f"{path} lists the files", "keep one of each")
    return content


def _categories(path: Path, rows: list[dict]) -> dict[int, str]:
    """Category id -> name, by ascending id."""
    try:
        found = sorted((int(row["id"]), str(row["name"])) for row in rows)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: a category has no number 'id' or no 'name' ({error!r}); correct the file") from error
    checks.unique([name for _, name in found], f"{path} lists the categories", "keep one of each")
    checks.unique([str(id) for id, _ in found], f"{path} lists the category ids", "keep one of each")
    return dict(found)


def _present(content: dict, categories: dict[int, str], split: table_writer.Split) -> dict[int, set[str]]:
    """Image id -> names of its categories; annotations of anything that is not listed are skipped by name."""
    ids = {image["id"] for image in content["images"]}
    present = defaultdict(set)
    for i, row in enumerate(content["annotations"]):
        if row["image_id"] not in ids:
            split.skip(f"annotations[{i}]", "annotation of an unlisted image", str(row["image_id"]))
        elif row["category_id"] not in categories:
            split.skip(f"annotations[{i}]", "label outside the list", str(row["category_id"]))
        else:
            present[row["image_id"]].add(categories[row["category_id"]])
    return present
