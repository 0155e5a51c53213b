"""Scores before the first step are those of the untrained model, and beside them stand those of the run."""

import pandas as pd
import pytest
import synthetic

from hrcf_lib import evaluation, methods, studies
from hrcf_lib.labels import LabelSpace
from hrcf_lib.studies import start_scores as starts

SPACE = LabelSpace(seen=["ant", "axe", "bat", "bed", "bell"], unseen=["anchor", "bone"])  # known to the mini VLP
NAMES = ("pre_clip", "biam", "dual_coop", "hrcf")  # nothing to train, random weights, its own labels only, the VLP


@pytest.fixture(scope="module")
def feats():
    return {split: synthetic.features(n, seed, SPACE) for split, n, seed in [("train", 10, 0), ("val", 6, 1)]}


def config(name: str, **changes):
    own = {"categories": SPACE.seen} if name in methods.names("missing_labels") else {}
    return methods.configure(name, synthetic.config(train_size=8), **own | changes)


@pytest.mark.parametrize("name", NAMES)
def test_start_scores_are_those_of_the_untrained_model(name, feats):
    rows = starts.start_scores(config(name), feats).set_index("task")
    model = methods.registry.for_config(config(name)).eval()
    table = evaluation.evaluate(model, feats["val"], tuple(rows.index))
    pd.testing.assert_frame_equal(rows[table.columns], table, check_dtype=False, atol=1e-9)
    assert set(rows["split"]) == {"val"} and set(rows.index) >= {"seen"}


def test_the_start_is_that_of_the_seed(feats):
    score = lambda seed: starts.start_scores(config("biam", seed=seed), feats)["mAP"].tolist()
    assert score(0) == score(0) != score(1)


def test_what_a_method_takes_from_the_training_data_is_taken(feats, monkeypatch):
    seen = []
    monkeypatch.setattr(methods.method("biam"), "begin", lambda self, data: seen.append((len(data), self.training)))
    starts.start_scores(config("biam"), feats)
    assert seen == [(8, False)], "once, with the first train_size pictures"


def test_test_time_settings_have_rows_of_their_own(feats):
    rows = starts.start_scores(config("hrcf"), feats, {"": {}, "lam = 1": {"lam": 1.0}})
    assert rows.groupby("setting").size().to_dict() == {"": 3, "lam = 1": 3}


def test_start_and_trained_stand_side_by_side(feats, tmp_path):
    own = config("biam", phases=(("images", 1, 4),))
    rows = starts.start_and_trained(own, feats, tmp_path)
    assert rows.columns[0] == "steps" and set(rows["steps"]) == {0, 2}  # 8 pictures in batches of 4
    parts = {steps: part.drop(columns="steps").reset_index(drop=True) for steps, part in rows.groupby("steps")}
    pd.testing.assert_frame_equal(parts[0], starts.start_scores(own, feats))
    trained = studies.run(own, feats, tmp_path).table  # read from the folder
    pd.testing.assert_frame_equal(parts[2], trained, check_dtype=False)
    assert parts[0]["mAP"].tolist() != parts[2]["mAP"].tolist()
    again = starts.start_and_trained(own, feats, tmp_path)
    assert again["mAP"].tolist() == pytest.approx(rows["mAP"].tolist()), (
        "a finished run in the folder does not count as a start"
    )


def test_something_has_to_be_scored(feats):
    with pytest.raises(ValueError, match="no split but train to score before the first step: give val"):
        starts.start_scores(config("biam"), {"train": feats["train"]})


@pytest.mark.slow
def test_the_command_prints_both(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HRCF_SIZE", "smoke")
    monkeypatch.chdir(tmp_path)
    words = ["mini", "--method", "asl", "--set", "known", "0.3"]
    table = starts.main(words)
    assert set(table["split"]) == {"val"} and "steps" not in table and "seen" in capsys.readouterr().out
    both = starts.main([*words, "--runs", "runs"])
    assert both["mAP"].iloc[0] == table["mAP"].iloc[0] and both["steps"].tolist() == [0, 3]
    assert len(list(tmp_path.glob("runs/mini-asl-*/record.json"))) == 1


def test_the_command_says_what_is_wrong(capsys):
    for words, said in ((["mini", "--split", "vall"], "no split 'vall'"), (["mini", "--method", "mtk"], "'mkt'")):
        with pytest.raises(SystemExit) as stop:
            starts.main(words)
        assert stop.value.code == 2 and said in capsys.readouterr().err
