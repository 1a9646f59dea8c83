"""Which keys the `deepspeed` section may hold: DeepSpeed itself swallows a typo at the top level.

The lists are literal because asking DeepSpeed costs seconds of imports before every error message;
a test compares them with the installed version.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trainers.typed import nearest

_TOP_LEVEL = """
activation_checkpointing aio autotuning bf16 bfloat16 checkpoint comet comms_logger
communication_data_type compile csv_monitor data_efficiency data_types dataloader_drop_last
datastates_ckpt disable_allgather disable_python_gc dump_state expert_parallel flops_profiler
fp16 gradient_accumulation_steps gradient_allreduce_op gradient_clipping
gradient_predivide_factor hybrid_engine log_level managed_gradient_accumulation
memory_breakdown optimizer pipeline prescale_gradients scheduler
seq_parallel_communication_data_type steps_per_print tensor_parallel tensorboard timers
torch_autocast train_batch_size train_micro_batch_size_per_gpu
use_data_before_expert_parallelism vocabulary_size wall_clock_breakdown wandb
weight_quantization zero_allow_untested_optimizer zero_force_ds_cpu_optimizer zero_optimization
"""

_ZERO = """
allgather_bucket_size allgather_partitions allgather_sequential compute_grad_norm
contiguous_gradients cpu_offload cpu_offload_param cpu_offload_use_pin_memory
elastic_checkpoint enable_sanity_checks gather_16bit_weights_on_model_save
ignore_unused_parameters leaf_module legacy_stage1 load_from_fp32_weights
log_trace_cache_warnings max_live_parameters max_reuse_distance memory_efficient_linear
model_persistence_threshold module_granularity_threshold offload_optimizer offload_param
overlap_comm override_module_apply param_persistence_threshold parameter_alignment
pipeline_loading_checkpoint prefetch_bucket_size reduce_bucket_size reduce_scatter
round_robin_gradients save_muon_momentum_buffer_in_memory stage stage3_allgather_sequential
stage3_gather_16bit_weights_on_model_save stage3_gather_fp16_weights_on_model_save
stage3_max_live_parameters stage3_max_reuse_distance stage3_model_persistence_threshold
stage3_module_granularity_threshold stage3_param_persistence_threshold
stage3_prefetch_bucket_size stage3_use_all_reduce_for_fetch_params sub_group_size
use_all_reduce_for_fetch_params use_multi_rank_bucket_allreduce zenflow zero_hpz_partition_size
zero_quantized_gradients zero_quantized_nontrainable_weights zero_quantized_weights
"""

TOP_LEVEL = frozenset(_TOP_LEVEL.split())
ZERO = frozenset(_ZERO.split())

# A section that DeepSpeed reads name by name, so that it swallows a typo.
CHECKPOINTING = frozenset(
    [
        "partition_activations",
        "contiguous_memory_optimization",
        "cpu_checkpointing",
        "number_checkpoints",
        "synchronize_checkpoint_boundary",
        "profile",
    ]
)

# What a run may set beside our own keys; everything else that DeepSpeed knows is not offered.
OFFERED = frozenset(
    ("activation_checkpointing", "disable_python_gc", "log_level", "zero_optimization")
)

# What would switch off a guard that every run relies on.
GUARDS = {
    "zero_optimization.compute_grad_norm": "by that norm gradients that are no numbers are noticed"
}

# What this project writes itself, and the key of ours that it comes from.
OURS = {
    "train_batch_size": "batch.global_size",
    "train_micro_batch_size_per_gpu": "batch.micro_size",
    "gradient_accumulation_steps": "batch.global_size and batch.micro_size",
    "gradient_clipping": "train.gradient_clipping",
    "optimizer": "optimizer",
    "scheduler": "schedule",
    "bf16": "runtime.dtype",
    "bfloat16": "runtime.dtype",
    "fp16": "runtime.dtype",
    "torch_autocast": "runtime.dtype",
    "data_types": "runtime.dtype",
    "wandb": "logging",
    "communication_data_type": "runtime.dtype",
    "zero_allow_untested_optimizer": "optimizer",
    "zero_force_ds_cpu_optimizer": "zero.offload_optimizer",
    "zero_optimization.stage": "zero.stage",
    "zero_optimization.cpu_offload": "zero.offload_optimizer",
    "zero_optimization.offload_optimizer": "zero.offload_optimizer",
    "zero_optimization.round_robin_gradients": "zero.round_robin_gradients",
    "zero_optimization.zenflow": "zero.offload_optimizer",
}


def problems_of_block(block: Mapping[str, Any]) -> Iterator[str]:
    """What keeps the `deepspeed` section from being merged into the DeepSpeed config."""
    zero = block.get("zero_optimization", {})
    if not isinstance(zero, Mapping):
        yield f"deepspeed.zero_optimization must be a mapping, not {zero!r}: see zero.stage"
        zero = {}
    yield from _check(block, "", TOP_LEVEL)
    yield from _check(zero, "zero_optimization.", ZERO)
    section = block.get("activation_checkpointing", {})
    if isinstance(section, Mapping):
        yield from _check(section, "activation_checkpointing.", CHECKPOINTING)
    else:
        yield f"deepspeed.activation_checkpointing must be a mapping, not {section!r}"


def _check(section: Mapping[str, Any], prefix: str, known: frozenset[str]) -> Iterator[str]:
    for name in section:
        key = f"{prefix}{name}"
        if key in OURS:
            yield f"deepspeed.{key} is written by this program: set {OURS[key]} instead"
        elif key in GUARDS:
            yield f"deepspeed.{key} is not offered here: {GUARDS[key]}"
        elif name not in known:
            hint = nearest(f"deepspeed.{key}", (f"deepspeed.{prefix}{other}" for other in known))
            yield f"unknown key 'deepspeed.{key}', DeepSpeed has no such setting{hint}"
        elif not prefix and name not in OFFERED:
            yield f"deepspeed.{key} is not offered here: CAME is not tested with it"
