"""CAME, exact under every sharding.

    from came import CAME
    optimizer = CAME(model.parameters())
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)

`Adafactor`, `LAMB` and `SM3` are what it is compared with, exact in the same way.

`bind(engine)` proves the layout before the first step and returns the ledger; `register()` lets
DeepSpeed find CAME by its name in a JSON config; `telemetry(optimizer)` tells what its last step
looked like.
"""

import torch

from came.baselines import LAMB, SM3, Adafactor
from came.bind import bind
from came.ledger import Ledger
from came.optimizer import CAME
from came.telemetry import GroupTelemetry, telemetry

__version__ = "0.1.0"

__all__ = [
    "CAME",
    "LAMB",
    "SM3",
    "Adafactor",
    "GroupTelemetry",
    "Ledger",
    "bind",
    "register",
    "telemetry",
]


def register() -> None:
    """Make `{"optimizer": {"type": "CAME", "params": {...}}}` work in a DeepSpeed config; also SM3.

    DeepSpeed looks a name that it does not know up in `torch.optim`.  "Adafactor" is torch's there
    and stays so, and by "LAMB" DeepSpeed means its own: hand these over as objects.
    """
    torch.optim.CAME = CAME  # type: ignore[attr-defined]
    torch.optim.SM3 = SM3  # type: ignore[attr-defined]
