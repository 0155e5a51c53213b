"""The speed table: its plain forms are the published ones, its rows compute what they say, its counts are right."""

import dataclasses
import json
import multiprocessing
from types import SimpleNamespace

import golden_clip
import numpy as np
import processes
import pytest
import torch
from torch.testing import assert_close

from hrcf_lib.data.feeds.order import BatchOrder
from hrcf_lib.data.feeds.pictures import Pictures
from hrcf_lib.engine import devices
from hrcf_lib.prompts import PromptLearner
from hrcf_lib.speed import __main__, compare, cost, curves, images, loading, plain, table
from hrcf_lib.speed.compare import compare_times, compare_values
from hrcf_lib.speed.inputs import Sizes, label_names

SMALL = Sizes.of(smoke=True)
PROMISED = ("prompt_prefix", "ranking_loss", "ranking_loss_large", "feature_cache", "hsa_memory")
PROMISED += ("inference_overhead", "map_metric", "loader")


def fails(sizes):
    raise ValueError("no such luck")


# The plain forms ----------------------------------------------------------------------------------------------------


def test_the_plain_text_tower_is_mkts_in_value_and_gradient():
    golden, vlp = golden_clip.arrays("mkt_prompt_text"), golden_clip.vlp()
    prompt = PromptLearner(vlp, "tuning")
    tokens, last = plain.sentences(prompt, vlp, golden_clip.NAMES["names"])
    assert tokens.shape == (5, 77, 64) and last.max() < 76
    t = plain.label_embeddings(prompt, vlp, golden_clip.NAMES["names"])
    assert_close(t, golden["text_emb"], rtol=1e-5, atol=1e-5)
    (t * golden["out_weight"]).sum().backward()
    rows, scale = golden["grad_token_rows_idx"].long(), float(golden["grad_token_rows"].abs().max())
    assert_close(prompt.table.grad[rows], golden["grad_token_rows"], rtol=1e-5, atol=1e-5 * scale)


def test_the_plain_ranking_loss_is_mkts_in_value_and_gradient():
    golden = golden_clip.arrays("ranking_loss")
    for case in {key.split("__")[0] for key in golden}:
        logits = golden[f"{case}__logits"].clone().requires_grad_()
        loss = plain.ranking_loss(logits, golden[f"{case}__labels"])
        assert_close(loss, golden[f"{case}__mkt_loss"].reshape(()).to(loss), rtol=1e-5, atol=1e-6)
        loss.backward()
        assert_close(logits.grad, golden[f"{case}__mkt_grad"].to(logits), rtol=1e-4, atol=1e-6)


def test_the_plain_average_precision_is_mkts():
    golden = golden_clip.arrays("metrics")
    for case in {key.split("__")[0] for key in golden}:
        pred, labels = golden[f"{case}__pred"], golden[f"{case}__labels"]
        ap = plain.average_precision(pred, labels)
        np.testing.assert_allclose(np.nan_to_num(ap), golden[f"{case}__mkt_ap"], atol=1e-6)


# Rows ---------------------------------------------------------------------------------------------------------------


def test_every_promised_row_is_there():
    assert set(PROMISED) <= set(table.ROWS)


EXACT = [
    name
    for name in table.ROWS
    if not name.startswith("inference") and name not in ("loader", "cached_epoch", "attention")
]


@pytest.mark.slow
@pytest.mark.parametrize("name", EXACT)
def test_both_forms_of_a_row_compute_the_same(name):
    row = table.ROWS[name](SMALL)
    assert row["ratio"] == pytest.approx(row["plain_s"] / row["ours_s"])
    assert row["max_abs_diff"] < 1e-5 and row.get("grad_rel_diff", 0) < 1e-4
    assert row["what"] and row["ours_s"] > 0


@pytest.mark.slow
def test_rows_on_loading_say_which_share_of_the_time_was_waited(monkeypatch):
    monkeypatch.setattr(loading.devices, "workers", lambda: 1)
    for name in ("loader", "cached_epoch"):
        row = table.ROWS[name](dataclasses.replace(SMALL, B=2, steps=2))
        assert 0 <= row["waiting"] <= 1 and 0 < row["waiting_plain"] <= 1
        assert row["ratio"] == pytest.approx(row["plain_s"] / row["ours_s"]) and f"{row['waiting']:.1%}" in row["note"]


