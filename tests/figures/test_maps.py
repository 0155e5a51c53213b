"""Figures of maps: every map and box is drawn once, in its place; shares are those of the clues."""

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.patches import Rectangle

from hrcf_lib import figures
from hrcf_lib.apply.region_maps import Clues
from hrcf_lib.figures import maps as map_figures
from hrcf_lib.studies import localisation


@pytest.fixture(autouse=True)
def closed():
    yield
    figures.plt.close("all")


def pictures(n):
    return list(np.random.default_rng(0).integers(0, 256, (n, 16, 16, 3), dtype=np.uint8))


def heats(*shape, seed=0):
    return torch.rand(*shape, 16, 16, generator=torch.Generator().manual_seed(seed))


def boxes(axis):
    return [(p.get_x() + 0.5, p.get_y() + 0.5, p.get_width(), p.get_height()) for p in axis.patches]


def test_one_label_a_picture():
    maps = {"HRCF": heats(3), "MKT": heats(3, seed=1)}
    box = torch.tensor([[1, 2, 9, 12.0]] * 3)
    axes = np.array(map_figures.one_label(pictures(3), ["cat", "dog", "bus"], maps, box).axes).reshape(3, 3)
    assert [axis.get_title() for axis in axes[0]] == ["cat", "dog", "bus"]
    assert [axis.get_ylabel() for axis in axes[:, 0]] == ["picture", "HRCF", "MKT"]
    for i in range(3):
        assert len(axes[0, i].images) == 1
        for row, own in zip(axes[1:], maps.values()):
            assert np.array_equal(row[i].images[1].get_array(), own[i])
            assert row[i].images[1].norm.vmin == 0 and row[i].images[1].norm.vmax == 1, "one scale for all maps"
        assert boxes(axes[2, i]) == [(1, 2, 8, 10)]


def test_a_mask_is_drawn_by_its_edge():
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[:, 12:] = True
    picture, axis = map_figures.one_label(pictures(1), ["sky"], {"HRCF": heats(1)}, [mask]).axes
    for panel in (picture, axis):
        (edge,) = panel.collections
        (line,) = edge.get_paths()
        assert line.vertices.min(axis=0).tolist() == [11.5, -0.5] and line.vertices.max(axis=0).tolist() == [15.5, 15.5]
        assert not panel.patches


def test_every_head_of_every_label():
    masks = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    figure = map_figures.heads(pictures(1)[0], ["cat", "dog", "bus"], masks)
    axes = np.array(figure.axes).reshape(3, 4)
    assert [axis.get_title() for axis in axes[0]] == ["picture", "mean", "head 1", "head 2"]
    assert [axis.get_ylabel() for axis in axes[:, 0]] == ["cat", "dog", "bus"]
    for k in range(3):
        for axis, own in zip(axes[k, 1:], [masks.mean(dim=0), *masks]):
            np.testing.assert_allclose(axis.images[1].get_array(), own[k] / own[k].max(), rtol=1e-6)
    with pytest.raises(ValueError, match=r"masks \(2, 3, 4, 4\) for 2 labels: give \(heads, labels, N, N\)"):
        map_figures.heads(pictures(1)[0], ["cat", "dog"], masks)


def test_all_labels_of_a_picture():
    labels = [["cat", "dog", "bus"], ["sun"]]
    maps = {"HRCF": [heats(3), heats(1)], "MKT": [heats(3, seed=1), heats(1, seed=1)]}
    figure = map_figures.all_labels(pictures(2), labels, maps, [torch.tensor([[0, 0, 4, 4.0]] * k) for k in (3, 1)])
    drawn = [axis.images[1].get_array() for axis in figure.axes if len(axis.images) == 2]
    wanted = [heat for i in range(2) for own in maps.values() for heat in own[i]]
    assert len(drawn) == len(wanted) == 8 and all(np.array_equal(a, b) for a, b in zip(drawn, wanted))
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert titles == ["picture", "cat", "dog", "bus", "picture", "sun"]
    for i, words in ((0, "3 labels of picture 0"), (1, "1 labels of picture 1")):
        wrong = [heats(2 if j == i else len(own)) for j, own in enumerate(labels)]
        with pytest.raises(ValueError, match=words):
            map_figures.all_labels(pictures(2), labels, {"HRCF": wrong})


def made_clues(K=2):
    added = [torch.zeros(1, K, side, side) for side in (10, 6, 2)]
    for part, value in zip(added, (0.06, 0.05, 0.3)):
        part[0, 0, 0, :2] = value
    kept = [torch.ones(1, side, side, dtype=torch.bool) for side in (10, 6, 2)]
    kept[1][0, 5, 4] = False
    added[2][0, 0, 1] = -0.6
    sums = torch.stack([part.flatten(2).sum(dim=-1) for part in added], dim=-1)  # (1, K, 3)
    return Clues(added, kept, sums)


