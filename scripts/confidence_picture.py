"""What CAME's confidence does to an update: a picture of one matrix of a small BERT.

    python -m scripts.confidence_picture
    python -m scripts.confidence_picture --steps 50 --parameter pooler.dense.weight --out /tmp

The BERT of `scripts.momentum_quality` learns for some hundred steps; then the parts of the step are
taken apart: the update `u` of the squared gradient alone, the confidence `1 / sqrt(S)`, and what is
subtracted from the weights before and after it, `m` and `m / sqrt(S)`.  Confidence is drawn over
its geometric mean: what it does to all numbers alike is a matter of the learning rate.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from came import CAME
from scripts.momentum_quality import Job, open_data, train
from scripts.small_models import MODELS
from trainers.reports.style import LIGHT, rc
from trainers.run.folder import git_state, versions

OUT = Path("docs/reproduction")
PARAMETER = "encoder.layer.1.attention.output.dense.weight"

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Parts:
    """What the last step was made of; all of the matrix's shape.

    `update` is `u` as it was clipped; `before` and `after` are `m` and `m / sqrt(S)`, and the last
    one times the learning rate is what the weights have lost.
    """

    update: Floats
    confidence: Floats
    before: Floats
    after: Floats


def parts_of(optimizer: CAME, param: nn.Parameter) -> Parts:
    """The parts of the step that was just taken, from the gradient and the state.

    Raises:
        ValueError: the parameter is no matrix.
    """
    state, grad = optimizer.state[param], param.grad
    if grad is None or param.dim() != 2:
        raise ValueError(f"a parameter of shape {tuple(param.shape)} has no confidence")
    update = state["clip_factor"] * grad / _second_moment(state, "sq").sqrt()
    confidence = _second_moment(state, "res").rsqrt()
    momentum = state["exp_avg"]
    found = (update, confidence, momentum, momentum * confidence)
    return Parts(*(tensor.float().numpy() for tensor in found))


def _second_moment(state: dict[str, Tensor], name: str) -> Tensor:
    row, col = state[f"exp_avg_{name}_row"], state[f"exp_avg_{name}_col"]
    return torch.outer(row / row.mean(), col)


def learn(steps: int, seed: int, name: str, words: Sequence[str]) -> tuple[Parts, dict[str, Any]]:
    """Train, and return the parts of the last step and the setting.

    Raises:
        ValueError: no parameter's name ends with `name`, or several do.
    """
    job = Job("bert", "float32", seed, (f"train.steps={steps}", "schedule=constant", *words))
    config = job.config()
    learner = MODELS["bert"](config, open_data(config))
    named = {key: param for key, param in learner.module.named_parameters() if key.endswith(name)}
    if len(named) != 1:
        raise ValueError(f"{len(named)} parameters have names that end with {name!r}; give one")
    ((key, param),) = named.items()
    optimizer = CAME(learner.module.parameters(), betas=config.optimizer.betas, kernel="eager")  # type: ignore[arg-type]
    kept: list[Parts] = []
    optimizer.register_step_post_hook(lambda *_: kept.append(parts_of(optimizer, param)))
    train(learner, optimizer, config)
    return kept[-1], {"parameter": key, "seed": seed, **job.key()["setting"]}


def numbers(parts: Parts) -> dict[str, float]:
    """What the picture shows, in numbers; spreads are standard deviations of logarithms."""
    logs = np.log(parts.confidence)
    rows, cols = logs.mean(axis=1), logs.mean(axis=0)
    aligned = (parts.before * parts.after).sum()
    lengths = np.linalg.norm(parts.before) * np.linalg.norm(parts.after)
    return {
        "confidence_spread": float(logs.std()),
        "confidence_spread_of_rows": float(rows.std()),
        "confidence_spread_of_columns": float(cols.std()),
        "largest_over_smallest_confidence": float(np.exp(logs.max() - logs.min())),
        "cosine_of_update_before_and_after": float(aligned / lengths),
        "geometric_mean_of_confidence": float(np.exp(logs.mean())),
    }


def draw(parts: Parts, setting: dict[str, Any]) -> Figure:
    """Four pictures of the matrix, its rows and columns in the order of their confidence."""
    confidence = parts.confidence / np.exp(np.log(parts.confidence).mean())
    order = np.ix_(np.argsort(-confidence.mean(axis=1)), np.argsort(-confidence.mean(axis=0)))
    before, after = (np.abs(values) / _rms(values) for values in (parts.before, parts.after))
    # Where the momentum is small the step is, whatever the confidence: the same scale for both.
    top = float(np.quantile(np.concatenate([before, after]), 0.995))
    with rc_context({**rc(LIGHT), "axes.grid": False}):
        figure = Figure(figsize=(11, 6.6), layout="constrained")
        figure.suptitle(
            f"Confidence and update: {setting['parameter']}, {setting['steps']} steps",
            **{"x": 0.01, "ha": "left", "fontsize": 13, "fontweight": "bold"},
        )
        grid = figure.add_gridspec(2, 3, width_ratios=(1, 1, 0.8))
        shown = (
            ("|u|, the update of g alone", np.abs(parts.update), "Greys", (0, None)),
            ("1 / sqrt(S), the confidence", np.log2(confidence), "RdBu", None),
            ("|m| before", before, "Blues", (0, top)),
            ("|m| / sqrt(S) after", after, "Blues", (0, top)),
        )
        for place, (title, values, colours, limits) in enumerate(shown):
            axes = figure.add_subplot(grid[place // 2, place % 2])
            _draw_matrix(axes, title, values[order], colours, limits)
        _draw_profile(figure.add_subplot(grid[:, 2]), confidence, numbers(parts))
        return figure


def _rms(values: Floats) -> float:
    return float(np.sqrt(np.square(values, dtype=np.float64).mean()))


def _draw_matrix(
    axes: Axes,
    title: str,
    values: Floats,
    colours: str,
    limits: tuple[float, float | None] | None,
) -> None:
    axes.set_title(title)
    if limits is None:  # logarithms, of which 0 is the middle
        reach = float(np.abs(values).max())
        limits = (-reach, reach)
    elif limits[1] is None:
        limits = (0, float(np.quantile(values, 0.995)))
    image = axes.imshow(
        values, cmap=colours, vmin=limits[0], vmax=limits[1], interpolation="nearest", aspect="auto"
    )
    axes.set(xticks=[], yticks=[], xlabel="columns, most confident first", ylabel="rows")
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.9, pad=0.02)
    bar.outline.set_visible(False)
    if colours == "RdBu":
        ticks = [tick for tick in bar.get_ticks() if abs(tick) <= limits[1]]
        bar.set_ticks(ticks, labels=[f"x {2**tick:.2g}" for tick in ticks])


def _draw_profile(axes: Axes, confidence: Floats, found: dict[str, float]) -> None:
    """The confidence of rows and of columns, most confident first, and what it amounts to."""
    axes.set_title("Confidence, over its mean")
    for axis, colour, label in ((1, "#1c6bb8", "rows"), (0, "#c7641a", "columns")):
        values = np.sort(np.exp(np.log(confidence).mean(axis=axis)))[::-1]
        axes.plot(np.linspace(0, 1, len(values)), values, color=colour, label=label)
    axes.set(xlabel="share of them, most confident first", xlim=(0, 1))
    axes.grid(True)
    axes.legend(loc="upper right")
    axes.text(
        *(
            0.04,
            0.03,
            f"largest / smallest of all: {found['largest_over_smallest_confidence']:.2f}\n",
        ),
        **{"color": LIGHT.middle, "transform": axes.transAxes},
    )
    cosine = found["cosine_of_update_before_and_after"]
    axes.text(
        *(0.04, 0.03, f"cosine of m and m / sqrt(S): {cosine:.3f}"),
        **{"color": LIGHT.middle, "transform": axes.transAxes},
    )


def main(words: Sequence[str] | None = None) -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parameter", default=PARAMETER, help="the end of its name")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("words", nargs="*", help="key=value, as for came-train")
    options = parser.parse_intermixed_args(words)
    torch.set_num_threads(1)
    state = git_state()  # before minutes in which files may change
    parts, setting = learn(options.steps, options.seed, options.parameter, options.words)
    found = {
        **state,
        "versions": versions(),
        "setting": setting,
        "numbers": numbers(parts),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "confidence_update.json").write_text(json.dumps(found, indent=1) + "\n")
    draw(parts, setting).savefig(options.out / "confidence_update.png", dpi=110)
    print(json.dumps(found["numbers"], indent=1))


if __name__ == "__main__":
    main()
