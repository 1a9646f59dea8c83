"""Two programs that train the same model from the same weights on the same samples, in turns."""

import copy
import tempfile
import threading
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, SequentialSampler
from transformers import (
    BertForMaskedLM,
    BertForPreTraining,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from came import CAME
from trainers.build import build_module, build_optimizer
from trainers.config import Config
from trainers.data.batches import IGNORED_LABEL
from trainers.data.splits import open_phases
from trainers.phases import Plan, plan
from trainers.run.distributed import World
from trainers.run.engine import build_engine, deepspeed_config, num_micro_batches, place
from trainers.run.feed import Feed
from trainers.run.loop import train_step
from trainers.run.speed import set_speed
from trainers.run.stopping import Stopping
from trainers.signals import listener

_KEPT_LOSSES = 8  # of the first steps, to see that both learn the same


class OurSide:
    """The training loop of this project: its engine, its batches, its steps."""

    def __init__(self, config: Config, world: World) -> None:
        self.config, self.world, self.losses = config, world, list[Tensor]()
        self.data = open_phases(config)
        module = place(build_module(config, self.data[0]), world.device, config.runtime.dtype)
        set_speed(module, config.runtime)
        optimizer = build_optimizer(config.optimizer, config.runtime, module)
        self.engine, _ = build_engine(config, module, optimizer, world.world_size)
        self.engine.train()
        self.feed = Feed(config, self.data, world, 0)
        self._stopping = Stopping(listener, world, config.runtime.timeout_seconds)
        self._step = 0

    def turn(self, steps: int) -> float:
        """Seconds of so many steps."""
        begin = time.perf_counter()
        for _ in range(steps):
            self._step += 1
            micros, rate = self.feed.step(self._step), self.config.optimizer.lr
            loss = train_step(
                self.config, self.engine, self.world, micros, rate, self._step, self._stopping.ask
            )
            self._stopping.told()  # asked as in a run, and not obeyed
            if len(self.losses) < _KEPT_LOSSES:
                self.losses.append(loss)
        synchronize(self.world)
        return time.perf_counter() - begin

    def close(self) -> None:
        """End the thread that makes batches."""
        self.feed.close()


class HfSide:
    """The Trainer of transformers under DeepSpeed, in a thread that runs when it is its turn.

    It reads our samples, made before the clock starts: what its own data pipeline costs is not
    counted.  Its model computes the vocabulary head at every place: BertForPreTraining, or without
    next sentences BertForMaskedLM.
    """

    def __init__(self, config: Config, world: World, samples: Dataset[Any], ours: OurSide) -> None:
        self.losses: list[Tensor] = []
        self._world, self._left = world, 0
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._error: BaseException | None = None
        model = build_module(config, ours.data[0]).model
        model.set_attn_implementation("sdpa")
        if not config.objective.next_sentence:
            model = without_pairs(model)
        self._arguments = (config, model, samples)
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def turn(self, steps: int) -> float:
        """Seconds of so many steps."""
        begin = time.perf_counter()
        self._left = steps
        self._go.release()
        self._done.acquire()
        if self._error:
            raise RuntimeError("the Trainer of transformers failed") from self._error
        synchronize(self._world)
        return time.perf_counter() - begin

    def _work(self) -> None:
        try:
            config, model, samples = self._arguments
            with tempfile.TemporaryDirectory() as folder:
                trainer = _Trainer(
                    model=model,
                    args=hf_arguments(config, folder, self._world),
                    train_dataset=samples,
                    optimizer_cls_and_kwargs=hf_optimizer(config),
                    callbacks=[_Pause(self)],
                )
                trainer.losses = self.losses
                self._go.acquire()
                trainer.train()
        except BaseException as error:
            self._error = error
        self._done.release()

    def step_done(self) -> None:
        """Called by the Trainer after each step: the turn may be over."""
        self._left -= 1
        if self._left == 0:
            self._done.release()
            self._go.acquire()


def without_pairs(model: BertForPreTraining) -> BertForMaskedLM:
    """The same weights without what tells the next sentence."""
    found = BertForMaskedLM(copy.copy(model.config))
    names = found.state_dict().keys()
    found.load_state_dict({n: t for n, t in model.state_dict().items() if n in names})
    return found


class _Pause(TrainerCallback):
    def __init__(self, side: HfSide) -> None:
        self._side = side

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self._side.step_done()


class _Trainer(Trainer):
    """Reads in order, as our side does, and keeps the first losses."""

    losses: list[Tensor]

    def _get_train_sampler(self, dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        found = super().compute_loss(*args, **kwargs)
        if len(self.losses) < _KEPT_LOSSES:
            self.losses.append((found[0] if isinstance(found, tuple) else found).detach())
        return found


class Samples(Dataset[dict[str, Tensor]]):
    """The samples of `steps` steps as BertForPreTraining reads them, ready in memory."""

    def __init__(self, ours: OurSide, steps: int) -> None:
        whole: Plan = plan(ours.config)
        rows = [np.asarray(whole.at(s).positions(s)) for s in range(1, steps + 1)]
        batch = ours.data[0].train.batch(np.concatenate(rows))
        row, slot = np.nonzero(batch["masked_labels"] != IGNORED_LABEL)
        labels = np.full_like(batch["input_ids"], IGNORED_LABEL)
        labels[row, batch["masked_positions"][row, slot]] = batch["masked_labels"][row, slot]
        names = ("input_ids", "token_type_ids", "attention_mask", "next_sentence_label")
        arrays = {name: batch[name] for name in names if name in batch} | {"labels": labels}
        self._tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}

    def __len__(self) -> int:
        return len(self._tensors["labels"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: tensor[index] for name, tensor in self._tensors.items()}


def hf_arguments(config: Config, folder: str, world: World) -> TrainingArguments:
    """The same batch, rate, dtype and DeepSpeed configuration as our side's."""
    return TrainingArguments(
        output_dir=folder,
        max_steps=config.train.steps,
        per_device_train_batch_size=config.batch.micro_size,
        gradient_accumulation_steps=num_micro_batches(config, world.world_size),
        learning_rate=config.optimizer.lr,
        lr_scheduler_type="constant",
        weight_decay=config.optimizer.weight_decay,
        adam_beta1=config.optimizer.betas[0],
        adam_beta2=config.optimizer.betas[1],
        adam_epsilon=config.optimizer.eps[0],
        optim="adamw_torch_fused",
        max_grad_norm=config.train.gradient_clipping,
        bf16=config.runtime.dtype == "bfloat16",
        use_cpu=world.device.type == "cpu",
        deepspeed=deepspeed_config(config, world.world_size),
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=config.run.seed,
    )


def hf_optimizer(config: Config) -> tuple[type[CAME], dict[str, Any]] | None:
    """CAME, if that is what our side uses; None stands for AdamW by its name."""
    chosen = config.optimizer
    if chosen.name == "adamw":
        return None
    if chosen.name != "came":
        raise SystemExit(f"optimizer={chosen.name}: the other side has adamw and came alone")
    settings = {"lr": chosen.lr, "betas": chosen.betas, "eps": chosen.eps}
    return CAME, {**settings, "clip_threshold": chosen.clip_threshold}


def synchronize(world: World) -> None:
    if world.device.type == "cuda":
        torch.cuda.synchronize(world.device)


def num_parameters(module: nn.Module) -> int:
    return sum(param.numel() for param in module.parameters())
