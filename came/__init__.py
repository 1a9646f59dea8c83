"""CAME, exact under every sharding.

    from came import CAME
    optimizer = CAME(model.parameters())
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)

`bind(engine)` proves the layout before the first step and returns the ledger; `register()` lets
DeepSpeed find CAME by its name in a JSON config; `telemetry(optimizer)` tells what its last step
looked like.
"""

import torch

from came.bind import bind
from came.ledger import Ledger
from came.optimizer import CAME
from came.telemetry import GroupTelemetry, telemetry

__all__ = ["CAME", "GroupTelemetry", "Ledger", "bind", "register", "telemetry"]


def register() -> None:
    """Make `{"optimizer": {"type": "CAME", "params": {...}}}` work in a DeepSpeed config.

    DeepSpeed looks a name that it does not know up in `torch.optim`.
    """
    torch.optim.CAME = CAME  # type: ignore[attr-defined]
