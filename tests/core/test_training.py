"""Alternate training: schedule and groups as in MKT's code, phases, freezing, what is never looked at, and resuming."""

import dataclasses
import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import processes
import pytest
import synthetic
import torch

from hrcf_lib import method, scores, training
from hrcf_lib.config import TRAINABLE
from hrcf_lib.data.feeds.order import BatchOrder
from hrcf_lib.engine import files
from hrcf_lib.engine.schedules import learning_rate
from hrcf_lib.evaluation import evaluate
from hrcf_lib.labels import LabelSpace
from hrcf_lib.losses import distillation_loss, ranking_loss
from hrcf_lib.methods.template import Template
from hrcf_lib.training import only, train

GOLDEN = Path(__file__).parents[1] / "golden"
STEPS = 12  # of synthetic.PHASES on 10 pictures


@pytest.fixture(scope="module")
def features():
    return synthetic.features()


@pytest.fixture(scope="module")
def unbroken(features):
    """Weights before, history, weights after one whole run."""
    model = synthetic.model()
    before = synthetic.weights(model)
    history = train(model, features)
    return before, history, synthetic.weights(model)


def template(**changes) -> Template:
    """A method with one linear layer."""
    return Template(Template.Config.of(synthetic.config(), **changes), pretrained=False)


def trained(features, **changes) -> dict:
    model = synthetic.model(**changes)
    train(model, features)
    return synthetic.weights(model)


def relabelled(features, change):
    """The same features with labels changed in place by ``change``."""
    labels = features.labels.clone()
    change(labels)
    return dataclasses.replace(features, labels=labels)


# -- schedule and groups -----------------------------------------------------------------------------------------------


