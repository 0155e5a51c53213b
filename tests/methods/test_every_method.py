"""Every method that HRCF is compared with, through the same tests; then each one's own claims."""

import dataclasses
import json

import golden_clip
import numpy as np
import open_clip
import pandas as pd
import pytest
import synthetic
import torch
from PIL import Image
from torch.testing import assert_close

from hrcf_lib import config as configs
from hrcf_lib import evaluation, method, methods, studies
from hrcf_lib.apply.predict import classify
from hrcf_lib.data import benchmarks
from hrcf_lib.data.feeds import sources
from hrcf_lib.data.feeds.embeddings import embed
from hrcf_lib.engine import weights
from hrcf_lib.labels import LabelSpace
from hrcf_lib.losses import distillation_loss, ranking_loss
from hrcf_lib.methods import plain_vlp, registry
from hrcf_lib.methods.template import Template, TemplateConfig
from hrcf_lib.model import HRCF
from hrcf_lib.speed import method_costs as costs
from hrcf_lib.studies import one_run
from hrcf_lib.training import train

METHODS = (*methods.names("compared"), "template", "hrcf")
LEARNING = [name for name in METHODS if name != "pre_clip"]
UNSEEN = ["boat", "sea"]
KNOWN = ["owl", "pizza", "bus", "cat", "dog", "zebra", "sea"]  # words that the mini VLP was trained on


@pytest.fixture(autouse=True)
def with_template(monkeypatch):
    """The template is a method like any other, though ``names`` does not list it."""
    monkeypatch.setitem(methods.METHODS, "template", Template)


def experiment(**changes) -> configs.Config:
    return synthetic.config(**changes)


QUICK = {"clip_ft": {"blocks": 2}}  # of the ViT that are trained: all six take twice as long


def build(name: str, **changes):
    return methods.build(name, experiment(), pretrained=False, **QUICK.get(name, {}) | changes)


def pictures(n: int = 3, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (n, 3, 112, 112), dtype=np.uint8))


def features(**kwargs):
    return synthetic.features(**kwargs)


