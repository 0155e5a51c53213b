"""Settings: the paper's numbers, changes by name, nothing unknown or out of range, one reader of HRCF_SIZE."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import hrcf_lib
from hrcf_lib import config as configs
from hrcf_lib.config import Config, Phase

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def full_size(monkeypatch):
    monkeypatch.delenv("HRCF_SIZE", raising=False)


@pytest.fixture(params=list(configs.PRESETS))
def preset(request) -> Config:
    return configs.preset(request.param)


def epochs(config: Config, side: str) -> int:
    return sum(phase.epochs for phase in config.phases if phase.trains == side)


def test_presets_carry_the_papers_numbers():
    nus, images = configs.nus_wide(), configs.open_images()
    assert (epochs(nus, "hcg"), epochs(nus, "prompts")) == (50, 4)
    assert (epochs(images, "hcg"), epochs(images, "prompts")) == (5, 1)
    assert [p.trains for p in nus.phases] == ["hcg", "prompts"] * 4 + ["hcg"]
    assert [p.epochs for p in images.phases] == [3, 1, 2]
    assert {(p.trains, p.batch) for p in nus.phases} == {("hcg", 64), ("prompts", 16)}
    assert {(p.trains, p.batch) for p in images.phases} == {("hcg", 128), ("prompts", 128)}
    assert (nus.lr, nus.prompt_lr, images.lr, images.prompt_lr) == (1e-3, 1e-3, 1e-4, 1e-4)
    assert (nus.lam, images.lam) == (0.25, 0.5)
    assert (nus.ks, images.ks) == ((3, 5), (10, 20))
    for config in (nus, images):
        assert (config.keep, config.merges, config.prompt_vectors, config.topk) == (108, 3, 8, 16)
        assert (config.weight_decay, config.layer_decay, config.warmup_epochs, config.min_lr) == (0.05, 0.65, 2, 1e-6)
        assert (config.prompt, config.hcg, config.rsa, config.rss) == ("hybrid", True, True, True)
        assert (config.vlp, config.vlp_weights) == ("ViT-B-16", "openai")


def test_presets_are_named_for_their_functions(preset):
    assert configs.PRESETS[preset.name]() == preset
    assert preset.phases[-1].trains == "hcg"


def test_a_config_is_frozen_and_hashable(preset):
    with pytest.raises(dataclasses.FrozenInstanceError):
        preset.lam = 0.5
    assert hash(preset) == hash(dataclasses.replace(preset))


def test_replace_by_either_way():
    config = configs.mini()
    assert dataclasses.replace(config, lam=0.5).lam == config.replace(lam=0.5).lam == 0.5
    assert config.replace(lam=1).lam == 1.0 and isinstance(config.replace(lam=1).lam, float)
    assert configs.preset("mini", lam=0.5, seed=3) == config.replace(lam=0.5, seed=3)
    with pytest.raises(TypeError):
        dataclasses.replace(config, lamb=0.5)


def test_round_trip_through_json(preset):
    changed = preset.replace(seed=7, train_size=100, name="mine")
    for config in (preset, changed, preset.smoke()):
        assert configs.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_from_dict_keeps_its_sizes_in_a_smoke_run(monkeypatch):
    values = configs.mini().to_dict()
    monkeypatch.setenv("HRCF_SIZE", "smoke")
    assert configs.from_dict(values).to_dict() == values


def test_unknown_names_are_errors_that_name_the_nearest():
    with pytest.raises(ValueError, match="unknown preset 'nuswide'; did you mean 'nus_wide'"):
        configs.preset("nuswide")
    with pytest.raises(ValueError, match="unknown config name 'warm_up_epochs'; did you mean 'warmup_epochs'"):
        configs.mini().replace(warm_up_epochs=1)
    with pytest.raises(ValueError, match="unknown config name 'zzz'; known: name, dataset"):
        configs.preset("mini", zzz=1)
    with pytest.raises(ValueError, match="did you mean 'lam'"):
        configs.from_dict(configs.mini().to_dict() | {"lamb": 0.5})
    for value in (None, [], "mini"):
        with pytest.raises(ValueError, match="a config is a dict of settings by name, not a (NoneType|list|str)"):
            configs.from_dict(value)
    with pytest.raises(ValueError, match="lacks .*phases"):
        configs.from_dict({"name": "mini"})


@pytest.mark.parametrize(
    "wrong",
    [
        *({"lam": v} for v in (-0.1, 1.1, "0.5", None, float("nan"), True)),
        *({"keep": v} for v in (0, -1, 10.5, "108", True)),
        *({"levels": (4,)}, {"levels": (-1, 1)}, {"merge_lr": 1.5}),
        *({"merges": 0}, {"topk": 0}, {"prompt_vectors": 0}, {"train_size": 0}, {"test_size": -5}, {"seed": -1}),
        *({name: 2**32} for name in ("seed", "data_seed", "vocabulary_seed", "mask_seed")),
        *({"lr": -1e-3}, {"lr": float("inf")}, {"tag_noise": 1.5}, {"layer_decay": 2}, {"warmup_epochs": -1}),
        *({"hcg": 1}, {"rsa": "no"}, {"bf16": None}, {"vlp": None}, {"dataset": 3}, {"prompt": "soft"}),
        *({"augment": "flip"}, {"ranking_reduction": "mean"}, {"distillation_reduction": "violations"}),
        *({"vocabulary_seed": v} for v in (-1, 1.0, "1", True, None)),
        *({"ks": ()}, {"ks": (0,)}, {"ks": (3.5,)}),
        *({"phases": (("image", 1, 8),)}, {"phases": (("hcg", 0, 8),)}, {"phases": (("hcg", 1, 0),)}),
        *({"phases": (("hcg", 1),)}, {"phases": ({"trains": "hcg", "epoch": 1},)}, {"phases": (("hcg", 1.5, 8),)}),
    ],
    ids=str,
)
def test_bad_values_are_errors_that_name_the_field(wrong):
    (field,) = wrong
    with pytest.raises(ValueError, match=field.removesuffix("s")):
        configs.mini().replace(**wrong)
    with pytest.raises(ValueError):
        dataclasses.replace(configs.mini(), **wrong)


def test_types_given_as_text_are_refused():
    """As all are behind 'from __future__ import annotations': no value would be checked."""

    @dataclasses.dataclass(frozen=True)
    class Own(Config):
        width: "int" = 3

    with pytest.raises(TypeError, match="width of a config has its type as text.*leave 'from __future__ import"):
        Own(**configs.mini().to_dict())


def test_lists_as_papermill_gives_them():
    config = configs.preset("mini", ks=[1, 2], phases=[["hcg", 1, 8], {"trains": "prompts", "epochs": 2, "batch": 4}])
    assert config.ks == (1, 2)
    assert config.phases == (Phase("hcg", 1, 8), Phase("prompts", 2, 4))


def test_alternate():
    a, b = Phase("hcg", 10, 64), Phase("prompts", 1, 16)
    assert configs.alternate(10, 1, rounds=3, hcg_batch=64, prompt_batch=16) == (a, b, a, b, a)
    assert configs.alternate(10, 1, rounds=1, hcg_batch=64, prompt_batch=16) == (a,)


def test_smoke_is_small_and_keeps_the_method(preset):
    small = preset.smoke()
    assert max(small.train_size, small.val_size, small.test_size) <= 48
    assert [p.trains for p in small.phases] == ["hcg", "prompts", "hcg"]
    assert all(p.epochs == 1 and p.batch <= (16 if p.trains == "hcg" else small.train_size) for p in small.phases)
    changed = {"phases", "train_size", "val_size", "test_size", "warmup_epochs"}
    for field in dataclasses.fields(Config):
        assert field.name in changed or getattr(small, field.name) == getattr(preset, field.name)
    assert small.smoke() == small


def test_size_from_the_environment(monkeypatch):
    full = configs.mini()
    assert not configs.is_smoke()
    monkeypatch.setenv("HRCF_SIZE", "smoke")
    assert configs.is_smoke()
    assert configs.mini() == configs.preset("mini") == full.smoke()
    assert configs.preset("mini", train_size=8000).train_size == 48, "a smoke run stays small whatever is asked for"
    assert configs.preset("mini", train_size=20).train_size == 20
    for value in ("full", ""):
        monkeypatch.setenv("HRCF_SIZE", value)
        assert configs.mini() == full
    monkeypatch.setenv("HRCF_SIZE", "tiny")
    with pytest.raises(ValueError, match="HRCF_SIZE = 'tiny'"):
        configs.mini()


def test_only_config_reads_the_environments_size():
    readers = [
        p.name for p in ROOT.glob("hrcf_lib/**/*.py") if re.search(r"os\.environ.*HRCF_SIZE", p.read_text("utf-8"))
    ]
    assert readers == ["config.py"]


def test_every_field_has_a_comment():
    source = (ROOT / "hrcf_lib" / "config.py").read_text("utf-8")
    for field in dataclasses.fields(Config):
        (stated,) = re.findall(rf"^    {field.name}: (?:.*[(]\n(?: {{8}}.*\n)*)?.*$", source, re.MULTILINE)
        assert "  # " in stated or field.name in ("val_size", "test_size"), stated


def test_importing_the_library_is_light():
    code = "import sys, hrcf_lib, hrcf_lib.config; sys.exit(bool({'torch', 'open_clip', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_public_names():
    assert set(hrcf_lib.__all__) <= set(dir(hrcf_lib))
    for name in hrcf_lib.__all__:
        assert getattr(hrcf_lib, name) is not None
    with pytest.raises(AttributeError, match="clasify"):
        hrcf_lib.clasify  # noqa: B018
    pyproject = (ROOT / "pyproject.toml").read_text("utf-8")
    assert f'version = "{hrcf_lib.__version__}"' in pyproject


@pytest.mark.parametrize("change", [{"dataset": "mojis"}, {"keep": 141}, {"keep": 0}, {"phases": ()}])
def test_values_that_no_run_can_have(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        configs.mini().replace(**change)


def test_a_retired_setting_is_read_from_old_files_and_refused_as_a_change():
    old = configs.mini().to_dict() | configs.RETIRED
    assert configs.from_dict(old) == configs.mini()
    with pytest.raises(ValueError, match="cache is no longer a setting: features are stored once, as float16"):
        configs.mini().replace(cache="bfloat16")


def test_another_split_of_the_vocabulary_is_one_of_mojiscenes():
    assert configs.mini().vocabulary_seed == 0 and configs.preset("mini", vocabulary_seed=3).vocabulary_seed == 3
    with pytest.raises(ValueError, match="vocabulary_seed = 3 of nus_wide, whose unseen labels are given: set it to 0"):
        configs.preset("nus_wide", vocabulary_seed=3)
    values = configs.preset("mini", seed=2).to_dict()
    del values["vocabulary_seed"]
    assert configs.from_dict(values) == configs.preset("mini", seed=2), "a config that is older than the field"


@pytest.mark.parametrize(
    "change", [{"phases": None}, {"ks": 3}, {"levels": "12"}, {"prompt_vectors": 10**12}, {"side": 10**9}]
)
def test_lists_and_sizes_beyond_reason(change):
    (name,) = change
    with pytest.raises(ValueError, match=f"{name} = .*(give a list|must be from 1 to)"):
        configs.mini().replace(**change)


def test_numbers_of_numpy_in_lists_become_plain_ones():
    given = configs.mini().replace(ks=[np.int64(3)], levels=(np.int32(1),), phases=[("hcg", np.int64(1), np.int64(4))])
    assert given == configs.mini().replace(ks=[3], levels=(1,), phases=[("hcg", 1, 4)])
    assert configs.from_dict(json.loads(json.dumps(given.to_dict()))) == given
    for wrong in ([True], [1.0], [0], [4]):
        with pytest.raises(ValueError, match="levels = .* choose among 1 to 3, and 0 beside them"):
            configs.mini().replace(levels=wrong)


def test_a_phase_alone_is_no_list_of_phases():
    with pytest.raises(ValueError, match=r"phase 'hcg': give what it trains, epochs and batch, as in \('hcg', 4, 64\)"):
        configs.mini().replace(phases=("hcg", 1, 4))
