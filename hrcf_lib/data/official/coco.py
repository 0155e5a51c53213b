r"""COCO 2014 and 2017, 80 labels; as the zero-shot benchmark 48 seen / 17 unseen; and any data set in COCO's form.

``annotations/instances_{train,val}{year}.json`` hold ``images`` (id, file_name), ``categories`` (id, name) and
``annotations`` (image_id, category_id). Ids of categories have gaps: a label's column is its rank among them, which for
the official files is the order of ``coco80.txt``. A label is present if its category has any annotation, crowds
included, and absent otherwise; it is unknown only where the file does not list its category. The official val set is
the split test here, as everyone evaluates on it. All images are kept, in the order of ``images`` (SST, SARB); DualCoOp
and Cole keep annotated ones only. Sources: their code.

Other programs name these files otherwise: CVAT ``instances_default.json`` (or ``instances_train.json`` and so on),
Roboflow ``train/_annotations.coco.json`` beside the pictures of each split. They are read where no official file is
there. Ids may be numbers or text: 7, 7.0 and "7" are one id.
"""

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from tqdm.auto import tqdm

from hrcf_lib.data import table_writer
from hrcf_lib.data.images import is_outside
from hrcf_lib.data.official import checks
from hrcf_lib.engine.messages import check_known, did_you_mean, list_some, tell
from hrcf_lib.labels import LabelSpace, alike, check_names, clean_name

