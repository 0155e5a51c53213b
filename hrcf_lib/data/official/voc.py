r"""PASCAL VOC 2007 and 2012, 20 labels.

::

    ImageSets/Main/trainval.txt          one id per line; 2007: trainval and test, 2012: train and val
    Annotations/<id>.xml                 <object><name>dog</name><difficult>0</difficult>...</object>
    JPEGImages/<id>.jpg
    ImageSets/Main/dog_trainval.txt      id and 1, 0 (difficult only) or -1: compared with the XML where they are there

A label is present if the picture has an object of that class that is not ``difficult`` and absent otherwise. What
``difficult`` objects alone mean is a setting: absent, as in SST, SARB and DualCoOp (2007) and Cole (2012, from the
class files), unknown, or present. Pictures left without a label stay. The split test is 2007's test set and 2012's val
set.
"""

import xml.etree.ElementTree as ET
from pathlib import Path

from tqdm.auto import tqdm

from hrcf_lib.data import table_writer
from hrcf_lib.data.official import checks
from hrcf_lib.engine.messages import check_known, tell, user_path
from hrcf_lib.labels import LabelSpace

LISTS = {2007: {"train": "trainval", "test": "test"}, 2012: {"train": "train", "test": "val"}}  # ours -> official
IMAGES = {2007: {"train": 5_011, "test": 4_952}, 2012: {"train": 5_717, "test": 5_823}}  # published numbers
OUTSIDE = "label outside the list"
FEW = 0.1  # a larger share of objects of other classes is told
DIFFICULT = ("absent", "unknown", "present")


def prepare(source, out, year: int | None = None, difficult: str = "absent", images=None) -> Path:
    r"""Write VOC in the common form to ``out``: splits train and test.

    Args:
        source: ``VOC2007`` or ``VOC2012``, or a folder above it, such as ``VOCdevkit``.
        out: folder to make; see ``table_format`` for what it holds, ``table_writer`` for interrupted runs.
        year: 2007 or 2012; by default the one in the name of the folder that is there, 2007 if both are.
        difficult: what a class reads whose objects in a picture are all ``difficult``: absent, unknown or present.
        images: folder of the pictures, by default ``JPEGImages``. False writes the labels alone.

    Missing pictures, annotations that are missing or no XML, and objects of other classes are counted and named in
    ``skipped.csv``.

    Warns where many objects are of other classes.

    Raises:
        FileNotFoundError: no such folder, or no ``ImageSets/Main`` list and no ``Annotations`` below it.
        ValueError: an id twice in one list or in both, a list that is not text, objects all of which are of other
            classes, or an unknown year or rule.
    """
    if year not in (None, *LISTS):
        raise ValueError(f"no lists of VOC {year!r}; known: 2007, 2012")
    check_known([difficult], DIFFICULT, "unknown rule for difficult objects")
    year, home = _home(user_path(source, "source"), year)
    paths = {name: home / "ImageSets" / "Main" / f"{file}.txt" for name, file in LISTS[year].items()}
    lists = {name: checks.lines(path) for name, path in paths.items() if path.is_file()}
    lists = {name: [line.split()[0] for line in found] for name, found in lists.items()}
    notes = [f"{path.name} is missing: no split {name}" for name, path in paths.items() if name not in lists]
    for name, ids in lists.items():
        checks.unique(ids, f"{paths[name]} lists", "keep one line per picture")
    checks.disjoint(lists)
    root = checks.image_root(home, images, ("JPEGImages",))

    names = checks.label_list("voc20.txt")
    state = [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in paths.values() if p.is_file()]
    state += [["Annotations", (home / "Annotations").stat().st_mtime_ns]]
    settings = {"year": year, "difficult": difficult}
    about = {"settings": settings, "notes": notes}
    with table_writer.writing(
        out, f"voc{year}", source, LabelSpace(names), root, {**settings, "source": state}, about
    ) as table:
        shown = others = 0
        for name, ids in lists.items():
            if table.done(name):
                counts = table.counts(name)
                shown, others = shown + counts["positives"], others + counts["problems"].get(OUTSIDE, 0)
                continue
            with table.split(name, LISTS[year][name], IMAGES[year][name]) as split:
                stated = class_files(home, LISTS[year][name], names, split)
                for id in tqdm(ids, desc=f"VOC {year} {LISTS[year][name]}", disable=None, leave=False):
                    found = objects(home / "Annotations" / f"{id}.xml", names, split)
                    if found is None:
                        split.drop(id, "unreadable annotation", f"{id}.xml is missing or no XML")
                        continue
                    sure, hard = found
                    for label in names:  # 1: an object that is not difficult, 0: difficult ones only, -1: none
                        value = 1 if label in sure else 0 if label in hard else -1
                        if stated.get((label, id), value) != value:
                            split.notes["class files that differ from the XML"] += 1
                    present = sure | hard if difficult == "present" else sure
                    unknown = hard - sure if difficult == "unknown" else set()
                    positives = [k for k, label in enumerate(names) if label in present]
                    negatives = [k for k, label in enumerate(names) if label not in present | unknown]
                    shown += len(sure | hard)
                    split.add(id, f"{id}.jpg", positives, negatives)
                others += split.problems[OUTSIDE]
                if name == list(lists)[-1]:  # before it counts as complete, so that the next run comes here again
                    _check_classes(home / "Annotations", shown, others)
    return Path(out)


