"""Grad-CAM against gradients taken by hand, for every kind of method, and everything left as it was."""

import sys
from types import SimpleNamespace

import pytest
import synthetic
import torch
import torch.nn.functional as F

from hrcf_lib import methods
from hrcf_lib.apply.grad_cam import grad_cam, grid, last_norm, maker
from hrcf_lib.apply.vocabulary import beside_reference
from hrcf_lib.methods import registry

SEEN = ("cat", "dog", "bus")
LABELS = ["sun", "dog"]


def pictures(n=2, seed=0):
    return torch.randint(0, 256, (n, 3, 112, 112), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def built(name: str, **changes):
    torch.manual_seed(0)
    model = registry.for_config(methods.configure(name, synthetic.config(), **changes), pretrained=False).eval()
    model.reference_labels = SEEN
    return model


@pytest.fixture(scope="module")
def hrcf():
    return built("hrcf")


def by_hand(model, images, labels):
    """The definition, at what ``ln_1`` of the last block says, one picture and label after the other."""
    words = beside_reference(model, labels)
    blocks = list(model.vlp.model.visual.transformer.resblocks)
    own = (
        list(model.block)
        if isinstance(getattr(model, "block", None), torch.nn.Sequential)
        else [getattr(model, "block", None)]
    )
    at, kept = (own if model.trained_blocks else blocks)[-1].ln_1, []
    handle = at.register_forward_hook(lambda module, given, out: kept.append(out.requires_grad_()))
    with torch.enable_grad():
        x = model.vlp.trunk(images)  # with gradients, from the pixels on
        s = model.score_embeddings(*model.image_embeddings(x), model.label_embeddings(words.names).detach())
    handle.remove()
    (x,) = kept
    maps = torch.empty(len(images), len(labels), 14, 14)
    for b in range(len(images)):
        for i, k in enumerate(words.columns):
            (g,) = torch.autograd.grad(s[b, k], x, retain_graph=True)
            weights = g[b, 1:].mean(dim=0)  # (C,)
            maps[b, i] = F.relu(x[b, 1:].detach() @ weights).view(14, 14)
    maps = F.interpolate(maps, size=(112, 112), mode="bilinear", align_corners=False)
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return (maps - low) / (high - low).clamp(min=1e-30)


@pytest.mark.parametrize(
    ("name", "changes"),
    [("hrcf", {}), ("hrcf", {"hcg": False, "rsa": False}), ("mkt", {}), ("mkt", {"blocks": 1}), ("clip_ft", {})]
    + [("pre_clip", {}), ("biam", {"channels": 16})],
)
def test_it_is_the_definition(name, changes):
    model, images = built(name, **changes), pictures()
    maps = grad_cam(model, images, LABELS)
    assert maps.shape == (2, 2, 112, 112) and maps.dtype == torch.float32 and not maps.requires_grad
    assert maps.min() == 0 and maps.max() <= 1 and maps.amax((-2, -1)).gt(0.99).all()
    torch.testing.assert_close(maps, by_hand(model, images, LABELS), atol=2e-3, rtol=0)
    assert (maps[0, 0] - maps[0, 1]).abs().max() > 0.05, "another label, another map"


def test_selection_takes_part(hrcf):
    """The score is that of evaluation: with 20 regions kept the map is another one."""
    images = pictures(1)
    few = grad_cam(hrcf.under(hrcf.config.replace(keep=20)), images, LABELS)
    assert (few - grad_cam(hrcf, images, LABELS)).abs().max() > 0.05


def test_everything_stays_as_it_was():
    model, images = built("mkt").train(), pictures(1)
    learn = {name: p.requires_grad for name, p in model.named_parameters()}
    before = synthetic.weights(model)
    for p in model.parameters():
        if p.requires_grad:
            p.grad = torch.full_like(p, 3.0)
    with torch.no_grad():  # as a caller may have it
        grad_cam(model, images, LABELS)
    assert model.training and not model.vlp.training
    assert {name: p.requires_grad for name, p in model.named_parameters()} == learn
    assert all(p.grad.eq(3).all() for p in model.parameters() if p.requires_grad)
    assert synthetic.same(model.state_dict(), before)
    assert not any(module._forward_hooks for module in model.modules()) and model.vlp.trained_blocks == 2
    with pytest.raises(ValueError):
        grad_cam(model, images, LABELS, layer=torch.nn.Identity())
    assert model.training and not any(module._forward_hooks for module in model.modules())
    assert {name: p.requires_grad for name, p in model.named_parameters()} == learn


def test_the_trunk_runs_once_a_picture(hrcf):
    seen = []
    handle = hrcf.vlp.model.visual.conv1.register_forward_hook(lambda module, given, out: seen.append(len(out)))
    grad_cam(hrcf, pictures(3), ["cat", "dog", "bus", "sun", "tree"], batch=4)
    handle.remove()
    assert sum(seen) == 3


def test_batches_change_nothing(hrcf):
    images = pictures(3)
    torch.testing.assert_close(
        grad_cam(hrcf, images, LABELS, batch=1), grad_cam(hrcf, images, LABELS), atol=1e-3, rtol=0
    )


def test_pictures_with_labels_of_their_own(hrcf):
    images = pictures(3)
    found = maker(hrcf, LABELS)(images, [["dog"], [], ["dog", "sun"]])
    whole = grad_cam(hrcf, images, LABELS)
    assert [tuple(m.shape) for m in found] == [(1, 112, 112), (0, 112, 112), (2, 112, 112)]
    torch.testing.assert_close(found[0], whole[0, 1:], atol=1e-3, rtol=0)
    torch.testing.assert_close(found[2], whole[2].flip(0), atol=1e-3, rtol=0)
    with pytest.raises(ValueError, match="bus"):
        maker(hrcf, LABELS)(images, [["bus"], [], []])


def test_a_map_of_nothing_is_zero(hrcf):
    """Where all weights times activations are negative nothing speaks for the label."""

    shown, kept = torch.nn.Identity(), []

    class Against(type(hrcf)):
        def image_embeddings(self, trunk):
            kept.append(shown(trunk.abs()))
            return super().image_embeddings(trunk)

        def score_embeddings(self, e_g, regions, label_embeddings):
            return -kept[-1].mean(dim=(1, 2))[:, None].expand(-1, len(label_embeddings))

    against = hrcf.under(hrcf.config)
    against.__class__ = Against
    assert grad_cam(against, pictures(1), ["dog"], layer=shown).eq(0).all()


def test_errors_say_what_to_do(hrcf):
    images = pictures(1)
    with pytest.raises(ValueError, match=r"\(1, 140, 128\).*choose a block"):
        grad_cam(hrcf, images, ["dog"], layer=hrcf.gather)
    with pytest.raises(ValueError, match="no gradient of the scores of CLIP-FT"):
        model = built("clip_ft")
        grad_cam(model, images, ["dog"], layer=model.block)
    with pytest.raises(ValueError, match="no gradient"):
        grad_cam(hrcf, images, ["dog"], layer=torch.nn.Identity())
    for block in (None, torch.nn.Linear(2, 2), torch.nn.Sequential()):
        with pytest.raises(ValueError, match="Own trains 2 blocks.*as layer"):
            last_norm(SimpleNamespace(title="Own", trained_blocks=2, block=block))
    for wrong in ([], ["dog", "dog "], "dog"):
        with pytest.raises(ValueError):
            grad_cam(hrcf, images, wrong)
    with pytest.raises(ValueError, match="resize"):
        grad_cam(hrcf, torch.zeros(1, 3, 64, 64), ["dog"])
    with pytest.raises(ValueError, match="not tokens"):
        grid(torch.zeros(2, 196, 8), 14)


def test_without_the_library_the_extra_is_named(hrcf, monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    with pytest.raises(ImportError, match=r"hrcf\[notebooks\]"):
        grad_cam(hrcf, pictures(1), ["dog"])
