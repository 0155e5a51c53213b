"""What earlier versions saved is read: a model, a checkpoint in the middle of a run, the model that ships.

``tests/golden/saved_18af21e`` was written by commit 18af21e: ``save_pretrained`` of a CoOp, trained for 12 steps on the
features of ``synthetic``, its scores, and the checkpoint of the same run, stopped after 5 steps.
"""

import json
import shutil
from pathlib import Path

import pytest
import synthetic
import torch
from torch.testing import assert_close

from hrcf_lib import config as configs
from hrcf_lib import methods
from hrcf_lib.labels import LabelSpace
from hrcf_lib.training import train

SAVED = Path(__file__).parents[1] / "golden" / "saved_18af21e"
EXPECTED = json.loads((SAVED / "expected.json").read_text(encoding="utf-8"))
SPACE = LabelSpace(seen=["owl", "pizza", "bus", "cat", "dog"], unseen=["zebra", "beach"])


def coop():
    return methods.build("coop", synthetic.config(phases=(("prompts", 4, 4),)), categories=SPACE.seen)


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
    model = methods.build("coop", synthetic.config(phases=(("prompts", 4, 4),)), categories=SPACE.seen, prompt_lr=0.5)
    with pytest.raises(ValueError, match="belongs to another run(?s:.*)prompt_lr: there .*, here 0.5"):
        train(model, synthetic.features(space=SPACE), tmp_path)
