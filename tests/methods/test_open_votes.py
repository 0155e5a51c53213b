"""HRCF with open votes: HRCF's weights and training, another label set for the softmax at test time."""

import pytest
import synthetic
import torch

from hrcf_lib import config as configs
from hrcf_lib import evaluation, methods
from hrcf_lib.data.feeds.embeddings import embed
from hrcf_lib.model import HRCF
from hrcf_lib.training import train


def test_it_is_hrcf_but_for_the_votes():
    own = methods.configure("hrcf_open", configs.mini().replace(lam=0.75))
    assert (own.method, own.votes, own.lam) == ("hrcf_open", "open", 0.75)
    assert own.replace(votes="asked").to_dict() == configs.mini().replace(lam=0.75).to_dict()
    assert methods.configure("hrcf_open", own, lam=0.5).lam == 0.5
    assert methods.configure("hrcf_open", configs.mini(), votes="asked").votes == "asked", "the paper's form"
    assert "hrcf_open" in methods.names("ours") and "hrcf_open" not in methods.names("compared")
    with pytest.raises(ValueError, match="cannot be made of a MKTConfig: give a preset such as mini"):
        methods.configure("hrcf_open", methods.configure("mkt", configs.mini()))


def test_the_preset_is_mini_with_open_votes():
    assert configs.mini_open().replace(name="mini", votes="asked") == configs.mini()


@pytest.fixture(scope="module")
def trained():
    """HRCF and its variant, both trained for a few steps, and a feed of test pictures."""
    base, feed = synthetic.config(train_size=8), synthetic.features(8, 0)
    pair = HRCF(base), methods.build("hrcf_open", base)
    for model in pair:
        train(model, feed)
    return *(model.eval() for model in pair), synthetic.features(12, 1)


def test_training_is_hrcfs(trained):
    plain, opened, _ = trained
    for (name, p), q in zip(plain.trainable_state().items(), opened.trainable_state().values(), strict=True):
        assert torch.equal(p, q), name


def test_unseen_labels_are_scored_beside_the_seen_ones(trained):
    plain, opened, data = trained
    assert opened.reference_labels == tuple(data.space.seen)
    held, unseen = embed(opened, data), list(data.space.unseen)
    with torch.no_grad():
        every = evaluation.score_all(held, plain.label_embeddings(list(data.space.names)), plain.score_embeddings)
        own = evaluation.score_all(held, opened.embed_names(unseen), opened.score_embeddings)[:, : len(unseen)]
    torch.testing.assert_close(own, every[:, -len(unseen) :])
    found, paper = evaluation.evaluate(opened, data), evaluation.evaluate(plain, data)
    assert found.loc["GZSL", "mAP"] == pytest.approx(paper.loc["GZSL", "mAP"])
    asked = evaluation.evaluate(opened.under(opened.config.replace(votes="asked")), data)
    assert asked.loc["ZSL", "mAP"] == paper.loc["ZSL", "mAP"], "one switch away"


def test_it_is_saved_and_read(trained, tmp_path):
    opened, data = trained[1:]
    again = methods.load(opened.save_pretrained(tmp_path / "model"))
    assert type(again) is type(opened) and again.config == opened.config
    assert again.companions(data.space.unseen) == list(data.space.seen)


def test_probabilities_do_not_change(trained):
    """A label alone beside the reference is scored so in both."""
    plain, opened, data = trained
    held = embed(plain, data)
    with torch.no_grad():
        t, r = (plain.label_embeddings(list(names)) for names in (data.space.unseen, data.space.seen))
        alone = [m.score_alone(held.e_g, held.regions.float(), r, t) for m in (plain, opened)]
    torch.testing.assert_close(*alone)
