"""How far from Adam's trajectory do Adafactor and CAME go?  A small MLP, the blog post's question.

    python -m scripts.mlp_trajectories
    python -m scripts.mlp_trajectories --seeds 3 --steps 200 --out /tmp

CAME and Adafactor replace Adam's second moment by two vectors a matrix, so Adam is what they
approximate.  All start from the same weights and see the same batches; after every few steps the
distance of their weights from Adam's is taken, as a share of the way that Adam has come.  The blog
post's setting is not published; this one is: one hidden layer, clusters of points with a few wrong
labels, no schedule.

A learning rate means another thing to each optimizer, and a distance would mostly show that.  So
each runs at its own: of some multiples of Adam's the one whose trajectory is nearest to Adam's for
a seed that is not shown.  What Adam does on other batches is the yardstick for what is near.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from came import CAME, Adafactor
from trainers.reports.style import LIGHT, rc
from trainers.run.folder import git_state, versions

OUT = Path("docs/reproduction")
CHOOSING_SEED = 1000  # learning rates are chosen with it, and it is not shown
MULTIPLES = tuple(2.0**power for power in range(-6, 2))  # of Adam's learning rate
IDEAL, OTHER_BATCHES = "Adam", "Adam, other batches"

Floats = NDArray[np.float64]
Make = Callable[[list[nn.Parameter], float], torch.optim.Optimizer]


def _adafactor(params: list[nn.Parameter], lr: float) -> Adafactor:
    return Adafactor(params, lr=lr, beta1=0.9, scale_parameter=False, relative_step=False)


# Plain torch, so that a run is the same whether there is a compiler or not.
OPTIMIZERS: dict[str, Make] = {
    IDEAL: lambda params, lr: torch.optim.Adam(params, lr=lr),
    OTHER_BATCHES: lambda params, lr: torch.optim.Adam(params, lr=lr),
    "Adafactor": _adafactor,
    "CAME": lambda params, lr: CAME(params, lr=lr, kernel="eager"),
    "CAME, bias corrected": lambda params, lr: CAME(
        params, lr=lr, bias_correction=True, kernel="eager"
    ),
}
COLOURS = {
    IDEAL: LIGHT.ink,
    OTHER_BATCHES: "#9093a0",
    "Adafactor": LIGHT.of("adafactor"),
    "CAME": LIGHT.of("came"),
    "CAME, bias corrected": "#c7641a",
}


@dataclass(frozen=True)
class Setting:
    """Of the problem and of the runs; `every` so many steps the weights are kept."""

    inputs: int = 64
    hidden: int = 64
    classes: int = 20
    samples: int = 8192
    wrong_labels: float = 0.1
    batch: int = 64
    steps: int = 1000
    every: int = 20
    lr: float = 1e-3  # Adam's


@dataclass(frozen=True)
class Trajectory:
    """Weights `(points, numbers)` and the loss over all samples `(points,)`."""

    weights: Floats
    loss: Floats


def problem(setting: Setting, seed: int) -> tuple[Tensor, Tensor, nn.Sequential]:
    """Samples, labels and the network at its start."""
    torch.manual_seed(seed)
    centres = torch.randn(setting.classes, setting.inputs)
    label = torch.randint(setting.classes, (setting.samples,))
    samples = centres[label] + 2 * torch.randn(setting.samples, setting.inputs)
    wrong = torch.rand(setting.samples) < setting.wrong_labels
    label[wrong] = torch.randint(setting.classes, (int(wrong.sum()),))
    first = nn.Linear(setting.inputs, setting.hidden)
    network = nn.Sequential(first, nn.Tanh(), nn.Linear(setting.hidden, setting.classes))
    return samples, label, network


def train(setting: Setting, seed: int, name: str, lr: float) -> Trajectory:
    """One optimizer, from the start that belongs to the seed."""
    samples, label, network = problem(setting, seed)
    params = list(network.parameters())
    optimizer = OPTIMIZERS[name](params, lr)
    order = torch.Generator().manual_seed(seed + 10_000 * (name == OTHER_BATCHES))
    weights, losses = [], []
    for step in range(setting.steps + 1):
        if step % setting.every == 0:
            with torch.no_grad():
                losses.append(float(cross_entropy(network(samples), label)))
            weights.append(torch.cat([param.detach().flatten() for param in params]).double())
        chosen = torch.randint(setting.samples, (setting.batch,), generator=order)
        optimizer.zero_grad()
        cross_entropy(network(samples[chosen]), label[chosen]).backward()
        optimizer.step()
    return Trajectory(torch.stack(weights).numpy(), np.array(losses))


def distances(found: Trajectory, ideal: Trajectory) -> Floats:
    """From Adam's weights at the same step, as a share of Adam's way from the start."""
    way = np.linalg.norm(ideal.weights - ideal.weights[0], axis=1)[1:]
    return np.linalg.norm(found.weights - ideal.weights, axis=1)[1:] / way


def cosines(found: Trajectory, ideal: Trajectory) -> Floats:
    """Of the angle between the two ways from the start, whatever their lengths."""
    ways = [(path.weights - path.weights[0])[1:] for path in (found, ideal)]
    lengths = np.prod([np.linalg.norm(way, axis=1) for way in ways], axis=0)
    return (ways[0] * ways[1]).sum(axis=1) / lengths


def choose_rates(setting: Setting) -> dict[str, dict[float, float]]:
    """For each optimizer the mean distance from Adam, by multiple of Adam's learning rate."""
    ideal = train(setting, CHOOSING_SEED, IDEAL, setting.lr)
    return {
        name: {
            multiple: float(distances(path, ideal).mean())
            for multiple in MULTIPLES
            for path in [train(setting, CHOOSING_SEED, name, multiple * setting.lr)]
        }
        for name in OPTIMIZERS
        if name not in (IDEAL, OTHER_BATCHES)
    }


