"""Word vectors from a text file: names of several words, odd lines, and errors that say what to fix."""

import doctest
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from hrcf_lib.methods import word_vectors
from hrcf_lib.methods.word_vectors import read_vectors, width

LINES = [
    "the 0.5 0.5 0.5",
    "polar 1 0 0",
    "at name@domain.com 7 7 7",  # a word with a blank, as GloVe has some
    "bear 0 1 0",
    ". . . 8 8 8",
    "at 0 0 3",
    "sea\u00a0lion 6 6 6",  # another kind of blank, which separates nothing
    "caf\u00e9 0 2 0",
    "bear 9 9 9",  # the first counts
]


@pytest.fixture
def glove(tmp_path):
    """Writes lines to a file and returns its path."""

    def write(*lines, name="glove.txt"):
        path = tmp_path / name
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write


def test_doctests():
    assert doctest.testmod(word_vectors).failed == 0


def test_names_are_means_of_their_words(glove):
    vectors = read_vectors(glove(*LINES), ["bear", "Polar Bear", "polar-bear (at)", "cafe\u0301"])
    expected = [[0, 1, 0], [0.5, 0.5, 0], [1 / 3, 1 / 3, 1], [0, 2, 0]]
    assert vectors.dtype == torch.float32
    assert_close(vectors, torch.tensor(expected))


def test_order_of_names_is_kept(glove):
    path, names = glove(*LINES), ["at", "bear", "polar", "the"]
    assert_close(read_vectors(path, names[::-1]), read_vectors(path, names).flip(0))


def test_word2vec_header_trailing_blanks_and_line_ends(tmp_path):
    path = tmp_path / "vectors.vec"
    path.write_bytes(b"2 3\r\npolar 1 0 0 \r\n\r\nbad\xffbytes 1 2 3 \r\nbear 0 1 0 \r\n")
    assert width(path) == 3
    assert_close(read_vectors(path, ["polar", "bear"]), torch.tensor([[1.0, 0, 0], [0, 1, 0]]))


def test_a_number_may_be_a_word(glove):
    assert_close(read_vectors(glove("7 1 2", "bear 0 1"), ["7"]), torch.tensor([[1.0, 2]]))


def test_missing_words_are_all_reported(glove):
    path = glove(*LINES)
    with pytest.raises(ValueError, match="'polar lynx': 'lynx'") as error:
        read_vectors(path, ["polar lynx", "bear", "yak calf", "!?"])
    text = str(error.value)
    assert "'yak calf': 'yak', 'calf'" in text and "'!?': no word" in text and str(path) in text
    assert "missing='skip'" in text and "'bear'" not in text
    with pytest.raises(ValueError, match="and 2 more"):
        read_vectors(path, [f"x{i}" for i in range(7)])


def test_missing_words_may_be_skipped(glove):
    path = glove(*LINES)
    assert_close(read_vectors(path, ["polar lynx", "bear"], missing="skip"), torch.tensor([[1.0, 0, 0], [0, 1, 0]]))
    with pytest.raises(ValueError, match="'yak calf': 'yak', 'calf' is not in"):
        read_vectors(path, ["bear", "yak calf"], missing="skip")
    with pytest.raises(ValueError, match="use 'error' or 'skip'"):
        read_vectors(path, ["bear"], missing="drop")


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("lynx 1 2", r"line 3: 2 numbers, but 3"),
        ("lynx 1 2 3 4", r"line 3: 4 numbers, but 3"),
        ("lynx", r"line 3: 0 numbers, but 3"),
        ("lynx 1 x 3", r"line 3: 'x' after 'lynx'"),
        ("lynx 1 nan 3", r"line 3: 'nan' after 'lynx'"),
    ],
)
def test_damaged_lines_are_named(glove, line, match):
    with pytest.raises(ValueError, match=match):
        read_vectors(glove("the 1 2 3", "polar 1 0 0", line), ["lynx"])


def test_no_file_and_files_of_other_kinds(tmp_path, glove):
    for path in (tmp_path / "none.txt", tmp_path):
        for call in (lambda p: read_vectors(p, ["bear"]), width):
            with pytest.raises(FileNotFoundError, match="glove.6B.300d.txt"):
                call(path)
    for lines in ([], ["bear"], ["3 2"]):
        with pytest.raises(ValueError, match="no word vectors"):
            width(glove(*lines))
    with pytest.raises(ValueError, match="occurs 2 times"):
        read_vectors(glove(*LINES), ["bear", "bear"])


def test_a_file_is_read_again_for_new_words_only(glove, monkeypatch):
    opened, lines = [], word_vectors._lines
    monkeypatch.setattr(word_vectors, "_lines", lambda path: opened.append(path) or lines(path))
    path = glove(*LINES)
    first = read_vectors(path, ["bear", "polar lynx"], missing="skip")
    once = len(opened)
    assert_close(read_vectors(path, ["bear", "polar lynx"], missing="skip"), first)  # a missing word is remembered, too
    assert_close(read_vectors(path, ["polar bear"]), torch.tensor([[0.5, 0.5, 0]]))
    assert len(opened) == once
    read_vectors(path, ["the"])
    assert len(opened) == 2 * once
    glove("bear 4 4", "polar 5 5")  # another file in its place
    assert_close(read_vectors(path, ["bear"]), torch.tensor([[4.0, 4]]))


def test_vectors_of_length_one_and_of_length_zero(glove):
    vlp = SimpleNamespace(mean=torch.zeros(1), name="any", D=7)
    config = lambda path: SimpleNamespace(glove=path and str(path), glove_missing="error")
    path = glove("polar 3 4", "bear 0 0", "sea -3 -4", "lion 0 2")
    vectors = word_vectors.unit_vectors(vlp, ["polar", "lion", "sea lion"], config(path))
    assert_close(vectors.norm(dim=1), torch.ones(3))
    assert_close(vectors[0], torch.tensor([0.6, 0.8]))
    with pytest.raises(ValueError, match="word vectors of 'bear', 'polar sea' are 0 throughout in .*glove.txt: name"):
        word_vectors.unit_vectors(vlp, ["lion", "bear", "polar sea"], config(path))
    assert word_vectors.label_width(vlp, config(path)) == 2 and word_vectors.label_width(vlp, config(None)) == 7
