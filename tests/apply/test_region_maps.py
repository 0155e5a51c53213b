"""Maps of where a label was seen: shares that add up to the score, and the right cell lights up."""

import pytest
import synthetic
import torch

from hrcf_lib import methods, scores
from hrcf_lib.apply.region_maps import clues, level_maps, maker, maps_for, region_map, region_shares, score_map
from hrcf_lib.methods import registry

SIDES = [10, 6, 2]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def model():
    model = synthetic.model().eval()
    model.reference_labels = ("cat", "dog", "bus")
    return model


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_shares_add_up_to_the_region_score(scale):
    regions, t = scale * draw(4, 140, 16), draw(9, 16, seed=1)
    shares = region_shares(regions, t)
    assert shares.shape == (4, 140, 9)
    assert torch.equal(shares.sum(dim=1), scores.region_score_aggregation(scores.region_scores(regions, t)))
    torch.testing.assert_close(shares.sum(dim=1), scores.aggregate(regions, t))


def test_level_maps_are_the_regions_row_by_row():
    shares = torch.arange(140.0).expand(2, 140).unsqueeze(-1).repeat(1, 1, 3)
    maps = level_maps(shares, SIDES)
    assert [tuple(m.shape) for m in maps] == [(2, 3, 10, 10), (2, 3, 6, 6), (2, 3, 2, 2)]
    assert maps[0][1, 2].flatten().tolist() == list(range(100))
    assert maps[1][0, 0, 0].tolist() == list(range(100, 106))
    assert maps[2][0, 0].tolist() == [[136, 137], [138, 139]]


@pytest.mark.parametrize(
    ("region", "side", "row", "column"), [(37, 10, 3, 7), (100 + 6 * 4 + 1, 6, 4, 1), (137, 2, 0, 1)]
)
def test_a_planted_region_lights_its_own_cell(region, side, row, column):
    shares = torch.zeros(1, 140, 2)
    shares[0, region, 1] = 0.3
    maps = region_map(shares, SIDES, 120)
    assert maps.shape == (1, 2, 120, 120)
    assert maps[0, 0].eq(0).all(), "no difference, no light"
    y, x = divmod(int(maps[0, 1].argmax()), 120)
    cell = 120 // side
    assert (y // cell, x // cell) == (row, column)
    assert maps[0, 1].min() == 0 and maps[0, 1].max() == 1
    middle = maps[0, 1, row * cell + cell // 2, column * cell + cell // 2]
    assert middle > 0.9


def test_a_planted_region_wins_through_the_scores():
    t = torch.eye(4, 16) * 12
    regions = 0.05 * draw(1, 140, 16)
    regions[0, 62] += torch.eye(16)[2]  # level 0, row 6, column 2
    m = region_map(region_shares(regions, t), SIDES, 100)[0, 2]
    y, x = divmod(int(m.argmax()), 100)
    assert (y // 10, x // 10) == (6, 2)


def test_maps_are_within_0_and_1_whatever_the_shares():
    for shares in (draw(3, 140, 5), -draw(3, 140, 5).abs(), 1e-8 * draw(3, 140, 5).abs(), 1e6 * draw(3, 140, 5)):
        kept = shares.clone()
        m = region_map(shares, SIDES, 28)
        assert m.isfinite().all() and m.min() >= 0 and m.max() <= 1
        assert torch.equal(shares, kept)


def test_a_share_from_a_small_cell_is_brighter():
    shares = torch.zeros(1, 140, 1)
    shares[0, 22] = shares[0, 139] = 0.3  # row 2, column 2 of 10 x 10; the lower right quarter
    m = region_map(shares, SIDES, 100)[0, 0]
    peak = 0.95**2  # the middle of the small cell lies between two pixels, half a pixel from each
    assert m[25, 25] == 1 and float(m[75, 75]) == pytest.approx(4 / 100 / peak, rel=1e-3)


def test_equal_density_at_all_levels_is_a_flat_map():
    shares = torch.cat([torch.full((1, side**2, 1), 1 / side**2) for side in SIDES], dim=1)
    assert region_map(shares, SIDES, 60).eq(0).all()


def test_maps_for_labels_of_ones_own(model):
    images = torch.randint(0, 256, (2, 3, 112, 112), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    maps = maps_for(model, images, ["sun", " dog "])
    assert maps.shape == (2, 2, 112, 112) and not maps.requires_grad
    assert maps.min() >= 0 and maps.max() <= 1
    names = ["cat", "dog", "bus", "sun"]
    with torch.no_grad():
        _, regions = model.image_embeddings(model.vlp.trunk(images))
        shares = region_shares(regions, model.label_embeddings(names))[..., [3, 1]]
    torch.testing.assert_close(maps, region_map(shares, SIDES, 112))


def test_maps_without_hcg_are_the_patches():
    model = synthetic.model(hcg=False).eval()
    assert maps_for(model, torch.zeros(1, 3, 112, 112), ["cat", "dog"]).shape == (1, 2, 112, 112)


def built(name: str, **changes):
    model = registry.for_config(methods.configure(name, synthetic.config(), **changes), pretrained=False).eval()
    model.reference_labels = ("cat", "dog", "bus")
    return model


def pictures(n=2):
    return torch.randint(0, 256, (n, 3, 112, 112), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "changes", [{}, {"rss": False}, {"rsa": False}, {"hcg": False}, {"levels": (1, 3), "keep": 70}]
)
def test_clues_add_up_to_the_region_score(changes):
    model, images = built("hrcf", **changes), pictures()
    found = clues(model, images, ["sun", "dog"])
    names = ["cat", "dog", "bus", "sun"]
    with torch.no_grad():
        e_g, regions = model.embed(images)
        t = model.label_embeddings(names)
        whole = model.under(model.config.replace(lam=1.0, normalize_fusion=False)).score_embeddings(e_g, regions, t)
    J = regions.shape[1]
    torch.testing.assert_close(found.scores.sum(dim=-1), whole[:, [3, 1]], rtol=1e-4, atol=1e-4)
    assert [m.shape[-1] for m in found.added] == [m.shape[-1] for m in found.kept] == model.region_sides
    kept = torch.cat([m.flatten(1) for m in found.kept], dim=1)  # (B, J)
    assert (kept.sum(dim=1) == (scores.regions_to_keep(model.config, J) if model.config.rss else J)).all()
    assert found.shares.shape == (2, 2, len(model.region_sides))
    torch.testing.assert_close(found.shares, found.scores.abs() / found.scores.abs().sum(dim=-1, keepdim=True))
    torch.testing.assert_close(found.shares.sum(dim=-1), torch.ones(2, 2))


def test_clues_mark_the_regions_that_selection_keeps():
    model, images = built("hrcf"), pictures()
    found = clues(model, images, ["dog"])
    with torch.no_grad():
        _, regions = model.embed(images)
        chosen = scores.select_regions(regions, model.label_embeddings(["cat", "dog", "bus"]), 108)
    kept = torch.cat([m.flatten(1) for m in found.kept], dim=1)
    for b in range(2):
        torch.testing.assert_close(regions[b][kept[b]], chosen[b])
    assert 0 < int((~kept).sum()) == 2 * 32


def test_clues_of_patches_are_the_best_of_each_label():
    model, images = built("mkt"), pictures()
    found = clues(model, images, ["sun", "dog"])
    (added,), (kept,) = found.added, found.kept
    assert kept.all() and (added != 0).sum((-2, -1)).eq(16).all()
    with torch.no_grad():
        _, regions = model.embed(images)
        s = scores.region_scores(regions, model.label_embeddings(["sun", "dog"]))
    torch.testing.assert_close(found.scores[..., 0], scores.topk_mean(s, 16), rtol=1e-4, atol=1e-4)


def test_maps_of_patches_are_their_scores():
    model, images = built("mkt"), pictures()
    maps = maps_for(model, images, ["sun", "dog"])
    with torch.no_grad():
        _, regions = model.embed(images)
        s = scores.region_scores(regions, model.label_embeddings(["sun", "dog"]))  # (B, 196, 2)
    assert maps.shape == (2, 2, 112, 112) and maps.amin((-2, -1)).eq(0).all() and maps.amax((-2, -1)).eq(1).all()
    cells = maps.unflatten(2, (14, 8)).unflatten(4, (14, 8)).mean(dim=(3, 5)).flatten(2)  # (B, 2, 196)
    for b, k in ((0, 0), (1, 1)):
        assert torch.corrcoef(torch.stack([cells[b, k], s[b, :, k]]))[0, 1] > 0.9
    torch.testing.assert_close(score_map(s - 50, [14], 112), maps, atol=1e-3, rtol=0)  # only differences count
    one = torch.full((1, 196, 1), -3.0)
    one[0, 14 * 4 + 9] = -2.0
    y, x = divmod(int(score_map(one, [14], 112)[0, 0].argmax()), 112)
    assert (y // 8, x // 8) == (4, 9)
    assert score_map(torch.full((1, 4, 1), -3.0), [2], 8).eq(0).all(), "no difference, no light"


def test_pictures_with_labels_of_their_own(model):
    images = pictures(3)
    found = maker(model, ["sun", "dog"])(images, [["dog"], [], ["dog", "sun"]])
    whole = maps_for(model, images, ["sun", "dog"])
    assert [len(m) for m in found] == [1, 0, 2]
    torch.testing.assert_close(found[0], whole[0, 1:])
    torch.testing.assert_close(found[2], whole[2].flip(0))
    with pytest.raises(ValueError, match="'bus'"):
        maker(model, ["sun", "dog"])(images, [["bus"], [], []])


def test_the_map_of_one_level(model):
    images = pictures(1)
    with torch.no_grad():
        _, regions = model.embed(images)
        shares = region_shares(regions, model.label_embeddings(["cat", "dog", "bus"]))[..., [1]]
    for level, (side, part) in enumerate(zip(SIDES, shares.split([100, 36, 4], dim=1)), 1):
        found = maker(model, ["dog"], level)(images, [["dog"]])[0]
        torch.testing.assert_close(found, region_map(part, [side], 112)[0])
    for level in (0, 4):
        with pytest.raises(ValueError, match=f"level = {level} of 3"):
            maker(model, ["dog"], level)


def test_the_map_of_another_kind(model):
    images = pictures(1)
    with torch.no_grad():
        _, regions = model.embed(images)
        s = scores.region_scores(regions, model.label_embeddings(["dog"]))
    torch.testing.assert_close(maker(model, ["dog"], kind="scores")(images, [["dog"]])[0], score_map(s, SIDES, 112)[0])
    own, votes = (maker(built("mkt"), ["dog"], kind=kind)(images, [["dog"]])[0] for kind in ("scores", "votes"))
    assert (own - votes).abs().max() > 0.01
    with pytest.raises(ValueError, match="unknown kind of map 'score'; did you mean 'scores'"):
        maker(model, ["dog"], kind="score")


@pytest.mark.parametrize("name", ["clip_ft", "biam"])
def test_methods_without_region_maps_are_refused(name):
    for function in (maps_for, clues):
        with pytest.raises(ValueError, match="take grad_cam"):
            function(built(name), pictures(1), ["dog"])