def measure(setting: Setting, seeds: int) -> dict[str, Any]:
    """All runs, as they go into the file."""
    scores = choose_rates(setting)
    chosen = {name: min(found, key=found.__getitem__) for name, found in scores.items()}
    chosen = {IDEAL: 1.0, OTHER_BATCHES: 1.0, **chosen}
    runs: dict[str, list[dict[str, list[float]]]] = {name: [] for name in OPTIMIZERS}
    for seed in range(seeds):
        paths = {name: train(setting, seed, name, chosen[name] * setting.lr) for name in OPTIMIZERS}
        ideal = paths[IDEAL]
        across = plane(list(paths.values())) if seed == 0 else None
        for name, path in paths.items():
            run = {
                "distance": distances(path, ideal),
                "cosine": cosines(path, ideal),
                "loss": path.loss,
            }
            if across is not None:
                run |= {"x": (path.weights - ideal.weights[0]) @ across[0]}
                run |= {"y": (path.weights - ideal.weights[0]) @ across[1]}
            runs[name].append({key: rounded(value) for key, value in run.items()})
    return {
        "setting": asdict(setting),
        "distance_by_multiple_of_lr": scores,
        "multiple_of_lr": chosen,
        "runs": runs,
    }


def plane(paths: Sequence[Trajectory]) -> Floats:
    """The two directions in which trajectories from one start differ most, as rows."""
    ways = np.concatenate([path.weights - path.weights[0] for path in paths])
    return np.linalg.svd(ways, full_matrices=False)[2][:2]


def rounded(values: Floats) -> list[float]:
    return [float(f"{value:.5g}") for value in values]


