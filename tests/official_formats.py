"""Tiny trees in the official formats of the benchmarks, and ways to damage them. Pictures are noise, rows invented."""

import csv
import io
import json
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hrcf_lib.data import table_writer
from hrcf_lib.data.official.checks import label_list


def jpeg(path: Path, seed: int = 0, size=(32, 24), mode="RGB") -> Path:
    """A JPEG of noise; equal seeds give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, "JPEG")
    return path


def truncated(path: Path) -> Path:
    """A JPEG that ends in the middle."""
    whole = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(whole, "JPEG")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(whole.getvalue()[:3000])
    return path


def deep(path: Path) -> Path:
    """A picture of 16-bit grey values, whatever its name says."""
    Image.fromarray(np.full((24, 32), 40_000, np.uint16)).save(path, "PNG")
    return path


@contextmanager
def stopped_before(monkeypatch, split: str):
    """What is prepared inside ends with KeyboardInterrupt when it comes to ``split``."""
    begin = table_writer.Table.split

    def stop(self, name, *arguments):
        if name == split:
            raise KeyboardInterrupt
        return begin(self, name, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(table_writer.Table, "split", stop)
        yield


# --- NUS-WIDE --------------------------------------------------------------------------------------------------------

NUS_FOLDERS = ("harbor", "zebra", "dogs_at_play", "café")


def nus_wide(root: Path, n: int = 24, end: str = "\r\n", seed: int = 0, pictures: bool = True) -> dict:
    """A NUS-WIDE tree of ``n`` pictures, every third in test; returns what is in it, by row of Imagelist.txt."""
    rng = np.random.default_rng(seed)
    concepts, seen = label_list("nus_wide_unseen81.txt"), label_list("nus_wide_seen925.txt")
    known = {"computer", "fire", "map", "swimmers", "tattoo", "whales"}  # concepts that are no tags
    tags = list(seen)
    for k, name in enumerate(name for name in concepts if name not in known):
        tags.insert(13 * k, name)  # the 75 that are both, anywhere among the 1,000
    assert len(tags) == 1000
    files = [f"{NUS_FOLDERS[i % 4]}/{i // 4:04d}_{1000 + i}.jpg" for i in range(n)]
    test = [i for i in range(n) if i % 3 == 2]
    train = [i for i in range(n) if i % 3 != 2]
    labels = (rng.random((n, 81)) < 0.1).astype(int)
    labels[:, concepts.index("zebra")] = [int(file.startswith("zebra/")) for file in files]
    tagged = (rng.random((n, 1000)) < 0.02).astype(int)

    def write(path, lines):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes("".join(str(line) + end for line in lines).encode())

    backslashes = [file.replace("/", "\\") for file in files]
    write("ImageList/Imagelist.txt", backslashes)
    write("ImageList/TrainImagelist.txt", [backslashes[i] for i in train])
    write("ImageList/TestImagelist.txt", [backslashes[i] for i in test])
    write("ConceptsList/Concepts81.txt", concepts)
    write("NUS_WID_Tags/TagList1k.txt", tags)
    write("NUS_WID_Tags/AllTags1k.txt", ["\t".join(map(str, row)) + "\t" for row in tagged])
    for k, name in enumerate(concepts):
        write(f"Groundtruth/AllLabels/Labels_{name}.txt", labels[:, k])
        write(f"Groundtruth/TrainTestLabels/Labels_{name}_Train.txt", labels[train, k])
        write(f"Groundtruth/TrainTestLabels/Labels_{name}_Test.txt", labels[test, k])
    if pictures:
        for i, file in enumerate(files):
            jpeg(root / "Flickr" / file, seed=i)
    seen_columns = [tags.index(name) for name in seen]
    return {
        "files": files,
        "train": train,
        "test": test,
        "y": np.concatenate([tagged[:, seen_columns], labels], axis=1) * 2 - 1,  # (n, 1006)
    }


# --- Open Images -----------------------------------------------------------------------------------------------------


def open_images_table(root: Path, split: str, rows, header="ImageID,Source,LabelName,Confidence") -> Path:
    """``rows``: (image, mid, confidence), written in the given order."""
    root.mkdir(parents=True, exist_ok=True)
    path = root / f"{split}-annotations-human-imagelabels.csv"
    lines = [header] + [f"{image},verification,{mid},{confidence}" for image, mid, confidence in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def image_id(k: int) -> str:
    return f"{k:016x}"


def image_table(root: Path, images) -> Path:
    """The table of images with their addresses."""
    path = root / "train-images-boxable-with-rotation.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            "ImageID,Subset,OriginalURL,OriginalLandingURL,License,AuthorProfileURL,Author,Title,OriginalSize,"
            "OriginalMD5,Thumbnail300KURL,Rotation".split(",")
        )
        for image in images:
            url = f"https://example.org/{image}.jpg"
            writer.writerow([image, "train", url, "", "", "", "A, B", 'a "title"', 10, f"md5-{image}", "", ""])
    return path


# --- COCO and VOC ----------------------------------------------------------------------------------------------------


def coco(root: Path, year: int = 2014, pictures: bool = True) -> Path:
    """instances_train and instances_val with 80 categories whose ids have gaps; three images each, the last without
    annotations. Image ``10 * s + i`` of split s shows categories ``i`` and ``i + 15`` (by rank)."""
    names = label_list("coco80.txt")
    categories = [{"id": k + 1 + k // 10, "name": name} for k, name in enumerate(names)]
    for s, split in enumerate(("train", "val")):
        images, annotations = [], []
        for i in range(3):
            id = 10 * s + i
            file = f"COCO_{split}{year}_{id:012d}.jpg"
            images.append({"id": id, "file_name": file})
            if pictures:
                jpeg(root / f"{split}{year}" / file, seed=id)
            for k in (i, i + 15, i) if i < 2 else ():
                shape = {"iscrowd": int(k >= 15), "area": 50.0, "segmentation": {"counts": [1, 2], "size": [24, 32]}}
                annotations.append(
                    {"id": len(annotations), "image_id": id, "category_id": categories[k]["id"], **shape}
                )
        content = {"images": images, "annotations": annotations, "categories": list(reversed(categories))}
        save_json(root / "annotations" / f"instances_{split}{year}.json", content)
    return root


def save_json(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def voc(root: Path, year: int = 2007) -> Path:
    """VOC{year}: 000001 has a dog, 000002 a difficult cat with a part "head", 000003 (test) nothing, 000004 (test) a
    dog and a difficult dog."""
    home = root / "VOCdevkit" / f"VOC{year}"
    lists = {2007: ("trainval", "test"), 2012: ("train", "val")}[year]
    objects = {
        "000001": [("dog", 0)],
        "000002": [("cat", 1)],
        "000003": [],
        "000004": [("dog", 0), ("dog", 1)],
    }
    (home / "ImageSets" / "Main").mkdir(parents=True)
    (home / "Annotations").mkdir()
    for name, ids in zip(lists, (("000001", "000002"), ("000003", "000004"))):
        (home / "ImageSets" / "Main" / f"{name}.txt").write_text("\n".join(ids) + "\n")
        for label in ("cat", "dog"):
            rows = []
            for id in ids:
                found = [hard for shown, hard in objects[id] if shown == label]
                value = -1 if not found else 0 if all(found) else 1
                rows.append(f"{id} {value:2d}")  # one blank before -1, two before 0 and 1
            (home / "ImageSets" / "Main" / f"{label}_{name}.txt").write_text("\n".join(rows) + "\n")
    for id, shown in objects.items():
        part = "<part><name>head</name></part>"
        inner = "".join(f"<object><name>{n}</name><difficult>{d}</difficult>{part}</object>" for n, d in shown)
        (home / "Annotations" / f"{id}.xml").write_text(
            f"<annotation><filename>{id}.jpg</filename>{inner}</annotation>"
        )
        jpeg(home / "JPEGImages" / f"{id}.jpg", seed=int(id))
    return home
