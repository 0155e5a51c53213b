"""Pictures on disk: read as CLIP reads them, and every fault is named together with its fix."""

import io
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from hrcf_lib import data
from hrcf_lib.data import opening
from hrcf_lib.data.images import find_images, read_image
from hrcf_lib.labels import LabelSpace

SPACE = LabelSpace(seen=["cat", "dog"], unseen=["sea"])


def picture(w=40, h=30, mode="RGB", seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.fixture
def folder(tmp_path):
    """Three good pictures and their labels."""
    (tmp_path / "photos").mkdir()
    for k, name in enumerate("abc"):
        picture(40 + 10 * k, 30, seed=k).save(tmp_path / "photos" / f"{name}.png")
    table(tmp_path, "photos/a.png,cat|sea", "photos/b.png,dog", "photos/c.png,")
    return tmp_path


def table(folder, *rows, header="file,labels"):
    (folder / "labels.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")


# --- reading one picture ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(40, 30), (30, 41), (40, 300), (300, 40), (333, 250), (5, 7), (1, 1)])
def test_read_image_is_clips_resize_and_centre_crop(size):
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as TF

    image, side = picture(*size), 32
    reference = TF.center_crop(TF.resize(image, side, InterpolationMode.BICUBIC), side)
    ours = read_image(image, side)
    assert ours.shape == (3, side, side) and ours.dtype == torch.uint8 and ours.is_contiguous()
    assert torch.equal(ours, TF.pil_to_tensor(reference))


@pytest.mark.parametrize("size", [(40, 30), (300, 40), (5, 7), (37, 37)])
def test_the_other_ways_to_resize(size):
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as TF

    image, side, how = picture(*size), 28, InterpolationMode.BICUBIC
    squashed = TF.resize(image, (side, side), how)
    assert torch.equal(read_image(image, side, "squash"), TF.pil_to_tensor(squashed))
    mkt = TF.center_crop(TF.resize(image, 32, how), side)  # 256 -> 224
    assert torch.equal(read_image(image, side, "mkt"), TF.pil_to_tensor(mkt))
    with pytest.raises(ValueError, match="unknown way to resize(?s:.*)'stretch'(?s:.*)squash"):
        read_image(image, side, "stretch")


def test_a_data_set_resizes_as_it_is_told_and_caches_know_it(folder):
    one, other = data.load(folder, SPACE, side=24), data.load(folder, SPACE, side=24, resize="squash")
    assert torch.equal(other[1][0], read_image(other.path(1), 24, "squash"))
    assert torch.equal(other.take([1])[0][0], other[1][0])
    assert one.fingerprint() == data.load(folder, SPACE, side=24, resize="crop").fingerprint() != other.fingerprint()
    with pytest.raises(ValueError, match="unknown way to resize"):
        data.load(folder, SPACE, resize="stretch")


def test_a_picture_of_the_right_size_keeps_its_bits(tmp_path):
    image = picture(32, 32)
    image.save(tmp_path / "x.png")
    expected = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    assert torch.equal(read_image(tmp_path / "x.png", 32), expected)
    assert torch.equal(read_image(str(tmp_path / "x.png"), 32), expected)
    assert torch.equal(read_image(image, 32), expected)


@pytest.mark.parametrize("turn", [False, True])
def test_of_a_very_long_picture_the_middle_is_read(turn):
    """Resized whole, a million pixels by one would become 112 million by 112."""
    image = Image.new("RGB", (1_000_000, 1), "red")
    image.paste("blue", (499_900, 0, 500_100, 1))
    image = image.transpose(Image.Transpose.ROTATE_90) if turn else image
    assert read_image(image, 112).unique(dim=1).unique(dim=2).flatten().tolist() == [0, 0, 255]


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "RGBA", "LA", "YCbCr"])
def test_all_common_modes_become_rgb(mode):
    assert read_image(picture(mode=mode), 16).shape == (3, 16, 16)


def test_rotation_in_exif_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    image = picture(30, 30)
    image.save(tmp_path / "x.png", exif=exif)
    upright = np.array(image.transpose(Image.Transpose.ROTATE_270))
    assert torch.equal(read_image(tmp_path / "x.png", 30), torch.from_numpy(upright).permute(2, 0, 1))


def bad_files(folder):
    """One file of each kind of fault, and what has to be said of it."""
    whole = io.BytesIO()
    picture(200, 200).save(whole, "JPEG")
    chunk = io.BytesIO()
    picture(200, 200).save(chunk, "PNG")
    damaged = bytearray(chunk.getvalue())
    damaged[5000:5100] = bytes(100)
    (folder / "truncated.jpg").write_bytes(whole.getvalue()[:3000])
    (folder / "damaged.png").write_bytes(damaged)
    (folder / "text.png").write_text("not a picture")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "folder.png").mkdir()
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(folder / "deep.png")
    return {
        "truncated.jpg": "cannot be read as a picture .corrupt or truncated: .*; replace the file",
        "damaged.png": "cannot be read as a picture .corrupt or truncated: .*; replace the file",
        "text.png": "cannot be read as a picture .its bytes begin as .*; replace the file",
        "empty.jpg": "cannot be read as a picture .the file is empty.; replace the file",
        "folder.png": "is a folder, not a picture; name a file|is a folder, not a picture: name a file",
        "deep.png": "16-bit or float pixels .mode I;16.*, which 8 bits would clip; .* save them with 8 bits",
    }


def test_bad_files_are_named_with_the_fix(tmp_path):
    for name, message in bad_files(tmp_path).items():
        with pytest.raises(ValueError, match=message) as error:
            read_image(tmp_path / name, 16)
        assert str(tmp_path / name) in str(error.value)
    with pytest.raises(FileNotFoundError, match="no picture at .*gone.png: correct the path"):
        read_image(tmp_path / "gone.png", 16)
    with pytest.raises(ValueError, match="side = 0"):
        read_image(picture(), 0)


def test_a_bad_pil_image_is_named(tmp_path):
    bad_files(tmp_path)
    with pytest.raises(ValueError, match="truncated.jpg cannot be read"):
        read_image(Image.open(tmp_path / "truncated.jpg"), 16)
    with pytest.raises(ValueError, match="mode F"):
        read_image(Image.new("F", (8, 8)), 16)
    with pytest.raises(ValueError, match="0 x 5 pixels"):
        read_image(Image.new("RGB", (0, 5)), 16)


@pytest.mark.parametrize(("limit", "pixels"), [(1000, "40 x 30 pixels, "), (100_000_000, "")])
def test_huge_pictures_are_refused_without_decoding(tmp_path, monkeypatch, limit, pixels):
    picture(40, 30).save(tmp_path / "x.png")
    monkeypatch.setattr(opening, "MAX_PIXELS", limit)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000 if pixels else 500)  # PIL warns; PIL refuses by itself
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=f"x.png has {pixels}more than .* megapixels; scale it down first"):
            read_image(tmp_path / "x.png", 16)


# --- finding pictures ------------------------------------------------------------------------------------------------


def test_find_images(folder):
    paths = [folder / "photos" / f"{name}.png" for name in "abc"]
    (folder / "photos" / ".hidden.png").write_bytes(b"")
    (folder / ".thumbs").mkdir()
    (folder / ".thumbs" / "a.png").write_bytes(b"")
    (folder / "D.JPEG").write_bytes(b"")
    image = picture()
    assert find_images(folder / "photos") == paths
    assert find_images(str(folder)) == [folder / "D.JPEG", *paths]
    assert find_images(paths[1]) == find_images([str(paths[1])]) == [paths[1]]
    assert find_images(image) == find_images((image,)) == [image]
    assert find_images([image, folder / "photos", paths[0]]) == [image, *paths, paths[0]]
    assert find_images(p for p in paths) == paths


def test_find_images_says_what_is_wrong(folder):
    (folder / "nothing").mkdir()
    with pytest.raises(ValueError, match="no pictures in .*nothing: none of its files ends in .jpg, .jpeg"):
        find_images(folder / "nothing")
    with pytest.raises(ValueError, match="the list of images is empty"):
        find_images([])
    with pytest.raises(FileNotFoundError, match=r"no such file or folder: .*x.png, .*y.png; correct the path"):
        find_images([folder / "x.png", folder / "photos/a.png", folder / "y.png"])
    with pytest.raises(FileNotFoundError, match="no such file or folder: nowhere"):
        find_images("nowhere")
    with pytest.raises(TypeError, match=r"images\[1\] is a ndarray: give paths or PIL images"):
        find_images([picture(), np.zeros((8, 8, 3), np.uint8)])
    with pytest.raises(TypeError, match="images is a int"):
        find_images(3)


