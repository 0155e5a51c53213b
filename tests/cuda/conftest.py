"""The device of these tests: CUDA, or, with ``HRCF_CUDA_TESTS=rehearse``, the CPU in its place.

Without either they are skipped. Products of float32 stay in float32 (no TF32) unless a test asks for it.
"""

import os

import pytest
import torch


@pytest.fixture
def device():
    if not torch.cuda.is_available() and os.environ.get("HRCF_CUDA_TESTS") != "rehearse":
        pytest.skip("needs CUDA")
    settings = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [own.allow_tf32 for own in settings]
    for own in settings:
        own.allow_tf32 = False
    yield torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for own, value in zip(settings, before):
        own.allow_tf32 = value