def test_levels_show_regions_shares_and_what_is_left_out():
    axes = np.array(map_figures.levels(pictures(1)[0], ["cat", "dog"], made_clues()).axes).reshape(2, 5)
    assert [axis.get_title() for axis in axes[0][1:4]] == ["level 1: 10 × 10", "level 2: 6 × 6", "level 3: 2 × 2"]
    tops = [float(axis.images[1].get_array().max()) for axis in axes[0, 1:4]]
    assert tops == pytest.approx([0.2, 0.05 / 0.3, 1]), "one scale for all levels"
    (cross,) = axes[0, 2].lines
    assert cross.get_xydata().tolist() == [pytest.approx([4.5 * 16 / 6, 5.5 * 16 / 6])]
    assert not len(axes[0, 1].lines[0].get_xdata())
    bars = [patch.get_width() for patch in axes[0, 4].patches if isinstance(patch, Rectangle)]
    assert bars == pytest.approx([0.12, 0.1, -0.6])
    assert [text.get_text() for text in axes[0, 4].texts] == ["+0.12 (15 %)", "+0.10 (12 %)", "−0.60 (73 %)"]
    assert {text.get_text() for text in axes[1, 4].texts} == {"+0.00 (0 %)"}
    with pytest.raises(ValueError, match="1 pictures and 2 labels"):
        map_figures.levels(pictures(1)[0], ["cat"], made_clues())


def test_level_maps_each_show_their_own_range():
    levels = [torch.arange(2 * side**2).view(2, side, side) * scale - 1.0 for side, scale in ((4, 1.0), (2, 0.01))]
    figure = map_figures.level_maps(pictures(1)[0], ["cat", "dog"], levels, heats(2))
    axes, scales = np.array(figure.axes[:8]).reshape(2, 4), figure.axes[8:]
    assert [axis.get_title() for axis in axes[0]] == ["picture", "level 1: 4 × 4", "level 2: 2 × 2", "together"]
    assert [axis.get_ylabel() for axis in axes[:, 0]] == ["cat", "dog"]
    ends = [tuple(text.get_text() for text in axis.get_yticklabels()) for axis in scales]
    assert ends == [("−1", "14"), ("−1", "−0.97"), ("15", "30"), ("−0.96", "−0.93")]
    assert np.array_equal(axes[1, 1].images[0].get_array(), levels[0][1])
    with pytest.raises(ValueError, match="'together' has 3 maps for 2 labels"):
        map_figures.level_maps(pictures(1)[0], ["cat", "dog"], levels, heats(3))


def test_selection_colours_what_is_kept_and_counts_it():
    kept = [torch.ones(2, 2, dtype=torch.bool), torch.eye(3, dtype=torch.bool)]
    _, first, second = map_figures.selection(pictures(1)[0], kept).axes
    assert [axis.get_title() for axis in (first, second)] == ["4 of 4 kept", "3 of 9 kept"]
    for axis, cells in zip((first, second), kept):
        picture, tint = axis.images
        assert tint.get_extent() == picture.get_extent() == [-0.5, 15.5, 15.5, -0.5]
        assert np.array_equal(tint.get_array()[..., 3] > 0, cells), "no other cell is coloured"
        assert 0 < tint.get_array()[..., 3].max() < 1, "the picture stays visible"


def test_what_was_measured():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"image": np.arange(90) // 3, "size": np.tile(["small", "medium", "large"], 30), "area": 0.1})
    parts = [
        frame.assign(title=t, hit=rng.uniform(size=90), energy=rng.uniform(size=90), flat=False, label="cat")
        for t in ("HRCF", "MKT", "random map", "centre map")
    ]
    table = localisation.summary(pd.concat(parts), resamples=20)
    axes = map_figures.localisation(table).axes
    assert [axis.get_title() for axis in axes] == ["pointing game", "energy inside"]
    lines = {line.get_label(): line for line in axes[0].lines if not line.get_label().startswith("_")}
    assert list(lines) == ["HRCF", "MKT", "random map", "centre map"]
    assert list(lines["MKT"].get_ydata()) == table[table["title"] == "MKT"]["hit"].tolist()
    assert len(axes[0].collections) == 2, "controls have no interval"
    assert len({line.get_marker() for line in lines.values()}) == 4
    with pytest.raises(ValueError, match="'hrcf'"):
        map_figures.localisation(table, ["hrcf"])
    with pytest.raises(ValueError, match="no column 'hit_low'"):
        map_figures.localisation(table.drop(columns="hit_low"))


def test_nothing_to_draw_is_an_error():
    with pytest.raises(ValueError, match="0 pictures"):
        map_figures.one_label([], [], {"HRCF": []})
    with pytest.raises(ValueError, match="'labels' has 1 entries for 2 pictures"):
        map_figures.one_label(pictures(2), ["cat"], {"HRCF": heats(2)})
    with pytest.raises(ValueError, match="1 pictures and 0 methods"):
        map_figures.all_labels(pictures(1), [["cat"]], {})