# --- a folder and its table ------------------------------------------------------------------------------------------


def test_load(folder):
    dataset = data.load(folder, SPACE, side=24)
    assert len(dataset) == 3 and dataset.files == ["photos/a.png", "photos/b.png", "photos/c.png"]
    assert dataset.labels is SPACE and dataset.ignored == {} and len(dataset.skipped) == 0
    assert torch.equal(torch.stack([y for _, y in dataset]), torch.tensor([[1.0, -1, 1], [-1, 1, -1], [-1, -1, -1]]))
    for name, (image, _) in zip("abc", dataset):
        assert torch.equal(image, read_image(folder / "photos" / f"{name}.png", 24))
    with pytest.raises(IndexError, match="picture 3 of 3"):
        dataset[3]
    batch, labels = next(iter(torch.utils.data.DataLoader(dataset, batch_size=3)))
    assert batch.shape == (3, 3, 24, 24) and batch.dtype == torch.uint8 and labels.shape == (3, 3)


def test_by_default_the_labels_of_the_table_are_the_label_space(folder):
    assert data.load(folder).labels == LabelSpace(["cat", "dog", "sea"])
    assert data.load(folder, ["dog", "sea", "cat"]).labels == LabelSpace(["dog", "sea", "cat"])
    table(folder, "photos/a.png,", "photos/b.png,|")
    with pytest.raises(ValueError, match="holds no labels at all; pass load"):
        data.load(folder)
    assert data.load(folder, SPACE)[1][1].tolist() == [-1, -1, -1]


def test_hide_unseen_keeps_unseen_annotation_out_of_training(folder):
    dataset = data.load(folder, SPACE, hide_unseen=True)
    assert [dataset.label_vector(i).tolist() for i in range(3)] == [[1, -1, 0], [-1, 1, 0], [-1, -1, 0]]