def test_parameter_groups_follow_mkts_rule():
    golden = json.loads((GOLDEN / "mkt_stage1_param_groups.json").read_text("utf-8"))
    rule = {n: (g["lr_scale"], g["weight_decay"]) for g in golden["stage1_groups"].values() for n in g["params"]}
    model = synthetic.model()
    config = model.config
    assert (config.layer_decay, config.weight_decay) == (0.65, 0.05)
    names = {p: n for n, p in model.named_parameters()}
    groups = model.groups("hcg")
    ours = {names[p]: (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert sum(len(g["params"]) for g in groups) == len(ours), "no parameter in two groups"
    last = "transformer.resblocks.11."
    expected = {"block." + n.removeprefix(last): v for n, v in rule.items() if n.startswith(last)}
    expected |= {n: v for n, v in rule.items() if n.startswith("ln_post.")}
    assert len(expected) == 14
    assert {n: ours[n] for n in expected} == expected
    assert ours["head.weight"] == ours["gather.conv1.weight"] == rule["projection.fc1.weight"] == (1.0, 0.05)
    assert ours["gather.conv1.bias"] == rule["projection.fc1.bias"] == (1.0, 0.0)
    assert set(ours) == {n for n, p in model.named_parameters() if not n.startswith(("vlp.", "prompt."))}


@pytest.mark.parametrize(("kind", "parameters"), [("fixed", []), ("hybrid", ["prompt.vectors"])])
def test_parameter_groups_of_the_prompt(kind, parameters):
    model = synthetic.model(prompt=kind)
    names = {p: n for n, p in model.named_parameters()}
    assert [names[p] for g in model.groups("prompts") for p in g["params"]] == parameters


# -- phases ------------------------------------------------------------------------------------------------------------


def test_history_shows_the_phases(unbroken):
    _, history, _ = unbroken
    assert history.step.tolist() == list(range(1, STEPS + 1))
    assert history.phase.tolist() == [0] * 6 + [1] * 3 + [2] * 3
    assert history.side.tolist() == ["hcg"] * 6 + ["prompts"] * 3 + ["hcg"] * 3
    thirds = [0, 1 / 3, 2 / 3]
    assert history.epoch.tolist() == pytest.approx(
        [*thirds, *(1 + t for t in thirds), *thirds, *(2 + t for t in thirds)]
    )
    config = synthetic.config()
    for row in history.itertuples():
        epochs, warmup = (3, config.warmup_epochs) if row.side == "hcg" else (1, 0)
        assert row.lr == learning_rate(row.epoch, epochs, config.lr, config.min_lr, warmup)
    assert history.lr[0] == 0 and history.lr[6] == config.prompt_lr, "one warm-up on the image side, none for prompts"
    assert history[["ranking", "distillation"]].notna().all(axis=None)


def test_the_slow_twin(features, unbroken):
    """The same run written out plainly: everything computed anew at each step, gradients cut where a side is fixed."""
    model, space = synthetic.model().train(), features.space
    config = model.config
    optimizers = {side: torch.optim.AdamW(model.groups(side)) for side in TRAINABLE}
    for side, first, epochs in (("hcg", 0, 2), ("prompts", 0, 1), ("hcg", 2, 1)):
        for epoch in range(first, first + epochs):
            batches = BatchOrder(4, training._seed(config.seed, side, epoch)).batches(10)
            for b, rows in enumerate(batches):
                trunk, teacher, labels = features.batch(rows)
                e_g, regions = model.image_embeddings(trunk)
                t = model.label_embeddings(space.seen)
                if side == "hcg":
                    t = t.detach()
                else:
                    e_g, regions = e_g.detach(), regions.detach()
                s = scores.score(e_g, regions, t, config, select=False)
                loss = ranking_loss(s, labels[:, : space.n_seen])
                if side == "hcg":
                    loss = loss + config.distillation * distillation_loss(e_g, teacher)
                warmup, total = (0.5, 3) if side == "hcg" else (0, 1)
                lr = learning_rate(epoch + b / len(batches), total, 1e-3, 1e-6, warmup)
                for group in optimizers[side].param_groups:
                    group["lr"] = lr * group["lr_scale"]
                optimizers[side].zero_grad()
                loss.backward()
                optimizers[side].step()
    twin, ours = synthetic.weights(model), dict(unbroken[2])
    for weights in (twin, ours):  # the key bias has no gradient but rounding errors, which Adam blows up
        weights["block.attn.in_proj_bias"] = torch.cat(weights["block.attn.in_proj_bias"].chunk(3)[::2])
    for name, value in ours.items():
        torch.testing.assert_close(twin[name], value, rtol=0, atol=2e-5, msg=lambda m, name=name: f"{name}: {m}")


def test_it_learns(features):
    model = synthetic.model(phases=(("hcg", 4, 5),))
    history = train(model, features)
    assert history.ranking.iloc[-2:].mean() < history.ranking.iloc[:2].mean() - 0.05


@pytest.mark.slow
def test_optimiser_state_lives_across_phases(features, tmp_path):
    train(synthetic.model(), features, tmp_path)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    counts = {side: {int(p["step"]) for p in o["state"].values()} for side, o in state["optimizers"].items()}
    assert counts == {"hcg": {9}, "prompts": {3}}
    assert (state["step"], len(state["history"])) == (STEPS, STEPS)


@pytest.mark.parametrize(("optimizer", "kept"), [("adamw", "exp_avg"), ("adam", "exp_avg"), ("sgd", "momentum_buffer")])
def test_an_optimizer_of_the_configs_kind_is_resumed_to_the_same_bits(features, tmp_path, optimizer, kept):
    make = lambda kind=optimizer: template(optimizer=kind, lr=1e-2, phases=(("images", 2, 4),))
    plain, resumed = make(), make()
    train(plain, features)
    train(make(), features, tmp_path, stop_after=2)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["optimizers"]["images"]["state"]
    assert len(state) and all(kept in own and own[kept].abs().sum() > 0 for own in state.values())
    train(resumed, features, tmp_path)
    assert synthetic.same(synthetic.weights(plain), synthetic.weights(resumed))
    other = "adam" if optimizer == "sgd" else "sgd"
    with pytest.raises(ValueError, match=f"belongs to another run.*\n  optimizer: there '{optimizer}', here '{other}'"):
        train(make(other), features, tmp_path)


def test_sgd_is_the_plain_rule_with_momentum():
    """One parameter, two steps: v = m v + g + decay p, p = p - lr v; 1-D parameters do not decay."""
    model = template(optimizer="sgd", momentum=0.5, weight_decay=0.1)
    optimizer = model.optimizer(model.groups("images"))
    assert isinstance(optimizer, torch.optim.SGD)
    for group in optimizer.param_groups:
        group["lr"] = 0.2
    p = model.layer.weight
    expected, v = p.detach().clone(), 0.0
    for g in (1.0, -3.0):
        p.grad = torch.full_like(p, g)
        optimizer.step()
        v = 0.5 * v + g + 0.1 * expected
        expected = expected - 0.2 * v
        torch.testing.assert_close(p.detach(), expected)


def test_image_phases_leave_prompts_and_vlp_alone(features):
    model = synthetic.model(phases=(("hcg", 1, 4),))
    before = synthetic.weights(model)
    train(model, features)
    after = synthetic.weights(model)
    assert synthetic.same(before, after, "prompt.") and synthetic.same(before, after, "vlp.")
    moved = [n for n in after if n.startswith(TRAINABLE["hcg"]) and not torch.equal(before[n], after[n])]
    assert set(moved) == {n for n, _ in model.named_parameters() if n.startswith(TRAINABLE["hcg"])}


@pytest.mark.parametrize("kind", ["hybrid", "learnable"])
def test_prompt_phases_leave_the_image_side_alone(features, kind):
    model = synthetic.model(phases=(("prompts", 1, 4),), prompt=kind)
    before = synthetic.weights(model)
    train(model, features)
    after = synthetic.weights(model)
    learnt = {n for n, _ in model.named_parameters() if n.startswith("prompt.")}
    assert learnt == {n for n in after if not torch.equal(before[n], after[n])}


def test_a_fixed_prompt_has_no_prompt_phases(features, unbroken):
    model = synthetic.model(prompt="fixed")
    history = train(model, features)
    assert history.side.eq("hcg").all() and len(history) == 9
    _, hybrid, _ = unbroken
    image_side = hybrid[hybrid.side == "hcg"]
    assert history.lr.tolist() == image_side.lr.tolist(), "the image side's curve is the same without prompt phases"


def test_both_sides_at_once(features):
    """One phase trains everything: the image side as in its own phases, prompts at their own rate."""
    model = synthetic.model(phases=(("both", 1, 4),), prompt_lr=1e-4)
    before, learnt = synthetic.weights(model), {n for n, _ in model.named_parameters() if not n.startswith("vlp.")}
    history = train(model, features)
    after = synthetic.weights(model)
    assert {n for n in after if not torch.equal(before[n], after[n])} == learnt
    assert history.side.eq("both").all() and history.distillation.notna().all()
    scale = {n: g["lr_scale"] for g in model.groups("both") for n in named(model, g)}
    assert scale["prompt.vectors"] == pytest.approx(0.1) and scale["head.weight"] == 1.0


@pytest.mark.slow
def test_both_sides_learn_what_each_would_alone(features):
    """The first step of the image side does not depend on whether prompts learn beside it."""
    one, other = (synthetic.model(phases=((side, 1, 10),), warmup_epochs=0) for side in ("hcg", "both"))
    for model in (one, other):
        train(model, features, stop_after=1)
    a, b = synthetic.weights(one), synthetic.weights(other)
    for name in a:
        if name.startswith(TRAINABLE["hcg"]):
            far = (a[name] - b[name]).abs() > 2e-5  # Adam's first step is 1e-3 long
            assert far.double().mean() < 1e-4, f"{name}: rounding turns a gradient of almost nothing at most"


def named(model, group) -> list[str]:
    names = {p: n for n, p in model.named_parameters()}
    return [names[p] for p in group["params"]]


def test_convolutions_at_rest_stay_as_they_start(features):
    model = synthetic.model(phases=(("hcg", 1, 4),), merge_lr=0.0)
    before = synthetic.weights(model)
    train(model, features)
    after = synthetic.weights(model)
    rest = {n for n in before if n.startswith("gather.conv")}
    assert len(rest) == 4 and all(torch.equal(before[n], after[n]) for n in rest)
    assert not torch.equal(before["gather.norms.0.weight"], after["gather.norms.0.weight"])


@pytest.mark.slow
def test_a_checkpoint_older_than_a_field_of_the_config(features, tmp_path):
    model = synthetic.model()
    train(model, features, tmp_path, stop_after=2)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    del state["about"]["merge_lr"], state["about"]["levels"], state["about"]["vocabulary_seed"]
    torch.save(state, tmp_path / "checkpoint.pt")
    assert len(train(synthetic.model(), features, tmp_path)) == STEPS
    torch.save(state, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="merge_lr: there 1.0, here 0.5"):
        train(synthetic.model(merge_lr=0.5), features, tmp_path)
    with pytest.raises(ValueError, match="vocabulary_seed: there 0, here 1"):
        train(synthetic.model(vocabulary_seed=1), features, tmp_path)


def test_order_of_pictures_of_one_side_does_not_depend_on_the_other():
    def order(seed=1, side="hcg", epoch=2):
        return BatchOrder(8, training._seed(seed, side, epoch)).batches(20)

    a = order()
    assert [len(rows) for rows in a] == [8, 8, 4]
    assert sorted(torch.cat(a).tolist()) == list(range(20))
    for other in ({"seed": 2}, {"side": "prompts"}, {"epoch": 3}):
        b = order(**other)
        assert torch.cat(a).tolist() != torch.cat(b).tolist()


def test_only_switches_gradients():
    model = synthetic.model()
    for side in TRAINABLE:
        only(model, side)
        assert {n for n, p in model.named_parameters() if p.requires_grad} == {
            n for n, _ in model.named_parameters() if n.startswith(TRAINABLE[side])
        }


# -- what is never looked at -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_unseen_annotation_changes_nothing(features, unbroken):
    columns = features.space.columns("ZSL")
    for value in (-1, 0, 1):
        other = relabelled(features, lambda y, v=value: y[:, columns].fill_(v))
        assert synthetic.same(trained(other), unbroken[2])


@pytest.mark.slow
def test_seen_annotation_matters(features, unbroken):
    shuffled = dataclasses.replace(features, labels=features.labels.roll(1, dims=0))
    assert not synthetic.same(trained(shuffled), unbroken[2])


@pytest.mark.slow
def test_pictures_without_a_positive_seen_label_take_no_part(features, monkeypatch):
    space = features.space

    def empty(y):
        y[::3, : space.n_seen] = -1
        y[0, 1] = 0  # unknown is not a positive
        y[3, space.n_seen :] = 1  # nor is an unseen label

    features = relabelled(features, empty)
    rows = {"ranking_loss": [], "distillation_loss": []}
    for name in rows:
        real = getattr(method, name)

        def spy(a, b, reduction, name=name, real=real):
            rows[name].append(len(a))
            assert name == "distillation_loss" or (b == 1).any(dim=1).all()
            assert name == "distillation_loss" or b.shape[1] == space.n_seen
            return real(a, b, reduction)

        monkeypatch.setattr(method, name, spy)
    clean = trained(features)
    assert rows["ranking_loss"] == rows["distillation_loss"]
    assert sum(rows["ranking_loss"]) == 4 * (10 - 4), "each of 4 epochs sees the 6 kept pictures once"
    trunk, teacher = features.trunk[:], features.teacher.clone()
    trunk[::3], teacher[::3] = torch.nan, torch.nan
    assert synthetic.same(trained(dataclasses.replace(features, trunk=trunk, teacher=teacher)), clean)


def test_a_batch_without_positives_makes_no_step(features):
    features = relabelled(features, lambda y: y[1:].fill_(-1))
    model = synthetic.model(phases=(("hcg", 1, 4),))
    before = synthetic.weights(model)
    history = train(model, features)
    assert history.ranking.notna().sum() == 1 and len(history) == 3
    assert history.distillation.isna().tolist() == history.ranking.isna().tolist()
    assert not synthetic.same(before, synthetic.weights(model)) or history.lr[history.ranking.notna()].item() == 0


def test_no_positives_at_all_is_an_error(features):
    features = relabelled(features, lambda y: y[:, : features.space.n_seen].fill_(-1))
    with pytest.raises(ValueError, match="no picture has a positive seen label"):
        train(synthetic.model(), features)


def test_selection_takes_no_part_in_training(features, monkeypatch):
    def refuse(*_):
        raise AssertionError("RSS is for test time")

    monkeypatch.setattr(scores, "select_regions", refuse)
    model = synthetic.model(phases=(("hcg", 1, 10), ("prompts", 1, 10)))
    train(model, features)
    assert not model.training
    with pytest.raises(AssertionError, match="test time"):
        model.score_embeddings(torch.zeros(1, 128), torch.zeros(1, 140, 128), torch.zeros(3, 128))


# -- the same again ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_same_seed_same_bits(features, unbroken):
    model = synthetic.model().eval()  # a model that was just looked at trains like any other
    train(model, features)
    assert synthetic.same(synthetic.weights(model), unbroken[2])


@pytest.mark.slow
def test_the_seed_matters(features):
    a, b = synthetic.model(), synthetic.model()
    b.config = b.config.replace(seed=1)  # the same start, another order of pictures
    train(a, features), train(b, features)
    assert not synthetic.same(synthetic.weights(a), synthetic.weights(b), "head.")


@pytest.mark.slow
def test_bf16_is_a_switch_and_deterministic(features, unbroken):
    model = synthetic.model(bf16=True)
    history = train(model, features)
    after = synthetic.weights(model)
    assert all(v.dtype in (torch.float32, torch.int64) for v in after.values())
    assert not synthetic.same(after, unbroken[2])
    assert history.ranking.tolist() == pytest.approx(unbroken[1].ranking.tolist(), abs=0.1)
    assert synthetic.same(trained(features, bf16=True), after)


@pytest.mark.slow
def test_distillation_weight(features, unbroken):
    without = trained(features, distillation=0.0)
    assert not synthetic.same(without, unbroken[2])
    teacher = dataclasses.replace(features, teacher=features.teacher + 1)
    assert synthetic.same(trained(teacher, distillation=0.0), without), "weight 0: the teacher has no say"


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 3])
def test_a_dataset_smaller_than_a_batch(n):
    history = train(synthetic.model(), synthetic.features(n))
    assert len(history) == 4 and history.ranking.notna().all()


