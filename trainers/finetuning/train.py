"""One seed: transformers' Trainer with our optimizer, then the metrics of the task."""

import math
import os
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import (
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from launch.devices import num_cores
from trainers.build import build_optimizer
from trainers.errors import ConfigError, NonFiniteError
from trainers.finetuning.models import Start, build
from trainers.finetuning.prepare import Kind, over_sets
from trainers.finetuning.settings import FinetuneConfig
from trainers.finetuning.sources import TaskData
from trainers.run.console import tell


class Tell(TrainerCallback):
    """Ten lines for a seed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_log(
        self, args: TrainingArguments, state: Any, control: Any, logs: Any = None, **others: Any
    ) -> None:
        if logs and "loss" in logs:
            step, all_steps = state.global_step, state.max_steps
            tell(f"seed {self.seed}  step {step:>5}/{all_steps}  loss {float(logs['loss']):.4f}")


def subset(samples: Sequence[Any], count: int) -> Sequence[Any]:
    """`count` of the samples, drawn once and for all; all of them for 0."""
    if not count or count >= len(samples):
        return samples
    drawn = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0))
    return [samples[at] for at in sorted(drawn[:count].tolist())]


def on_gpu() -> bool:
    """As elsewhere here: DS_ACCELERATOR=cpu keeps a run from the GPU."""
    return torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR", "cuda") == "cuda"


def device_name(threads: int) -> str:
    """What is computed on; sets the number of `threads` of a CPU, 0 for all cores."""
    if on_gpu():
        return torch.cuda.get_device_name()
    torch.set_num_threads(threads or num_cores())
    return f"CPU, {torch.get_num_threads()} threads"


def run_seed(
    config: FinetuneConfig, start: Start, kind: Kind, data: TaskData, seed: int
) -> dict[str, Any]:
    """Fine-tune once: `metrics` by name, `train_loss`, `steps`, `samples`, `seconds`.

    The samples of SQuAD are windows. Raises NonFiniteError when the loss or the
    predictions stop being numbers.
    """
    rows = kind.train_rows(subset(data.train, config.train_samples))
    steps = math.ceil(math.ceil(len(rows) / config.batch_size) * config.epochs)
    model = build(
        start, kind.num_labels, dropout=config.dropout, untrained=config.untrained, seed=seed
    )
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = _trainer(config, start, model, rows, steps, seed, scratch)
        loss = trainer.train().training_loss
        seconds = time.perf_counter() - began
        if not math.isfinite(loss):
            raise _diverged(config, seed, f"the training loss is {loss}")

        def judged(samples: Sequence[Any]) -> dict[str, float]:
            inputs, measure = kind.dev_rows(samples)
            outputs = trainer.predict(inputs).predictions
            if not _are_numbers(outputs):  # the loss of the last step is from before its update
                raise _diverged(config, seed, "its predictions are no numbers")
            return measure(outputs)

        metrics = over_sets(data.dev, judged)
    return {
        "metrics": metrics,
        "train_loss": loss,
        "steps": trainer.state.global_step,
        "samples": len(rows),
        "seconds": round(seconds, 1),
    }


def _are_numbers(outputs: Any) -> bool:
    """Whether all that a model gave, one array or several, is finite."""
    several = outputs if isinstance(outputs, tuple) else (outputs,)
    return all(np.isfinite(part).all() for part in several if isinstance(part, np.ndarray))


def _diverged(config: FinetuneConfig, seed: int, what: str) -> NonFiniteError:
    return NonFiniteError(
        f"seed {seed}: {what}: set a smaller optimizer.lr (now {config.optimizer.lr:g}) or a "
        "longer warmup_fraction"
    )


def _trainer(
    config: FinetuneConfig,
    start: Start,
    model: nn.Module,
    rows: list[dict[str, Any]],
    steps: int,
    seed: int,
    scratch: str,
) -> Trainer:
    devices = torch.cuda.device_count() if on_gpu() else 1  # the Trainer uses all that it sees
    if config.batch_size % devices:
        raise ConfigError(
            f"batch_size={config.batch_size} cannot be shared by {devices} GPUs: set a multiple, "
            "or let one be seen: CUDA_VISIBLE_DEVICES=0"
        )
    arguments = TrainingArguments(
        output_dir=scratch,
        seed=seed,
        max_steps=steps,
        per_device_train_batch_size=config.batch_size // devices,
        per_device_eval_batch_size=config.eval_batch_size,
        lr_scheduler_type="linear",
        warmup_steps=round(config.warmup_fraction * steps),
        max_grad_norm=config.gradient_clipping,
        use_cpu=not on_gpu(),
        remove_unused_columns=False,
        save_strategy="no",
        logging_steps=max(1, steps // 10),
        logging_nan_inf_filter=False,  # it would put the mean of earlier losses in a NaN's place
        report_to=[],
        disable_tqdm=True,
    )
    model.to(arguments.device)  # the Trainer would move it too, behind the optimizer's back
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        data_collator=DataCollatorWithPadding(start.tokenizer),
        # Taken as they are without DeepSpeed; under it 5.23 would drop them in silence.
        optimizers=(build_optimizer(config.optimizer, None, model), None),
        callbacks=[Tell(seed)],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer
