"""Hierarchical clue gathering: sizes, parameters, and a merge written out by hand."""

import pytest
import torch
from torch.testing import assert_close

from hrcf_lib.regions import HierarchicalClueGathering

C = 6


def build(width=C, grid=14, merges=3, **options):
    torch.manual_seed(0)
    return HierarchicalClueGathering(width, grid, merges, **options).double()


def tokens(B=2, grid=14, width=C, seed=0):
    return torch.randn(B, grid * grid, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def slow_conv(H, conv):
    """3 x 3 convolution, stride 1, no padding, patch by patch."""
    B, _, h, _ = H.shape
    out = H.new_empty(B, len(conv.weight), h - 2, h - 2)
    for row in range(h - 2):
        for column in range(h - 2):
            patch = H[:, None, :, row : row + 3, column : column + 3]  # (B, 1, C, 3, 3)
            out[:, :, row, column] = (patch * conv.weight).sum(dim=(2, 3, 4)) + conv.bias
    return out


def slow_bilinear(H, side):
    """Sample at the centres of a side x side grid laid over the h x h grid."""
    h = H.shape[-1]
    weight = H.new_zeros(side, h)
    for i in range(side):
        x = (i + 0.5) * h / side - 0.5
        low = int(x)
        weight[i, low] += 1 - (x - low)
        weight[i, min(low + 1, h - 1)] += x - low
    return torch.einsum("bchw,rh,sw->bcrs", H, weight, weight)


def slow_regions(gather, x):
    """H^l = LN(Conv2(ReLU(Conv1(H))) + Bilinear(H)), three times, rows of every map one after the other."""
    B, patches, width = x.shape
    grid = int(patches**0.5)
    H, out = x.reshape(B, grid, grid, width).permute(0, 3, 1, 2), []
    for norm in gather.norms:
        H = slow_conv(slow_conv(H, gather.conv1).clamp(min=0), gather.conv2) + slow_bilinear(H, H.shape[-1] - 4)
        flat = H.flatten(1)
        unit = (flat - flat.mean(1, keepdim=True)) / (flat.var(1, keepdim=True, unbiased=False) + norm.eps).sqrt()
        H = unit.view_as(H) * norm.weight + norm.bias
        out += [H[:, :, row, column] for row in range(H.shape[-1]) for column in range(H.shape[-1])]
    return torch.stack(out, dim=1)


def test_the_sizes_are_10_6_2_and_there_are_140_regions():
    gather = build()
    assert gather.sides == [10, 6, 2] and gather.J == 140
    assert gather(tokens()).shape == (2, 140, C)
    assert gather.level_of().tolist() == [1] * 100 + [2] * 36 + [3] * 4


@pytest.mark.parametrize("grid, merges, J", [(14, 1, 100), (14, 2, 136), (7, 1, 9), (16, 3, 12**2 + 8**2 + 4**2)])
def test_other_grids_and_numbers_of_merges(grid, merges, J):
    gather = build(grid=grid, merges=merges)
    assert gather(tokens(1, grid)).shape == (1, J, C) and gather.J == J == len(gather.level_of())


@pytest.mark.parametrize("start_at_zero", [True, False])
def test_merging_is_the_equation(start_at_zero):
    gather = build(start_at_zero=start_at_zero)
    with torch.no_grad():
        for p in gather.norms.parameters():  # away from 1 and 0, so that each level's own norm matters
            p.add_(torch.randn_like(p))
        assert_close(gather(tokens()), slow_regions(gather, tokens()), rtol=1e-10, atol=1e-10)


def test_a_start_at_zero_is_the_normalised_resized_map():
    gather, x = build(), tokens()
    H = x.transpose(1, 2).reshape(2, C, 14, 14)
    expected = torch.nn.functional.layer_norm(slow_bilinear(H, 10), (C, 10, 10))
    assert_close(gather(x)[:, :100], expected.flatten(2).transpose(1, 2))
    assert not torch.allclose(build(start_at_zero=False)(x)[:, :100], gather(x)[:, :100], atol=0.01)


def test_a_start_at_zero_can_be_left():
    gather = build()
    gather(tokens()).pow(3).sum().backward()
    assert gather.conv2.weight.grad.abs().min() > 0


def test_convolutions_are_shared_and_norms_are_not():
    gather = build()
    assert {name.split(".")[0] for name, _ in gather.named_parameters()} == {"conv1", "conv2", "norms"}
    assert sum(p.numel() for p in gather.parameters()) == 2 * (9 * C * C + C) + 2 * C * 140
    full = HierarchicalClueGathering(768, 14)
    assert sum(p.numel() for p in full.parameters()) == 10_618_368 + 215_040  # ViT-B/16, as in the paper's 18.3 M


@pytest.mark.parametrize("levels, J", [((1,), 100), ((3,), 4), ((3, 1), 104), ((2, 3), 40)])
def test_some_levels_are_rows_of_all_levels(levels, J):
    every, some = build(start_at_zero=False), build(start_at_zero=False, levels=levels)
    some.load_state_dict({n: v for n, v in every.state_dict().items() if n in some.state_dict()})
    wanted = [level in levels for level in every.level_of().tolist()]
    assert some.J == J == len(some.level_of()) and some.levels == sorted(levels)
    assert_close(some(tokens()), every(tokens())[:, wanted])
    assert len(some.norms) == max(levels), "merges above the highest level are not computed"


def test_level_0_is_the_patches_as_they_came():
    some, every = build(start_at_zero=False, levels=(0, 1, 2, 3)), build(start_at_zero=False)
    x = tokens()
    assert some.sides == [14, 10, 6, 2] and some.J == 336 == len(some.level_of())
    assert_close(some(x), torch.cat([x, every(x)], dim=1))


@pytest.mark.parametrize("levels", [(0,), (4,), (1, 4), (-1, 2)])
def test_a_level_that_is_not_there_is_refused(levels):
    with pytest.raises(ValueError, match=r"levels .* of 3 merges: choose among 1 to 3"):
        build(levels=levels)


def test_convolutions_of_their_own():
    gather = build(start_at_zero=False, shared=False)
    assert len(gather.conv1) == len(gather.conv2) == 3
    x = tokens()
    before = gather(x)
    with torch.no_grad():
        gather.conv1[2].weight.add_(1)
    assert_close(gather(x)[:, :136], before[:, :136])
    assert not torch.allclose(gather(x)[:, 136:], before[:, 136:])
    assert not any(p.abs().sum() for p in build(shared=False).conv2.parameters()), "they start at zero"
    full = HierarchicalClueGathering(768, 14, shared=False)
    assert sum(p.numel() for p in full.parameters()) == 3 * 10_618_368 + 215_040  # 39.6 M with the rest of the model


def test_one_merge_has_one_pair_of_convolutions_either_way():
    assert build(levels=(1,), shared=False).state_dict().keys() == build(levels=(1,)).state_dict().keys()


def test_every_token_reaches_a_region():
    x = tokens(1).requires_grad_()
    build()(x).pow(3).sum().backward()
    assert (x.grad.abs().sum(dim=-1) > 0).all()


def test_pictures_do_not_mix():
    gather, x = build(start_at_zero=False), tokens()
    assert_close(gather(x)[1:], gather(x[1:]))


@pytest.mark.parametrize("grid, merges, most", [(14, 4, 3), (14, 0, 3), (7, 3, 1), (5, 2, 1)])
def test_too_many_merges_are_refused(grid, merges, most):
    with pytest.raises(ValueError, match=f"{merges} merges of a {grid} x {grid} grid.*choose 1 to {most}"):
        build(grid=grid, merges=merges)


@pytest.mark.parametrize("patches", [195, 197, 49])
def test_the_layer_norms_fix_the_size_and_say_so(patches):
    message = f"{patches} patch tokens do not form the 14 x 14 grid this model was built for; resize the pictures"
    with pytest.raises(ValueError, match=message):
        build()(torch.zeros(1, patches, C, dtype=torch.float64))
