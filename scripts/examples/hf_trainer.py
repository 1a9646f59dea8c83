"""CAME in the Trainer of transformers, plain or under DeepSpeed.

    python scripts/examples/hf_trainer.py
    torchrun --nproc-per-node 2 scripts/examples/hf_trainer.py --deepspeed 2

A tiny GPT-2 reads the bytes of a file (this one) and learns which byte comes next.  Needs
transformers and accelerate; `--deepspeed` needs deepspeed.

The optimizer is handed over as a class and its settings.  `optimizers=(optimizer, scheduler)` does
not do: under DeepSpeed transformers 5.23 drops it without a word and trains with AdamW.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from came import CAME, bind

LENGTH = 32


class ShowOptimizer(TrainerCallback):
    """Before the first step: is it CAME, and did it find the matrices?"""

    def on_train_begin(
        self, args: TrainingArguments, state: Any, control: Any, *, optimizer: Any, **others: Any
    ) -> None:
        while hasattr(optimizer, "optimizer"):  # wrapped by accelerate, and by DeepSpeed
            optimizer = optimizer.optimizer
        assert isinstance(optimizer, CAME), f"training with {type(optimizer).__name__}"
        ledger = bind(optimizer)  # proves the layout; raises where no matrix would be factored
        if state.is_world_process_zero:
            print(ledger)


class Windows(torch.utils.data.Dataset):
    """Windows of bytes of a text, each with itself as the labels (the model shifts them)."""

    def __init__(self, text: bytes) -> None:
        self.bytes = torch.tensor(list(text))

    def __len__(self) -> int:
        return len(self.bytes) - LENGTH

    def __getitem__(self, at: int) -> dict[str, torch.Tensor]:
        window = self.bytes[at : at + LENGTH]
        return {"input_ids": window, "labels": window}


def zero_config(stage: int) -> dict[str, Any]:
    """A configuration of DeepSpeed; what is "auto" the Trainer fills in from its arguments."""
    return {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # with offload, accelerate would swap in its own Adam
        "gradient_clipping": 0.0,  # DeepSpeed's default is 1.0; the paper clips nothing
    }


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--deepspeed", type=int, choices=(1, 2, 3), metavar="STAGE")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--cpu", action="store_true", help="also where there is a GPU")
    parser.add_argument("--text", type=Path, default=Path(__file__))
    options = parser.parse_args(words)

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=options.steps,
            per_device_train_batch_size=16,
            warmup_steps=options.steps // 10,  # CAME has no bias correction
            weight_decay=0.01,  # the Trainer leaves norms and biases out
            max_grad_norm=0.0,
            use_cpu=options.cpu,
            deepspeed=zero_config(options.deepspeed) if options.deepspeed else None,
            logging_steps=max(1, options.steps // 10),
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        torch.manual_seed(0)
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=256,
                n_positions=LENGTH,
                n_embd=64,
                n_layer=2,
                n_head=2,
                bos_token_id=None,
                eos_token_id=None,
                loss_type="ForCausalLM",
            )
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=Windows(options.text.read_bytes()),
            optimizer_cls_and_kwargs=(CAME, {"lr": 1e-3}),
            callbacks=[ShowOptimizer()],
        )
        trainer.train()


if __name__ == "__main__":
    main()