def test_label_space_file(folder):
    text = "part,label,annotated\nunseen,sea,no\nseen,dog,yes\nseen,cat,no\n"
    (folder / "label_space.csv").write_text(text, encoding="utf-8")
    dataset = data.load(folder)
    assert dataset.labels == LabelSpace(["dog", "cat"], ["sea"])
    assert [dataset.label_vector(i).tolist() for i in range(3)] == [[-1, 1, 1], [1, 0, 0], [-1, 0, 0]]
    # a label that the file does not speak of was not looked for either
    assert data.load(folder, ["cat", "dog", "sea", "kite"]).label_vector(2).tolist() == [0, -1, 0, 0]
    for line, message in [
        ("both,kite,yes", "line 5: part 'both', annotated 'yes'; part is seen or unseen, annotated is yes or no"),
        ("seen,kite,1", "line 5: part 'seen', annotated '1'"),
        ("seen,sea,yes", r"label_space.csv: 'sea' is both seen\[2\] and unseen\[0\]"),
        ("seen,kite", "line 5 has 2 cells instead of 3"),
    ]:
        (folder / "label_space.csv").write_text(text + line + "\n", encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            data.load(folder)


def test_names_and_files_are_cleaned(folder):
    (folder / "labels.csv").write_bytes(
        "\ufefflabels,extra,file\r\n polar  bear || cat|cat ,1,./photos/a.png \r\n"
        '\r\n"cat, big",2,photos/b.png\r\n'.encode()
    )
    with pytest.warns(UserWarning, match="read as one label: 'cat, big' .*; if they are several, join them by '|'"):
        dataset = data.load(folder)  # with a byte order mark, Windows line ends, further columns in any order
    assert dataset.labels.names == ("cat", "cat, big", "polar bear")
    assert dataset.files == ["photos/a.png", "photos/b.png"]
    assert [dataset.label_vector(i).tolist() for i in range(2)] == [[1, -1, 1], [-1, 1, -1]]


def test_labels_outside_the_label_space(folder):
    table(folder, "photos/a.png,Cat|sea", "photos/b.png,zebra", "photos/c.png,zebra|dog")
    with pytest.raises(ValueError) as error:
        data.load(folder, SPACE)
    for part in [
        "labels.csv has labels outside the label space: 'Cat' (1 times, first in photos/a.png)",
        "'zebra' (2 times, first in photos/b.png)",
        "'Cat' is close to 'cat'",
        "strict=False",
    ]:
        assert part in str(error.value)
    dataset = data.load(folder, SPACE, strict=False)
    assert dataset.ignored == {"Cat": 1, "zebra": 2}
    assert [dataset.label_vector(i).tolist() for i in range(3)] == [[-1, -1, 1], [-1, -1, -1], [-1, 1, -1]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na.png,cat\n", "begins with 'file,label'; its first line has to name the columns file,labels"),
        ("file;labels\na.png;cat\n", "its first line, 'file;labels', has semicolons between cells: write commas"),
        ("photos/a.png,cat\n", "begins with 'photos/a.png,cat'"),
        ("", "begins with ''"),
        ("file,labels\n", "labels.csv lists no pictures; add rows"),
        (
            "file,labels\nphotos/a.png,cat\n,dog\n  ,sea\n",
            "line 3 names no file; line 4 names no file; give each picture",
        ),
        (
            "file,labels\nphotos/a.png,cat\nphotos/b.png,\n./photos/a.png,dog\n",
            "line 4 repeats 'photos/a.png' of line 2; give each picture one row, its labels joined by '|'",
        ),
        (
            "file,labels\nphotos/a.png,cat,dog\nphotos/b.png\n",
            "line 2 has 3 cells, line 3 has 1 cells instead of 2 of the first line .*; join labels by '|'",
        ),
        (b"file,labels\nphotos/a.png,caf\xe9\n", "is not a CSV in UTF-8"),
    ],
)
def test_faulty_tables(folder, text, message):
    (folder / "labels.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message.replace("|", r"\|")) as error:
        data.load(folder)
    assert str(folder / "labels.csv") in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('photos/a.png,"[""cat"", ""dog""]"', r"""line 2 has '["cat", "dog"]', a list or several lines as one label"""),
        ("photos/a.png,\"['cat', 'dog']\"", "line 2 has \"['cat', 'dog']\", a list"),
        ("photos/a.png,\"('cat', 'dog')\"", "a list or several lines as one label"),
        ('photos/a.png,"{""cat"": 1}"', "write names alone, joined by '|', as in cat|sofa"),
        ('photos/a.png,"cat\ndog"', "line 3 has 'cat\\ndog', a list or several lines"),
        ("photos/a.png,cat\tdog", "line 2 has 'cat\\tdog'"),
        ('photos/a.png,cat\nphotos/b.png,"dog', "line 3: .*: a quotation mark is not closed"),
        ("photos/a.png,array(['cat'])", "a list or several lines as one label"),
        ("file,labels", "line 2 repeats the first line, which names the columns: leave it out"),
        ("https://x.org/a.png,cat", "line 2 names the address 'https://x.org/a.png'; download"),
        ("../a.png,cat", "line 2 names '../a.png', outside the folder: write names relative to"),
        ("/etc/a.png,cat", "line 2 names '/etc/a.png', outside .* load(..., outside=True)"),
        ("photos\\..\\..\\a.png,cat", "outside the folder"),
        ("C:\\a.png,cat", "outside the folder"),
    ],
)
def test_cells_that_are_refused(folder, text, message):
    table(folder, text)
    parts = message.split(".*")
    with pytest.raises(ValueError) as error:
        data.load(folder)
    assert all(part in str(error.value) for part in parts) and str(folder / "labels.csv") in str(error.value)


def test_a_doubled_header_is_refused_and_another_case_is_read(folder):
    for header in ("file,labels,labels", "file,labels,Labels"):
        table(folder, "photos/a.png,cat,dog", header=header)
        with pytest.raises(ValueError, match="labels.csv has the columns 'labels' and '[lL]abels', of which one is"):
            data.load(folder)
    table(folder, "photos/a.png,cat,,", "photos/b.png,dog", ",,", header=" File ,LABELS")
    assert data.load(folder).labels.names == ("cat", "dog"), "and empty cells at the end are no cells"


@pytest.mark.parametrize(
    ("rows", "doubtful"),
    [
        (['photos/a.png,"cat,dog"', "photos/b.png,cat"], ["'cat,dog' (photos/a.png)"]),
        (["photos/a.png,cat;dog", "photos/b.png,sea;dog|sky"], ["'cat;dog'", "'sea;dog'"]),
        (['photos/a.png,"ham, egg"'], ["'ham, egg'"]),
        (["photos/a.png,'cat'|dog"], ["\"'cat'\""]),
        (["photos/a.png,Cat", "photos/b.png,cat|sea"], ["differ in case only", "'Cat' (photos/a.png) and 'cat'"]),
        (['photos/a.png,"ham, egg|sea"', "photos/b.png,sea"], []),
    ],
)
def test_names_that_look_like_several_or_like_another_are_told(folder, rows, doubtful):
    table(folder, *rows)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        names = data.load(folder).labels.names
    assert all(any(part in str(warning.message) for warning in told) for part in doubtful)
    assert bool(told) == bool(doubtful) and all(warning.filename == __file__ for warning in told)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.load(folder, list(names))  # who states the names means them


