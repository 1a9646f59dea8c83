"""Which kernel computes attention: asked of torch with the very tensors of a forward pass."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nested._internal.sdpa import _select_sdp_backend
from torch.nn.attention import SDPBackend
from torch.overrides import TorchFunctionMode

_WORDS = {
    SDPBackend.MATH: "math (plain matrices)",
    SDPBackend.FLASH_ATTENTION: "flash attention",
    SDPBackend.EFFICIENT_ATTENTION: "memory-efficient attention",
    SDPBackend.CUDNN_ATTENTION: "cuDNN attention",
}


class _Calls(TorchFunctionMode):
    """Notes the kernel of each call of scaled_dot_product_attention inside."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[str] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        kwargs = kwargs or {}
        if function is nn.functional.scaled_dot_product_attention:
            choice = _choice(*args, **kwargs)
            self.kernels.append(_WORDS.get(SDPBackend(choice), f"kernel {choice} of torch"))
        return function(*args, **kwargs)


def _choice(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **others: Any,
) -> int:
    if query.is_nested:  # packed rows: torch chooses in Python there, and `_fused_sdp_choice` fails
        choose, last = _select_sdp_backend, others.get("enable_gqa", False)
        return int(choose(query, key, value, attn_mask, dropout_p, is_causal, last).value)
    return torch._fused_sdp_choice(query, key, value, attn_mask, dropout_p, is_causal, **others)


@torch.no_grad()
def attention_kernels(module: nn.Module, batch: dict[str, Tensor]) -> str:
    """The kernels of all layers on `batch`, in words.

    A mask or dropout may rule a fast kernel out without a word, which is why it is told.
    """
    with _Calls() as calls:
        module(batch)
    names = dict.fromkeys(calls.kernels)  # in order, each once
    return ", ".join(names) or "not torch's scaled_dot_product_attention"