IMAGES = {2014: {"train": 82_783, "test": 40_504}, 2017: {"train": 118_287, "test": 5_000}}  # published numbers
SPLITS = {"train": "train", "test": "val"}  # ours -> official
LABELS = ("80", "48/17", "file")
OTHER_SPLITS = {  # names of splits in files of other programs -> ours
    "default": "train",
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
FEW = 0.1  # a larger share of annotations that match no picture or category is told


class File(NamedTuple):
    """The annotations of one split."""

    path: Path
    official: str  # name of its split in the source
    folders: tuple[str, ...]  # where its pictures may be below the images root
    expected: int | None  # published number of pictures


def prepare(
    source, out, year: int | None = None, labels: str = "80", images=None, annotated_only=False, drop_unseen=False
) -> Path:
    r"""Write COCO in the common form to ``out``: splits train and test (the official val), or the one that is there.

    Args:
        source: folder that the official archives were unpacked in.
        out: folder to make; see ``table_format`` for what it holds, ``table_writer`` for interrupted runs.
        year: 2014 or 2017; by default the one whose files are there, 2014 if both are; without any, files of
            other programs are looked for.
        labels: "80": all seen. "48/17": the zero-shot split of Bansal et al. (2018); the other 15 categories are left
            out, and unseen labels stay in the table (``load(..., hide_unseen=True)`` hides them from training).
            "file": the categories of the files, whatever they are, by rank of their id.
        images: root of the pictures, by default ``images`` below ``source`` if there is one, else ``source``; in it
            ``train2014/<file_name>`` or ``<file_name>``, which may have backslashes but not leave the root. False
            writes the labels alone.
        annotated_only: leave out images without any annotation.
        drop_unseen: leave training images out that show an unseen category.

    Annotations of images or categories that the file does not list, and missing pictures, are counted and named in
    ``skipped.csv``.

    Warns where many annotations match nothing, or a file has none.

    Raises:
        FileNotFoundError: no such folder, or no ``instances_*.json`` of that year below it.
        ValueError: a file that is not JSON of this form, categories other than the 80, an image id or file name twice
            in one file, or in both (with "file" only the name counts: ids may begin anew in each file), no annotation
            that matches a picture and a category, or a picture outside the root.
    """
    if year not in (None, *IMAGES):
        raise ValueError(f"COCO has no year {year!r}; known: 2014, 2017")
    check_known([labels], LABELS, "unknown labels")
    files = checks.Source(source, (".json",), prune=[f"{s}{y}" for s in ("train", "val", "test") for y in IMAGES])
    year = year or _year_of(files)
    found, notes = _official(files, year) if year else (_others(files), [])
    if not found:
        _refuse_none(files, year)
    paths = {name: file.path for name, file in found.items()}
    root = checks.image_root(files.folder, images, ("images", "."))

    content = {name: read_instances(path) for name, path in paths.items()}
    categories = {name: _categories(paths[name], c["categories"]) for name, c in content.items()}
    space = label_space(labels, categories, paths)
    left_out = [n for named in categories.values() for n in named.values() if n not in space.names]
    notes += [f"categories left out: {', '.join(dict.fromkeys(left_out))}"] * bool(left_out)
    within = {name: "" if year else "".join(file.folders) + "/" for name, file in found.items()}  # official: unique
    checks.disjoint(
        {name: [within[name] + i["file_name"] for i in c["images"]] for name, c in content.items()}, "image files"
    )
    if year and labels != "file":
        checks.disjoint({name: [str(i["id"]) for i in c["images"]] for name, c in content.items()}, "image ids")
    unlisted = {name: set(space.names) - set(named.values()) for name, named in categories.items()}
    notes += [
        f"{paths[name].name} lists no category {list_some(sorted(lacking))}: unknown in {name}"
        for name, lacking in unlisted.items()
        if lacking
    ]

    within_root = f"{root.name}/" if root else ""  # some programs name files from the folder above
    settings = {"year": year, "labels": labels, "annotated_only": annotated_only, "drop_unseen": drop_unseen}
    for name, c in content.items():
        _check_matches(paths[name], c, categories[name])
    key = {"source": files.state(), **settings}
    with table_writer.writing(
        out, f"coco{year or ''}", source, space, root, key, {"settings": settings, "notes": notes}
    ) as table:
        for name, c in content.items():
            if table.done(name):
                continue
            file = found[name]
            with table.split(name, file.official, file.expected) as split:
                present = _present(c, categories[name], split)
                for image in tqdm(c["images"], desc=f"COCO {file.official}", disable=None, leave=False):
                    shown = present.get(image["id"], set())
                    if annotated_only and not shown:
                        split.drop(image["name"], "image without annotation")
                    elif drop_unseen and name == "train" and shown & set(space.unseen):
                        split.drop(image["name"], "training image with an unseen category")
                    else:
                        places = tuple(f"{folder}/{image['file_name']}" for folder in file.folders)
                        places += (image["file_name"], image["file_name"].removeprefix(within_root))
                        positives = [k for k, label in enumerate(space.names) if label in shown]
                        negatives = [k for k, label in enumerate(space.names) if label not in shown | unlisted[name]]
                        split.add(image["name"], places, positives, negatives)
    return Path(out)


def _year_of(files: checks.Source) -> int | None:
    """The first year of which an official file is there."""
    return next((y for y in IMAGES if any(files.get(f"instances_{other}{y}.json") for other in SPLITS.values())), None)


def _official(files: checks.Source, year: int) -> tuple[dict[str, File], list[str]]:
    """Split -> its official file, and notes on what is missing."""
    names = {name: f"instances_{other}{year}.json" for name, other in SPLITS.items()}
    found = {
        name: File(path, f"{SPLITS[name]}{year}", (f"{SPLITS[name]}{year}",), IMAGES[year][name])
        for name, file in names.items()
        if (path := files.get(file)) is not None
    }
    return found, [f"{file} is missing: no split {name}" for name, file in names.items() if name not in found]


def _others(files: checks.Source) -> dict[str, File]:
    """Split -> its file, as CVAT and Roboflow name them. Raises ``ValueError`` for two files of one split."""
    found: dict[str, File] = {}
    for path in files.matching(".json"):
        if path.name.lower() == "_annotations.coco.json":
            folder = path.parent.relative_to(files.folder).as_posix()
            official = "train" if folder == "." else path.parent.name
            folders = () if folder == "." else (folder,)
        elif cvat := re.fullmatch(r"instances_(\w+)\.json", path.name, re.IGNORECASE):
            official, folders = cvat[1], (cvat[1],)
        else:
            continue
        split = OTHER_SPLITS.get(official.lower())
        if split is None:
            raise ValueError(f"{path}: the split {official!r} is none of {', '.join(OTHER_SPLITS)}; rename it")
        if split in found:
            raise ValueError(f"{found[split].path} and {path} are both of the split {split}: keep one")
        found[split] = File(path, official, folders, None)
        files.use(path)
    return {split: found[split] for split in ("train", "val", "test") if split in found}


def _refuse_none(files: checks.Source, year: int | None) -> None:
    """Raise ``FileNotFoundError``: no file in COCO's form was found."""
    if year is not None:
        files.need(f"instances_train{year}.json", archive=f"annotations_trainval{year}.zip")
    other = [path.name for path in files.matching(".json")]
    there = f"; there are {list_some(other)}: rename what has images, annotations and categories" if other else ""
    packed = f"; not unpacked yet: {list_some(files.archives)}" if files.archives else ""
    raise FileNotFoundError(
        f"{files.folder} holds no annotations in COCO's form, in no folder below it either: instances_train2014.json, "
        f"instances_train2017.json (official), instances_default.json, instances_train.json (CVAT) or "
        f"_annotations.coco.json (Roboflow){there}{packed}"
    )


def label_space(labels: str, categories: dict[str, dict], paths: dict[str, Path]) -> LabelSpace:
    """The label space of one of ``LABELS``; ``ValueError`` where the categories of the files do not fit it."""
    if labels == "file":
        first, *others = categories
        for other in others:
            checks.same_list(list(categories[other].values()), list(categories[first].values()), str(paths[other]))
        for group in alike(categories[first].values()):
            tell(f"{paths[first]}: categories that differ in case only: {list_some(map(repr, group))}; use one name")
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
    except (ValueError, RecursionError) as error:
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
            lacking = [key for key in keys if not isinstance(row, dict) or not _is_stated(row.get(key))]
            if lacking:
                raise ValueError(f"{path}: {name}[{i}] has no {' and no '.join(lacking)}; correct the file")
    if not content["images"]:
        raise ValueError(f"{path}: its list of images is empty, so it has no pictures; export it with images")
    if not content["categories"]:
        raise ValueError(f"{path}: its list of categories is empty, so it has no labels; export it with categories")
    for i, image in enumerate(content["images"]):
        image["name"] = image["id"].strip() if isinstance(image["id"], str) else str(one_id(image["id"]))
        image["id"] = one_id(image["id"])
        image["file_name"] = str(image["file_name"]).strip().replace("\\", "/").removeprefix("./")
        if is_outside(image["file_name"]):
            raise ValueError(
                f"{path}: images[{i}] has the file_name {image['file_name']!r}, which leads outside the folder of "
                "pictures: write it relative to that folder, and give the folder as images=..."
            )
    for row in content["annotations"]:
        row["image_id"], row["category_id"] = one_id(row["image_id"]), one_id(row["category_id"])
    checks.unique([image["id"] for image in content["images"]], f"{path} lists the image ids", "keep one of each")
    checks.unique([image["file_name"] for image in content["images"]], f"{path} lists the files", "keep one of each")
    return content


def one_id(value: int | float | str) -> int | str:
    """An id as a number where it is a whole one, however it is written, else as text.

    >>> [one_id(value) for value in (7, 7.0, "7", " 7.0 ", "07", "a7")]
    [7, 7, 7, 7, 7, 'a7']
    """
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str):
        value = value.strip()
        whole = re.fullmatch(r"(-?[0-9]{1,4000})(\.0*)?", value)
        return int(whole[1]) if whole else value
    return value