@pytest.mark.slow
def test_the_model_is_left_as_it_was(features, tmp_path):
    model = synthetic.model()
    learn = {n for n, p in model.named_parameters() if p.requires_grad}
    assert learn == {n for n, _ in model.named_parameters() if not n.startswith("vlp.")}
    broken = dataclasses.replace(features, trunk=torch.full_like(features.trunk[:], torch.nan))
    for run in (lambda: train(model, features, stop_after=7), lambda: train(model, broken)):
        try:
            run()
        except ValueError:
            pass
        assert {n for n, p in model.named_parameters() if p.requires_grad} == learn
        assert all(p.grad is None for p in model.parameters())
        assert not model.training
        assert model.reference_labels == features.space.seen


# -- interrupted -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("bf16", [False, True])
def test_stopped_in_mid_epoch_and_resumed(features, unbroken, tmp_path, bf16):
    lengths = []
    for stop_after in (2, 3, 3, None):  # at steps 2, 5, 8: all in the middle of an epoch
        model = synthetic.model(bf16=bf16)  # a fresh process would start like this
        history = train(model, features, tmp_path, save_every=1000, stop_after=stop_after)
        lengths.append(len(history))
    assert lengths == [2, 5, 8, STEPS]
    if not bf16:
        columns = [c for c in history.columns if c not in ("seconds", "waited")]
        assert history[columns].equals(unbroken[1][columns])
        assert synthetic.same(synthetic.weights(model), unbroken[2])
    else:
        assert synthetic.same(synthetic.weights(model), trained(features, bf16=True))


