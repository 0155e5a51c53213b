"""Opening pictures as people have them: transparency, metadata, formats, links, and what is no picture at all."""

import io
import os
import shutil
import socket
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, features
from PIL.PngImagePlugin import PngInfo

from hrcf_lib.data import find_images, opening, read_image, scan
from hrcf_lib.data.images import name_of
from hrcf_lib.data.opening import open_picture
from hrcf_lib.engine.folders import walk

CASES = Path(__file__).parents[1] / "cases"


@pytest.fixture(autouse=True)
def no_word_of_pillow():
    """Any warning is an error, but those that a test asks for."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def half(alpha=0):
    """Red in the upper half; ``alpha`` over hidden red in the lower one."""
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[..., 0], pixels[..., 3] = 200, 255
    pixels[4:, :, 3] = alpha
    return Image.fromarray(pixels)


def lower(source):
    """The mean colour of the lower half."""
    return read_image(source, 8)[:, 4:].float().mean(dim=(1, 2)).tolist()


# --- transparency ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["png", "webp", "tif", "gif", "ico", "tga", "jp2", "qoi"])
def test_transparency_is_laid_on_white(tmp_path, ending):
    options = {"lossless": True} if ending == "webp" else {}
    half().save(tmp_path / f"x.{ending}", **options)
    assert lower(tmp_path / f"x.{ending}") == [255, 255, 255]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa"])
def test_transparency_of_pil_images_is_laid_on_white(mode):
    assert lower(half().convert(mode)) == [255, 255, 255]
    assert lower(half(51).convert("RGBA")) == [244, 204, 204], "a fifth of red over white"


@pytest.mark.parametrize("transparency", [0, bytes([0, 255])])
def test_palettes_and_colour_keys(tmp_path, transparency):
    image = Image.new("P", (8, 8))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.paste(1, (0, 0, 8, 4))
    image.save(tmp_path / "x.png", transparency=transparency)
    assert lower(tmp_path / "x.png") == [255, 255, 255]
    assert read_image(tmp_path / "x.png", 8)[:, :4].unique(dim=2).flatten().tolist() == [0] * 4 + [255] * 4 + [0] * 4
    for mode, key in (("RGB", (1, 2, 3)), ("L", 7), ("1", 1)):
        Image.new(mode, (8, 8), key).save(tmp_path / "key.png", transparency=key)
        assert lower(tmp_path / "key.png") == [255, 255, 255]


@pytest.mark.parametrize(("bits", "colour"), [(2, 0), (4, 0), (8, 0), (16, 2)])
def test_a_transparent_colour_of_any_depth(tmp_path, bits, colour):
    """Two pixels, of which the first is transparent. Optimisers write greys in 2 and 4 bits."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    key, other = (1, 2) if bits < 16 else (0x1234, 0x5678)
    samples = [key] * (3 if colour else 1) + [other] * (3 if colour else 1)
    row = int("".join(f"{sample:0{bits}b}" for sample in samples).ljust(8, "0"), 2)
    pixels = b"\0" + row.to_bytes(max(1, bits * len(samples) // 8), "big")
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, bits, colour, 0, 0, 0))
    content += chunk(b"tRNS", struct.pack(">H", key) * (3 if colour else 1))
    (tmp_path / "x.png").write_bytes(content + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b""))
    first, second = (
        open_picture(tmp_path / "x.png").image.tobytes()[:3],
        open_picture(tmp_path / "x.png").image.tobytes()[3:],
    )
    assert tuple(first) == (255, 255, 255) and tuple(second) == (round(other / (2**bits - 1) * 255),) * 3
    with Image.open(tmp_path / "x.png") as image:
        assert open_picture(image).image.getpixel((0, 0)) == open_picture(image).image.getpixel((0, 0)) == tuple(first)


def test_a_drawing_of_openmoji_stands_on_white():
    corner = read_image(CASES / "avocado.png", 112)[:, :5, :5]
    assert (corner == 255).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "1"])
def test_opaque_pictures_keep_their_bits(mode):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    assert torch.equal(read_image(image, 16), torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1))


# --- metadata --------------------------------------------------------------------------------------------------------


def test_large_metadata_do_not_hide_a_picture(tmp_path):
    assert read_image(CASES / "bigtext.png", 8).shape == (3, 8, 8)
    image, text = Image.new("RGB", (8, 8), (9, 8, 7)), "x" * 3_000_000
    image.save(tmp_path / "profile.png", icc_profile=bytes(3_000_000))
    for name, add in (("packed", PngInfo.add_text), ("international", PngInfo.add_itxt)):
        add(info := PngInfo(), "a", text, zip=True)
        image.save(tmp_path / f"{name}.png", pnginfo=info)
    whole = (tmp_path / "packed.png").read_bytes()
    start, end = whole.index(b"zTXt") - 4, whole.index(b"IEND") - 4
    chunk = whole[start : start + 12 + int.from_bytes(whole[start : start + 4], "big")]
    (tmp_path / "after.png").write_bytes(whole[:start] + whole[start + len(chunk) : end] + chunk + whole[end:])
    for path in sorted(tmp_path.iterdir()):
        assert read_image(path, 8).unique(dim=1).flatten().tolist()[::8] == [9, 8, 7], path
    with Image.open(tmp_path / "after.png") as image, pytest.raises(ValueError, match="after.png .*texts are too long"):
        read_image(image, 8)
    with (tmp_path / "packed.png").open("rb") as file:
        assert open_picture(file, "packed.png").image.size == (8, 8)