def _is_stated(value) -> bool:
    """Whether a cell holds a number or a text."""
    kinds = isinstance(value, (int, float, str)) and not isinstance(value, bool)
    return kinds and value == value and bool(str(value).strip())


def _categories(path: Path, rows: list[dict]) -> dict[int | str, str]:
    """Category id -> name, by ascending id, numbers before texts."""
    found = []
    for i, row in enumerate(rows):
        id, name = (row.get("id"), row.get("name")) if isinstance(row, dict) else (None, None)
        if not _is_stated(id) or not isinstance(name, str) or not clean_name(name):
            raise ValueError(
                f"{path}: categories[{i}] has no 'id' or no text as its 'name' ({row!r:.100}): a category has both; "
                "correct the file"
            )
        found.append((one_id(id), clean_name(name)))
    found.sort(key=lambda pair: (isinstance(pair[0], str), pair[0]))
    checks.unique([name for _, name in found], f"{path} lists the categories", "keep one of each")
    check_names([name for _, name in found], f"{path}: its categories")
    checks.unique([str(id) for id, _ in found], f"{path} lists the category ids", "keep one of each")
    return dict(found)


def _check_matches(path: Path, content: dict, categories: dict[int | str, str]) -> None:
    """Raise ``ValueError`` if no annotation is one of a listed image and category; warn if there is none, or if many
    are not."""
    ids = {image["id"] for image in content["images"]}
    rows = content["annotations"]
    lost = [row for row in rows if row["image_id"] not in ids or row["category_id"] not in categories]
    if not rows and ids:
        tell(f"{path} has no annotations: every label of its {len(ids):,} pictures reads absent")
    if not lost or len(lost) < len(rows) and len(lost) <= FEW * len(rows):
        return
    row = lost[0]
    what, known = ("image_id", ids) if row["image_id"] not in ids else ("category_id", categories)
    message = (
        f"{path}: {len(lost):,} of {len(rows):,} annotations belong to no image or no category of the file; the first "
        f"has the {what} {row[what]!r}, known are {list_some(map(repr, known), most=3)}"
    )
    if len(lost) == len(rows):
        raise ValueError(f"{message}; take annotations, images and categories from one export")
    tell(f"{message}; they are skipped")


def _present(content: dict, categories: dict, split: table_writer.Split) -> dict[int | str, set[str]]:
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
