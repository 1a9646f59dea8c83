"""Attention inside the samples of a packed row, and nowhere else.

On a CPU a mask says who sees whom. On a GPU the samples of all rows lie behind each other as one
jagged tensor, for which torch has variable-length kernels: flash attention in half precision,
memory-efficient attention in float32. Nothing is spent on the pairs that a mask would take out.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

JAGGED = "sdpa_jagged"  # what the models' attention is set to where it is used


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


def jagged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sample_offsets: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The attention of transformers [B, heads, L, size], inside samples where there are offsets."""
    if sample_offsets is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **others
        )
    rows, _, length, _ = query.shape
    # Samples of no length are there only so that the number of offsets is fixed. The kernels step
    # over them, but torch would not choose these kernels if it were told: hence min_seqlen=1.
    jagged = (
        torch.nested.nested_tensor_from_jagged(
            heads.transpose(1, 2).flatten(0, 1), sample_offsets, min_seqlen=1, max_seqlen=length
        ).transpose(1, 2)
        for heads in (query, key, value)
    )
    found = scaled_dot_product_attention(*jagged, dropout_p=dropout, scale=scaling)
    return found.transpose(1, 2).values().unflatten(0, (rows, length)), None


AttentionInterface.register(JAGGED, jagged_attention)
AttentionMaskInterface.register(JAGGED, sdpa_mask)
