"""The training loop: fetch the global batch, accumulate, step, log, evaluate, save."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from came import CAME, telemetry
from came.state import after_load, entries
from trainers.build import build_module, build_optimizer
from trainers.config import Config
from trainers.data.random_access import Purpose, hash64
from trainers.data.splits import Splits, open_splits
from trainers.errors import NonFiniteError
from trainers.run import checkpoint
from trainers.run.distributed import World, join, leave
from trainers.run.engine import build_engine, num_micro_batches
from trainers.run.evaluate import Evaluator, to_device
from trainers.run.folder import MODEL_FILE, TOKENIZER_FILE, RunFolder
from trainers.run.identity import identity, setting
from trainers.run.metrics import FILE_NAME, Metrics, read
from trainers.schedules import learning_rate


def run(config: Config) -> None:
    """Train from the newest checkpoint of the run folder to the last step, on this rank.

    Raises:
        RunError: whatever ends the run, with an exit code of its own.
    """
    data = open_splits(config)
    world = join(config.runtime)
    with RunFolder.open(config.run.dir, world.rank) as folder:
        module = build_module(config, data)
        optimizer = build_optimizer(config.optimizer, config.runtime, module)
        engine, ledger = build_engine(config, module, optimizer, world.world_size)
        saver = Saver(config, data, folder, world)
        start = saver.resume(engine)
        if start < config.train.steps:
            folder.describe(config, device=_device_name(world), world_size=world.world_size)
            folder.write(TOKENIZER_FILE, data.tokenizer.to_str())
            folder.write(MODEL_FILE, module.model.config.to_json_string())
            if ledger is not None:
                folder.write("ledger.json", json.dumps(ledger.as_dict(), indent=1) + "\n")
            with Metrics(folder.path, config, world.rank, resume_step=start) as metrics:
                train(config, data, engine, world, saver, metrics, start)
        if world.rank == 0:
            _tell_results(folder, start, config.train.steps)
    leave()


def train(
    config: Config,
    data: Splits,
    engine: Any,
    world: World,
    saver: "Saver",
    metrics: Metrics,
    start: int,
) -> None:
    """Steps `start + 1` to `train.steps`, with evaluations, checkpoints and metrics on the way."""
    steps, size = config.train.steps, config.batch.global_size
    evaluate = Evaluator(config, data, world)
    engine.train()
    watch = Stopwatch(start)
    for step in range(start + 1, steps + 1):
        with _naming(step):
            positions = np.arange((step - 1) * size, step * size)
            rate = learning_rate(config.schedule, step, steps, config.optimizer.lr)
            loss = train_step(config, data, engine, world, positions, rate, step)

            values: dict[str, Any] = {"step": step}
            saves = step == steps or _is_due(step, config.checkpoint.every)
            logs = step in (1, steps) or _is_due(step, config.train.log_every)
            if logs or saves:
                total = _finite(world.sum(loss).item(), engine, step, positions)
            if logs:
                seconds = watch.seconds_per_step(step)
                values |= {
                    "samples": step * size,
                    "tokens": step * size * config.objective.sequence_length,
                    "train/loss": total,
                    "train/lr": rate,
                    "train/seconds": seconds,
                    "train/tokens_per_second": size * config.objective.sequence_length / seconds,
                }
                if config.logging.telemetry:
                    values |= _telemetry(engine.basic_optimizer)
            with watch.paused():
                if step == steps or _is_due(step, config.eval.every):
                    values |= evaluate(engine)
                if len(values) > 1:
                    metrics.log(values)
                if saves:
                    saver.save(engine, step)


def train_step(
    config: Config,
    data: Splits,
    engine: Any,
    world: World,
    positions: NDArray[np.int64],
    rate: float,
    step: int,
) -> Tensor:
    """Learn from the samples at `positions`; returns this rank's share of the loss, on the device.

    The loss is the mean over the labels of the global batch, a mean for each task.
    """
    num_micro = num_micro_batches(config, world.world_size)
    num_labels = data.train.num_labels(positions)
    for group in engine.basic_optimizer.param_groups:
        group["lr"] = rate
    # Dropout is a function of (seed, step, rank): a resumed run needs no saved random state.
    name = hash64(Purpose.DROPOUT, config.run.seed, step, world.rank)
    torch.manual_seed(int(name[0]) >> 1)
    loss = torch.zeros((), device=world.device)
    for rows in micro_batches(positions, config.batch.micro_size, world, num_micro):
        share = engine(to_device(data.train.batch(rows), world)).share(num_labels)
        # DeepSpeed averages over micro batches and ranks; our shares are to be added.
        engine.backward(share * (num_micro * world.world_size))
        engine.step()
        loss += share.detach()
    return loss


def micro_batches(
    positions: NDArray[np.int64], micro_size: int, world: World, num_micro: int
) -> Iterator[NDArray[np.int64]]:
    """This rank's rows of the global batch, a micro batch at a time."""
    for micro in range(num_micro):
        first = (micro * world.world_size + world.rank) * micro_size
        yield positions[first : first + micro_size]


