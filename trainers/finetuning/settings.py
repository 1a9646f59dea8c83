"""The settings of `came-finetune`, from `configs/finetune.yaml` and the words of the command."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from os.path import expanduser
from pathlib import Path
from typing import Any, Literal

from trainers.compose import choices, read_words
from trainers.config import OptimizerConfig
from trainers.errors import ConfigError
from trainers.flags import FLAGS
from trainers.limits import INF, Limit, out_of_limits
from trainers.run.step_folders import step_of
from trainers.typed import message
from trainers.validate import problems_of_optimizer

OPTIMIZERS = ("adamw", "came")  # the others have no learning rate for this
LENGTHS = {"glue": 128, "squad": 384}  # tokens, BERT's

TaskName = Literal["sst2", "mrpc", "mnli", "cola", "rte", "stsb", "qnli", "squad_v1", "squad_v2"]

LIMITS: dict[str, Limit] = {
    "optimizer.lr": (0, INF, False),
    "optimizer.clip_threshold": (0, INF, False),
    "optimizer.weight_decay": (0, INF, True),
    "seeds": (1, 1000, True),
    "epochs": (0, INF, False),
    "batch_size": (1, INF, True),
    "eval_batch_size": (1, INF, True),
    "max_length": (8, INF, True),
    "stride": (0, INF, True),
    "max_answer": (1, INF, True),
    "warmup_fraction": (0, 1, True),
    "gradient_clipping": (0, INF, True),
    "train_samples": (0, INF, True),
    "threads": (0, 4096, True),
}


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """What `came-finetune` does; the YAML has units and reasons."""

    model: str
    task: TaskName
    data: str | None
    untrained: bool
    out: str | None  # None in the YAML alone
    optimizer: OptimizerConfig
    learning_rates: dict[str, float] = field(default_factory=dict)
    seeds: int
    epochs: float
    batch_size: int
    max_length: int | None  # None in the YAML alone
    stride: int
    max_answer: int
    null_threshold: float
    warmup_fraction: float
    gradient_clipping: float
    dropout: float
    train_samples: int
    eval_batch_size: int
    threads: int

    @property
    def is_squad(self) -> bool:
        return self.task.startswith("squad")

    @property
    def length(self) -> int:
        """Tokens of a sample, at most."""
        return self.max_length or LENGTHS["squad" if self.is_squad else "glue"]

    @property
    def folder(self) -> Path:
        """Where the results go."""
        return Path(str(self.out))


# What may differ between two commands that add seeds to the same results.
_APART = ("out", "seeds", "eval_batch_size", "threads", "learning_rates", "model", "data")
_SQUADS = ("stride", "max_answer", "null_threshold")


def compose_finetune(words: Sequence[str]) -> FinetuneConfig:
    """The settings that `words` ask for, complete.

    Raises:
        ConfigError: with every problem that was found, one per line.
    """
    problems: list[str] = []
    config = read_words(
        FinetuneConfig, "finetune", words, groups(), problems, FLAGS["came-finetune"]
    )
    if config is not None:
        problems += [
            *out_of_limits(config, LIMITS),
            *problems_of_optimizer(config.optimizer),
            *_others(config),
        ]
    if problems or config is None:
        raise ConfigError(message(problems))
    return replace(
        config,
        model=expanduser(config.model),
        data=config.data and ",".join(map(expanduser, config.data.split(","))),
        out=expanduser(config.out or f"runs/finetune/{_name(config)}"),
        max_length=config.length,
    )


def model_name(path: str) -> str:
    """What a model goes by: the last part of its path, and of a checkpoint its run's before it."""
    model = Path(path).expanduser().resolve()
    return f"{model.parents[1].name}/{model.name}" if step_of(model) is not None else model.name


def groups() -> dict[str, list[str]]:
    """The groups of `configs/finetune.yaml` and the names that each can be given."""
    return {"optimizer": [name for name in choices()["optimizer"] if name in OPTIMIZERS]}


def identity(config: FinetuneConfig) -> dict[str, Any]:
    """Dotted settings that results in one table must share."""
    flat: dict[str, Any] = {}
    for key, value in asdict(config).items():
        if key in _APART or (key in _SQUADS and not config.is_squad):
            continue
        inner = value if isinstance(value, Mapping) else None
        flat |= {f"{key}.{name}": v for name, v in inner.items()} if inner else {key: value}
    return {key: list(v) if isinstance(v, tuple) else v for key, v in flat.items()}


def _others(config: FinetuneConfig) -> Iterator[str]:
    if not 0 <= config.dropout < 1:
        yield f"dropout must be at least 0 and below 1, not {config.dropout}"
    if config.is_squad and config.stride >= config.length:
        yield f"stride={config.stride} must be below max_length={config.length}"
    if not config.model:
        yield "model= names no folder"


def _name(config: FinetuneConfig) -> str:
    model = model_name(config.model).replace("/", "-")
    end = "-untrained" * config.untrained
    return f"{config.task}-{model}-{config.optimizer.name}{end}"
