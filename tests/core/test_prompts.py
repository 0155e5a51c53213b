"""Prompt learning: against MKT's numbers, against whole sentences, and what is learnt and what is not."""

import golden_clip
import pytest
import torch
from torch.testing import assert_close

from hrcf_lib.engine import chunks
from hrcf_lib.prompts import KINDS, START, PromptLearner
from hrcf_lib.vlp import create_mini, encode_tokens

NAMES = ["cat", "polar bear", "Fire  Engine"]
SENTENCE = "A photo for multi-label classification, there is a {}."


@pytest.fixture(scope="module")
def vlp():
    torch.manual_seed(0)
    return create_mini().freeze()


def start_rows(vlp):
    return vlp.model.token_embedding.weight[vlp.tokenizer.encode(START)]


# MKT ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden_vlp():
    return golden_clip.vlp()


def test_tuning_is_mkts_prompt_in_value_and_gradient(golden_vlp):
    golden = golden_clip.arrays("mkt_prompt_text")
    prompt = PromptLearner(golden_vlp, "tuning")
    t = prompt(golden_vlp, golden_clip.NAMES["names"])
    assert_close(t, golden["text_emb"], rtol=1e-5, atol=1e-5)
    (t * golden["out_weight"]).sum().backward()
    rows = golden["grad_token_rows_idx"].long()  # start, end and the six words of the template
    scale = float(golden["grad_token_rows"].abs().max())
    assert_close(prompt.table.grad[rows], golden["grad_token_rows"], rtol=1e-5, atol=1e-5 * scale)
    others = torch.ones(len(prompt.table), dtype=torch.bool).index_fill(0, rows, False)
    assert not prompt.table.grad[others].any()


