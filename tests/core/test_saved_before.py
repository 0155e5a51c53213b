"""What earlier versions saved is read: a model, a checkpoint in the middle of a run, the model that ships.

``tests/golden/saved_18af21e`` was written by commit 18af21e: ``save_pretrained`` of a CoOp, trained for 12 steps on the
features of ``synthetic``, its scores, and the checkpoint of the same run, stopped after 5 steps; on the VLP of
``synthetic.invented_mini``, so that another one may ship.
"""

import json
import shutil
from pathlib import Path

import pytest
import synthetic
import torch
from torch.testing import assert_close

from hrcf_lib import config as configs
from hrcf_lib import methods, vlp
from hrcf_lib.labels import LabelSpace
from hrcf_lib.studies import one_run
from hrcf_lib.training import train

SAVED = Path(__file__).parents[1] / "golden" / "saved_18af21e"
EXPECTED = json.loads((SAVED / "expected.json").read_text(encoding="utf-8"))
SPACE = LabelSpace(seen=["owl", "pizza", "bus", "cat", "dog"], unseen=["zebra", "sea"])
WORDS = "A photo for multi-label classification, there is a owl pizza bus cat dog in the scene."


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    """With the VLP that was there when the folder was written."""
    folder = tmp_path_factory.mktemp("assets")
    synthetic.invented_mini(folder / "hrcf-mini.safetensors", WORDS)
    return folder


@pytest.fixture(autouse=True)
def shipped(assets, monkeypatch):
    monkeypatch.setattr(vlp, "ASSETS", assets)


def coop(**changes):
    config = synthetic.config(phases=(("prompts", 4, 4),), tag_noise=0.0)
    return methods.build("coop", config, categories=SPACE.seen, **changes)


def score(model) -> torch.Tensor:
    images = torch.randint(0, 256, (2, 3, 112, 112), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return model.score(images, list(SPACE.seen))


def test_a_model_of_before_scores_as_it_did():
    about = json.loads((SAVED / "model" / "config.json").read_text(encoding="utf-8"))
    assert about["config"].keys() >= configs.RETIRED.keys(), "the folder has fields that are retired now"
    assert_close(score(methods.load(SAVED / "model")), torch.tensor(EXPECTED["scores"]), atol=1e-5, rtol=0)


def test_a_run_of_before_goes_on_to_the_same_weights(tmp_path):
    shutil.copy(SAVED / "run" / "checkpoint.pt", tmp_path)
    model = coop()
    history = train(model, synthetic.features(space=SPACE), tmp_path)
    assert len(history) == 12 and EXPECTED["steps"] == 5
    assert_close(score(model), torch.tensor(EXPECTED["scores"]), atol=1e-5, rtol=0)


def test_a_run_of_before_under_another_setting_is_refused(tmp_path):
    shutil.copy(SAVED / "run" / "checkpoint.pt", tmp_path)
    model = coop(prompt_lr=0.5)
    with pytest.raises(ValueError, match="belongs to another run(?s:.*)prompt_lr: there .*, here 0.5"):
        train(model, synthetic.features(space=SPACE), tmp_path)


def test_a_model_of_the_first_mini_vlp_says_what_became_of_it(tmp_path):
    """And only such a model: of another VLP's it says which one is asked for (tests/core/test_model.py)."""
    shutil.copytree(SAVED / "model", tmp_path / "old")
    about = json.loads((tmp_path / "old" / "config.json").read_text(encoding="utf-8"))
    about["vlp_hash"] = vlp.FIRST_MINI
    (tmp_path / "old" / "config.json").write_text(json.dumps(about), encoding="utf-8")
    with pytest.raises(ValueError, match="old was trained on the first hrcf-mini .hash 7866641dc5613fad.*train the"):
        methods.load(tmp_path / "old")


FORMS_GONE = ("ovml_vlp", "semantic_aware", "trm_ml")  # each was another method once, built of its paper's abstract


@pytest.mark.parametrize("said", [{}, {"settings": "first"}], ids=["no settings", "first"])
@pytest.mark.parametrize("name", FORMS_GONE)
def test_a_form_that_is_gone_is_told_apart(name, said, tmp_path):
    """Its fields have names that the method of today gives another meaning, or does not have."""
    shutil.copytree(SAVED / "model", tmp_path / "old")
    path = tmp_path / "old" / "config.json"
    about = json.loads(path.read_text(encoding="utf-8"))
    about["config"] = {k: v for k, v in about["config"].items() if k not in ("class_specific", "settings")} | said
    about["config"] |= {"high": 0.6}  # which no method has now
    path.write_text(json.dumps(about | {"method": name}), encoding="utf-8")
    says = f"config.json is not a config of save_pretrained: a {name} of settings = 'first', or saved before.*train it"
    for load in (methods.load, methods.method(name).from_pretrained):
        with pytest.raises(ValueError, match=says):
            load(tmp_path / "old")
    own = tmp_path / "own.json"
    own.write_text(json.dumps(about["config"]), encoding="utf-8")
    with pytest.raises(ValueError, match=f"a {name} of settings = 'first', or saved before"):
        one_run._preset(str(own), name)


def test_a_run_of_a_form_that_is_gone_is_not_taken_up(tmp_path):
    """Its checkpoint belongs to another run, and its folder has another name."""
    config = methods.configure("trm_ml", synthetic.config(), categories=SPACE.seen, mlp_ratio=2)
    model = methods.for_config(config, pretrained=False)
    train(model, synthetic.features(space=SPACE), tmp_path, stop_after=1)
    path = tmp_path / "checkpoint.pt"
    saved = torch.load(path, weights_only=True)
    del saved["about"]["settings"]
    torch.save(saved, path)
    with pytest.raises(ValueError, match="belongs to another run(?s:.*)settings: there 'first', here 'paper'"):
        train(model, synthetic.features(space=SPACE), tmp_path)