def test_invisible_characters_are_no_part_of_a_name(folder):
    table(folder, "photos/a.png,\u200bcat|po\u00adlar\u2060 bear", "photos/b.png,cat\ufeff|\u200e")
    assert data.load(folder).labels.names == ("cat", "polar bear")


def test_files_outside_the_folder_are_read_if_asked_for(folder):
    inner = folder / "inner"
    inner.mkdir()
    table(inner, "../photos/a.png,cat", f"{folder / 'photos' / 'b.png'},dog")
    dataset = data.load(inner, side=8, outside=True)
    assert torch.equal(dataset[1][0], read_image(folder / "photos" / "b.png", 8)) and len(list(dataset)) == 2


def test_the_table_itself_is_no_folder(folder):
    with pytest.raises(ValueError, match="labels.csv is a file: give the folder that it lies in, '"):
        data.load(folder / "labels.csv")
    with pytest.raises(ValueError, match="is a file: give the folder"):
        data.doctor(folder / "labels.csv")


def test_files_are_named_as_on_disk(folder):
    (folder / "photos" / "a.png").rename(folder / "photos" / "cafe\u0301.png")
    table(folder, "photos/caf\u00e9.png,cat", "photos\\b.png,dog")
    dataset = data.load(folder, SPACE, side=8)
    assert dataset.files == ["photos/cafe\u0301.png", "photos/b.png"] and len(list(dataset)) == 2
    table(folder, "photos/b.png,cat", "photos\\b.png,dog")
    with pytest.raises(ValueError, match="line 3 repeats 'photos/b.png' of line 2"):
        data.load(folder, SPACE)


def test_a_file_named_by_a_longer_way_is_one_file(folder):
    table(folder, ".\\photos\\\\a.png,cat", "photos\\.\\b.png,dog")
    assert data.load(folder, SPACE).files == ["photos/a.png", "photos/b.png"]
    table(folder, ".\\photos\\\\a.png,cat", "photos/b.png,dog", "photos\\a.png,dog", "photos//a.png,dog")
    with pytest.raises(ValueError, match="line 4 repeats 'photos/a.png' of line 2; line 5 repeats"):
        data.load(folder, SPACE)


def test_no_table(folder):
    (folder / "labels.csv").unlink()
    with pytest.raises(FileNotFoundError, match="has no labels.csv: write one with the columns file,labels"):
        data.load(folder)
    (folder / "photos").rename(folder / "images")
    with pytest.raises(FileNotFoundError, match="has no labels.csv: .* interrupted .* run it again"):
        data.load(folder)
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere: correct the path"):
        data.load(folder / "nowhere")
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere"):
        data.scan(folder / "nowhere")


def test_missing_pictures_are_all_named(folder):
    table(folder, "photos/a.png,cat", "x.png,dog", "y.png,dog")
    with pytest.raises(FileNotFoundError, match="lists pictures that do not exist: x.png, y.png; restore them"):
        data.load(folder, SPACE)


def test_scan_lists_all_bad_pictures_and_load_skips_them(folder):
    bad = bad_files(folder)
    good = ["photos/a.png", "photos/b.png"]
    table(folder, f"{good[0]},cat", *(f"{name},dog" for name in bad), "gone.png,sea", f"{good[1]},sea")
    report = data.scan(folder)
    assert list(report.columns) == ["file", "problem"] and list(report["file"]) == [*bad, "gone.png"]
    assert report["problem"].str.contains("no picture at").sum() == 1
    with pytest.warns(UserWarning, match="skipped 7 of 9 pictures .listed in .skipped.; the first: .*truncated.jpg"):
        dataset = data.load(folder, SPACE, skip_bad=True)
    assert dataset.files == good and list(dataset.skipped["file"]) == list(report["file"])
    assert [y.tolist() for _, y in dataset] == [[1, -1, -1], [-1, -1, 1]]  # labels stay with their pictures
    table(folder, "gone.png,sea", "empty.jpg,cat")
    with pytest.raises(ValueError, match="none of the 2 pictures of .* can be read; the first: .*gone.png"):
        data.load(folder, SPACE, skip_bad=True)