def test_tuning_learns_the_template_but_never_the_rows_that_spell_a_name(golden_vlp):
    golden = golden_clip.arrays("mkt_prompt_text")
    prompt = PromptLearner(golden_vlp, "tuning")
    with torch.no_grad():
        prompt.table += golden["row_shift"]
    shifted = prompt(golden_vlp, golden_clip.NAMES["names"])
    assert_close(shifted, golden["text_emb_after_row_shift"], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(shifted, golden["text_emb"], atol=0.1)


def test_sentences_are_embedded_as_in_mkt_and_open_clip(golden_vlp):
    prompts = golden_clip.arrays("mkt_prompt_text")
    assert_close(golden_vlp.encode_text(golden_clip.NAMES["extra"]), prompts["extra_text_emb"], rtol=1e-5, atol=1e-5)
    sentences = golden_clip.NAMES["prompts"] + golden_clip.NAMES["extra"]
    assert_close(
        golden_vlp.encode_text(sentences), golden_clip.arrays("open_clip_vs_mkt")["mkt_text"], rtol=1e-5, atol=1e-5
    )


# Kinds and M -------------------------------------------------------------------------------------------------------


def test_the_start_is_exactly_8_tokens(vlp):
    assert len(vlp.tokenizer.encode(START)) == 8
    assert torch.equal(PromptLearner(vlp, "hybrid", 8).vectors, start_rows(vlp))


@pytest.mark.parametrize("M, order", [(4, range(4)), (12, [*range(8), *range(4)]), (16, [*range(8)] * 2)])
def test_other_lengths_cut_or_repeat_the_start(vlp, M, order):
    for kind in ("hybrid", "learnable"):
        assert torch.equal(PromptLearner(vlp, kind, M).vectors, start_rows(vlp)[list(order)])
    prompt = PromptLearner(vlp, "hybrid", M)
    assert prompt(vlp, NAMES).shape == (3, vlp.D)


@pytest.mark.parametrize("M", [4, 8, 16])
def test_the_fixed_prompt_is_the_whole_sentence_for_every_M(vlp, M):
    t = PromptLearner(vlp, "fixed", M)(vlp, NAMES)
    assert_close(t, vlp.encode_text([SENTENCE.format(name) for name in NAMES]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["hybrid", "learnable"])
def test_learning_starts_from_the_fixed_prompt(vlp, kind):
    assert torch.equal(PromptLearner(vlp, kind)(vlp, NAMES), PromptLearner(vlp, "fixed")(vlp, NAMES))


def test_tuning_starts_from_its_own_sentence(vlp):
    expected = vlp.encode_text([f"There is a {name} in the scene" for name in NAMES])
    assert_close(PromptLearner(vlp, "tuning")(vlp, NAMES), expected, rtol=1e-5, atol=1e-5)


def test_tuning_may_start_from_the_fixed_prompt(vlp):
    """So that nothing but what is tuned differs; MKT's template stays the default."""
    prompt = PromptLearner(vlp, "tuning", template="hrcf")
    assert torch.equal(prompt(vlp, NAMES), PromptLearner(vlp, "fixed")(vlp, NAMES))
    prompt(vlp, NAMES).sin().sum().backward()
    words = {*vlp.tokenizer.encode("A photo for multi-label classification, there is a"), *vlp.tokenizer.encode(".")}
    learnt = prompt.table.grad.abs().sum(dim=1).nonzero().flatten().tolist()
    assert set(learnt) == words | {vlp.tokenizer.sot_token_id, vlp.tokenizer.eot_token_id}, "no row that spells a name"
    with pytest.raises(ValueError, match="template 'clip' of the prompt 'tuning': choose 'mkt' or 'hrcf'"):
        PromptLearner(vlp, "tuning", template="clip")


def test_coop_is_the_start_and_the_name_alone(vlp):
    expected = vlp.encode_text([f"{START} {name}" for name in NAMES])
    assert_close(PromptLearner(vlp, "coop")(vlp, NAMES), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_learnt(vlp, kind):
    prompt = PromptLearner(vlp, kind)
    expected = {"fixed": {}, "hybrid": {"vectors": (8, 128)}, "tuning": {"table": (49408, 128)}}
    expected |= {"learnable": {"vectors": (8, 128), "template": (4, 128)}, "coop": {"vectors": (8, 128)}}
    assert {name: tuple(p.shape) for name, p in prompt.named_parameters()} == expected[kind]
    assert set(prompt.state_dict()) == set(expected[kind])  # and nothing else is saved


@pytest.mark.parametrize("kind", ["hybrid", "learnable", "coop"])
def test_every_learnt_vector_gets_a_gradient_and_the_vlp_none(vlp, kind):
    prompt = PromptLearner(vlp, kind)
    prompt(vlp, NAMES).sin().sum().backward()
    for p in prompt.parameters():
        assert (p.grad.abs().sum(dim=1) > 0).all()
    assert all(p.grad is None and not p.requires_grad for p in vlp.parameters())


def test_learning_changes_the_prompt_and_not_the_text_tower(vlp):
    prompt, before = PromptLearner(vlp, "hybrid"), vlp.hash
    with torch.no_grad():
        prompt.vectors *= -2  # no shift by one number: the layer norm would take it out
    assert vlp.hash == before
    assert not torch.allclose(prompt(vlp, NAMES), PromptLearner(vlp, "fixed")(vlp, NAMES), atol=0.01)


# The fast path and its slow twin -----------------------------------------------------------------------------------

MANY = ["cat", "a very long name of many words", "bus", "polar bear", "dog", "fire engine", "sun", "crane (bird)"]


def whole_sentences(prompt, vlp, names):
    """Eqs. 18-19 to the letter: every prompt from start to end, padded to the longest, through all of the tower."""
    table = vlp.model.token_embedding.weight
    learnt = getattr(prompt, "table", table)
    prefix, template = getattr(prompt, "vectors", learnt[prompt.start_ids]), learnt[prompt.template_ids]
    before, after = getattr(prompt, "template", template).split([prompt.n_before, prompt.n_after])
    start, end = learnt[[vlp.tokenizer.sot_token_id]], learnt[[vlp.tokenizer.eot_token_id]]
    rows = [torch.cat([start, prefix, before, table[vlp.token_ids(name)], after, end]) for name in names]
    last = torch.tensor([len(row) - 1 for row in rows])
    return encode_tokens(vlp.model, torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), last)


@pytest.mark.parametrize("chunk, large", [(512, 2**13), (3, 2**13), (1, 0), (3, 0)])
@pytest.mark.parametrize("kind", KINDS)
def test_chunks_behind_a_shared_beginning_equal_whole_sentences(vlp, monkeypatch, kind, chunk, large):
    monkeypatch.setattr(chunks, "NAMES", chunk)
    monkeypatch.setattr(chunks, "TOKENS", large)
    monkeypatch.setattr(chunks, "TEXT", 12 * large)
    weights = torch.randn(len(MANY), vlp.D, generator=torch.Generator().manual_seed(0))
    values, gradients = [], []
    for encode in (PromptLearner.forward, whole_sentences):
        prompt = PromptLearner(vlp, kind)
        t = encode(prompt, vlp, MANY)
        if kind != "fixed":
            (t * weights).sum().backward()
        values.append(t.detach())
        gradients.append([p.grad for p in prompt.parameters()])
    assert_close(*values, rtol=1e-5, atol=1e-5)
    for fast, slow in zip(*gradients, strict=True):
        assert_close(fast, slow, rtol=1e-4, atol=1e-5 * float(slow.abs().max()))


def test_many_names_keep_nothing_of_their_chunks_for_the_backward_pass(vlp, monkeypatch):
    names = [f"{a} {b}" for a in "abcdefgh" for b in "stuvwxyz"]

    def kept(names, large):
        """Numbers that autograd holds between the forward and the backward pass."""
        monkeypatch.setattr(chunks, "TEXT", large)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            PromptLearner(vlp, "hybrid")(vlp, names)
        return sum(sizes)

    width = vlp.D + 2  # a row of the result, and its index
    assert kept(names, 0) - kept(names[:32], 0) <= 32 * width
    assert kept(names, 2**24) - kept(names[:32], 2**24) > 32 * 100 * width


# Names -------------------------------------------------------------------------------------------------------------


def test_a_label_does_not_depend_on_its_neighbours(vlp):
    prompt = PromptLearner(vlp, "hybrid")
    names = ["cat", "a very long name of many words", "bus"]  # padded together
    together = prompt(vlp, names)
    for name, row in zip(names, together, strict=True):
        assert_close(prompt(vlp, [name])[0], row, rtol=1e-5, atol=1e-5)


def test_a_name_is_spelt_by_itself(vlp):
    encode = vlp.tokenizer.encode
    assert encode("crane (bird)") + encode(".") != encode("crane (bird).")  # what the docstring warns of
    assert encode("crane") + encode(".") == encode("crane.")
    PromptLearner(vlp, "fixed")(vlp, ["crane (bird)"])


@pytest.mark.parametrize("kind, room", [("hybrid", 18), ("fixed", 18), ("tuning", 24)])
def test_a_name_that_does_not_fit_is_refused_by_name(vlp, kind, room):
    prompt, words = PromptLearner(vlp, kind), "cat " * room
    assert prompt(vlp, [words]).shape == (1, 128)
    with pytest.raises(ValueError, match=r"^'cat cat.* needs 33 tokens, the text tower takes 32; shorten it"):
        prompt(vlp, ["dog", words + "cat"])


@pytest.mark.parametrize(
    "names, message",
    [
        ([], "labels is empty"),
        ("cat", "single string 'cat'"),
        (["cat", " "], r"labels\[1\] is blank"),
        (["cat", "dog", "cat "], "'cat' occurs 2 times in labels, at 0, 2"),
        (["cat", None], r"labels\[1\] is None"),
    ],
)
def test_faulty_lists_of_names_are_refused(vlp, names, message):
    with pytest.raises(ValueError, match=message):
        PromptLearner(vlp, "hybrid")(vlp, names)


def test_a_token_that_was_never_trained_is_named_with_its_label(vlp, monkeypatch):
    known = set(vlp.tokenizer.encode(SENTENCE.format("polar cat")))
    monkeypatch.setattr(vlp, "trained", known)
    prompt = PromptLearner(vlp, "hybrid")
    assert prompt(vlp, ["cat", "polar cat"]).shape == (2, 128)
    with pytest.raises(ValueError, match="^'polar zebra': .* hrcf-mini was never trained on 'zebra'; use words of"):
        prompt(vlp, ["cat", "polar zebra"])
    monkeypatch.setattr(vlp, "trained", known - {vlp.tokenizer.encode("photo")[0]})
    with pytest.raises(ValueError, match="never trained on 'photo'"):
        PromptLearner(vlp, "hybrid")


@pytest.mark.parametrize(
    "kind, M, message", [("soft", 8, "prompt 'soft': choose one of fixed"), ("hybrid", 0, "at least 1")]
)
def test_unknown_kinds_and_lengths_are_refused(vlp, kind, M, message):
    with pytest.raises(ValueError, match=message):
        PromptLearner(vlp, kind, M)
