"""What types cannot say: limits of single values, and settings that must fit each other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec

from launch.problems import problems_of_launch
from launch.spec import LaunchConfig
from trainers.config import Config, DataConfig, MixSource, OptimizerConfig
from trainers.deepspeed_keys import problems_of_block
from trainers.limits import INF, LIMITS, out_of_limits
from trainers.objective_keys import problems_of_objective
from trainers.phases import phase_configs, problems_of_phases
from trainers.redact import redact_text
from trainers.schedules import warmup_steps


def problems_of(
    config: Config, world_size: int, *, planned: bool = False, needs_text: bool = True
) -> list[str]:
    """Every reason why `world_size` ranks cannot run `config`, in words; `planned` reads no data
    and may be of several machines, and without `needs_text` it may stay open which text it is."""
    return [
        *_limits(config),
        *_phases(config, world_size),
        *problems_of_optimizer(config.optimizer),
        *_kernel(config),
        *_schedule(config),
        *_runtime(config),
        *_logging(config),
        *([] if planned else [*_data(config, needs_text), *_launch(config.launch, config.run.dir)]),
        *([] if planned else _mirror(config)),
        *_checkpoint(config),
        *_zero(config),
        *problems_of_block(config.deepspeed),
    ]


def _limits(config: Config) -> Iterator[str]:
    yield from out_of_limits(config, LIMITS)
    if not 0 <= config.model.dropout < 1:
        yield f"model.dropout must be at least 0 and below 1, not {config.model.dropout}"


def _phases(config: Config, world_size: int) -> Iterator[str]:
    """What is wrong with the phases together, and with each by itself, said once."""
    yield from problems_of_phases(config, world_size)
    said = set(_limits(config))
    for number, inside in enumerate(phase_configs(config)):
        alone = (*_model(inside), *problems_of_objective(inside), *_batch(inside, world_size))
        for problem in (*_limits(inside), *alone):
            if problem not in said:
                prefix = f"train.phases[{number}]: " if config.train.phases else ""
                yield f"{prefix}{problem}"
            said.add(problem)


def _model(config: Config) -> Iterator[str]:
    model, objective = config.model, config.objective
    if model.heads > 0 and model.hidden % model.heads:
        yield f"model.hidden={model.hidden} is not divisible by model.heads={model.heads}"
    for key in ("kv_heads", "rope_theta"):
        if (getattr(model, key) is None) == (model.family == "llama"):
            given = "null" if getattr(model, key) is None else "given"
            yield f"model.{key} is {given}: it is llama's, and model.family={model.family}"
    if model.kv_heads and model.heads % model.kv_heads:
        yield f"model.heads={model.heads} is not divisible by model.kv_heads={model.kv_heads}"
    if model.path and not config.data.tokenizer:
        yield (
            "model.path needs data.tokenizer=FOLDER: the vocabulary that its weights know, "
            f"usually data.tokenizer={model.path}"
        )
    if model.path and model.unigram_bias:
        yield "model.unigram_bias=true: the head of model.path is trained already"
    if model.unigram_bias and model.family != "bert":
        yield f"model.unigram_bias=true: the head of {model.family} has no bias to start from"
    if (model.max_positions is None) != (model.family == "t5"):
        given = "null" if model.max_positions is None else "given"
        yield f"model.max_positions is {given}: t5 alone has none, and model.family={model.family}"
    if model.max_positions and objective.sequence_length > model.max_positions:
        yield (
            f"objective.sequence_length={objective.sequence_length} is longer than the model's "
            f"positions: shorten it, or set model.max_positions (now {model.max_positions})"
        )


def _batch(config: Config, world_size: int) -> Iterator[str]:
    size, micro = config.batch.global_size, config.batch.micro_size
    unit = max(micro, 1) * world_size
    if size < 1 or size % unit == 0:  # a size below 1 is among the limits already
        return
    micro_words = f"batch.micro_size={micro} x " if micro else ""
    below = size // unit * unit
    near = f"{below} and {below + unit}" if below else f"{unit} and {2 * unit}"
    yield (
        f"batch.global_size={size} is not divisible by {micro_words}{world_size} processes"
        f"{f' = {unit}' if micro else ''}; the nearest valid sizes are {near}"
    )


def _launch(launch: LaunchConfig, run_dir: str) -> Iterator[str]:
    yield from problems_of_launch(launch, run_dir)
    for word in launch.kubernetes.env:
        name, _, value = word.partition("=")
        if not value.startswith("secret:") and redact_text(word) != word:
            yield (
                f"launch.kubernetes.env: {name} has a secret as its value, which would stand in a "
                "file: NAME=secret:SECRET/KEY names one that the cluster keeps"
            )


def _kernel(config: Config) -> Iterator[str]:
    name, kernel = config.optimizer.name, config.runtime.kernel
    if name != "came" and kernel != "auto":
        yield f"runtime.kernel={kernel}: {name} has plain torch alone"


def problems_of_optimizer(optimizer: OptimizerConfig) -> Iterator[str]:
    """Which of its settings the optimizer does not take, in words."""
    name = optimizer.name
    num_betas, num_eps = {
        "came": ((3,), (2,)),
        "adamw": ((2,), (1,)),
        "adafactor": ((0, 1), (2,)),  # with momentum or without
        "lamb": ((2,), (1,)),
        "sm3": ((1,), (1,)),
    }[name]
    for key, given, wanted in (
        ("betas", optimizer.betas, num_betas),
        ("eps", optimizer.eps, num_eps),
    ):
        if len(given) not in wanted:
            words = f"{' or '.join(map(str, wanted))} value{'s' if wanted != (1,) else ''}"
            yield f"optimizer.{key}={list(given)}: {name} takes {words}"
    if name not in ("came", "adafactor") and optimizer.clip_threshold != 1.0:
        yield f"optimizer.clip_threshold={optimizer.clip_threshold}: {name} clips no update"
    if name != "came" and optimizer.bias_correction:
        yield "optimizer.bias_correction=true: it is came's; adamw and lamb always correct theirs"
    if name == "came" and optimizer.betas[:1] == (0,):
        yield "optimizer.betas[0]=0: without a momentum came has no confidence: docs/momentum.md"
    for option, owner, values in (
        ("scale_parameter", "adafactor", "true or false"),
        ("momentum", "came", "float32, bfloat16, int8 or sign"),
    ):
        if (getattr(optimizer, option) is None) == (name == owner):
            given_words = "null" if getattr(optimizer, option) is None else "given"
            yield f"optimizer.{option} is {given_words}: it is {owner}'s, {values}"
    if not all(0 <= beta < 1 for beta in optimizer.betas):
        yield f"optimizer.betas={list(optimizer.betas)}: each must be at least 0 and below 1"
    if not all(eps >= 0 for eps in optimizer.eps):
        yield f"optimizer.eps={list(optimizer.eps)}: each must be 0 or more"


def _schedule(config: Config) -> Iterator[str]:
    schedule, steps = config.schedule, config.train.steps
    for option, owners in (
        ("final_ratio", ("linear", "poly", "cosine", "wsd")),
        ("power", ("poly",)),
        ("decay_fraction", ("wsd",)),
    ):
        if (getattr(schedule, option) is None) == (schedule.name in owners):
            given_words = "given" if schedule.name not in owners else "null"
            yield f"schedule.{option} is {given_words}: it is a number of {', '.join(owners)} alone"
    decay = round((schedule.decay_fraction or 0.0) * steps)
    if schedule.warmup_steps is not None and schedule.warmup_steps > steps:
        yield f"schedule.warmup_steps={schedule.warmup_steps} is more than train.steps={steps}"
    elif schedule.name == "wsd" and steps > 1 and warmup_steps(schedule, steps) + decay > steps:
        yield "schedule: warm-up and decay_fraction together are longer than the run"


def _runtime(config: Config) -> Iterator[str]:
    runtime = config.runtime
    if runtime.compile and config.zero.stage == 3:
        yield "runtime.compile needs zero.stage 0, 1 or 2: stage 3 moves parameters between layers"
    given = [config.batch.micro_size, *(phase.micro_size for phase in config.train.phases)]
    if runtime.micro_batch == "auto" and any(given):
        yield "runtime.micro_batch=auto finds the micro batch: leave batch.micro_size at 0"
    if runtime.micro_batch == "given" and runtime.memory_gb:
        yield f"runtime.memory_gb={runtime.memory_gb} is for runtime.micro_batch=auto alone"


def _mirror(config: Config) -> Iterator[str]:
    # Elsewhere, as in a container, there may be packages that are not here: ranks look again.
    is_here = config.launch.name == "local"
    if config.logging.name == "tensorboard" and is_here and not find_spec("tensorboard"):
        yield (
            "logging=tensorboard needs the package tensorboard: pip install tensorboard, or "
            "choose logging=none or wandb"
        )


def _logging(config: Config) -> Iterator[str]:
    if config.logging.telemetry and config.optimizer.name != "came":
        yield f"logging.telemetry needs optimizer=came, not {config.optimizer.name}"


def _data(config: Config, needs_text: bool) -> Iterator[str]:
    data = config.data
    for key, folder in (("run.dir", config.run.dir), ("data.cache_dir", data.cache_dir)):
        if folder in ("", "null") or "://" in folder:
            yield f"{key}={folder} names no folder"
    if needs_text and (missing := missing_text(data)):
        yield missing
    for owner, key in _TEXT_KEYS.items():
        if data.name in _TEXT_KEYS and data.name != owner and getattr(data, key):
            value = getattr(data, key) if key in ("path", "hub") else "[...]"
            chosen = f"data={data.name} was chosen"
            yield f"data.{key}={value} is read by data={owner} only, and {chosen}"
    for key in ("text_column", "hub_config", "hub_revision", "split"):
        if data.sources and getattr(data, key) != getattr(MixSource(), key):
            each = f"each source of data={data.name} has its own: data.sources=[{{{key}: ...}}]"
            yield f"data.{key}={getattr(data, key)} is not read, {each}"
    yield from _mix(data.sources)


def missing_text(data: DataConfig) -> str | None:
    """What to type where nothing says which text it is."""
    is_open = data.name in _TEXT_KEYS and not getattr(data, _TEXT_KEYS[data.name])
    return _NEEDED[data.name] if is_open else None


# Which key says where the text is, and what to say when it does not.
_TEXT_KEYS = {"pydocs": "packages", "text": "path", "hub": "hub", "mix": "sources"}
_NEEDED = {
    "pydocs": "data.packages is empty: name the packages whose documentation is read",
    "text": "data=text needs data.path=FILE_OR_FOLDER of .txt, .jsonl or .parquet",
    "hub": "data=hub needs data.hub=NAME of a dataset with a text column",
    "mix": "data=mix needs data.sources=[{path: FILE_OR_FOLDER, weight: 1}, {hub: NAME, ...}]",
}


def _mix(sources: tuple[MixSource, ...]) -> Iterator[str]:
    for number, source in enumerate(sources):
        if bool(source.path) == bool(source.hub):
            yield f"data.sources[{number}] needs either a path or a hub"
        if source.weight is not None and not 0 < source.weight < INF:
            yield f"data.sources[{number}].weight must be above 0, not {source.weight}"
        if source.join_records < 1:
            yield f"data.sources[{number}].join_records must be 1 or more"
    if len({source.weight is None for source in sources}) > 1:
        yield "data.sources: give every source a weight, or none"


def _checkpoint(config: Config) -> Iterator[str]:
    best = config.checkpoint.best
    if best is not None and not re.fullmatch("(min:|max:)?eval/[a-z_]+", best):
        yield (
            f"checkpoint.best={best} is no metric of an evaluation: name one, such as eval/loss "
            "(the least is best) or max:eval/mlm_accuracy"
        )
    if best is not None and config.eval.every == 0:
        yield "checkpoint.best needs eval.every: there would be one evaluation, at the end"


def _zero(config: Config) -> Iterator[str]:
    zero = config.zero
    if zero.offload_optimizer and zero.stage == 0:
        yield "zero.offload_optimizer needs zero.stage 1, 2 or 3, not 0"
    if zero.stage == 0 and config.runtime.dtype == "bfloat16":
        yield (
            "runtime.dtype=bfloat16 needs zero.stage 1, 2 or 3: at stage 0 DeepSpeed would add "
            "gradients up in bfloat16"
        )
    if zero.round_robin_gradients and zero.stage not in (1, 2):
        yield f"zero.round_robin_gradients needs zero.stage 1 or 2, not {zero.stage}"