def die_at_step_ten(folder) -> None:
    """Train in this process until it is killed in the middle of the last phase's epoch, and of a checkpoint."""
    save = torch.save

    def save_or_die(state, path):
        if state["step"] == 10:
            path.write_bytes(b"half a check")
            os.kill(os.getpid(), signal.SIGKILL)
        save(state, path)

    torch.save = save_or_die
    train(synthetic.model(), synthetic.features(), folder, save_every=2)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_in_mid_epoch_and_resumed(features, unbroken, tmp_path):
    assert processes.run(die_at_step_ten, tmp_path) == [-signal.SIGKILL]
    (left,) = tmp_path.glob("checkpoint.pt.*.part")
    assert (left / "checkpoint.pt").read_bytes() == b"half a check"
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 8
    model = synthetic.model()
    history = train(model, features, tmp_path)
    assert history.step.tolist() == list(range(1, STEPS + 1))
    assert synthetic.same(synthetic.weights(model), unbroken[2])
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.pt", ".lock"}


@pytest.mark.slow
def test_a_finished_run_is_not_run_again(features, tmp_path, monkeypatch):
    model = synthetic.model()
    first = train(model, features, tmp_path)
    monkeypatch.setattr(training, "_step", None)
    again = synthetic.model()
    assert train(again, features, tmp_path).equals(first)
    assert synthetic.same(synthetic.weights(again), synthetic.weights(model))


