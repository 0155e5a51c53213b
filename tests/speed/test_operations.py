"""Operations of a step: their times add up to it, their bounds are counted from shapes."""

import pandas as pd
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hrcf_lib.config import Phase
from hrcf_lib.speed import operations
from hrcf_lib.speed.inputs import Sizes, label_names

RATES = {"float32": 100.0, "bfloat16": 200.0, "GB/s": 10.0}


def test_the_bound_of_a_product_is_its_arithmetic_and_that_of_a_copy_its_traffic():
    a = torch.ones(512, 512)
    with operations.Operations(RATES) as counted:
        a @ a
        a.bfloat16() @ a.bfloat16()
        a.clone()
    rows = pd.DataFrame(counted.found).T
    assert rows.loc["mm", "calls"] == 2
    assert rows.loc["mm", "bound"] == pytest.approx(2e-9 * 512**3 * (1 / 100 + 1 / 200))
    assert rows.loc["clone", "bound"] == pytest.approx(2 * 512**2 * 4 * 1e-9 / 10)


def test_arithmetic_is_that_of_pytorchs_counter_and_of_attention_on_the_cpu_too():
    q, k, v = (torch.randn(2, 4, 10, 8, requires_grad=True) for _ in range(3))
    rates = {"float32": 1.0, "bfloat16": 1.0, "GB/s": 1e12}  # GFLOP/s; nothing is bound by traffic
    with operations.Operations(rates) as counted:
        torch.nn.functional.scaled_dot_product_attention(q, k, v).sum().backward()
    products = 2 * (2 * 4 * 10 * 10 * 8)  # one of B x heads x 10 x 10 x 8
    found = {name: row["bound"] * 1e9 for name, row in counted.found.items() if "attention" in name}
    assert sorted(found.values()) == pytest.approx([2 * products, 5 * products], rel=1e-6)
    x, w = torch.randn(3, 5, 7, 7), torch.randn(6, 5, 3, 3)
    with FlopCounterMode(display=False) as usual:
        torch.nn.functional.conv2d(x, w)
    with operations.Operations(rates) as counted:
        torch.nn.functional.conv2d(x, w)
    assert counted.found["convolution"]["bound"] * 1e9 == pytest.approx(usual.get_total_flops(), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("side", "epochs", "convolutions"), [("hcg", 1, 6), ("prompts", 1, 6), ("prompts", 2, 0)])
def test_a_table_holds_all_of_a_step(side, epochs, convolutions):
    """Prompts that learn for several epochs leave the image side alone, as training does."""
    model, names = Sizes.of(smoke=True).model(), label_names(40)
    table = operations.operations(model, Phase(side, epochs, 2), 2, names, RATES)
    assert table["share"].sum() == pytest.approx(1) and (table["ms"] >= 0).all() and table["ms"].is_monotonic_decreasing
    calls = table.set_index("operation")["calls"]
    assert calls.get("convolution", 0) == convolutions and calls[operations.BETWEEN] == 0
    assert calls.get("convolution_backward", 0) == (6 if side == "hcg" else 0)


def test_the_command_prints_and_writes_a_table_per_side(tmp_path, monkeypatch, capsys):
    table = pd.DataFrame(
        {"operation": ["mm", "add"], "calls": [3, 9], "ms": [9.9, 0.1], "share": [0.99, 0.01], "bound_ms": [5.0, 0.1]}
    ).assign(of_bound=lambda t: t["bound_ms"] / t["ms"])
    monkeypatch.setattr(operations, "machine", lambda *size: RATES)
    monkeypatch.setattr(operations, "of_preset", lambda preset, rates, batch: {"hcg": table})
    out = tmp_path / "operations.json"
    assert operations.main(["--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "mini, a step of hcg: 10.0 ms" in printed and " mm " in printed and "add" not in printed
    assert '"operation": "add"' in out.read_text(encoding="utf-8")