@pytest.fixture(scope="module")
def fitted():
    return synthetic.Fitted(build, features)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Folder of the frozen features of ``small``, which several studies share."""
    return tmp_path_factory.mktemp("features")


def small() -> configs.Config:
    """The mini preset on few pictures, in one step: a step of the prompts would embed all labels anew."""
    return configs.preset("mini").replace(phases=(("hcg", 1, 16),), train_size=16, val_size=8, test_size=8)


# The list of methods --------------------------------------------------------------------------------------------------


def test_names_are_those_of_the_issue_and_each_is_a_file():
    assert METHODS[:5] == ("pre_clip", "clip_ft", "mkt", "ovml_vlp", "biam")
    for name in METHODS:
        kind = methods.method(name)
        assert issubclass(kind, method.Method) and kind.Config.method == name
        assert len(kind.__doc__) > 20 and kind.title


@pytest.mark.parametrize("spelt", ["OVML-VLP", "ovml_vlp", "OVML", "ovml vlp"])
def test_a_method_may_be_called_as_in_tables(spelt):
    assert methods.method(spelt) is methods.method("ovml_vlp")
    assert methods.method("CLIP-ML") is methods.method("Pre-CLIP")


def test_an_unknown_method_is_an_error_with_the_nearest_name():
    with pytest.raises(ValueError, match="unknown method 'mtk'; did you mean 'mkt'.*known: hrcf, hrcf_open, pre_clip"):
        methods.build("MTK", experiment())


class Own(Template):
    """A method outside of the package."""

    title, Config = "Own", type("OwnConfig", (TemplateConfig,), {"method": "own"})


@pytest.mark.slow
def test_a_method_outside_of_the_package_is_entered_as_a_class(monkeypatch, tmp_path):
    monkeypatch.setitem(methods.METHODS, "own", Own)
    model = methods.build("own", experiment(), scale=0.5)
    train(model, features(space=LabelSpace(seen=KNOWN[:5], unseen=KNOWN[5:])))
    again = methods.load(model.save_pretrained(tmp_path))
    assert type(again) is Own and again.config.scale == 0.5
    assert torch.equal(again.score(pictures(), KNOWN), model.score(pictures(), KNOWN))
    monkeypatch.setitem(methods.METHODS, "other", Own)
    with pytest.raises(ValueError, match="METHODS has Own as 'other', its OwnConfig says method = 'own': give both"):
        methods.build("other", experiment())


def test_slips_of_a_new_method_are_named():
    wrong = type("Wrong", (Template,), {"trainable": {"images": ("layr.",), "prompts": ()}})
    with pytest.raises(
        ValueError, match="Template has parameters such as 'layer.weight', and its trainable names none"
    ):
        train(wrong(TemplateConfig.of(experiment()), pretrained=False), features())
    alone = type("Alone", (Template,), {"losses": lambda self, *a: {"ranking": Template.losses(self, *a)["ranking"]}})
    with pytest.raises(ValueError, match="losses of Template gives ranking, its weights names ranking, distillation"):
        train(alone(TemplateConfig.of(experiment()), pretrained=False), features())


# Configs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("preset", list(configs.PRESETS))
def test_a_config_keeps_the_experiment_and_has_the_methods_own_values(name, preset):
    base = configs.PRESETS[preset]()
    config = methods.configure(name, base)
    for field in ("dataset", "vlp", "vlp_weights", "train_size", "test_size", "protocol", "ks", "seed", "bf16", "name"):
        assert getattr(config, field) == getattr(base, field)
    if name != "hrcf":
        own = {f.name: f.default for f in dataclasses.fields(type(config))}
        own |= type(config).small if preset in ("mini", "mini_short", "mini_open") else {}
        assert (config.lr, config.lam, config.prompt) == (own["lr"], own["lam"], own["prompt"])
    assert config.changes() == {}
    passes = lambda c: sum(p.epochs for p in c.phases)
    assert passes(config) == passes(base), "the same number of passes over the pictures"
    assert configs.from_dict(json.loads(json.dumps(config.to_dict())), type(config)) == config


@pytest.mark.parametrize("name", methods.names("compared"))
def test_what_was_changed_by_hand_stays_changed(name):
    config = methods.configure(name, configs.mini().replace(lr=0.5, seed=7, train_size=99), weight_decay=0.25)
    assert (config.lr, config.seed, config.train_size, config.weight_decay) == (0.5, 7, 99, 0.25)
    assert config.changes() == {"lr": 0.5, "seed": 7, "train_size": 99, "weight_decay": 0.25}
    assert methods.configure(name, config, lr=0.1).lr == 0.1, "a method's own config is taken as it is"


def test_bad_configs_are_errors_that_name_the_field():
    with pytest.raises(ValueError, match="unknown config name 'topkk'; did you mean 'topk'"):
        build("mkt", topkk=3)
    with pytest.raises(ValueError, match="topk = 0 must be at least 1"):
        build("mkt", topk=0)
    with pytest.raises(ValueError, match="blocks = 7 of a ViT with 6: choose from 0"):
        build("mkt", blocks=7)
    with pytest.raises(ValueError, match="MKT takes a MKTConfig, not a Config.*methods.build\\('mkt', config\\)"):
        methods.method("mkt")(experiment())
    with pytest.raises(ValueError, match="HRCF takes a Config, not a MKTConfig: use methods.build\\('hrcf', config\\)"):
        HRCF(methods.configure("mkt", experiment()))
    with pytest.raises(ValueError, match="BiAMConfig cannot be made of a MKTConfig"):
        methods.build("biam", methods.configure("mkt", experiment()))
    with pytest.raises(ValueError, match="unknown prompt_set 'fotos'; did you mean 'photo'"):
        build("pre_clip", prompt_set="fotos")
    with pytest.raises(ValueError, match="HRCF has no side that phases call 'images'"):
        train(HRCF(experiment(phases=(("images", 1, 4),)), pretrained=False), features())


def test_a_smoke_run_shrinks_a_method_too(monkeypatch):
    monkeypatch.setenv("HRCF_SIZE", "smoke")
    config = methods.configure("mkt", configs.preset("mini"))
    assert config.train_size == 48 and [p.epochs for p in config.phases] == [2, 1]
    assert config.smoke().phases[0].epochs == 1


# Scores ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_scores_of_any_labels(fitted, name):
    model = fitted[name][0]
    names = ["cat", "boat", "zebra crossing", "sun"]  # seen, unseen, never heard of, seen
    s = model.score(pictures(), names)
    assert s.shape == (3, 4) and s.dtype == torch.float32 and s.isfinite().all()
    assert s.std(dim=1).min() > 0, "labels differ"
    assert s.std(dim=0).max() > 0, "pictures differ"
    assert not s.requires_grad
    assert model.score(pictures(1), ["boat"]).shape == (1, 1)
    order = [2, 0, 3, 1]
    assert_close(model.score(pictures(), [names[i] for i in order]), s[:, order], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert_close(model.score(pictures(), model.label_embeddings(names)), s)
    assert_close(model.score(pictures(5), names, batch=2)[:3], s, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_a_score_is_that_of_evaluation_mode_and_changes_nothing(fitted, name):
    model = fitted[name][0]
    s, state, before = model.score(pictures(), UNSEEN), torch.get_rng_state(), synthetic.weights(model)
    model.train()
    assert torch.equal(model.score(pictures(), UNSEEN), s)
    assert model.training and synthetic.same(before, synthetic.weights(model))
    assert torch.equal(torch.get_rng_state(), state)
    model.eval()


@pytest.mark.parametrize("name", METHODS)
def test_a_label_alone_is_scored_as_beside_the_reference_vocabulary(fitted, name):
    """Methods whose labels are independent take the short way, which gives what the long one gives."""
    model = fitted[name][0]
    with torch.no_grad():
        e_g, regions = model.image_embeddings(model.vlp.trunk(pictures()))
        t = model.label_embeddings(["cat", "dog", "bus", *UNSEEN])
        whole = [model.score_embeddings(e_g, regions, t[[0, 1, 2, k]])[:, -1] for k in (3, 4)]
        assert_close(model.score_alone(e_g, regions, t[:3], t[3:]), torch.stack(whole, dim=1), rtol=1e-4, atol=1e-5)
    short = {"biam", "lesa", "zs_sdl", "gen_mlzsl", "ml2p_encoder", "ovml_vlp"}
    assert model.independent_labels == (name in short)


@pytest.mark.parametrize("name", METHODS)
def test_frozen_features_give_the_scores_of_pictures(fitted, name):
    model = fitted[name][0]
    trunk = model.vlp.trunk(pictures())
    with torch.no_grad():
        s = model.score_embeddings(*model.image_embeddings(trunk), model.label_embeddings(UNSEEN))
        assert_close(s, model.score(pictures(), UNSEEN), rtol=1e-4, atol=1e-5)
        assert_close(s, model(pictures(), UNSEEN), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_evaluation_takes_any_method(fitted, name):
    model, data = fitted[name][0], features(n=12, seed=4)
    table = evaluation.evaluate(model, data)
    assert list(table.index) == ["ZSL", "GZSL"] and table["mAP"].between(0, 100).all()
    with torch.no_grad():
        e_g, regions = model.image_embeddings(data.batch(torch.arange(12))[0])
        s = model.score_embeddings(e_g, regions, model.label_embeddings(UNSEEN))
    assert table.loc["ZSL", "mAP"] == pytest.approx(
        evaluation.metrics_row(s, data.labels[:, 5:], (1,))["mAP"], abs=1e-4
    )


def test_labels_that_were_trained_on_are_not_called_unseen_in_silence(fitted):
    model, data = fitted["mkt"][0], features(n=12)
    data.space = LabelSpace(seen=["boat", "sea", "bus", "sun", "tree"], unseen=["cat", "dog"])
    with pytest.warns(UserWarning, match="trained on labels that are called unseen here: cat, dog; ZSL is not"):
        evaluation.evaluate(model, data)


@pytest.mark.parametrize("name", METHODS)
def test_bad_pictures_and_labels_are_refused(fitted, name):
    model = fitted[name][0]
    with pytest.raises(ValueError, match=r"takes pictures \(B, 3, 112, 112\), got \(2, 3, 64, 64\); resize"):
        model.score(pictures(2)[:, :, :64, :64], UNSEEN)
    with pytest.raises(ValueError, match=r"images is a list: give a tensor \(B, 3, 112, 112\)"):
        model.score([pictures(1)[0]], UNSEEN)
    with pytest.raises(ValueError, match="uint8 in 0..255 or float"):
        model.score(pictures(2).int(), UNSEEN)
    with pytest.raises(ValueError, match=r"scores of pictures \[1\] are NaN"):
        odd = pictures(2).float() / 255
        odd[1, 0, 5, 5] = torch.nan
        model.score(odd, UNSEEN)
    for names, says in ([], "labels is empty"), (["cat", "cat"], "'cat' occurs 2 times"), ([" "], "is blank"):
        with pytest.raises(ValueError, match=says):
            model.score(pictures(1), names)
    with pytest.raises(ValueError, match=r"not a list of names; write \['cat'\]"):
        model.score(pictures(1), "cat")
    with pytest.raises(ValueError, match="tokens, the text tower takes 32"):
        model.score(pictures(1), ["a very long name " * 12])
    assert not model.training


# Training -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_fit_trains_what_the_groups_say_and_nothing_else(fitted, name):
    model, before, _ = fitted[name]
    after = synthetic.weights(model)
    listed = [n for side in model.trainable if side != "both" for group in model.groups(side) for n in group["names"]]
    assert len(listed) == len(set(listed)), "no parameter in two groups"
    assert set(listed) == {n for n, _ in model.named_parameters() if not n.startswith("vlp.")}
    moved = {n for n in after if not torch.equal(before[n], after[n])}
    buffers = {n for n, _ in model.named_buffers()}
    idle = {n for n in listed if n not in moved}
    assert moved - buffers <= set(listed) and len(idle) <= len(listed) // 3, idle
    assert model.reference_labels == synthetic.SPACE.seen
    assert not model.training and all(p.requires_grad == (n in listed) for n, p in model.named_parameters())


@pytest.mark.parametrize("name", METHODS)
def test_groups_hold_what_an_optimizer_takes(name):
    model = build(name)
    of = dict(model.named_parameters())
    for side in model.trainable:
        for group in model.groups(side):
            assert all(of[n] is p for n, p in zip(group["names"], group["params"], strict=True))
            assert 0 < group["lr_scale"] <= 1
            assert (
                all((p.ndim > 1) == (group["weight_decay"] > 0) for p in group["params"])
                or not model.config.weight_decay
            )


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNING)
def test_the_same_seed_gives_the_same_bits_whatever_unseen_columns_hold_and_another_does_not(fitted, name):
    model, _, history = fitted[name]
    again, data = build(name), features()
    data.labels[:, synthetic.SPACE.n_seen :] *= -1
    torch.manual_seed(123)  # whatever the global random state is
    rerun = train(again, data)
    assert synthetic.same(synthetic.weights(again), synthetic.weights(model))
    columns = [c for c in history.columns if c not in ("seconds", "waited")]
    pd.testing.assert_frame_equal(rerun[columns], history[columns])
    other = build(name, seed=1)
    train(other, features(), stop_after=1)
    assert not synthetic.same(synthetic.weights(other), synthetic.weights(model))


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNING)
def test_an_interrupted_run_goes_on_to_the_same_bits(fitted, name, tmp_path):
    model = fitted[name][0]
    train(build(name), features(), tmp_path, stop_after=5)
    again = build(name)
    history = train(again, features(), tmp_path)
    assert len(history) == len(fitted[name][2])
    assert synthetic.same(synthetic.weights(again), synthetic.weights(model))
    with pytest.raises(ValueError, match="belongs to another run"):
        train(build(name, lr=0.5), features(), tmp_path)


def test_a_checkpoint_of_another_method_is_refused(monkeypatch, tmp_path):
    """Also where config and weights would fit. One that is older than this says no method, and is taken up."""
    train(build("template"), features(), tmp_path, stop_after=3)
    file = tmp_path / "checkpoint.pt"
    state = torch.load(file, weights_only=True)
    with pytest.raises(ValueError, match="belongs to another run.*\n  method: there template, here own"):
        train(Own(Own.Config.of(experiment()), pretrained=False), features(), tmp_path)
    del state["about"]["method"]
    torch.save(state, file)
    assert len(train(build("template"), features(), tmp_path)) > 3


def test_features_that_leave_the_vit_elsewhere_are_refused():
    """Tokens have one shape at every depth: a method would train on them without a sign."""
    config = experiment(train_size=4)
    data = sources.source(methods.build("mkt", config, pretrained=False), "train")
    other = methods.build("biam", config, pretrained=False)
    says = "tokens before the last 2 blocks of the ViT, BiAM takes those before the last 0: make them for this model"
    with pytest.raises(ValueError, match=says):
        train(other, data)
    for look in (evaluation.evaluate, embed):
        with pytest.raises(ValueError, match=says):
            look(other, data.take([0, 1]))


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNING)
def test_training_lowers_the_loss(name):
    """On 10 pictures that can be learnt by heart."""
    model = build(name, phases=(("images" if name != "hrcf" else "hcg", 12, 5),), lr=3e-3)
    history = train(model, features())
    weights = model.weights("images")
    loss = sum(weight * history[part] for part, weight in weights.items())
    assert loss.tail(6).mean() < loss.head(6).mean()
    assert list(history.columns[5:-2]) == list(weights)


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNING)
def test_pictures_without_a_positive_take_no_part(name):
    data = features()
    data.labels[::3, : synthetic.SPACE.n_seen] = -1
    found = []
    for value in (0.0, 5.0):
        trunk = data.trunk[:].clone()
        trunk[::3] = value
        model = build(name)
        train(model, dataclasses.replace(data, trunk=trunk), stop_after=7)  # of the image side 6, of the prompts 1
        found.append(synthetic.weights(model))
    assert synthetic.same(*found)


@pytest.mark.parametrize("name", LEARNING)
def test_a_diverged_run_says_so(name):
    model = build(name, lr=1e30, prompt_lr=1e30, warmup_epochs=0.0)
    with pytest.raises((FloatingPointError, ValueError), match="diverged: lower lr|NaN or infinite features"):
        train(model, features())


# Saving ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_save_and_load(name, tmp_path):
    model = methods.build(name, experiment(), **QUICK.get(name, {}))  # the shipped VLP, found again on loading
    train(model, features(space=LabelSpace(seen=KNOWN[:5], unseen=KNOWN[5:])))
    names = ["owl", "pizza", "bus"]
    s = model.score(pictures(), names)
    folder = model.save_pretrained(tmp_path / "saved")
    again = methods.load(folder)
    assert type(again) is type(model) and again.config == model.config and not again.training
    assert torch.equal(again.score(pictures(), names), s)
    assert again.reference_labels == model.reference_labels
    assert not any(n.startswith("vlp.") for n in weights.read_tensors(folder / "model.safetensors"))
    found = classify([Image.fromarray(p.permute(1, 2, 0).numpy()) for p in pictures()], names, again, top_k=2)
    assert list(found.groupby("image").size()) == [2, 2, 2] and found["score"].notna().all()
    other = methods.method("mkt" if name != "mkt" else "biam")
    with pytest.raises(ValueError, match=f"holds a '{name}', not '.*': use methods.load"):
        other.from_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="model.safetensors cannot be read"):
        methods.load(folder)


def test_a_folder_of_nothing_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no config.json: give a folder that save_pretrained wrote"):
        methods.load(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="is not a config of save_pretrained"):
        methods.load(tmp_path)


# Studies and fit ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_studies_train_methods_side_by_side_and_search_on_val(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("HRCF_SIZE", "smoke")
    base = small()
    variants = {
        kind.title: methods.configure(name, base) for name in ("pre_clip", "mkt") for kind in [methods.method(name)]
    }
    feats = studies.shelf(base, cache=cache)
    outcomes = studies.run_all(base, {"HRCF": {}} | variants, [0], feats, tmp_path / "runs", resamples=5)
    assert set(outcomes) == {("HRCF", 0), ("Pre-CLIP", 0), ("MKT", 0)}
    assert outcomes["MKT", 0].folder.name.startswith("mini-mkt-")
    counted = outcomes["MKT", 0].about["trained_parameters"]
    assert set(counted) == {"image side", "text side"} and all(counted.values())
    assert outcomes["Pre-CLIP", 0].about["trained_parameters"] == {"image side": 0, "text side": 0}
    mtime = (outcomes["MKT", 0].folder / "record.json").stat().st_mtime_ns
    studies.run(variants["MKT"].smoke(), feats, tmp_path / "runs", resamples=5)
    assert (outcomes["MKT", 0].folder / "record.json").stat().st_mtime_ns == mtime, "never computed twice"
    settings = {"": {}, "global": {"lam": 0.0}}
    grid = {"lr": [1e-3, 1e-2], "topk": [16, 2]}
    best, frame = studies.search(variants["MKT"], grid, feats, tmp_path / "search", settings)
    assert len(frame) == 8 and {"lr", "topk"} <= set(best) <= {"lr", "topk", "lam"}
    for field, part in frame.groupby("field"):
        chosen = part[part["chosen"]]
        assert chosen["mean"].item() == part["mean"].max() and chosen["value"].item() == best[field]
    assert ("lam" in best) == (chosen["setting"].item() == "global")
    assert frame["mean"].tolist() == pytest.approx(frame[["mAP ZSL", "mAP GZSL"]].mean(axis=1).tolist())
    scored = [json.loads(p.read_text()) for p in (tmp_path / "search").glob("*/record.json")]
    assert len(scored) == 3, "the value that both steps share is trained once"
    assert {row["split"] for record in scored for row in record["tables"]["metrics"]} == {"val"}, (
        "test is not looked at"
    )


@pytest.mark.slow
def test_a_search_goes_on_where_one_value_diverges(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("HRCF_SIZE", "smoke")
    base = configs.preset("mini").replace(val_size=8, test_size=8)  # of several steps, as the first has a rate near 0
    feats, mkt = studies.shelf(base, cache=cache), methods.configure("mkt", base)
    with pytest.warns(UserWarning, match=r"lr = 1e\+30 is left out of the search: .*diverged"):
        best, frame = studies.search(mkt, {"lr": [1e30, 1e-3]}, feats, tmp_path / "search")
    assert best == {"lr": 1e-3} and frame["mean"].isna().tolist() == [True, False]
    with pytest.warns(UserWarning, match="left out"), pytest.raises(FloatingPointError, match="every lr of .*: give"):
        studies.search(mkt, {"lr": [1e30]}, feats, tmp_path / "search")


@pytest.mark.slow
def test_a_shelf_holds_one_experiment(tmp_path):
    base = configs.mini().replace(train_size=8, val_size=4, test_size=4)
    feats = studies.shelf(base, cache=tmp_path)
    mkt = methods.configure("mkt", base)
    small = feats(mkt.replace(train_size=3, test_size=1))
    assert {split: len(data) for split, data in small.items()} == {"train": 8, "val": 4, "test": 4, "test-line": 4}
    assert feats(mkt.replace(lr=0.5, seed=3)) is small, "shared by all configs that cut the ViT there"
    assert feats(mkt.replace(blocks=1)) is feats(base) and feats(base) is not small
    with pytest.raises(ValueError, match="another experiment \\(data_seed = 1, here 0\\)"):
        feats(mkt.replace(data_seed=1))
    with pytest.raises(ValueError, match="train_size = 9, here 8"):
        feats(mkt.replace(train_size=9))


@pytest.mark.slow
def test_the_command_line_trains_a_method(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HRCF_SIZE", "smoke")
    one_run.main(["mini", "--method", "mkt", "--out", str(tmp_path / "out"), "--set", "topk", "8"])
    assert "ZSL" in capsys.readouterr().out
    model = methods.load(tmp_path / "out" / "model")
    assert (type(model).title, model.config.topk, model.config.train_size) == ("MKT", 8, 48)
    with pytest.raises(SystemExit) as stop:
        one_run.main(["mini", "--method", "mtk"])
    assert stop.value.code == 2 and "did you mean 'mkt'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_methods_own_config_goes_through_files_and_names_its_folder(tmp_path, monkeypatch):
    """``launch`` writes such a file; a plain config may be trained by any method."""
    monkeypatch.setenv("HRCF_SIZE", "smoke")
    base = configs.preset("mini").replace(test_size=4, train_size=16)
    own = methods.configure("biam", base, topk=3)
    for config, expected in ((own, own), (base, methods.configure("biam", base))):
        (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
        read = one_run._preset(str(tmp_path / "config.json"), "biam")
        assert type(read) is type(config) and methods.configure("biam", read) == expected
    monkeypatch.chdir(tmp_path)
    one_run.run(own)
    assert methods.load("runs/mini-biam/model").config == own, "beside runs/mini, which is HRCF's"
    with pytest.raises(ValueError, match="MKTConfig cannot be made of a BiAMConfig"):
        one_run.run(own, method="mkt")


@pytest.mark.slow
def test_a_setting_of_the_label_side_is_scored_with_its_own_label_embeddings(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("HRCF_SIZE", "smoke")
    base = methods.configure("pre_clip", small())
    runs, feats = tmp_path / "runs", studies.shelf(base, cache=cache)(base)
    feats = {split: feats[split] for split in ("train", "test")}
    monkeypatch.setitem(plain_vlp.PROMPTS, "ensemble", plain_vlp.PROMPTS["ensemble"][:2])
    settings = {"": {}, "ensemble": {"prompt_set": "ensemble"}, "cosine": {"similarity": "cosine"}}
    studies.run(base, feats, runs, settings, resamples=5)
    data = feats["test"]
    for setting in settings.values():
        expected = evaluation.score_all(
            embed(model := registry.for_config(base.replace(**setting)).eval(), data),
            model.label_embeddings(data.space.view("ZSL").names),
            model.score_embeddings,
        )
        assert_close(studies.scored(base, feats, runs, setting=setting)["ZSL"], expected)
    record = json.loads(next(runs.glob("*/record.json")).read_text())["tables"]["metrics"]
    row = next(r for r in record if (r["setting"], r["split"], r["task"]) == ("ensemble", "test", "ZSL"))
    whole = evaluation.evaluate(registry.for_config(base.replace(prompt_set="ensemble")), data, ("ZSL",))
    assert row["mAP"] == pytest.approx(whole.loc["ZSL", "mAP"], abs=1e-9)


def test_features_of_another_depth_are_another_cache(tmp_path):
    config = configs.mini().replace(test_size=6)
    at = {}
    for blocks in (1, 2):
        model = methods.build("mkt", config, blocks=blocks)
        data = sources.source(model, "test", cache=tmp_path)
        at[blocks] = data.trunk[:].float()
        pictures = torch.stack([benchmarks.open_split(config, "test", side=112)[i][0] for i in range(6)])
        assert_close(at[blocks], model.vlp.trunk(pictures).half().float(), rtol=2e-3, atol=2e-3)
        assert_close(data.teacher, model.vlp.encode_image(pictures), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(at[1], at[2], atol=0.1)


@pytest.mark.slow
def test_scored_gives_what_evaluation_measures(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("HRCF_SIZE", "smoke")
    base = small()
    feats = studies.shelf(base, cache=cache)
    config = methods.configure("mkt", base)
    table = studies.run(config, feats, tmp_path / "runs", resamples=5).table.set_index(["split", "task"])
    found = studies.scored(config, feats, tmp_path / "runs")
    assert set(found) == {"ZSL", "GZSL", "seen"}
    test = feats(config)["test"]
    for task, scores in found.items():
        row = evaluation.metrics_row(scores, test.labels[:, test.space.columns(task)], config.ks)
        assert row["mAP"] == pytest.approx(table.loc[("test", task), "mAP"], abs=1e-9)
    other = studies.scored(config, feats, tmp_path / "runs", "val", {"lam": 0.0})
    assert not torch.equal(other["seen"], studies.scored(config, feats, tmp_path / "runs", "val")["seen"])


@pytest.mark.slow
def test_costs_are_of_all_methods_and_change_none(fitted):
    """Times are machines' own; counts, steps of both sides and untouched weights are not."""
    configs_of = {methods.method(name).title: experiment_of(name) for name in METHODS}
    frame = costs.costs(configs_of, KNOWN, rounds=1, steps=2, pictures=2).set_index("method")
    assert list(frame.index) == list(configs_of)
    for name in METHODS:
        row, model = frame.loc[methods.method(name).title], fitted[name][0]
        for side, column in (
            ("images" if "images" in model.trainable else "hcg", "image side"),
            ("prompts", "text side"),
        ):
            numbers = sum(p.numel() for group in model.groups(side) for p in group["params"])
            assert row[column] == numbers
            step = row["step of images, ms" if column == "image side" else "step of prompts, ms"]
            assert np.isnan(step) if not numbers else step > 0
        assert row["ms_per_picture"] > 0 and (row["training_seconds"] > 0) == (name != "pre_clip")
    model = build("mkt", augment="rand-m9-mstd0.5-inc1")
    before = synthetic.weights(model)
    assert set(costs._steps(model, KNOWN, 2)) == {"images", "prompts"}
    moved = [n for n, v in synthetic.weights(model).items() if not torch.allclose(v, before[n], atol=1e-6)]
    assert not moved