@pytest.mark.slow
def test_pictures_that_workers_made_in_advance_do_not_count_as_waiting(monkeypatch):
    """On a clock of the test: the first pictures come at once, each later batch takes 3 s, each computation 1 s."""
    clock = [0.0]
    monkeypatch.setattr(loading.devices, "workers", lambda: 1)
    tick = SimpleNamespace(time=lambda: clock[0], perf_counter=lambda: clock[0])
    monkeypatch.setattr(loading.training, "time", tick)
    model = SMALL.model()
    feed = Pictures(loading.Jpegs(loading._steps(SMALL) * SMALL.B, ["cat", "dog"], model.vlp.side), model.vlp)
    batches, frozen = feed.batches, feed.frozen

    def slow(order):
        for step, batch in enumerate(batches(order)):
            clock[0] += 3 if step >= loading._filling() else 0
            yield batch

    def compute(*arguments, **options):
        clock[0] += 1
        return frozen(*arguments, **options)

    monkeypatch.setattr(feed, "batches", slow)
    monkeypatch.setattr(feed, "frozen", compute)
    assert loading._epoch(SMALL, feed) == ([4.0] * SMALL.steps, 0.75)


@pytest.mark.slow
def test_inference_is_reported_as_an_overhead_over_the_plain_vlp():
    row = table.ROWS["inference_overhead"](SMALL)
    assert row["overhead"] == pytest.approx(row["ours_s"] / row["plain_s"])


@pytest.mark.slow
def test_the_arithmetic_of_a_step_is_the_one_the_issue_of_speed_rests_on():
    """20 GFLOP an image from the cache, 56 + 20 with a shared trunk, 88 + 20 in full, of ViT-B/16."""
    parts = cost.flops(Sizes().model().config.replace(vlp_weights=None), ["cat", "dog"], 1)
    cached, shared = images._arithmetic(parts, cached=True), images._arithmetic(parts, cached=False)
    assert cached["gflop_plain"] == shared["gflop_plain"] == pytest.approx(88, abs=1)
    assert cached["gflop_ours"] == pytest.approx(20.5, abs=1) and shared["gflop_ours"] == pytest.approx(56, abs=1)


