"""A label's score alone inside the reference vocabulary: the closed form against scoring one label at a time."""

import pytest
import synthetic
import torch
from torch.testing import assert_close

from hrcf_lib import methods, scores
from hrcf_lib.apply.label_scorer import LabelScorer
from hrcf_lib.engine import chunks


def draw(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs(J=140, B=3, R=9, K=5, D=16, scale=1.5):
    return draw(B, D, seed=1), draw(B, J, D, seed=2), draw(R, D, seed=3, scale=scale), draw(K, D, seed=4, scale=scale)


@pytest.mark.parametrize("rsa", [True, False])
@pytest.mark.parametrize("rss", [True, False])
@pytest.mark.parametrize("normalize", [True, False])
def test_the_closed_form_is_one_label_at_a_time(rsa, rss, normalize):
    config = synthetic.config(rsa=rsa, rss=rss, normalize_fusion=normalize, lam=0.3)
    e_g, regions, reference, own = inputs()
    found = scores.score_alone(e_g, regions, reference, own, config, rss)
    slow = [scores.score(e_g, regions, torch.cat([reference, t[None]]), config, rss)[:, -1] for t in own]
    assert_close(found, torch.stack(slow, dim=1))


def test_other_labels_of_the_user_change_nothing():
    model = synthetic.model().eval()
    e_g, regions, reference, own = (x.float() for x in inputs(D=128, scale=0.3))
    whole = model.score_alone(e_g, regions, reference, own)
    for i in range(len(own)):
        assert_close(model.score_alone(e_g, regions, reference, own[[i]])[:, 0], whole[:, i])


def test_parts_agree_with_the_whole(monkeypatch):
    model = synthetic.model().eval()
    e_g, regions, reference, own = (x.float() for x in inputs(D=128, scale=0.3))
    whole = model.score_alone(e_g, regions, reference, own)
    monkeypatch.setattr(chunks, "PAIRS", 1)
    assert_close(model.score_alone(e_g, regions, reference, own), whole)


def test_large_scores_do_not_overflow():
    config = synthetic.config()
    e_g, regions, reference, own = (x.float() for x in inputs(scale=60.0))
    assert scores.score_alone(e_g, regions, reference, own, config, True).isfinite().all()


@pytest.mark.parametrize("name", ["mkt", "pre_clip"])
def test_any_method(name):
    model = methods.build(name, synthetic.config(), pretrained=False).eval()
    e_g, regions, reference, own = (x.float() for x in inputs(J=196, D=128, scale=0.3))
    with torch.no_grad():
        found = model.score_alone(e_g, regions, reference, own)
        slow = model.score_embeddings(e_g, regions, torch.cat([reference, own[[2]]]))[:, -1]
    assert found.shape == (3, 5)
    assert_close(found[:, 2], slow)


def test_a_label_of_the_reference_is_scored_with_the_reference():
    model = synthetic.model().eval()
    model.reference_labels = ("cat", "dog", "bus")
    scorer = LabelScorer(model, ["sun", "bus", "tree", "CAT"])
    assert scorer.columns.tolist() == [3, 2, 4, 0]
    pictures = torch.rand(3, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    found = scorer.alone(pictures)
    with torch.no_grad():
        e_g, regions = model.embed(pictures)
        inside = model.score_embeddings(e_g, regions, scorer.reference)
        outside = model.score_alone(e_g, regions, scorer.reference, scorer.new)
    assert_close(found, torch.stack([outside[:, 0], inside[:, 2], outside[:, 1], inside[:, 0]], dim=1))
    assert model.score_alone(e_g, regions, scorer.reference, scorer.new[:0]).shape == (3, 0)


@pytest.mark.parametrize("n", [1, 2, 100, 1000])
def test_a_list_of_any_length_says_the_same_of_a_label(n):
    model = synthetic.model().eval()
    e_g, regions, reference, own = (x.float() for x in inputs(K=1000, D=128, scale=0.3))
    first = model.score_alone(e_g, regions, reference, own[:1])
    with torch.no_grad():
        slow = model.score_embeddings(e_g, regions, torch.cat([reference, own[:1]]))[:, -1:]
    found = model.score_alone(e_g, regions, reference, own[:n])
    assert found.shape == (3, n)
    assert_close(found[:, :1], first, atol=1e-6, rtol=0)
    assert_close(found[:, :1], slow, atol=1e-6, rtol=0)


def test_a_method_that_scores_otherwise_has_no_closed_form():
    class Other(type(synthetic.model())):
        def score_embeddings(self, e_g, regions, label_embeddings):
            return e_g @ label_embeddings.T

    other = synthetic.model().eval()
    other.__class__ = Other
    e_g, regions, reference, own = (x.float() for x in inputs(D=128, scale=0.3))
    assert_close(other.score_alone(e_g, regions, reference, own), e_g @ own.T)
