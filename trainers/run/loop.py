"""The training loop: fetch the global batch, accumulate, step, log, evaluate, save."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from came import CAME, telemetry
from trainers import fidelity
from trainers.build import build_module, build_optimizer
from trainers.config import Config
from trainers.data.random_access import Purpose, hash64
from trainers.data.splits import Splits, open_phases
from trainers.faults import factor, fault
from trainers.flops import peak_flops
from trainers.phases import finds_micro_batches, phase_configs, plan
from trainers.run.attention import attention_kernels
from trainers.run.console import tell
from trainers.run.distributed import World, join, leave
from trainers.run.engine import build_engine, place, set_batch
from trainers.run.evaluate import Evaluator, to_device
from trainers.run.feed import Feed, Micro, without_waste
from trainers.run.finite import Skips, Spikes, contagious, guard
from trainers.run.fit import fit_micro_batches, told
from trainers.run.folder import GENERATION_FILE, LEDGER_FILE, MODEL_FILE, TOKENIZER_FILE, RunFolder
from trainers.run.meter import Meter
from trainers.run.metrics import FILE_NAME, Metrics, read
from trainers.run.peers import lost_peers_named
from trainers.run.saver import Progress, Saver
from trainers.run.speed import set_speed
from trainers.run.stopping import Stopping
from trainers.schedules import learning_rate
from trainers.signals import listener


def run(config: Config) -> None:
    """Train from the newest checkpoint of the run folder to the last step, on this rank.

    Raises:
        RunError: whatever ends the run, with an exit code of its own.
    """
    data = open_phases(config)
    fault("init")
    world = join(config.runtime)
    with (
        lost_peers_named(world.store, world.rank, world.world_size),
        RunFolder.open(config.run.dir, world.rank) as folder,
    ):
        module = place(build_module(config, data[0]), world.device, config.runtime.dtype)
        sample = to_device(without_waste(data[0].train.batch(np.arange(1))), world)
        device = f"{_device_name(world)}; {attention_kernels(module, sample)}"
        described = module.model.config.to_json_string()  # as it is used, not as it is sped up
        set_speed(module, config.runtime)
        if finds_micro_batches(config):
            config = fit_micro_batches(config, data, module, world)
            device += f"; {told(config)}"
        optimizer = build_optimizer(config.optimizer, config.runtime, module)
        engine, ledger = build_engine(phase_configs(config)[0], module, optimizer, world.world_size)
        guard(engine)
        saver = Saver(config, data[0], folder, world)
        start = saver.resume(engine)
        if start < config.train.steps:
            folder.describe(config, device=device, world_size=world.world_size)
            folder.write(TOKENIZER_FILE, data[0].tokenizer.to_str())
            folder.write(MODEL_FILE, described)
            if config.model.path is not None and module.model.can_generate():
                folder.write(GENERATION_FILE, module.model.generation_config.to_json_string())
            if world.rank == 0 and (page := fidelity.markdown(config)) is not None:
                folder.write(fidelity.FILE_NAME, page)
            if world.rank == 0:
                tell(device, *([f"goes on from step {start}"] if start else []))
            folder.write(LEDGER_FILE, json.dumps(ledger, indent=1) + "\n")
            with Metrics(folder.path, config, world.rank, resume_step=start) as metrics:
                with saver:
                    train(config, data, engine, world, saver, metrics, start)
                if world.rank == 0:
                    metrics.publish(_write_report(folder).parent)
        if world.rank == 0:
            _tell_results(folder, start, config.train.steps)
    leave()


def train(
    config: Config,
    data: Sequence[Splits],
    engine: Any,
    world: World,
    saver: Saver,
    metrics: Metrics,
    start: int,
) -> None:
    """Steps `start + 1` to `train.steps`, with evaluations, checkpoints and metrics on the way.

    `data` are the splits of each phase.
    """
    steps, phases, whole = config.train.steps, phase_configs(config), plan(config)
    evaluators = [
        Evaluator(inside, splits, world) for inside, splits in zip(phases, data, strict=True)
    ]
    saver.expect(evaluators[0].metric_names)
    peak = peak_flops(config, _device_name(world))
    stopping = Stopping(listener, world, config.runtime.timeout_seconds)
    skips, spikes = Skips(config.train.max_skipped_steps, saver.checkpoints, engine), Spikes()
    owes_save = False

    def before_update() -> None:
        stopping.ask()
        saver.copied()

    engine.train()
    with Feed(config, data, world, start) as feed:
        meter = Meter(feed, peak and peak * world.world_size)
        for step in range(start + 1, steps + 1):
            with _naming(step):
                stretch = whole.at(step)
                set_batch(engine, stretch.size, phases[stretch.phase].batch.micro_size)
                rate = learning_rate(config.schedule, step, steps, config.optimizer.lr)
                loss = train_step(config, engine, world, feed.step(step), rate, step, before_update)
                skipped = skips.note(engine, step, stretch.positions(step), loss)
                signum = stopping.told()

                values: dict[str, Any] = {"step": step}
                logs = step in (1, steps) or _is_due(step, config.train.log_every)
                evaluates = step == steps or _is_due(step, config.eval.every)
                owes_save |= step == steps or signum > 0 or saver.is_due(step, waits=logs)
                # The last update may be what is wrong; at the end the evaluation tells.
                saves = owes_save and (not skipped or step == steps)
                if logs or evaluates or saves:
                    done = Progress(stretch.begin(step + 1), saver.tokens + feed.counts.tokens)
                if logs:
                    total = world.sum(loss).item()
                    spikes.note(total)
                    values |= {**asdict(done), "train/loss": total, "train/lr": rate}
                    values |= {
                        "train/skipped_steps": skips.total,
                        "train/loss_spikes": spikes.total,
                    }
                    values |= meter.look()
                    if config.logging.telemetry:
                        values |= _telemetry(engine.basic_optimizer)
                with meter.paused():
                    if evaluates:
                        values |= evaluators[stretch.phase](engine)
                    if len(values) > 1:
                        metrics.log(values)
                    if skipped and step == steps:
                        skips.end(engine, step, values["eval/loss"])
                    if saves or (not skipped and saver.is_better(values)):
                        fault("save")
                        saver.save(engine, step, done, values)
                        owes_save = False
                if signum and step < steps:
                    stopping.leave(signum, step, saver.is_durable() and saves)


def train_step(
    config: Config,
    engine: Any,
    world: World,
    micros: Iterator[Micro],
    rate: float,
    step: int,
    before_update: Callable[[], None],
) -> Tensor:
    """Learn from the micro batches of a step; returns this rank's share of the loss, on the device.

    `before_update` is called when all gradients are there and nothing has changed yet.

    The loss is the mean over the labels of the global batch, a mean for each task.
    """
    fault("step", step)
    for group in engine.basic_optimizer.param_groups:
        group["lr"] = rate
    # Dropout is a function of (seed, step, rank): a resumed run needs no saved random state.
    name = hash64(Purpose.DROPOUT, config.run.seed, step, world.rank)
    torch.manual_seed(int(name[0]) >> 1)
    loss = torch.zeros((), device=world.device)
    for turn, micro in enumerate(micros, start=1):
        share = engine(micro.batch).share(micro.num_labels) * factor("loss")
        # DeepSpeed averages over micro batches and ranks; our shares are to be added.
        engine.backward(contagious(share) * (micro.num_micro * world.world_size))
        fault("backward")
        if turn == micro.num_micro:
            before_update()
        engine.step()
        fault("optimizer")
        fault(f"micro {turn}")
        loss += share.detach()
    return loss


def _write_report(folder: RunFolder) -> Path:
    from trainers.reports import single  # plots are of no use to the other ranks

    return single.write_report(folder.path)


def _tell_results(folder: RunFolder, start: int, steps: int) -> None:
    from trainers.reports import single

    page = folder.path / "report" / "summary.md"
    if start >= steps and page.exists():
        tell(f"already complete: {start} steps in {folder.path}")
        return
    if start >= steps:
        page = _write_report(folder)
    results = single.results(list(read(folder.path / FILE_NAME)))
    tell(*(f"{name:>40}  {value}" for name, value in {**results, "report": page}.items()))


@contextmanager
def _naming(step: int) -> Iterator[None]:
    """An error inside learns at which step it happened, for the last words of the process."""
    try:
        yield
    except Exception as error:
        error.step = step  # type: ignore[attr-defined]
        raise


def _telemetry(optimizer: CAME) -> dict[str, float]:
    return {
        f"optimizer/{name}/{index}": value
        for index, group in enumerate(telemetry(optimizer))
        for name, value in group.as_dict().items()
    }


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _device_name(world: World) -> str:
    if world.device.type == "cuda":
        return torch.cuda.get_device_name(world.device)
    return f"CPU, {torch.get_num_threads()} threads per rank"