def test_scan_of_good_pictures_and_of_a_folder_without_table(folder):
    assert len(data.scan(folder)) == 0 and list(data.scan(folder).columns) == ["file", "problem"]
    bad_files(folder)
    (folder / "labels.csv").unlink()
    report = data.scan(folder)
    assert list(report["file"]) == ["damaged.png", "deep.png", "empty.jpg", "text.png", "truncated.jpg"]


def test_a_picture_that_breaks_later_is_named(folder):
    dataset = data.load(folder, SPACE)
    (folder / "photos" / "b.png").write_bytes(b"")
    with pytest.raises(ValueError, match="b.png cannot be read as a picture .the file is empty"):
        dataset[1]


def test_fingerprint_follows_pictures_and_labels(folder):
    first = data.load(folder, SPACE).fingerprint()
    assert first == data.load(folder, SPACE).fingerprint()
    others = [data.load(folder, SPACE, side=64), data.load(folder, SPACE, hide_unseen=True)]
    seen = {first, *(dataset.fingerprint() for dataset in others)}
    picture(9, 9).save(folder / "photos" / "a.png")
    seen.add(data.load(folder, SPACE).fingerprint())
    table(folder, "photos/a.png,cat", "photos/b.png,dog", "photos/c.png,")
    seen.add(data.load(folder, SPACE).fingerprint())
    assert len(seen) == 5


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (("1", "0"), "its labels are the numbers 0, 1: write names"),
        (("0 1 0", "1 0 0"), "its labels are the numbers"),
        (("True", "False"), "its labels are the numbers"),
        (("nan", "cat"), "read as labels: 'nan' .photos/a.png.; where a picture has none, leave the cell empty"),
        (("cat/dog", "dog"), "read as one label: 'cat/dog'"),
        (("cat dog", "dog", "cat"), "read as one label: 'cat dog'"),
        (("cat and dog", "dog", "cat"), "read as one label: 'cat and dog'"),
    ],
)
def test_cells_that_are_no_names_are_told(folder, cells, message):
    table(folder, *[f"photos/{name}.png,{cell}" for name, cell in zip("abc", cells)])
    with pytest.warns(UserWarning, match=message):
        data.load(folder)


def test_names_of_several_words_are_not_told(folder):
    table(folder, "photos/a.png,hot dog|hot", "photos/b.png,dog|rock and roll", "photos/c.png,AC/DC")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.load(folder)


def test_a_folder_is_no_picture_and_a_side_no_text(folder):
    table(folder, "photos,cat")
    with pytest.raises(FileNotFoundError, match="lists pictures that do not exist: photos"):
        data.load(folder)
    for side in (0, "112", 1.5):
        with pytest.raises(ValueError, match="side = .*: give a whole number from 1"):
            data.load(folder, side=side)
    (folder / "labels.csv").rename(folder / "labels.txt")
    with pytest.raises(FileNotFoundError, match="has no labels.csv: there is 'labels.txt'; write one"):
        data.load(folder)


def test_sides_that_would_fill_the_memory(folder):
    with pytest.raises(ValueError, match="side = 1000000: give a whole number from 1 to 4096"):
        data.load(folder, side=10**6)
    with pytest.raises(ValueError, match="side = 5000: give a number of pixels from 1 to 4096"):
        read_image(Image.new("RGB", (8, 8)), 5000)


def test_rows_are_numbers_of_pictures(folder):
    dataset = data.load(folder)
    assert dataset.take(np.array([-1, 0])).files == ["photos/c.png", "photos/a.png"] and not len(dataset.take([]))
    for rows, message in (
        ([True, False, True], "not a mask"),
        ([0, 3], "there is no picture 3 among 3: number them from 0 to 2"),
        ([0.5], "give a list of whole numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            dataset.take(rows)


def test_a_label_with_control_characters_is_named_with_its_line(folder):
    table(folder, "photos/a.png,cat", "photos/b.png,do\x07g")
    with pytest.raises(ValueError, match=r"labels.csv: line 3 has 'do\\x07g', with characters that no text has"):
        data.load(folder)