def test_filters_of_warnings_stay_as_they_were(tmp_path):
    half().save(tmp_path / "x.png")
    before = list(warnings.filters)
    with opening._silence():
        read_image(tmp_path / "x.png", 8)
        warnings.warn_explicit("not told", UserWarning, "PIL/x.py", 1, module="PIL.x")
        with pytest.raises(UserWarning):
            warnings.warn("told", stacklevel=1)
    assert warnings.filters == before


# --- what is no picture ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n",
            "this is PostScript, which is a program: save it as PNG",
        ),
        (b"%PDF-1.7\n", "this is a PDF"),
        (b"<!DOCTYPE html><html>", "this is a page of the web"),
        (b"<svg xmlns='x'/>", "perhaps a drawing in SVG"),
        (b"version https://git-lfs.github.com/spec/v1\n", "run `git lfs pull`"),
        (b"\xff\x0a" + bytes(20), "this is JPEG XL"),
        (b"PK\x03\x04" + bytes(40), "this is an archive: unpack it"),
        (bytes(4) + b"ftypisom" + bytes(40), "this is a video"),
        (b"GRIB" + bytes(60), "its bytes begin as those of no format that is read"),
    ],
)
def test_files_that_are_no_pictures_are_named_by_what_they_are(tmp_path, content, why, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", lambda *words, **_: pytest.fail("a program was started"))
    (tmp_path / "owl.png").write_bytes(content)
    with pytest.raises(ValueError, match=f"owl.png cannot be read as a picture .*{why}.*replace the file"):
        read_image(tmp_path / "owl.png", 8)


def test_heic_says_how_to_read_it(tmp_path):
    shutil.copy(CASES / "g.heic", tmp_path / "a.jpg")
    for path in (CASES / "g.heic", tmp_path / "a.jpg"):
        with pytest.raises(ValueError, match="this is HEIC: pip install pillow-heif"):
            read_image(path, 8)


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "nowhere.png").symlink_to("gone")
    (tmp_path / "round.png").symlink_to("round.png")
    for path in (tmp_path / "fifo.png", Path("/dev/zero")):
        with pytest.raises(ValueError, match="a FIFO, a socket or a device, not a file"):
            read_image(path, 8)
    with pytest.raises(FileNotFoundError, match="no picture at .*nowhere.png"):
        read_image(tmp_path / "nowhere.png", 8)
    with pytest.raises(ValueError, match="round.png cannot be read"):
        read_image(tmp_path / "round.png", 8)


def test_a_format_that_another_package_registers_is_read(tmp_path, monkeypatch):
    """As ``pillow_heif.register_heif_opener()`` does."""
    (tmp_path / "a.tiny").write_bytes(b"TINY")

    def tiny(file, name=""):
        file.close()
        return Image.new("RGB", (8, 8), (1, 2, 3))

    Image.init()
    monkeypatch.setattr(Image, "ID", [*Image.ID, "TINY"])
    monkeypatch.setitem(Image.OPEN, "TINY", (tiny, lambda start: start.startswith(b"TINY")))
    monkeypatch.setitem(Image.EXTENSION, ".tiny", "TINY")
    assert find_images(tmp_path) == [tmp_path / "a.tiny"]
    assert read_image(tmp_path / "a.tiny", 8)[:, 0, 0].tolist() == [1, 2, 3]


def test_pictures_of_other_endings_are_found_and_read():
    with pytest.warns(UserWarning, match=r"left out of the pictures: 1 HEIC \(.heic\); the first: .*g.heic. HEIC: pip"):
        found = find_images(CASES)
    assert [path.name for path in found] == ["avocado.png", "b.jfif", "bigtext.png", "d.avif"]
    for path in found[:3] + found[3:] * features.check("avif"):
        assert read_image(path, 8).float().std() > 0


# --- finding ---------------------------------------------------------------------------------------------------------