def experiment_of(name: str):
    return methods.configure(name, experiment(train_size=10), **QUICK.get(name, {}))


def test_parameters_are_counted_in_millions_and_mkt_stands_twice(monkeypatch):
    monkeypatch.setattr(costs, "NAMES", ("mkt", "hrcf"))
    frame, blocks = costs.counted("mini")
    assert list(frame["method"]) == ["MKT", "MKT with the unused MLP", "HRCF"]
    assert frame["all"].tolist() == pytest.approx((frame["image side"] + frame["text side"]).tolist())
    model = build("mkt")
    with_mlp, without = frame["image side"][1], frame["image side"][0]
    assert 1e6 * (with_mlp - without) == pytest.approx(model.unused_parameters)
    assert dict(blocks.values) == {"MKT": 2, "HRCF": 1}


# Pre-CLIP -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("prompt", "similarity"), [("photo", "dot"), ("ensemble", "cosine"), ("name", "softmax")])
def test_pre_clip_is_the_zero_shot_evaluation(prompt, similarity):
    model = build("pre_clip", prompt_set=prompt, similarity=similarity)
    data = features(n=12)
    e_p = model.vlp.teacher(data.trunk[:].float())
    plain = dataclasses.replace(data, teacher=e_p)
    expected = plain_vlp.zero_shot(model.vlp, plain, prompt, similarity, ks=(1, 2))
    pd.testing.assert_frame_equal(evaluation.evaluate(model, data), expected)
    assert not len(train(model, data)) and model.groups("images") == []


