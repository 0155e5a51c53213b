r"""One's own pictures, a folder with a ``labels.csv``, written in the common form.

``hrcf_lib.data.load(folder)`` reads such a folder as it is (``labelled_folder`` describes it). A table is worth making
for many pictures, for several splits under one name, or for streaming.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from tqdm.auto import tqdm

from hrcf_lib.data import labelled_folder, table_writer
from hrcf_lib.data.official import checks
from hrcf_lib.engine.messages import user_path
from hrcf_lib.labels import LabelSpace, check_names


def prepare(source, out, labels: LabelSpace | Iterable[str] | None = None) -> Path:
    r"""Write one or several labelled folders in the common form to ``out``.

    Args:
        source: a folder with a ``labels.csv``, which becomes the split train; or split -> such a folder, as in
            ``{"train": "photos/train", "test": "photos/test"}``, all below one parent.
        out: folder to make; see ``table_format``.
        labels: the label space; by default that of ``label_space.csv`` of the first folder or, without that file, all
            labels of all tables in alphabetical order, all seen.

    A label that a row does not name is absent, or unknown if ``label_space.csv`` says that nobody looked for it.
    Missing pictures are counted and named in ``skipped.csv``.

    Raises what ``load`` raises for faulty tables and labels outside the label space; ``ValueError`` for a picture in
    two splits.
    """
    source = source if isinstance(source, dict) else {"train": source}
    if not source or (odd := [name for name in source if not re.fullmatch(r"[\w.-]+", str(name))]):
        what = f"source calls a split {odd[0]!r}: use letters and digits" if source else "source is empty"
        raise ValueError(f"{what}; give split -> folder, as in {{'train': 'photos/train'}}")
    folders = {str(name): user_path(folder, "source").resolve() for name, folder in source.items()}
    tables = {name: labelled_folder.read_labels_csv(folder) for name, folder in folders.items()}
    stated = {name: labelled_folder.read_label_space_csv(folder) for name, folder in folders.items()}
    if labels is None:
        first = next(iter(stated.values()))
        for name, table in tables.items() if first is None else ():
            labelled_folder.tell_doubtful(folders[name] / "labels.csv", table)
        named = sorted({label for table in tables.values() for names in table.values() for label in names})
        labels = first[0] if first else LabelSpace(named)
    elif not isinstance(labels, LabelSpace):
        labels = LabelSpace(check_names(labels))
    column = {label: k for k, label in enumerate(labels.names)}
    for name, table in tables.items():
        labelled_folder.count_unknown_labels(folders[name], table, labels)

    root = Path(os.path.commonpath(list(folders.values())))
    files = {n: {f: Path(os.path.relpath(folders[n] / f, root)).as_posix() for f in t} for n, t in tables.items()}
    checks.disjoint({name: paths.values() for name, paths in files.items()})
    state = [
        [split, str(path), path.stat().st_size, path.stat().st_mtime_ns]
        for split, folder in folders.items()
        for path in (folder / "labels.csv", folder / "label_space.csv")
        if path.is_file()
    ]
    with table_writer.writing(out, "folder", root, labels, root, {"source": state}, {}) as written:
        for name, table in tables.items():
            if written.done(name):
                continue
            looked_for = stated[name][1] if stated[name] else set(labels.names)
            with written.split(name, folders[name].name) as split:
                for file, names in tqdm(table.items(), desc=name, disable=None, leave=False):
                    positives = sorted({column[label] for label in names})
                    negatives = [k for k, n in enumerate(labels.names) if n in looked_for and n not in names]
                    split.add(files[name][file], files[name][file], positives, negatives)
    return Path(out)