@pytest.mark.slow
def test_the_command_writes_a_list_of_rows_and_goes_on_after_one_that_fails(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HRCF_SIZE", "smoke")
    monkeypatch.setitem(table.ROWS, "broken", fails)
    out = tmp_path / "rows.json"
    assert __main__.main(["--rows", "ranking_loss,broken,hsa_memory", "--out", str(out)]) == 1
    rows = {row["name"]: row for row in json.loads(out.read_text(encoding="utf-8"))}
    assert list(rows) == ["ranking_loss", "broken", "hsa_memory"]
    assert all(
        {*table.COLUMNS, "seconds", "date", "device", "native_bf16", "commit"} <= row.keys() for row in rows.values()
    )
    assert rows["hsa_memory"]["grad_rel_diff"] is None and rows["ranking_loss"]["grad_rel_diff"] is not None
    assert rows["broken"]["error"] == "ValueError: no such luck" and rows["hsa_memory"]["error"] is None
    printed = capsys.readouterr().out
    assert " x  ranking loss, B = 4, K = 40" in printed and "broken               FAILED: ValueError" in printed


def test_a_table_without_a_failure_has_the_columns_that_all_rows_share(monkeypatch):
    monkeypatch.setattr(table, "run_stage", lambda title, row, sizes, preload: {"stage": title, **row(sizes)})
    said = []
    frame = table.run(["ranking_loss"], SMALL, said.append)
    assert list(frame.columns) == [*table.COLUMNS, "sorted_s", "ratio_sorted"] and len(said) == len(frame) == 1
    assert frame["error"].isna().all()


def test_an_unknown_row_is_refused_with_the_nearest(capsys):
    with pytest.raises(SystemExit) as stopped:
        __main__.main(["--rows", "prompt_prefx"])
    assert stopped.value.code == 2 and "did you mean 'prompt_prefix'" in capsys.readouterr().err


# Measuring ----------------------------------------------------------------------------------------------------------


def test_two_forms_are_timed_in_turn_and_plain_is_divided_by_ours(monkeypatch):
    clock, calls = [0.0], []
    monkeypatch.setattr(compare, "timer", lambda: clock[0])

    def form(name, seconds):
        def run():
            calls.append(name)
            clock[0] += seconds
            return name

        return run

    row, results = compare_times(form("plain", 6.0), form("ours", 2.0), repeats=2)
    assert results == ["plain", "ours"]
    assert row["ratio"] == 3 and (row["plain_s"], row["ours_s"]) == (6, 2)
    assert calls[-4:] == ["plain", "ours"] * 2
    assert compare_times(form("plain", 6.0), form("ours", 2.0), share=0.25)[0]["ratio"] == 12


def test_a_row_has_medians_and_the_middle_half_of_its_times():
    row = compare.summary([4.0, 6.0, 5.0, 9.0, 5.0], [2.0, 2.0, 2.0, 2.0, 7.0], share=0.5)
    assert (row["plain_s"], row["ours_s"], row["ratio"]) == (10, 2, 5)
    assert (row["plain_spread"], row["ours_spread"]) == (0.2, 0), "one slow run does not move the spread"


def test_differences_are_seen_in_values_and_in_gradients():
    x = {"x": torch.tensor([1.0, 2.0])}
    same = compare_values(lambda x: x**2, lambda x: x * x, x)
    assert same["max_abs_diff"] == 0 and same["grad_rel_diff"] < 1e-6
    assert compare_values(lambda x: x**2, lambda x: x**2 + 1, x)["max_abs_diff"] == 1
    assert compare_values(lambda x: x**2, lambda x: (x**2).detach() + 0 * x, x)["grad_rel_diff"] == 1


@pytest.mark.slow
@pytest.mark.skipif(not devices.reset_peak_memory(), reason="this system cannot reset a peak")
def test_peak_memory_is_what_a_run_takes_beyond_what_was_there():
    held = np.ones(50_000_000)  # 400 MB that were there before
    once = compare.peak_mb(lambda: np.ones(25_000_000).sum())  # 200 MB
    assert 150 < once < 260 and held.sum() > 0
    assert compare.peak_mb(lambda: None) < 50, "an earlier peak does not count"


# Cost model and curves ----------------------------------------------------------------------------------------------


def test_traffic_counts_what_operations_read_and_write():
    a, b = torch.ones(8, 4), torch.ones(4, 16)

    def bytes_of(run):
        with cost.Traffic() as traffic:
            run()
        return traffic.bytes

    assert bytes_of(lambda: a @ b) == 4 * (8 * 4 + 4 * 16 + 8 * 16)
    assert bytes_of(lambda: a.t()[1:].contiguous()) == 2 * 4 * 24, "a copy reads and writes"
    assert bytes_of(lambda: a.t()[1:].view(3, 2, 4)) == 0, "views move nothing"
    assert bytes_of(lambda: a.add_(1)) == 2 * 4 * 32
    assert bytes_of(lambda: a.relu()) == 2 * 4 * 32
    assert bytes_of(lambda: torch.ones(1).expand(1000).sum()) < 50, "an expanded tensor is read once"


@pytest.mark.slow
def test_the_cost_model_counts_the_same_arithmetic_as_the_budget():
    rates = {"float32": 1.0, "bfloat16": 2.0, "GB/s": 4.0}
    found = cost.cost(SMALL, rates)
    parts = cost.flops(SMALL.model().config, label_names(SMALL.K), SMALL.B)
    assert found.loc["ranking loss, with backward", "GFLOP"] == 0 < found.loc["ranking loss, with backward", "GB"]
    for stage in ("trunk", "teacher", "student"):
        assert found.loc[stage, "GFLOP"] == pytest.approx(SMALL.B * parts[stage] / 1e9, rel=1e-6)
    learning = SMALL.B * (parts["student"] + parts["student backward"]) / 1e9
    whole = found.loc["student, with backward", "GFLOP"]
    assert learning <= whole < 1.03 * learning, "a fused attention computes its weights again on the way back"
    row = found.loc["label embeddings, with backward"]
    assert row["GFLOP"] > 1.8 * found.loc["label embeddings", "GFLOP"]
    assert row["share of peak arithmetic"] == pytest.approx(row["GFLOP"] / row["seconds"] / rates[row["type"]])
    assert row["share of peak traffic"] == pytest.approx(row["GB"] / row["seconds"] / 4)
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.slow
def test_a_plain_form_that_would_fill_the_memory_is_left_out_of_the_curves(monkeypatch):
    found = curves.scaling(SMALL, {"K": (81, 256), "B": (1,), "J": (35,)}, repeats=1)
    assert set(found["axis"]) == {"K", "B", "J"} and (found["seconds"] > 0).all()
    forms = found[found["axis"] == "K"].groupby(["stage", "value"])["form"].agg(list)
    assert forms["ranking loss, with backward", 256] == ["plain", "ours"]
    assert forms["label embeddings", 81] == ["ours", "plain"] and forms["label embeddings", 256] == ["ours"]
    monkeypatch.setattr(curves, "LARGEST", 16 * 100 * 100)
    found = curves.scaling(SMALL, {"K": (81, 256)}, repeats=1)
    loss = found[found["stage"].str.startswith("ranking")]
    assert loss[loss["form"] == "plain"]["value"].tolist() == [81] and loss[loss["form"] == "ours"].shape[0] == 2


# Workers ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_workers_start_where_processes_are_not_forked(monkeypatch):
    """macOS, Windows and Python 3.14 start workers anew: what they run has to be found by name."""
    monkeypatch.setattr(multiprocessing.context._default_context, "_actual_context", processes.CONTEXT)
    vlp = SMALL.model().vlp
    pictures = Pictures(loading.Jpegs(6, ["cat", "dog"], vlp.side), vlp, loading.AUGMENT, workers=1)
    with_workers = [inputs[0] for _, inputs, _ in pictures.batches(BatchOrder(4, seed=3))]
    pictures.workers = 0
    alone = [inputs[0] for _, inputs, _ in pictures.batches(BatchOrder(4, seed=3))]
    assert len(alone) == 2 and all(map(torch.equal, with_workers, alone))