# MKT and CLIP-FT against MKT's code -----------------------------------------------------------------------------------


@pytest.fixture
def golden(monkeypatch, tmp_path):
    """``build(name, **changes)`` on the tiny CLIP that the golden arrays were made with."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "golden-quickgelu", golden_clip.CONFIG)
    weights.write_tensors(golden_clip.state(), tmp_path / "clip.safetensors")
    base = configs.mini().replace(vlp="golden-quickgelu", vlp_weights=str(tmp_path / "clip.safetensors"), bf16=False)

    def make(name, **changes):
        model = methods.build(name, base, **changes)
        model.vlp.mean.zero_(), model.vlp.std.fill_(1)  # the golden picture is normalised already
        return model.eval()

    return make


CLOSE = dict(rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("blocks", [0, 1, 2, 3])
def test_mkt_scores_as_its_code_wherever_the_trunk_is_cut(golden, blocks):
    arrays = golden_clip.arrays("mkt_clipvit")
    model = golden("mkt", topk=4, blocks=blocks)
    e_g, patches = model.image_embeddings(model.vlp.trunk(arrays["image"]))
    assert_close(e_g, arrays["dist_feat"], **CLOSE)
    assert_close(patches, arrays["pred_feat"], **CLOSE)
    assert_close(model.score(arrays["image"], arrays["label_emb"]), arrays["score"], **CLOSE)
    plain = model.under(model.config.replace(normalize_fusion=False))
    assert_close(plain.score(arrays["image"], arrays["label_emb"]), arrays["score_unnormalised"], **CLOSE)
    assert_close(model.vlp.encode_image(arrays["image"]), arrays["clip_encode_image_cls"], **CLOSE)
    names = golden_clip.NAMES["names"]
    assert_close(model.label_embeddings(names), golden_clip.arrays("mkt_prompt_text")["text_emb"], **CLOSE)


def test_mkt_has_the_losses_and_gradients_of_its_code(golden):
    arrays, model = golden_clip.arrays("mkt_clipvit"), golden("mkt", topk=4)
    model.vlp.requires_grad_(True)  # the golden gradients are of all weights
    t = arrays["label_emb"].clone().requires_grad_()
    e_g, regions = model.image_embeddings(model.vlp.trunk(arrays["image"]))
    parts = model.losses(e_g, regions, t, arrays["labels"], arrays["teacher_feat"])
    assert_close(parts["ranking"], arrays["rank_loss"], rtol=1e-5, atol=0)
    assert_close(parts["distillation"], arrays["dist_loss"], rtol=1e-5, atol=0)
    assert model.weights("images") == {"ranking": 1.0, "distillation": 1.0}, "their plain sum"
    sum(parts.values()).backward()
    ours = {
        "grad_label_emb": t.grad,
        "grad_projection_dist": model.head.weight.grad.T,
        "grad_last_block_in_proj": model.block[-1].attn.in_proj_weight.grad,
        "grad_conv1": model.vlp.model.visual.conv1.weight.grad,
    }
    for name, grad in ours.items():
        scale = float(arrays[name].abs().max())
        assert_close(grad, arrays[name], rtol=1e-4, atol=2e-5 * scale, msg=lambda text, name=name: f"{name}: {text}")


def test_clip_ft_is_the_global_stream_of_mkts_code(golden):
    arrays = golden_clip.arrays("mkt_clipvit")
    for blocks in (None, 1):
        model = golden("clip_ft", blocks=blocks)
        assert model.vlp.trained_blocks == (3 if blocks is None else 1)
        assert_close(model.score(arrays["image"], arrays["label_emb"]), arrays["score_global_only"], **CLOSE)
    e_g, regions = model.image_embeddings(model.vlp.trunk(arrays["image"]))
    loss = model.losses(e_g, regions, arrays["label_emb"], arrays["labels"], arrays["teacher_feat"])["ranking"]
    assert_close(loss, ranking_loss(arrays["score_global_only"], arrays["labels"]), rtol=1e-4, atol=1e-5)
    assert model.weights("images")["distillation"] == 0


@pytest.fixture(scope="module")
def big():
    """MKT and CLIP-FT on ViT-B/16: shapes only."""
    return {name: methods.build(name, configs.nus_wide(), pretrained=False) for name in ("mkt", "clip_ft")}


def test_mkts_groups_are_those_of_its_code(big):
    rule = json.loads((golden_clip.FOLDER / "mkt_stage1_param_groups.json").read_text("utf-8"))
    theirs = {n: (g["lr_scale"], g["weight_decay"]) for g in rule["stage1_groups"].values() for n in g["params"]}
    renamed = {}
    for name, values in theirs.items():
        if name.startswith("projection."):  # the MLP that is never used
            continue
        name = name.replace("projection_dist", "head.weight")
        for i in (10, 11):
            name = name.replace(f"transformer.resblocks.{i}.", f"block.{i - 10}.")
        renamed[name] = values
    ours = {n: (g["lr_scale"], g["weight_decay"]) for g in big["mkt"].groups("images") for n in g["names"]}
    assert ours.keys() == renamed.keys()
    for name, (scale, decay) in renamed.items():
        assert ours[name] == (pytest.approx(scale, rel=1e-12), decay), name


@pytest.mark.parametrize(("stage", "side", "epochs"), [("stage1", "images", 20), ("stage2", "prompts", 4)])
def test_mkts_learning_rates_are_those_of_its_code(stage, side, epochs):
    golden = np.load(golden_clip.FOLDER / "mkt_lr_schedule.npz", allow_pickle=False)
    model = build("mkt", lr=1e-3, prompt_lr=1e-3, warmup_epochs=2.0)
    ours = [model.learning_rate(side, e, epochs) for e in golden[f"{stage}__epoch64"].tolist()]
    assert ours == golden[f"{stage}__lr"].tolist(), "the same 64-bit floats"


def test_mkt_counts_with_and_without_the_mlp_that_is_never_used(big):
    count = lambda model, side: sum(p.numel() for g in model.groups(side) for p in g["params"])
    assert count(big["mkt"], "images") == 14_570_496
    assert big["mkt"].unused_parameters == 656_384
    assert round((14_570_496 + 656_384) / 1e6, 1) == 15.2, "as printed in Table VI"
    assert count(big["mkt"], "prompts") == 25_296_896, "25.3 M"
    assert count(big["clip_ft"], "images") == 12 * 7_087_872 + 1_536 + 393_216


def test_mkts_second_stage_leaves_the_image_side_alone_and_distils_nothing():
    model = build("mkt", phases=(("prompts", 2, 5),))
    before = synthetic.weights(model)
    history = train(model, features())
    after = synthetic.weights(model)
    assert {n for n in after if not torch.equal(before[n], after[n])} == {"prompt.table"}
    assert model.weights("prompts")["distillation"] == 0 and history["distillation"].notna().all()


def test_mkt_without_distillation_weight_reports_it_and_trains_on_ranking_alone():
    model, data = build("mkt", phases=(("images", 1, 10),), distillation=0.0), features()
    history = train(model, data)
    fresh = build("mkt")
    e_g, _ = fresh.image_embeddings(data.trunk[:].float())
    assert history["distillation"][0] == pytest.approx(distillation_loss(e_g, data.teacher).item(), rel=1e-4)
