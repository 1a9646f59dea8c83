"""Calls of `step()` that are no step: with gradients of zero, to have the state allocated.

To count one would decay the weights and move every statistic.
"""

import sys

# Function that calls, the module it is in, and what it is.
CALLERS = {
    # The constructor of `FP16_UnfusedOptimizer` (ZeRO 0 in half precision).
    "initialize_optimizer_states": ("deepspeed.", "wrapper"),
    # `torch.distributed.checkpoint`, before it loads, or saves what has not been trained.
    "_init_optim_state": ("torch.distributed.checkpoint.", "checkpoint"),
}
MAX_DEPTH = 12  # frames between the caller and `step()`: hooks and profilers wrap it


def allocation_step() -> str | None:
    """ "wrapper" or "checkpoint", if one of them calls `step()` to allocate; else None."""
    if not sys.modules.keys() & {"deepspeed", "torch.distributed.checkpoint.state_dict"}:
        return None
    frame = sys._getframe(1)
    for _ in range(MAX_DEPTH):
        module, kind = CALLERS.get(frame.f_code.co_name, ("", ""))
        if kind and str(frame.f_globals.get("__name__")).startswith(module):
            return kind
        if frame.f_back is None:
            return None
        frame = frame.f_back
    return None
