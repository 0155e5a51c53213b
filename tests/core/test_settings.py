"""A setting is stated in one place, its field: everything that has to be told apart by it follows from there."""

import dataclasses
from dataclasses import dataclass

import pytest
import synthetic

from hrcf_lib import config as configs
from hrcf_lib import methods
from hrcf_lib.apply import calibration
from hrcf_lib.config import DATA, MASK, METHOD, RUN, Config, names_where, setting
from hrcf_lib.methods.settings import MethodConfig
from hrcf_lib.methods.template import Template
from hrcf_lib.model import HRCF
from hrcf_lib.studies import runs
from hrcf_lib.training import train


def with_field(base: type[Config], **about) -> type[Config]:
    """The class with one more field, ``extra``, which is what somebody would write who adds a setting."""

    @dataclass(frozen=True)
    class More(base):
        extra: int = setting(1, **about)

    return More


def variant(kind: type[Config], extra: int) -> Config:
    values = dataclasses.asdict(synthetic.config())
    return kind(**values, extra=extra)


@pytest.mark.slow
@pytest.mark.parametrize(("weights", "refused"), [(True, True), (False, False)])
def test_a_checkpoint_is_stale_if_weights_depend_on_the_field_and_only_then(weights, refused, tmp_path):
    kind = with_field(Config, weights=weights)
    start = lambda extra: type("More", (HRCF,), {"Config": kind})(variant(kind, extra), pretrained=False)
    train(start(1), synthetic.features(), tmp_path, stop_after=1)
    if refused:
        with pytest.raises(ValueError, match="extra: there 1, here 2"):
            train(start(2), synthetic.features(), tmp_path, stop_after=1)
    else:
        assert len(train(start(2), synthetic.features(), tmp_path, stop_after=1)) == 2


@pytest.mark.parametrize(("scores", "stale"), [(True, True), (False, False)])
def test_a_calibration_is_stale_if_scores_depend_on_the_field_and_only_then(scores, stale):
    kind = with_field(Config, scores=scores)
    start = lambda extra: type("More", (HRCF,), {"Config": kind})(variant(kind, extra), pretrained=False)
    prints = {calibration.fingerprint(start(extra)) for extra in (1, 2)}
    assert (len(prints) == 2) is stale
    assert (calibration.fingerprint(start(1)) == calibration.fingerprint(synthetic.model())) is not scores


@pytest.mark.parametrize(("of", "other_features"), [(DATA, True), (METHOD, False), (RUN, False), (MASK, False)])
def test_features_are_told_apart_by_fields_of_the_data_alone(of, other_features, monkeypatch):
    kind = with_field(Config, of=of)
    monkeypatch.setattr(runs, "sources", lambda config, data, cache: {"train": None})
    monkeypatch.setattr(runs.hide_labels, "hides", lambda config: False)
    feats = runs.shelf(variant(kind, 1))
    if other_features:
        with pytest.raises(ValueError, match="another experiment .extra = 2, here 1"):
            feats(variant(kind, 2))
    else:
        assert feats(variant(kind, 2)) == {"train": None}


@pytest.mark.parametrize(("about", "same"), [({}, []), ({"before": 1}, [1]), ({"before": 2}, [2])])
def test_a_run_has_the_old_name_where_a_younger_field_says_what_was_done_before_it(about, same):
    kind = with_field(Config, **about)
    names = {value: runs.run_name(variant(kind, value)) for value in (1, 2, 3)}
    assert len(set(names.values())) == 3
    assert [value for value, name in names.items() if name.endswith(runs.run_name(synthetic.config())[-8:])] == same


def test_what_was_saved_before_a_field_means_what_was_done_then():
    kind = with_field(Config, before=2)
    values = {name: value for name, value in variant(kind, 1).to_dict().items() if name != "extra"}
    assert configs.from_dict(values, kind).extra == 2
    assert configs.values_before(kind)["extra"] == 2 and "extra" not in configs.values_before(with_field(Config))


@pytest.mark.parametrize(("of", "kept"), [(DATA, 2), (MASK, 2), (RUN, 2), (METHOD, 1)])
def test_methods_share_what_is_of_the_experiment(of, kept, monkeypatch):
    """A preset of 2, from which a method whose own default is 1 is made."""
    plain = with_field(Config, of=of)
    preset = variant(plain, 2).replace(name="more")
    monkeypatch.setitem(configs.PRESETS, "more", lambda: preset)
    own = {n: getattr(preset, n) for n in names_where(plain, of=(DATA, MASK, RUN))}
    assert own.get("extra", 1) == kept
    shared = set(names_where(of=(DATA, MASK, RUN)))
    made = MethodConfig.of(configs.mini().replace(seed=7, lr=0.5))
    assert made.seed == 7 and made.lr == 0.5, "of the run, or changed by hand"
    assert {"dataset", "held_out", "known", "seed"} <= shared and not {"lam", "prompt"} & shared


def test_bounds_and_choices_stand_at_the_field():
    kind = with_field(Config, low=1, high=3)
    assert variant(kind, 3).extra == 3
    with pytest.raises(ValueError, match="extra = 4 must be from 1 to 3"):
        variant(kind, 4)
    with pytest.raises(ValueError, match="extra = 2: choose one of 1, 3"):
        variant(with_field(Config, choices=(1, 3)), 2)
    assert configs.choices("prompt") == ("fixed", "learnable", "coop", "hybrid", "tuning")
    with pytest.raises(KeyError, match="colour"):
        names_where(colour="red")


def test_a_method_of_ones_own_states_its_fields_the_same_way():
    kind = with_field(Template.Config, scores=True, low=1)
    assert "extra" in names_where(kind, scores=True) and "extra" not in names_where(scores=True)
    with pytest.raises(ValueError, match="extra = 0 must be at least 1"):
        kind.of(synthetic.config(), extra=0)


def test_another_default_keeps_what_config_states_of_a_field():
    mkt = methods.method("mkt").Config
    assert {"lam", "topk"} <= set(configs.names_where(mkt, scores=True))
    with pytest.raises(ValueError, match="lam = 1.5 must be from 0 to 1"):
        methods.configure("mkt", configs.mini(), lam=1.5)


@pytest.mark.parametrize("name", [name for name in methods.names() if name != "hrcf"])
def test_sizes_of_a_method_have_an_upper_bound(name):
    """A config from elsewhere that asks for a width of 10^12 is refused before anything is allocated."""
    kind = methods.method(name).Config
    own = set(kind.__annotations__) - {*Config.__annotations__}
    sizes = [
        f for f in dataclasses.fields(kind) if f.name in own and f.type is int and not configs.stated(f)["choices"]
    ]
    for field in sizes:
        with pytest.raises(ValueError, match=f"{field.name} = 1000000000000 must be from "):
            kind.of(synthetic.config(), **{field.name: 10**12})