def test_every_ending_that_pillow_opens_is_found_and_what_is_left_out_is_told(tmp_path):
    names = ["a.PNG", "b.jfif", "c.jpe", "d.avif", "e.jp2", "f.ppm", "g.pgm", "h.apng", "i.mpo", "j.ico", "k.tga"]
    for name in [*names, "l.heic", "m.HEIF", "n.cr2", "o.svg", "p.txt", "q.eps", ".r.heic"]:
        (tmp_path / name).touch()
    with pytest.warns(UserWarning) as told:
        found = find_images(tmp_path)
    assert [path.name for path in found] == names and len(told) == 1
    assert told[0].filename == __file__
    for part in ("1 HEIC (.heic)", "1 HEIC (.heif)", "1 raw (.cr2)", "2 drawings", "register_heif_opener", "l.heic"):
        assert part in str(told[0].message).replace("1 drawings (.eps), 1 drawings (.svg)", "2 drawings")
    for name in names:
        (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=r"left out of the pictures: 1 HEIC \(.heic\)"):
        find_images(tmp_path)


def test_links_are_followed_and_circles_end(tmp_path):
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    for path in (folder / "b" / "own.png", folder / "a.png", elsewhere / "b.png", elsewhere / "deep" / "c.png"):
        path.parent.mkdir(exist_ok=True, parents=True)
        half().save(path)
    (folder / "link").symlink_to(elsewhere)
    (folder / "a_second_name_of_b").symlink_to(folder / "b")
    (folder / "b" / "back").symlink_to(folder)
    (elsewhere / "deep" / "back").symlink_to(elsewhere)
    (folder / "linked.png").symlink_to(elsewhere / "b.png")
    (folder / "gone.png").symlink_to("nowhere")
    os.mkfifo(folder / "fifo.png")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(os.path.relpath(folder / "socket.png"))
        found = [path.relative_to(folder).as_posix() for path in find_images(folder)]
    assert found == ["a.png", "b/own.png", "link/b.png", "link/deep/c.png", "linked.png"]
    assert [path.name for path, _ in walk(folder, enter=lambda name: name != "b")] == [
        "folder",
        "a_second_name_of_b",
        "link",
        "deep",
    ]


def test_a_folder_that_may_not_be_read_is_told(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    half().save(tmp_path / "a.png")
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "closed":
            raise PermissionError(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.warns(UserWarning, match="1 folders cannot be read and are left out: .*closed"):
        assert [path.name for path in find_images(tmp_path)] == ["a.png"]
    with pytest.raises(PermissionError):
        list(walk(tmp_path / "closed"))


def test_a_name_that_is_not_utf8(tmp_path):
    half().save(tmp_path / "x.png")
    try:
        os.rename(tmp_path / "x.png", os.fsencode(tmp_path) + b"/caf\xe9.png")
    except OSError:
        pytest.skip("this file system takes names in UTF-8 alone")
    (path,) = find_images(tmp_path)
    assert read_image(path, 8).shape == (3, 8, 8)
    assert name_of(path, 0) == str(tmp_path / "caf\\xe9.png")
    path.write_bytes(b"")
    with pytest.raises(ValueError) as error:
        read_image(path, 8)
    assert str(error.value).encode() and "caf\\xe9.png cannot be read" in str(error.value)
    assert len(scan(tmp_path)) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (Path("https://x.org/a.jpg"), "is an address"),
        ("https://x.org/a.jpg", "is an address, and nothing is downloaded: save the picture"),
        ("s3://bucket/a.jpg", "is an address"),
        ("data:image/png;base64,iVBO", "is an address"),
        ("photos/*.jpg", r"a pattern is not looked up: give the folder, or a list such as sorted\(glob.glob"),
        ("photos/[ab].jpg", "a pattern is not looked up"),
    ],
)
def test_what_is_no_path_is_refused_in_the_users_words(words, message):
    with pytest.raises(ValueError, match=message):
        find_images(words)


def test_bytes_and_names_that_no_file_can_have():
    with pytest.raises(TypeError, match="images is a bytes: give a path"):
        find_images(b"a.png")
    for name in ("a" * 5000, "nul\0.png"):
        with pytest.raises(FileNotFoundError):
            find_images(name)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "images is an empty text"),
        (["x.png", " "], r"images\[1\] is an empty text"),
        ({"a": "x.png"}, "images is a dict: give the list"),
        (pd.DataFrame({"image": ["x.png"]}), "images is a DataFrame: give the list"),
        (io.BytesIO(b"x"), "images is a BytesIO: give a path"),
        ("x" * 5000, "no such file or folder: x{300}; correct"),
    ],
)
def test_what_would_be_taken_for_other_pictures_is_refused(source, message):
    with pytest.raises((TypeError, ValueError, FileNotFoundError), match=message):
        find_images(source)


def test_a_frame_that_somebody_went_to_is_told_to_nobody(tmp_path):
    red, green = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "green")
    red.save(tmp_path / "a.gif", save_all=True, append_images=[green])
    with Image.open(tmp_path / "a.gif") as image:
        assert open_picture(image).animated
        image.seek(1)
        second = open_picture(image)
    assert not second.animated and second.image.getpixel((4, 4))[0] < 10


def test_an_image_without_a_file_is_called_as_the_caller_says():
    with pytest.raises(ValueError, match="^picture 7 has 16-bit"):
        open_picture(Image.new("I;16", (8, 8)), "picture 7")
