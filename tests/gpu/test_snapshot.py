"""What a save copies from a GPU, on a stream and a thread of its own, while work goes on there."""

import threading
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.gpu.device import needs_gpu
from trainers.run.snapshot import Snapshot

pytestmark = needs_gpu


def test_a_copy_waits_for_what_was_queued_and_an_update_for_the_copy(tmp_path: Path) -> None:
    big = torch.ones(4096, 4096, device="cuda") / 4096
    tensors = {
        "param/a": torch.zeros(1 << 26, device="cuda"),
        "param/b": torch.zeros(999, dtype=torch.bfloat16, device="cuda"),
        "param/empty": torch.zeros(0, device="cuda"),
        "step/a": torch.tensor([7.0]),
    }
    snapshot = Snapshot()
    for value in (1.0, 2.0):  # the second one into the buffer and the stream of the first
        for _ in range(50):  # long work, behind which the values are written
            big = big @ big
        for name in ("param/a", "param/b"):
            tensors[name].fill_(value)
        snapshot.begin(tensors)
        thread = threading.Thread(target=snapshot.copy)
        thread.start()
        for _ in range(10):  # the next step
            big = big @ big
        thread.join()
        for name in ("param/a", "param/b"):  # its update
            tensors[name].fill_(-1.0)
        snapshot.write(tmp_path / "part.safetensors")
        found = load_file(tmp_path / "part.safetensors")
        assert all((found[name] == value).all() for name in ("param/a", "param/b"))
        assert found["param/empty"].numel() == 0 and found["step/a"].item() == 7.0
        assert torch.cuda.current_stream() == torch.cuda.default_stream()
