"""The tables on a GPU: what has changed of them goes up, and nobody waits for it."""

from typing import Any

import torch
from torch import Tensor

from came.kernels.table import Rows, on_device


class Mirror:
    """A small tensor of the CPU and its copy on the device, which stays where it is.

    It goes up from fresh pinned memory, when it has changed, and nobody waits for it.
    """

    def __init__(self, source: Tensor, device: torch.device) -> None:
        self._source, self._sent = source, source[:0]
        self._captured: list[Tensor] = []
        # Never without a row: a program that has nothing to do reads its addresses all the same.
        self.tensor = source.new_zeros(max(1, len(source)), *source.shape[1:], device=device)
        self.refresh()

    def refresh(self) -> bool:
        """Send it if it has changed; returns whether it has."""
        if self._sent.numel() == self._source.numel() and torch.equal(self._sent, self._source):
            return False
        pinned = self.tensor.device.type != "cpu"
        self._sent = self._source.pin_memory() if pinned else self._source.clone()
        self.tensor[: len(self._sent)].copy_(self._sent, non_blocking=True)
        if captured(self.tensor.device):
            self._captured.append(self._sent)  # every replay sends it again
        return True


class DeviceRows:
    """The tables of `Rows` on the device."""

    def __init__(self, rows: Rows, device: torch.device) -> None:
        self.rows = rows
        self.rounds = any(task.options.get("stochastic_rounding") for task in rows.tasks)
        self.box, self.address = Mirror(rows.box, device), Mirror(rows.address, device)
        self.option, self.key = Mirror(rows.option, device), Mirror(rows.key, device)
        groups = {id(task.options): task.options for task in rows.tasks}
        self._groups = [
            (group, Mirror(torch.tensor(_members(rows, group), device="cpu"), device))
            for group in groups.values()
        ]
        self._shares = torch.ones(len(rows.tasks), 2, device="cpu")
        self._device_shares = Mirror(self._shares, device)

    def counts(self) -> set[str]:
        """The options in use for which each step has other numbers."""
        options = ("bias_correction", "stochastic_rounding")
        return {key for key in options for group, _ in self._groups if group.get(key)}

    def refresh(self) -> bool:
        """Take over what has changed; returns whether addresses have."""
        self.option.refresh()
        self.key.refresh()
        for group, members in self._groups:
            if on_device(group["lr"]):
                self._add_lr(group, members)
        return self.address.refresh()

    def _add_lr(self, group: dict[str, Any], members: Mirror) -> None:
        """`lr` and `lr * weight_decay`, the first options, from a learning rate on the device."""
        for row, task in enumerate(self.rows.tasks):
            if task.options is group:
                self._shares[row, 1] = group["weight_decay"]
        self._device_shares.refresh()
        columns = self.option.tensor[:, :2]
        found = self._device_shares.tensor * group["lr"]
        columns.copy_(torch.where(members.tensor, found, columns))


def captured(device: torch.device) -> bool:
    """Whether what is launched now becomes part of a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _members(rows: Rows, group: dict[str, Any]) -> list[list[bool]]:
    """Which parameters are of a group, as a column."""
    return [[task.options is group] for task in rows.tasks]
