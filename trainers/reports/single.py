"""The picture and the page of one run, beside its metrics: report/curves.png, report/summary.md."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from matplotlib.ticker import EngFormatter

from trainers import durable
from trainers.errors import DataError, StorageError
from trainers.markdown import cell
from trainers.regular import read_regular
from trainers.reports.curves import draw
from trainers.reports.runs import flat
from trainers.reports.series import GUESSED, Row, Series, guessed
from trainers.run import metrics
from trainers.run.folder import read_starts

# keys of config.yaml that tell one run from another
_TOLD = (
    "experiment model.name data.name optimizer.name optimizer.lr batch.global_size "
    "objective.sequence_length zero.stage runtime.dtype run.seed"
)


def write_report(run_dir: str | Path) -> Path:
    """Write report/curves.png and report/summary.md of a run folder; returns the summary's path.

    Raises DataError if there are no metrics, StorageError if the report cannot be written.
    """
    path = Path(run_dir).resolve()
    rows = list(metrics.read(path / metrics.FILE_NAME))
    if not rows:
        raise DataError(f"{path / metrics.FILE_NAME} has no metrics: is {path} a run folder?")
    folder = path / "report"
    picture = io.BytesIO()
    draw(rows, path.name, _subtitle(path, rows)).savefig(picture, format="png", dpi=150)
    try:
        folder.mkdir(exist_ok=True)
        durable.write_bytes(folder / "curves.png", picture.getvalue())
        durable.write_text(folder / "summary.md", summarize(path, rows))
    except OSError as error:
        raise StorageError(f"{folder} cannot be written: {error}") from error
    return folder / "summary.md"


def _subtitle(run_dir: Path, rows: Sequence[Row]) -> str:
    settings = _settings(run_dir / "config.yaml")
    parts = [str(settings[key]) for key in ("model.name", "optimizer.name") if key in settings]
    if "optimizer.lr" in settings:
        parts.append(f"learning rate {settings['optimizer.lr']:g}")
    if tokens := Series.of(rows, "tokens"):
        parts.append(f"{EngFormatter(places=1, sep='')(tokens.last)} tokens")
    return "   ·   ".join(parts)


def summarize(run_dir: Path, rows: Sequence[Row]) -> str:
    """Markdown: the picture, the results, and what the run was."""
    tables = [("Result", results(rows)), ("Run", _origin(run_dir))]
    parts = [f"# {run_dir.name}", "![curves](curves.png)"]
    for title, lines in tables:
        body = "\n".join(f"| {cell(name)} | {cell(value)} |" for name, value in lines.items())
        parts.append(f"## {title}\n\n| | |\n|---|---|\n{body}")
    return "\n\n".join(parts) + "\n"


def results(rows: Sequence[Row]) -> dict[str, str]:
    """What a run reached, in words; a metric that was not logged is left out."""
    formats = {
        "tokens": ("tokens", "{:,.0f}"),
        "samples": ("samples", "{:,.0f}"),
        "eval/loss": ("held-out loss", "{:.4f}"),
        "eval/perplexity": ("perplexity of a token", "{:,.2f}"),
        "eval/word_perplexity": ("perplexity of a word", "{:,.2f}"),
        **{name: (words, "{:.2%}") for name, words in GUESSED.items()},
        "eval/commonest_token_accuracy": ("always the commonest token", "{:.2%}"),
        "eval/nsp_accuracy": ("next sentence told right", "{:.2%}"),
    }
    found = {"steps": f"{max(row['step'] for row in rows):,}"}
    for name, (words, form) in formats.items():
        if series := Series.of(rows, name):
            found[words] = form.format(series.last)
    if training := Series.of(rows, "train/loss"):
        count = training.smoothed_at_end
        words = f"mean of the last {count} logs" if count > 1 else "the last log"
        found[f"training loss, {words}"] = f"{training.smooth().last:.4f}"
    accuracy = Series.of(rows, guessed(rows))
    commonest = Series.of(rows, "eval/commonest_token_accuracy")
    if accuracy and commonest and commonest.last > 0:
        found["times the commonest token"] = f"{accuracy.last / commonest.last:.2f}"
    if speed := Series.of(rows, "train/tokens_per_second"):
        found["tokens per second, median"] = f"{speed.middle:,.0f}"
    return found


def _origin(run_dir: Path) -> dict[str, str]:
    """Settings and provenance, as far as the run folder has them."""
    settings = _settings(run_dir / "config.yaml")
    found = {key: str(settings[key]) for key in _TOLD.split() if key in settings}
    starts = read_starts(run_dir)
    if starts:
        last = starts[-1]
        for key in ("command", "started", "device", "world_size", "commit"):
            if last.get(key) is not None:
                found[key.replace("_", " ")] = f"`{last[key]}`"
        if last.get("dirty"):
            found["commit"] += " with changes"
        versions = last.get("versions", {})
        found["versions"] = ", ".join(f"{name} {versions[name]}" for name in versions)
        found["starts"] = str(len(starts))
    return found


def _settings(path: Path) -> dict[str, Any]:
    """config.yaml with dotted keys; empty if it cannot be read."""
    try:
        return flat(yaml.safe_load(read_regular(path)))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
