"""The README.md of an exported model: what it is, how it was trained, what it reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainers import fidelity
from trainers.config import Config
from trainers.markdown import cell
from trainers.redact import bare_name, bare_source
from trainers.regular import read_regular
from trainers.run import metrics
from trainers.run.folder import read_starts

_PIPELINES = {
    "masked_lm": "fill-mask",
    "causal_lm": "text-generation",
    "span_corruption": "text2text-generation",
}
_NO_REPORT = (
    f"The run folder has no {fidelity.FILE_NAME}: what differs from the paper is not known."
)


def model_card(
    config: Config, run: Path, step: int, phases: Sequence[Mapping[str, Any]] = ()
) -> str:
    """Markdown with the front matter of the Hugging Face hub.

    Args:
        config: the settings as the run ended; those of its last phase, if it has phases.
        run: the run folder.
        step: of the exported checkpoint.
        phases: all of the run, as its settings spell them.
    """
    model, objective, optimizer = config.model, config.objective, config.optimizer
    front = ["---", "library_name: transformers", f"pipeline_tag: {_PIPELINES[objective.name]}"]
    told: dict[str, object] = {
        "model": f"{model.name}: {model.family}, {model.layers} layers of {model.hidden}",
        "objective": f"{objective.name}, {objective.sequence_length} tokens",
        "data": _data(config),
        "optimizer": f"{optimizer.name}, learning rate {optimizer.lr:g}, betas {optimizer.betas}",
        "weight decay": f"{optimizer.weight_decay:g}",
        "gradient clipping": f"{config.train.gradient_clipping:g}",
        "schedule": f"{config.schedule.name} over {config.train.steps:,} steps",
        "batch": f"{config.batch.global_size:,} sequences",
        "dtype": config.runtime.dtype,
        "seed": config.run.seed,
    }
    if phases:
        told["phases"] = "; ".join(_phase(phase) for phase in phases)
    told |= {"trained": f"{step:,} steps", **_origin(run)}
    parts = [
        "\n".join([*front, "---"]),
        f"# {run.name}",
        "Pretrained, and not fine-tuned for any task.",
        "## Training\n\n" + _table(told),
    ]
    if results := _results(run, step):
        parts.append("## Held-out results\n\n" + _table(results))
    if page := _fidelity(run, config):
        parts.append(page.replace("\n## ", "\n### ").replace("# ", "## ", 1))
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _phase(phase: Mapping[str, Any]) -> str:
    given = {key: value for key, value in phase.items() if value is not None}
    share = given.pop("share", None)
    told = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in given.items())
    return f"{share} of the steps: {told or 'as above'}"


def _fidelity(run: Path, config: Config) -> str | None:
    """As the run wrote it: of all its phases, which `config` has no more, and beside the experiment
    as it was then."""
    try:
        page = read_regular(run / fidelity.FILE_NAME, errors="replace")
    except OSError:
        known = config.experiment in fidelity.names()
        return f"# Fidelity\n\n{_NO_REPORT}" if known else None
    path = config.data.path
    # The first runs wrote the whole path.
    return page.replace(f"| {path} |", f"| {bare_name(path)} |") if path else page


def _data(config: Config) -> str:
    data = config.data
    if data.hub:
        return bare_source(data.hub)
    return bare_name(data.path) if data.path else data.name


def _origin(run: Path) -> dict[str, object]:
    starts = read_starts(run)
    if not starts:
        return {}
    last = starts[-1]
    versions = ", ".join(f"{name} {number}" for name, number in last.get("versions", {}).items())
    dirty = " with changes" if last.get("dirty") else ""
    return {
        "commit": f"{last.get('commit') or 'not known'}{dirty}",
        "device": last.get("device", "not known"),
        "versions": versions,
    }


def _results(run: Path, step: int) -> dict[str, object]:
    """The last evaluation up to `step`."""
    found: dict[str, object] = {}
    for row in metrics.read(run / metrics.FILE_NAME):
        if row["step"] <= step:
            evaluated = {k: v for k, v in row.items() if k.startswith("eval/") and v is not None}
            if evaluated:
                found = {"step": row["step"]} | {
                    key: f"{value:.6g}" for key, value in evaluated.items()
                }
    return found


def _table(rows: dict[str, object]) -> str:
    lines = [f"| {key} | {cell(str(value))} |" for key, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])