def table(found: dict[str, Any]) -> Iterator[str]:
    """At the end of the runs, means over seeds, and of the distance the extremes too."""
    yield "| optimizer | lr / Adam's | distance | smallest, largest | cosine | loss |"
    yield "|---|---|---|---|---|---|"
    for name, runs in found["runs"].items():
        ends = {
            key: np.array([run[key][-1] for run in runs]) for key in ("distance", "cosine", "loss")
        }
        distance = ends["distance"]
        yield (
            f"| {name} | {Fraction(found['multiple_of_lr'][name])} | {distance.mean():.3f} | "
            f"{distance.min():.3f}, {distance.max():.3f} | {ends['cosine'].mean():.3f} | "
            f"{ends['loss'].mean():.4f} |"
        )


def draw(found: dict[str, Any]) -> Figure:
    """Distance, angle and loss over the steps, and the paths of one seed in their plane."""
    setting = Setting(**found["setting"])
    steps = np.arange(setting.every, setting.steps + 1, setting.every)
    with rc_context(rc(LIGHT)):
        figure = Figure(figsize=(10, 7), layout="constrained")
        figure.suptitle(
            f"An MLP from one start: how near to Adam?  {len(found['runs'][IDEAL])} seeds, "
            "mean and extremes",
            **{"x": 0.01, "ha": "left", "fontsize": 13, "fontweight": "bold"},
        )
        away, angle, loss, paths = figure.subplots(2, 2).flat
        _draw_bands(away, found, "distance", steps, "Distance from Adam / way that Adam has come")
        _draw_bands(angle, found, "cosine", steps, "Cosine of the angle between the ways")
        _draw_bands(loss, found, "loss", np.array([0, *steps]), "Loss over all samples")
        away.set_ylim(bottom=0)
        _draw_paths(paths, found)
        loss.set_yscale("log")
        loss.yaxis.set_major_formatter(matplotlib.ticker.ScalarFormatter())
        loss.yaxis.set_minor_formatter(matplotlib.ticker.ScalarFormatter())
        for axes in (away, angle, loss):
            axes.set_xlabel("step")
            axes.set_xlim(0, setting.steps)
        handles, words = loss.get_legend_handles_labels()
        figure.legend(handles, words, loc="outside lower center", ncols=len(words))
        return figure


def _draw_bands(
    axes: Axes, found: dict[str, Any], key: str, steps: NDArray[np.int64], title: str
) -> None:
    axes.set_title(title)
    for name, runs in found["runs"].items():
        if name == IDEAL and key != "loss":
            continue  # it is what the others are compared with
        values = np.array([run[key] for run in runs])
        axes.fill_between(
            steps, values.min(0), values.max(0), color=COLOURS[name], alpha=0.12, lw=0
        )
        axes.plot(steps, values.mean(0), color=COLOURS[name], label=_label(found, name))


def _draw_paths(axes: Axes, found: dict[str, Any]) -> None:
    axes.set_title("The paths of seed 0, in the plane they differ in most")
    for name, runs in found["runs"].items():
        axes.plot(runs[0]["x"], runs[0]["y"], color=COLOURS[name], lw=1.4)
        axes.plot(runs[0]["x"][-1], runs[0]["y"][-1], "o", color=COLOURS[name], ms=5)
    axes.annotate("start", (0, 0), (4, 4), textcoords="offset points", color=LIGHT.middle)
    axes.plot(0, 0, "o", color=LIGHT.middle, ms=4)
    axes.set_aspect("equal", "datalim")


def _label(found: dict[str, Any], name: str) -> str:
    multiple = found["multiple_of_lr"][name]
    return name if name in (IDEAL, OTHER_BATCHES) else f"{name} (lr x {Fraction(multiple)})"


def main(words: Sequence[str] | None = None) -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--seeds", type=int, default=5, help="how many, from 0 up")
    parser.add_argument("--steps", type=int, default=Setting.steps)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    setting = Setting(steps=options.steps)
    found = {**git_state(), "versions": versions(), **measure(setting, options.seeds)}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "mlp_trajectories.json").write_text(json.dumps(found, indent=1) + "\n")
    draw(found).savefig(options.out / "mlp_trajectories.png", dpi=110)
    print("\n".join(table(found)))


if __name__ == "__main__":
    main()