def _check_classes(folder: Path, shown: int, others: int) -> None:
    """Raise ``ValueError`` if all objects are of other classes than VOC's, warn if many are. ``shown``: how often a
    picture shows a class of VOC; ``others``: objects of other classes."""
    if others <= FEW * (others + shown):
        return
    what = f"{folder}: {others:,} objects are of none of VOC's 20 classes (skipped.csv names them)"
    if not shown:
        raise ValueError(f"{what}, and no other is there; for classes of your own write a labels.csv (data.load)")
    tell(f"{what}; they are skipped")


def objects(path: Path, names, split: table_writer.Split) -> tuple[set[str], set[str]] | None:
    """Classes of a picture's objects: those with one that is not difficult, and those with a difficult one.

    Parts of objects (head, hand, foot) have names too and are not labels. None for a file that is missing or not XML.
    """
    try:
        objects = ET.parse(path).getroot().findall("{*}object")  # in a namespace or not
    except (OSError, ET.ParseError, LookupError, ValueError):  # the last two: of encodings
        return None
    sure, hard = set(), set()
    for item in objects:
        label = (item.findtext("{*}name") or "").strip().lower()  # Dog and dog are one
        if label not in names:
            split.skip(path.name, OUTSIDE, repr(label))
        else:
            (hard if (item.findtext("{*}difficult") or "0").strip().lower() in ("1", "true") else sure).add(label)
    return sure, hard


def class_files(home: Path, list_name: str, names, split: table_writer.Split) -> dict[tuple[str, str], int]:
    """(class, id) -> 1, 0 or -1 from the class files that are there; lines that cannot be read are skipped by name."""
    stated = {}
    for label in names:
        path = home / "ImageSets" / "Main" / f"{label}_{list_name}.txt"
        for number, line in enumerate(checks.lines(path) if path.is_file() else (), 1):
            cells = line.split()
            if len(cells) != 2 or cells[1] not in ("1", "0", "-1"):
                split.skip(f"{path.name}:{number}", "unreadable row", line[:80])
            else:
                stated[label, cells[0]] = int(cells[1])
    return stated


def _home(source: Path, year: int | None) -> tuple[int, Path]:
    """The year, and the folder that holds its ImageSets and Annotations. A folder VOC2012 has lists of the names of
    2007 too, so one that is named for the other year is not taken."""
    for y in LISTS if year is None else [year]:
        for home in (source, source / f"VOC{y}", source / "VOCdevkit" / f"VOC{y}"):
            lists = [home / "ImageSets" / "Main" / f"{file}.txt" for file in LISTS[y].values()]
            other = home.resolve().name.lower() in {f"voc{known}" for known in LISTS if known != y}
            if not other and (home / "Annotations").is_dir() and any(path.is_file() for path in lists):
                return y, home
    year = year or 2007
    lists = " or ".join(f"ImageSets/Main/{file}.txt" for file in LISTS[year].values())
    raise FileNotFoundError(
        f"{source} holds no VOC {year}: neither it nor VOC{year} or VOCdevkit/VOC{year} below it has Annotations and "
        f"{lists}; unpack the official archives there (for 2007 those of trainval and test, in one folder)"
    )