def test_a_damaged_checkpoint_is_refused_and_a_folder_in_use(features, tmp_path):
    train(synthetic.model(), features, tmp_path, stop_after=1)
    with files.alone(tmp_path), ThreadPoolExecutor(1) as other:
        with pytest.raises(files.InUse, match="another run writes to .*: wait until it ends, or choose another folder"):
            other.submit(train, synthetic.model(), features, tmp_path).result()
    path = tmp_path / "checkpoint.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="checkpoint.pt is damaged, or no checkpoint .*: put a copy of it back, or"):
        train(synthetic.model(), features, tmp_path)


@pytest.mark.slow
def test_a_checkpoint_of_another_run_is_refused(features, tmp_path):
    train(synthetic.model(), features, tmp_path, stop_after=1)
    free = synthetic.model(val_size=7, workers=3)  # these two change no weight
    assert len(train(free, features, tmp_path, stop_after=1)) == 2
    with pytest.raises(ValueError, match="another run.*\n  lr: there 0.001, here 0.01$"):
        train(synthetic.model(lr=0.01), features, tmp_path)
    with pytest.raises(ValueError, match="another run.*\n  labels: there"):
        shuffled = dataclasses.replace(features, labels=features.labels.roll(1, dims=0))
        train(synthetic.model(), shuffled, tmp_path)
    with pytest.raises(ValueError, match="pictures: there 10, here 11"):
        train(synthetic.model(), synthetic.features(11), tmp_path)
    with pytest.raises(ValueError, match="\n  features: there"):
        train(synthetic.model(), dataclasses.replace(features, teacher=features.teacher + 1), tmp_path)
    with pytest.raises(ValueError, match="\n  seen labels: there"):
        space = LabelSpace(["a", "b", "c", "d", "e"], features.space.unseen)
        train(synthetic.model(), dataclasses.replace(features, space=space), tmp_path)
    with pytest.raises(ValueError, match="\n  precision: there float16, here bfloat16"):
        train(synthetic.model(), dataclasses.replace(features, trunk=features.trunk[:].bfloat16()), tmp_path)
    with pytest.raises(ValueError, match="\n  VLP: there"):
        model = synthetic.model()
        with torch.no_grad():
            model.vlp.model.text_projection.add_(1)
        train(model, features, tmp_path)


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def test_broken_features_are_named(features):
    trunk = features.trunk[:]
    trunk[8, 5, 7] = torch.nan
    with pytest.raises(ValueError, match=r"features of pictures \[8\]: look at them"):
        train(synthetic.model(), dataclasses.replace(features, trunk=trunk))
    teacher = features.teacher.clone()
    teacher[4] = torch.inf
    with pytest.raises(ValueError, match=r"features of pictures \[4\]"):
        train(synthetic.model(), dataclasses.replace(features, teacher=teacher))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"folder": ""}, "the folder of the run is an empty text"),
        ({"folder": "https://example.org/run"}, "the folder of the run is the address .*nothing is downloaded"),
        ({"save_every": 0}, "save_every = 0: give a whole number from 1"),
        ({"save_every": None}, "save_every = None: give a whole number from 1"),
        ({"stop_after": -1}, "stop_after = -1: give a whole number from 0"),
        ({"stop_after": "2"}, "stop_after = '2': give a whole number from 0"),
    ],
)
def test_odd_arguments_are_refused_before_the_first_step(features, given, says):
    with pytest.raises(ValueError, match=says):
        train(synthetic.model(), features, **given)


