"""CAME in a plain loop of torch: no decay for norms and biases, and a warm-up.

    python scripts/examples/bare_loop.py

A small network learns to count the vowels of random words.
"""

import torch
from torch import nn

from came import CAME

STEPS, WARM_UP = 200, 40
VOWELS = torch.tensor([ord(letter) - ord("a") for letter in "aeiou"])


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Matrices shrink; vectors (norms, biases) do not."""
    params = list(model.parameters())
    return [
        {"params": [p for p in params if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0},
    ]


def main() -> list[float]:
    """Train; returns the loss of each step."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Embedding(26, 16), nn.Flatten(), nn.LayerNorm(16 * 12)),
        *(nn.Linear(16 * 12, 64), nn.GELU(), nn.Linear(64, 1)),
    )
    optimizer = CAME(decay_groups(model, 0.01), lr=2e-3)
    # CAME has no bias correction, so its first steps are large: warm up, then down to zero.
    scale = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARM_UP, (STEPS - step) / (STEPS - WARM_UP))
    )
    losses = []
    for step in range(STEPS):
        words = torch.randint(26, (64, 12))
        vowels = torch.isin(words, VOWELS).sum(1, keepdim=True)
        loss = nn.functional.mse_loss(model(words), vowels.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scale.step()
        losses.append(loss.item())
        if step % 20 == 19:
            print(f"step {step + 1:3}  loss {loss.item():.3f}")
    return losses


if __name__ == "__main__":
    main()
