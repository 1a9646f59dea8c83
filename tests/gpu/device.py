"""What the tests of this folder need: a GPU on which Triton compiles."""

from importlib import import_module

import pytest
import torch

from came.kernels import gpu


def missing() -> str | None:
    """Why these tests cannot run here, in words, or None."""
    if not torch.cuda.is_available():
        return "there is no GPU: torch finds no CUDA device"
    reason = gpu.load()
    if reason is None and import_module("triton").knobs.runtime.interpret:
        return "TRITON_INTERPRET is set: Triton would not use the GPU"
    return reason


needs_gpu = pytest.mark.skipif(missing() is not None, reason=str(missing()))
