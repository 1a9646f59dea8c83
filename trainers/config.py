"""The typed configuration of a run: the only form in which settings travel below the door.

YAML in `configs/` holds the values and the reasons for them; these classes hold names and types.
A default stands here only where leaving the key out of the YAML is the natural thing to do.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from launch.spec import LaunchConfig


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    dir: str  # one fixed path for all ranks, so that the same command finds its checkpoints again
    seed: int


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    name: str
    family: Literal["bert", "gpt2", "llama", "t5"]  # which architecture
    layers: int  # t5: of the encoder, and as many of the decoder
    hidden: int  # numbers that stand for a token between layers
    heads: int  # of attention; they divide hidden
    intermediate: int  # numbers that stand for a token inside the feed-forward part
    max_positions: int | None = None  # t5 has none: its positions are relative, and any length fits
    dropout: float
    unigram_bias: bool = (
        False  # bert: the head starts at the words' frequencies in the data, not at equal odds
    )
    path: str | None = None  # a folder in Hugging Face's format to start from
    kv_heads: int | None = None  # llama: heads of keys and values, each for some of the queries
    rope_theta: float | None = None  # llama: the longest wavelength of a position, over 2 pi
    vocab_multiple: int = 8  # the vocabulary is padded up to this multiple: faster matmuls


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """The keys of all objectives; those that the chosen one does not read are None."""

    name: Literal["masked_lm", "causal_lm", "span_corruption"]
    sequence_length: int  # tokens, special ones included
    mask_fraction: float | None = None  # masked_lm: of the tokens that are not special
    max_predictions: int | None = None  # masked_lm: masked tokens per sequence, at most
    next_sentence: bool | None = None  # masked_lm
    short_fraction: float | None = None  # masked_lm: of the samples that are cut shorter
    noise_fraction: float | None = None  # span_corruption: of the tokens of a text
    mean_span: float | None = None  # span_corruption: tokens
    packing: bool | None = None  # masked_lm: several samples in a row instead of padding
    document_mask: bool | None = None  # causal_lm: no token sees another document


@dataclass(frozen=True, kw_only=True)
class MixSource:
    """One source of a mix: a path, or a dataset of the hub."""

    path: str | None = None
    hub: str | None = None
    hub_config: str | None = None
    hub_revision: str | None = None
    split: str = "train"
    text_column: str = "text"
    weight: float | None = None  # share of the text, against the other weights; None = all of it
    join_records: int = 1  # so many of a file, one after the other, are a document


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    name: Literal["pydocs", "text", "hub", "mix", "wiki_books", "openwebtext", "c4"]
    # One of these four says where the text is.
    packages: tuple[str, ...] = ()  # whose documentation; one that is not installed is skipped
    path: str | None = None  # a file or a folder
    hub: str | None = None  # a dataset of the Hugging Face hub
    sources: tuple[MixSource, ...] = ()  # several
    hub_config: str | None = None  # of `hub`: which of its configurations
    hub_revision: str | None = None  # of `hub`: a branch, tag or commit; None = the newest
    split: str = "train"  # of `hub`
    text_column: str = "text"  # of records: .jsonl, .parquet, and the hub
    tokenizer: str | None = None  # a file or folder; None trains one
    tokenizer_model: Literal["wordpiece", "bpe", "unigram"] = "wordpiece"  # that is trained here
    vocab_size: int  # of a tokenizer that is trained here
    lowercase: bool  # of text, for a tokenizer that does not say it itself
    heldout_fraction: float  # of the documents
    cache_dir: str  # tokenized stores, found again by the hash of their inputs
    on_bad_text: Literal["strict", "skip", "replace"]
    workers: int = 0  # processes that prepare; 0 = one per core. The result is the same


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    name: Literal["came", "adamw", "adafactor", "lamb", "sm3"]
    lr: float  # at the top of the schedule
    betas: tuple[float, ...]  # came: three, adamw and lamb: two, sm3: one, adafactor: one or none
    eps: tuple[float, ...]  # came and adafactor: two, others: one
    clip_threshold: float = 1.0  # came and adafactor: RMS of the update
    bias_correction: bool = False  # came: of the second moments
    # came: how the momentum of matrices is stored
    momentum: Literal["float32", "bfloat16", "int8", "sign"] | None = None
    scale_parameter: bool | None = None  # adafactor: lr times the RMS of the parameter
    weight_decay: float  # none for biases and norms


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    name: Literal["linear", "poly", "cosine", "wsd", "constant", "inverse_sqrt"]
    warmup_fraction: float  # of train.steps
    warmup_steps: int | None = None  # instead of the fraction
    final_ratio: float | None = None  # of the peak, after the last step; not of the last two
    power: float | None = None  # poly
    decay_fraction: float | None = None  # wsd: of train.steps, the last ones


@dataclass(frozen=True, kw_only=True)
class PhaseConfig:
    """A part of a run; what is not given is as in the whole configuration."""

    share: float  # of train.steps
    sequence_length: int | None = None  # tokens
    max_predictions: int | None = None  # masked tokens per sequence, at most
    global_size: int | None = None  # sequences per optimizer step
    micro_size: int | None = None  # sequences per rank and forward


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    steps: int  # of the optimizer
    log_every: int  # steps
    max_skipped_steps: int  # in a row, whose loss or gradients are no numbers
    gradient_clipping: float  # global norm; 0 = off
    phases: tuple[PhaseConfig, ...] = ()  # one after the other; none = all steps alike


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    every: int  # steps; 0 = only at the end
    samples: int  # held-out sequences per evaluation


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    global_size: int  # sequences per optimizer step, over all ranks
    micro_size: int  # sequences per rank and forward; 0 in the YAML = global_size / ranks
    ramp_from: int = 0  # sequences of the first step, if the batch grows; 0 = it does not
    ramp_fraction: float = 0.0  # of train.steps, until it has global_size


@dataclass(frozen=True, kw_only=True)
class ZeroConfig:
    stage: Literal[0, 1, 2, 3]
    offload_optimizer: bool
    round_robin_gradients: bool


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    dtype: Literal["float32", "bfloat16"]
    threads: int  # per rank; 0 = cores / local ranks
    kernel: Literal["auto", "eager", "cpu", "gpu"]  # of CAME's step; auto = the fastest at hand
    timeout_seconds: int  # the longest a rank waits for the others
    grace_seconds: int  # from a signal to the end
    prefetch: int = 2  # micro batches made ahead in a thread; 0 = none
    compile: bool = False  # torch.compile
    activation_checkpointing: bool = False  # layers are computed again in backward, not kept
    # auto: the largest that fits takes the place of batch.micro_size
    micro_batch: Literal["given", "auto"] = "given"
    memory_gb: float = 0.0  # that one rank may use, for micro_batch=auto; 0 = as the device has
    peak_tflops: float = 0.0  # of one device, for train/mfu; 0 = by its name


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    every: int  # steps; 0 = only at the end
    every_minutes: float  # since the last one, seen at logged steps; 0 = never
    keep: int  # newest commits left on disk
    best: str | None  # eval/..., or max:eval/...; its best commit is left on disk too
    background: bool  # written while training goes on
    max_failed_saves: int  # in a row, before the run gives up


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    name: Literal["none", "wandb", "tensorboard"]
    project: str = "came-pretraining"
    mode: Literal["auto", "online", "offline"] = "auto"
    telemetry: bool = False  # came: update RMS, clip factor and confidence of each param group


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run. `deepspeed` is merged into the DeepSpeed config that we write."""

    experiment: str
    run: RunConfig
    model: ModelConfig
    objective: ObjectiveConfig
    data: DataConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    train: TrainConfig
    eval: EvalConfig
    batch: BatchConfig
    zero: ZeroConfig
    runtime: RuntimeConfig
    checkpoint: CheckpointConfig
    logging: LoggingConfig
    launch: LaunchConfig
    deepspeed: dict[str, Any] = field(default_factory=dict)
