"""The image side while it is fixed: a prompt phase that reads embeddings learns what one that computes them does."""

import psutil
import pytest
import synthetic
import torch

from hrcf_lib import training
from hrcf_lib.data.feeds import embeddings
from hrcf_lib.data.feeds.embeddings import FixedImageSide, embed, fix_image_side
from hrcf_lib.data.feeds.feed import Batches, Feed
from hrcf_lib.data.feeds.order import BatchOrder
from hrcf_lib.training import train

PHASES = (("hcg", 1, 4), ("prompts", 3, 4))  # of 10 pictures: 3 + 9 steps


def learnt(monkeypatch, fixed: bool, **changes):
    """Weights and history of a run whose prompt phase reads embeddings, or computes them in every step."""
    if not fixed:
        monkeypatch.setattr(training, "fix_image_side", lambda model, data, epochs: data)
    model = synthetic.model(phases=PHASES, **changes)
    history = train(model, synthetic.features())
    monkeypatch.undo()
    return synthetic.weights(model), history


@pytest.mark.slow
def test_prompts_learn_the_same_whether_the_image_side_is_computed_in_every_step_or_once(monkeypatch):
    plain, before = learnt(monkeypatch, fixed=False)
    once, after = learnt(monkeypatch, fixed=True)
    columns = ["step", "phase", "side", "epoch", "lr", "ranking", "distillation"]
    torch.testing.assert_close(
        torch.tensor(after[columns[3:]].to_numpy()), torch.tensor(before[columns[3:]].to_numpy()), rtol=1e-5, atol=1e-6
    )
    for name, value in plain.items():
        torch.testing.assert_close(once[name], value, rtol=1e-4, atol=1e-5)
    start = synthetic.model(phases=PHASES).prompt.vectors
    assert not torch.allclose(plain["prompt.vectors"], start, atol=1e-3), "there was something to learn"


@pytest.mark.parametrize("hcg", [True, False])
def test_the_image_side_is_computed_once_a_phase_and_not_once_an_epoch(monkeypatch, hcg):
    model, seen = synthetic.model(phases=PHASES[1:], hcg=hcg), []
    real = model.image_embeddings
    monkeypatch.setattr(model, "image_embeddings", lambda trunk: seen.append(len(trunk)) or real(trunk))
    train(model, synthetic.features())
    assert sum(seen) == 10, "pictures, over three epochs"


def test_a_phase_of_one_epoch_keeps_nothing():
    model, data = synthetic.model(), synthetic.features()
    assert fix_image_side(model, data, epochs=1) is data and isinstance(data, Feed)
    fixed = fix_image_side(model, data, epochs=2)
    assert isinstance(fixed, FixedImageSide) and isinstance(fixed, Batches)


def test_embeddings_that_would_fill_the_memory_are_computed_in_every_step(monkeypatch):
    model, data = synthetic.model(), synthetic.features()
    needed = 10 * (2 * 4 + 140 * 4) * 128  # bytes: e_g and teacher, 140 regions in float32
    free = lambda available: monkeypatch.setattr(  # noqa: E731
        psutil, "virtual_memory", lambda: type("memory", (), {"available": available})
    )
    free(2.1 * needed)
    assert isinstance(fix_image_side(model, data, epochs=2), FixedImageSide)
    monkeypatch.setattr(embeddings.devices, "neighbours", lambda: 2)
    assert fix_image_side(model, data, epochs=2) is data, "two processes share it"
    monkeypatch.setattr(embeddings.devices, "neighbours", lambda: 1)
    free(1.9 * needed)
    assert fix_image_side(model, data, epochs=2) is data


def test_where_bfloat16_is_not_native_embeddings_take_twice_the_room(monkeypatch):
    model, data = synthetic.model(bf16=True), synthetic.features()
    room = 10 * (2 * 4 + 140 * 4) * 128 * 2
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("memory", (), {"available": 0.9 * room}))
    for native, kind in ((True, FixedImageSide), (False, type(data))):
        monkeypatch.setattr(embeddings.devices, "native_bf16", lambda device, native=native: native)
        assert type(fix_image_side(model, data, epochs=2)) is kind


def test_as_many_processes_as_epochs_do_not_each_embed_everything(monkeypatch):
    model, data = synthetic.model(), synthetic.features()
    monkeypatch.setattr(embeddings.devices, "process", lambda: type("state", (), {"num_processes": 2}))
    assert fix_image_side(model, data, epochs=2) is data and isinstance(
        fix_image_side(model, data, epochs=3), FixedImageSide
    )


def test_augmented_pictures_never_rest():
    pictures = synthetic.features()
    other = type("Pictures", (), vars(pictures))()
    assert fix_image_side(synthetic.model(), other, epochs=3) is other


def test_resting_gives_each_process_its_own_rows():
    model, data = synthetic.model().eval(), synthetic.features()
    whole = embed(model, data)
    fixed = FixedImageSide(whole, data)
    order = [BatchOrder(4, seed=5, skip=1, rank=rank, world=2) for rank in range(2)]
    for rank, (rows, inputs, labels) in [(r, batch) for r in range(2) for batch in fixed.batches(order[r])]:
        assert any(torch.equal(rows, own) for own in order[rank].rows(10))
        (e_g, regions), teacher = fixed.frozen(model.vlp, inputs)
        assert torch.equal(e_g, whole.e_g[rows]) and torch.equal(regions, whole.regions[rows])
        assert torch.equal(teacher, data.teacher[rows]) and torch.equal(labels, data.labels[rows])


@pytest.mark.slow
def test_a_phase_that_starts_from_embeddings_resumes_in_the_middle(tmp_path):
    unbroken = synthetic.model(phases=PHASES)
    train(unbroken, synthetic.features())
    for steps in (5, None):
        model = synthetic.model(phases=PHASES)
        train(model, synthetic.features(), tmp_path, save_every=1000, stop_after=steps)
    assert synthetic.same(synthetic.weights(model), synthetic.weights(unbroken))


def test_history_says_how_long_each_step_waited_for_its_batch(monkeypatch):
    data, clock = synthetic.features(), [0.0]
    monkeypatch.setattr(training.time, "perf_counter", lambda: clock[0])
    real = data.batches

    def slow(order):
        for number, batch in enumerate(real(order)):
            clock[0] += 3 if number else 7
            yield batch
            clock[0] += 100  # after it was used: before the next is asked for, or what the next costs

    monkeypatch.setattr(data, "batches", slow)
    history = train(synthetic.model(phases=(("hcg", 1, 4),)), data)
    assert history.waited.tolist() == [7, 103, 103]
