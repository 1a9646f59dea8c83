"""Attention inside the samples of a packed row, and nowhere else.

On a GPU the samples of all rows lie behind each other as one jagged tensor, for which torch has
variable-length kernels: flash attention in half precision, memory-efficient attention in float32.
On a CPU the samples take turns, a call each. Nothing is spent on the pairs that a mask would take
out, which is for compiled models on a CPU: lengths would be constants of theirs.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

PACKED = "sdpa_packed"  # what the models' attention is set to where it is used


def places(sample_starts: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """For each place of a row its position in its sample, and the sample: both [B, length].

    `sample_starts` [B, S]: ascending from 0, `length` where unused.
    """
    column = torch.arange(length, device=sample_starts.device).expand(len(sample_starts), -1)
    sample = torch.searchsorted(sample_starts, column.contiguous(), right=True) - 1
    return column - sample_starts.gather(1, sample), sample


def own_sample_mask(sample: Tensor) -> Tensor:
    """True where two places [B, L] are of one sample: [B, 1, L, L]."""
    return (sample.unsqueeze(2) == sample.unsqueeze(1)).unsqueeze(1)


def offsets(sample_starts: Tensor, length: int) -> Tensor:
    """Where the samples of all rows start, one row behind the other, and the end: [B * S + 1].

    Starts that are not used make samples of no length.
    """
    row = torch.arange(len(sample_starts), device=sample_starts.device) * length
    starts = (row.unsqueeze(1) + sample_starts).flatten()
    end = starts.new_full((1,), len(sample_starts) * length)
    return torch.cat([starts, end])


def lengths(sample_starts: Tensor, length: int) -> list[int]:
    """Of the samples of all rows, one row behind the other; waits for the device."""
    found: list[int] = offsets(sample_starts, length).diff().tolist()
    return [tokens for tokens in found if tokens]


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sample_offsets: Tensor | None = None,
    sample_lengths: list[int] | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The attention of transformers [B, heads, L, size], inside samples where they are told."""
    inputs, options = (query, key, value), {"dropout_p": dropout, "scale": scaling}
    if sample_offsets is not None:
        return _jagged(inputs, sample_offsets, options), None
    if sample_lengths is not None:
        return _in_turn(inputs, sample_lengths, options), None
    return sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout, scaling, **others
    )


def _jagged(inputs: Sequence[Tensor], sample_offsets: Tensor, options: dict[str, Any]) -> Tensor:
    rows, _, length, _ = inputs[0].shape
    # Samples of no length are there only so that the number of offsets is fixed. The kernels step
    # over them, but torch would not choose these kernels if it were told: hence min_seqlen=1.
    jagged = (
        torch.nested.nested_tensor_from_jagged(
            heads.transpose(1, 2).flatten(0, 1), sample_offsets, min_seqlen=1, max_seqlen=length
        ).transpose(1, 2)
        for heads in inputs
    )
    found = scaled_dot_product_attention(*jagged, **options)
    return found.transpose(1, 2).values().unflatten(0, (rows, length))


def _in_turn(inputs: Sequence[Tensor], sizes: list[int], options: dict[str, Any]) -> Tensor:
    rows, _, length, _ = inputs[0].shape
    parts = (heads.transpose(1, 2).flatten(0, 1).split(sizes) for heads in inputs)
    found = [
        scaled_dot_product_attention(
            *(one.transpose(0, 1).unsqueeze(0) for one in sample), **options
        )
        for sample in zip(*parts, strict=True)
    ]
    joined = torch.cat([one.squeeze(0).transpose(0, 1) for one in found])
    return joined.unflatten(0, (rows, length))


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, sdpa_mask)
