"""Packed rows on a GPU: the variable-length kernels give what the mask gives."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.gpu.device import needs_gpu
from trainers.objectives.packed_attention import (
    offsets,
    own_sample_mask,
    packed_attention,
    places,
)

pytestmark = needs_gpu

LENGTH = 128
# The first row is full, the second has one sample, the third padding behind its last.
STARTS = torch.tensor([[0, 50, 51, 100], [0, 128, 128, 128], [0, 7, 90, 128]])
# What neither plain code nor a fallback to it can pass for: these kernels alone are allowed.
KERNELS = {
    torch.float32: SDPBackend.EFFICIENT_ATTENTION,
    torch.bfloat16: SDPBackend.FLASH_ATTENTION,
}


@pytest.mark.parametrize("dtype", list(KERNELS))
def test_the_kernels_stay_inside_the_samples(dtype: torch.dtype) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    tensors = [
        torch.randn(3, 4, LENGTH, 64, device="cuda", dtype=dtype, generator=generator)
        for _ in range(4)
    ]
    inputs, weight = [tensor.requires_grad_() for tensor in tensors[:3]], tensors[3]
    starts = STARTS.cuda()
    _, sample = places(starts, LENGTH)
    module = torch.nn.Module()
    module.is_causal = False
    masked, _ = packed_attention(module, *inputs, own_sample_mask(sample))
    with sdpa_kernel(KERNELS[dtype]):
        jagged, _ = packed_attention(module, *inputs, None, sample_offsets=offsets(starts, LENGTH))
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(jagged, masked, atol=tolerance, rtol=tolerance)
    weight = weight.transpose(1, 2)
    found, wanted = (
        torch.autograd.grad((result * weight).sum(), inputs) for result in (jagged, masked)
    )
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)