class Saver:
    """Checkpoints of one run: what they are called, and what they must agree on."""

    def __init__(self, config: Config, data: Splits, folder: RunFolder, world: World) -> None:
        self._folder, self._keep = folder.checkpoints, config.checkpoint.keep
        self._global_size = config.batch.global_size
        self._identity = identity(
            config, data=data.fingerprint, tokenizer=data.tokenizer_fingerprint
        )
        self._setting = setting(config, world_size=world.world_size)

    def resume(self, engine: Any) -> int:
        """Load the newest good checkpoint; returns its step, 0 if there is none."""
        loaded = checkpoint.load_latest(
            self._folder, entries(engine), identity=self._identity, setting=self._setting
        )
        if loaded is None:
            return 0
        after_load(engine)
        return loaded.step

    def save(self, engine: Any, step: int) -> None:
        """Commit the state after `step`."""
        checkpoint.save(
            self._folder,
            step,
            entries(engine),
            identity=self._identity,
            setting=self._setting,
            extra={"samples": step * self._global_size},
            keep=self._keep,
        )


def _tell_results(folder: RunFolder, start: int, steps: int) -> None:
    from trainers import report  # plots are of no use to the other ranks

    if start >= steps and (folder.path / "report" / "summary.md").exists():
        print(f"already complete: {start} steps in {folder.path}")
        return
    page = report.write_report(folder.path)
    for name, value in report.results(list(read(folder.path / FILE_NAME))).items():
        print(f"{name:>40}  {value}")
    print(f"{'report':>40}  {page}", flush=True)


@contextmanager
def _naming(step: int) -> Iterator[None]:
    """An error inside learns at which step it happened, for the last words of the process."""
    try:
        yield
    except Exception as error:
        error.step = step  # type: ignore[attr-defined]
        raise


def _finite(loss: float, engine: Any, step: int, positions: NDArray[np.int64]) -> float:
    """`loss`, if it is a number and DeepSpeed has not begun to skip steps; looked at before
    anything is logged or saved, so that no checkpoint is made of what came after."""
    if not np.isfinite(loss) or engine.skipped_steps:
        raise NonFiniteError(
            f"the loss is {loss} at step {step}, samples {positions[0]} to {positions[-1]}, and "
            f"{engine.skipped_steps} steps had gradients that are not finite"
            f"{_broken(engine.basic_optimizer)}: lower optimizer.lr or warm up longer; the "
            "checkpoints from before are untouched"
        )
    return loss


def _broken(optimizer: Any) -> str:
    if not isinstance(optimizer, CAME):
        return ""
    names = [name for group in telemetry(optimizer) for name in group.nonfinite]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"; the last update was not finite in {', '.join(names[:3])}{more}" if names else ""


def _telemetry(optimizer: CAME) -> dict[str, float]:
    return {
        f"optimizer/{name}/{index}": value
        for index, group in enumerate(telemetry(optimizer))
        for name, value in group.as_dict().items()
    }


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


class Stopwatch:
    """Seconds per training step since the last look, without the time it was paused."""

    def __init__(self, step: int) -> None:
        self._step, self._since = step, time.perf_counter()

    def seconds_per_step(self, step: int) -> float:
        seconds = (time.perf_counter() - self._since) / (step - self._step)
        self._step, self._since = step, time.perf_counter()
        return seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self._since += time.perf_counter() - begin


def _device_name(world: World) -> str:
    if world.device.type == "cuda":
        return torch.cuda.get_device_name(world.device)
    return f"CPU, {torch.get_num_threads()} threads per rank"
