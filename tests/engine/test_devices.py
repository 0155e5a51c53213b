"""Devices by name, bfloat16 where it is native, processes that decode, the peak of memory."""

import numpy as np
import pytest
import torch

from hrcf_lib.engine import devices


def test_bfloat16_is_left_alone_where_a_cpu_would_only_emulate_it(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": False}, raising=False)
    assert not devices.native_bf16("cpu") and not devices.native_bf16("mps")
    x = torch.randn(4, 4)
    with devices.autocast("cpu", bf16=True):
        assert (x @ x).dtype == torch.float32
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    with devices.autocast("cpu", bf16=True):
        assert (x @ x).dtype == torch.bfloat16
    with devices.autocast("cpu", bf16=False):
        assert (x @ x).dtype == torch.float32


def test_a_device_that_the_machine_has_not_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices.named("cuda:1") == torch.device("cuda:1") and devices.available() == ["cpu", "cuda"]
    for wrong in ("cuda:2", "mps", "gpu"):
        with pytest.raises(ValueError, match=f"device = '{wrong}': this machine has cpu, cuda; choose"):
            devices.named(wrong)


@pytest.mark.parametrize("cores, processes, workers", [(64, 1, 16), (64, 8, 8), (2, 4, 0), (None, 1, 1)])
def test_workers_are_a_process_share_of_the_cores(monkeypatch, cores, processes, workers):
    monkeypatch.setattr(devices.os, "cpu_count", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert devices.workers() == workers


@pytest.mark.skipif(not devices.reset_peak_memory(), reason="this system cannot reset a peak")
def test_the_peak_of_memory_is_reset():
    held = np.ones(50_000_000)  # 400 MB
    before = devices.memory_gb()[1]
    del held
    assert before >= 0.4
    assert devices.memory_gb()[1] > before - 0.05, "the peak stays when memory is freed (the kernel's count is rounded)"
    assert devices.reset_peak_memory()
    now, peak = devices.memory_gb()
    assert peak < now + 0.1
