"""Scores along a run: those of the untrained model, of stops between, and of the run that never stops."""

import pandas as pd
import pytest
import synthetic

from hrcf_lib import studies
from hrcf_lib.labels import LabelSpace
from hrcf_lib.studies import start_scores as starts
from hrcf_lib.studies.over_training import over_training

SPACE = LabelSpace(seen=["ant", "axe", "bat", "bed", "bell"], unseen=["anchor", "bone"])  # known to the mini VLP
CONFIG = synthetic.config(train_size=8, phases=(("hcg", 1, 4), ("prompts", 1, 4), ("hcg", 1, 8)))  # 2 + 2 + 1 steps


@pytest.fixture(scope="module")
def feats():
    found = {split: synthetic.features(n, seed, SPACE) for split, n, seed in [("train", 10, 0), ("val", 6, 1)]}
    return found | {"test": synthetic.features(2, 2, LabelSpace(SPACE.seen, ["boat"]))}


@pytest.fixture(scope="module")
def ended(feats, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return folder, *over_training(CONFIG, feats, folder, every=2)


def test_it_begins_untrained_and_ends_as_a_run_that_never_stops(ended, feats, tmp_path):
    _, rows, history = ended
    assert rows["step"].drop_duplicates().tolist() == [0, 2, 4, 5] and history["step"].tolist() == [1, 2, 3, 4, 5]
    own = {split: feats[split] for split in ("train", "val")}
    at = {step: part.set_index("task")["mAP"].to_dict() for step, part in rows.groupby("step")}
    assert at[0] == starts.start_scores(CONFIG, own).set_index("task")["mAP"].to_dict()
    assert at[5] == pytest.approx(studies.run(CONFIG, own, tmp_path).table.set_index("task")["mAP"].to_dict())
    assert set(at[5]) == {"ZSL", "GZSL", "seen"} and at[5] != at[0]


def test_what_is_there_is_read_and_what_is_missing_is_made(ended, feats, monkeypatch):
    folder, rows, history = ended
    monkeypatch.setattr(studies.runs, "score_settings", lambda *a, **k: pytest.fail("scored again"))
    again, steps = over_training(CONFIG, feats, folder, every=2)
    pd.testing.assert_frame_equal(again, rows, check_dtype=False)
    assert len(steps) == len(history)
    with pytest.raises(ValueError, match="was scored otherwise or on other pictures: remove it"):
        over_training(CONFIG, feats, folder, every=3)


def test_a_stopped_run_goes_on(ended, feats, tmp_path, monkeypatch):
    _, rows, _ = ended
    taken, step = 0, synthetic.training._step

    def stop(*arguments):
        nonlocal taken
        taken += 1
        if taken == 4:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(synthetic.training, "_step", stop)
    with pytest.raises(KeyboardInterrupt):
        over_training(CONFIG, feats, tmp_path, every=2)
    monkeypatch.setattr(synthetic.training, "_step", step)
    pd.testing.assert_frame_equal(over_training(CONFIG, feats, tmp_path, every=2)[0], rows, check_dtype=False)
