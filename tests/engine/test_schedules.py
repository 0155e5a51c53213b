"""Learning-rate curves against MKT's code and PyTorch's class."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from hrcf_lib.engine.schedules import learning_rate, one_cycle

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize(("stage", "epochs", "min_lr", "warmup"), [("stage1", 20, 1e-6, 2), ("stage2", 4, 1e-8, 0)])
def test_learning_rate_is_mkts(stage, epochs, min_lr, warmup):
    golden = np.load(GOLDEN / "mkt_lr_schedule.npz", allow_pickle=False)
    ours = [learning_rate(e, epochs, 1e-3, min_lr, warmup) for e in golden[f"{stage}__epoch64"].tolist()]
    assert ours == golden[f"{stage}__lr"].tolist(), "the same 64-bit floats"


def test_learning_rate_at_its_ends():
    assert learning_rate(0, 10, 1e-3, 1e-6, 2) == 0
    assert learning_rate(2, 10, 1e-3, 1e-6, 2) == learning_rate(0, 4, 1e-3, 1e-6, 0) == 1e-3
    assert learning_rate(10, 10, 1e-3, 1e-6, 2) == pytest.approx(1e-6)
    assert learning_rate(11, 10, 1e-3, 1e-6, 2) == pytest.approx(1e-6), "never up again"
    assert learning_rate(1.5, 1, 1e-3, 1e-6, 2) == pytest.approx(0.75e-3), "a run shorter than its warm-up"


def test_learning_rate_is_finite_without_epochs():
    assert math.isfinite(learning_rate(0, 0, 1e-3, 1e-6, 0))


def test_the_one_cycle_curve_is_torchs():
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=1.0)
    steps = 101
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-4, total_steps=steps)
    for step in range(steps):
        epoch = 4 * step / (steps - 1)  # theirs reaches the end at its last step
        top = (0.3 * steps - 1) / (steps - 1)  # and has its top there
        assert one_cycle(epoch, 4, 2e-4, rise=top) == pytest.approx(
            optimizer.param_groups[0]["lr"], rel=1e-6, abs=1e-12
        )
        optimizer.step()
        if step < steps - 1:
            theirs.step()
