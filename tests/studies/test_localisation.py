"""Pointing game and energy against plain loops, controls that know nothing, and frames of MojiScenes."""

import math

import pandas as pd
import pytest
import torch

from hrcf_lib.data.mojiscenes.scenes import MojiScenes
from hrcf_lib.studies import by_object_size, localisation
from hrcf_lib.studies.localisation import centre_maps, controls, energy_inside, measure_maps, pointing_game, random_maps


def draw(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def some_boxes(n=40, side=16, seed=0):
    a, b = (torch.randint(0, side, (n, 2), generator=torch.Generator().manual_seed(seed + i)) for i in (0, 1))
    return torch.cat([torch.minimum(a, b), torch.maximum(a, b) + 1], dim=1).float()  # x0, y0, x1, y1


@pytest.fixture(scope="module")
def scenes():
    return MojiScenes("test", 40)


@pytest.fixture(scope="module")
def frame(scenes):
    return measure_maps(scenes, controls() | {"perfect": planted(scenes), "blind": planted(scenes, inside=0.0)})


def planted(scenes, inside=1.0):
    """Maps that have ``inside`` in the box and the rest of 1 outside; they look the scene up by its pixels."""
    known = {bytes(scenes.scene(i).image.transpose(2, 0, 1).tobytes()): scenes.scene(i) for i in range(len(scenes))}

    def make(images, asked):
        found = []
        for image, own in zip(images, asked):
            scene = known[image.contiguous().numpy().tobytes()]
            maps = torch.full((len(own), 112, 112), 1 - inside)
            for m, name in zip(maps, own):
                x0, y0, x1, y1 = scene.boxes[scene.names.index(name)].astype(int)
                m[y0:y1, x0:x1] = inside
            found.append(maps)
        return found

    return make


@pytest.mark.parametrize("ties", [False, True])
def test_measures_are_what_a_plain_loop_finds(ties):
    maps, boxes = draw(40, 16, 16), some_boxes()
    maps = maps.mul(3).round() if ties else maps
    hits, energies = pointing_game(maps, boxes), energy_inside(maps, boxes)
    for i, (m, (x0, y0, x1, y1)) in enumerate(zip(maps.tolist(), boxes.int().tolist())):
        best, light, total = [], 0.0, 0.0
        top = max(map(max, m))
        for y, row in enumerate(m):
            for x, value in enumerate(row):
                here = x0 <= x < x1 and y0 <= y < y1
                best += [here] if value == top else []
                light, total = light + value * here, total + value
        assert hits[i].item() == pytest.approx(sum(best) / len(best))
        assert energies[i].item() == pytest.approx(light / total, abs=1e-6)
    assert set(hits.tolist()) == {0.0, 1.0} or ties


def test_a_map_without_difference_scores_the_area():
    boxes = some_boxes()
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / 256
    for value in (0.0, 0.3, 1.0):
        maps = torch.full((40, 16, 16), value)
        torch.testing.assert_close(pointing_game(maps, boxes), area)
        torch.testing.assert_close(energy_inside(maps, boxes), area)


def test_bad_maps_and_boxes_are_named():
    maps, boxes = draw(3, 8, 8), torch.tensor([[0, 0, 4, 4.0]] * 3)
    for m, b, words in [
        (maps[0], boxes, r"\(8, 8\)"),
        (maps, boxes[:2], r"\(2, 4\)"),
        (maps, torch.ones(3, 8, 7, dtype=torch.bool), r"\(3, 8, 7\)"),
        (maps, torch.ones(3, 8, 8, dtype=torch.bool) & (torch.arange(3) != 1)[:, None, None], "mask 1 is empty"),
        (maps - 2 * (torch.arange(3) == 1)[:, None, None], boxes, "map 1 has negative"),
        (maps.where(torch.arange(3)[:, None, None] < 2, torch.nan), boxes, "map 2"),
        (maps, torch.tensor([[0, 0, 4, 4], [0, 0, 4, 4], [5, 0, 5, 4.0]]), "box 2 .* is empty"),
        (maps, torch.tensor([[0, 0, 4, 4], [0, 0, 4, 9], [5, 0, 6, 4.0]]), "box 1 .* not within 8 x 8"),
        (maps, torch.full((3, 4), torch.nan), "box 0"),
    ]:
        for function in (pointing_game, energy_inside):
            with pytest.raises(ValueError, match=words):
                function(m, b)


def test_random_maps_score_the_area():
    boxes = some_boxes(500)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / 256
    maps = random_maps(500, 16, torch.Generator().manual_seed(1))
    error = (pointing_game(maps, boxes) - area).mean() / math.sqrt((area * (1 - area)).sum()) * 500
    assert error.abs() < 3
    assert (energy_inside(maps, boxes) - area).mean().abs() < 0.005


@pytest.mark.parametrize("side", [7, 16])
def test_centre_maps_are_brightest_at_the_centre(side):
    (m,) = centre_maps(1, side)
    assert m.max() == 1 and m.min() == 0 and m[0, 0] == 0
    assert torch.equal(m, m.flip(0)) and torch.equal(m, m.T)
    middle = torch.tensor([[side / 2 - 1, side / 2 - 1, side / 2 + 1, side / 2 + 1]])
    assert pointing_game(m[None], middle) == 1
    assert pointing_game(m[None], torch.tensor([[0, 0, side / 2 - 1, side]])) == 0


def test_the_frame_has_every_thing_that_is_a_label(scenes, frame):
    sizes = by_object_size.objects(scenes)[0]
    assert len(frame) == 4 * sizes.isfinite().sum()
    own = frame[frame["title"] == "perfect"]
    for row in own.to_dict("records"):
        column = scenes.labels.names.index(row["label"])
        size = float(sizes[row["image"], column])
        low, high = by_object_size.SIZES[row["size"]]
        assert low <= size < high and row["area"] <= size**2 + 1e-6
        assert row["part"] == ("seen" if column < scenes.labels.n_seen else "unseen")
    assert set(own["part"]) == {"seen", "unseen"} and set(own["size"]) == set(by_object_size.SIZES)


def test_what_is_looked_for_are_things_or_all_that_can_be_seen(scenes):
    met = set()
    for i in range(12):
        scene = scenes.scene(i)
        own, boxes = localisation.things(scene, scenes.labels)
        assert own == [name for name in scene.names[: scene.things] if name in scenes.labels.names]
        assert boxes.tolist() == [scene.boxes[scene.names.index(name)].tolist() for name in own]
        everything, kinds, places = localisation.shown(scene, scenes.labels)
        assert everything == [name for name in scenes.annotated(scene) if scene.mask(name).any()]
        for name, kind, place in zip(everything, kinds, places, strict=True):
            at = scene.names.index(name)
            assert kind == ("thing" if at < scene.things else "stuff" if at < len(scene.drawn) else "word")
            wanted = scene.boxes[at] if kind == "thing" else scene.mask(name)
            assert place.tolist() == wanted.tolist()
        assert localisation.shown(scene, scenes.labels, everything[-1:])[0] == everything[-1:]
        assert localisation.things(scene, scenes.labels, ["no such label"])[0] == []
        met |= set(kinds)
    assert met == {"thing", "stuff", "word"}
    with pytest.raises(ValueError, match="unknown kind 'things'; did you mean 'thing'"):
        localisation.shown(scene, scenes.labels, kinds=["things"])


def test_stuff_and_words_are_measured_by_their_masks_and_apart(scenes):
    def exact(images, asked):
        found = [localisation.shown(scenes.scene(i), scenes.labels)[2] for i in range(len(images))]
        return [
            torch.cat([localisation.within(torch.ones(1, 112, 112), p[None]) for p in own]).float() for own in found
        ]

    kinds = ("thing", "stuff", "word")
    frame = measure_maps(scenes, {"exact": exact} | controls(), n=8, kinds=kinds)
    own = frame[frame["title"] == "exact"]
    assert own[["hit", "energy"]].eq(1).all(axis=None) and own["energy"].dtype.kind == "f"
    for row in own[own["kind"] != "thing"].to_dict("records"):
        assert row["size"] == {"stuff": "stuff", "word": "words"}[row["kind"]]
        assert row["area"] == pytest.approx(scenes.scene(row["image"]).mask(row["label"]).mean())
    things = measure_maps(scenes, controls(), n=8)
    assert set(things["kind"]) == {"thing"} and len(own) > len(things) / 2
    table = localisation.summary(own, resamples=10).set_index("size")["things"]
    assert table["all"] == (own["kind"] == "thing").sum() and list(table.index[-3:]) == ["all", "stuff", "words"]
    pair = localisation.differences(frame, [("exact", "random map")], resamples=10)
    assert set(pair["size"]) == set(table.index)
    lines = localisation.said(pair).splitlines()
    assert [line.split(":")[0].split(", ")[-1] for line in lines] == ["things", "stuff", "words"]
    assert all(line.startswith("exact against random map") and "pointing game, better" in line for line in lines)


def test_perfect_and_blind_maps_are_the_bounds(frame):
    by = frame.groupby("title")[["hit", "energy"]]
    assert by.min().loc["perfect"].tolist() == [1, 1] and by.max().loc["blind"].tolist() == [0, 0]


def test_controls_agree_with_the_area(frame):
    random = frame[frame["title"] == "random map"]
    assert (random["energy"] - random["area"]).abs().max() < 0.03
    spread = math.sqrt((random["area"] * (1 - random["area"])).sum()) / len(random)
    assert abs(random["hit"].mean() - random["area"].mean()) < 3.5 * spread
    centre = frame[frame["title"] == "centre map"]
    assert centre["energy"].mean() > random["energy"].mean() and not frame["flat"].any()


def test_controls_repeat(scenes):
    first, second = (measure_maps(scenes, controls(seed=3), n=5) for _ in range(2))
    pd.testing.assert_frame_equal(first, second)
    assert not measure_maps(scenes, controls(seed=4), n=5)["hit"].equals(first["hit"])
    again = measure_maps(scenes, controls(seed=3), n=5, batch=2).sort_values(["title", "image", "label"])
    pd.testing.assert_frame_equal(
        again.reset_index(drop=True), first.sort_values(["title", "image", "label"]).reset_index(drop=True)
    )


def test_summary_is_the_mean_with_an_interval(frame):
    table = localisation.summary(frame, resamples=100)
    assert table["size"].tolist()[:4] == ["small", "medium", "large", "all"]
    assert table["title"].unique().tolist() == ["random map", "centre map", "perfect", "blind"]
    for row in table.to_dict("records"):
        part = frame[frame["title"] == row["title"]]
        part = part if row["size"] == "all" else part[part["size"] == row["size"]]
        assert row["things"] == len(part) and row["flat"] == 0
        for metric in ("hit", "energy", "area"):
            assert row[metric] == pytest.approx(100 * part[metric].mean(), abs=1e-4)
        assert row["hit_low"] <= row["hit"] <= row["hit_high"]
    bound = table[table["title"] == "perfect"]
    assert bound["hit_low"].tolist() == bound["hit_high"].tolist() == pytest.approx([100] * 4)
    areas = table[table["title"] == "random map"].set_index("size")["area"]
    assert areas["small"] < areas["medium"] < areas["large"]


def test_seeds_are_averaged(frame):
    two = pd.concat(
        [frame[frame["title"] == "perfect"].assign(seed=0), frame[frame["title"] == "blind"].assign(seed=1)]
    )
    table = localisation.summary(two.assign(title="both"), resamples=50).set_index("size")
    assert table["hit"].tolist() == pytest.approx([50] * 4)
    assert table.loc["all", "things"] == (frame["title"] == "perfect").sum()
    assert table.loc["all", "hit_low"] == pytest.approx(0) and table.loc["all", "hit_high"] == pytest.approx(100)


def test_differences_are_paired(frame):
    pairs = [("perfect", "random map"), ("random map", "random map"), ("blind", "centre map")]
    table = localisation.differences(frame, pairs, resamples=100)
    assert len(table) == 2 * 3 * 4
    verdicts = table.groupby("title")["verdict"].unique().map(set)
    assert verdicts["perfect"] == {"better"} and verdicts["random map"] == {"open"}
    assert table[table["title"] == "random map"][["difference", "low", "high"]].eq(0).all(axis=None)
    with pytest.raises(ValueError, match="not measured: 'perfekt'; did you mean 'perfect'"):
        localisation.differences(frame, [("perfekt", "blind")])


def test_bad_measurements_are_named(scenes, frame):
    with pytest.raises(TypeError, match="list has no scenes"):
        measure_maps([1, 2], controls())
    with pytest.raises(ValueError, match="0 map makers"):
        measure_maps(scenes, {})
    with pytest.raises(ValueError, match="41 of 40 scenes"):
        measure_maps(scenes, controls(), n=41)
    with pytest.raises(ValueError, match="'short' gave maps"):
        measure_maps(scenes, {"short": lambda images, asked: [torch.zeros(1, 4, 4) for _ in asked]}, n=2)
    with pytest.raises(ValueError, match="unknown metric 'hits'; did you mean 'hit'"):
        localisation.resampled(frame, "hits")
    with pytest.raises(ValueError, match="no rows"):
        localisation.summary(frame[:0])