def test_what_is_no_method_is_refused(features):
    for call in (train, evaluate):
        with pytest.raises(TypeError, match="model is a NoneType, and no method: give one of methods.build"):
            call(None, features)
        with pytest.raises(TypeError, match="model is a FrozenFeatures, and no method"):
            call(features, synthetic.model())


def test_a_folder_in_the_place_of_a_checkpoint_is_named(features, tmp_path):
    (tmp_path / "checkpoint.pt").mkdir()
    with pytest.raises(IsADirectoryError, match="checkpoint.pt is a folder, where a checkpoint should be: move it"):
        train(synthetic.model(), features, tmp_path)


def test_labels_that_are_none_are_named(features):
    """Also of a picture that would be dropped, as one without a positive is."""
    labels = features.labels.clone().float()
    labels[6] = torch.nan
    with pytest.raises(ValueError, match="label 0 of picture 6 is nan: labels are -1, 0 or"):
        train(synthetic.model(), dataclasses.replace(features, labels=labels))


def test_divergence_is_named(features):
    with pytest.raises(FloatingPointError, match="training has diverged: lower lr"):
        train(synthetic.model(lr=1e30, warmup_epochs=0), features)


def test_augmentation_needs_pictures(features):
    with pytest.raises(ValueError, match="augment.*FrozenFeatures with augment 'none'"):
        train(synthetic.model(augment="rand-m9-mstd0.5-inc1"), features)
