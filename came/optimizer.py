"""`CAME`, a `torch.optim.Optimizer` that is the same optimizer under every sharding."""

from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from came.reduce import drive
from came.rules import came as rule
from came.rules.factored import allocate, compute_dtype, tasks
from came.sharding import deepspeed
from came.sharding.discover import discover, require_factors
from came.sharding.shard import Shard, unexplained


class CAME(torch.optim.Optimizer):
    """Confidence-guided Adaptive Memory Efficient optimization (ACL 2023, arXiv 2307.02047).

    Matrices (the last two of two or more dimensions) keep a momentum and four factor vectors;
    vectors keep a momentum and a full second moment, without confidence.  Weight decay is
    decoupled.  Half-precision gradients and parameters are computed in float32, and so are all
    statistics.

    Handed to `deepspeed.initialize` it finds ZeRO's flat slices at the first step, proves by value
    which parameter each number belongs to, and computes what it would compute unsharded.

    Args:
        params: parameters, named parameters or groups, as for any torch optimizer.
        lr: step size.  Steps are about as large as Adam's with the same `lr`, but up to 11 times
            larger at the start, because CAME has no bias correction: warm up.
        betas: decay of the momentum, the squared gradient and the residual (paper, section 3).
        eps: added to the squared gradient and to the squared residual.
        clip_threshold: upper bound of the root mean square of an update before the momentum.
        weight_decay: decoupled, times `lr`.

    Raises:
        ValueError: a hyperparameter is out of its range.
        RuntimeError: at `step`, where parameters are sharded in a way that cannot be proven.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 2e-4,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        eps: tuple[float, float] = (1e-30, 1e-16),
        clip_threshold: float = 1.0,
        weight_decay: float = 0.0,
    ) -> None:
        self.original_names: dict[Tensor, str] = {}
        self._shards: dict[Tensor, Shard] = {}
        self._checked: set[Tensor] = set()  # whose state is known to fit
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "clip_threshold": clip_threshold,
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its parameters are remembered as the model's own."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            _check_options(group)
        except ValueError:
            self.param_groups.pop()
            raise
        index = len(self.param_groups) - 1
        names = group.get("param_names") or [f"{index}.{i}" for i in range(len(group["params"]))]
        self.original_names.update(zip(group["params"], names, strict=True))

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Callable[[], float] | None = None
    ) -> float | None:
        """Update the parameters that have a gradient.

        Sums two small buffers over the group that shards the parameters, however many there are;
        where a wrapper shards them, the first step also shares one verdict on the layout.

        Raises:
            RuntimeError: the parameters are sharded or wrapped in a way that is not supported.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if deepspeed.is_allocation_step():
            return loss
        together: dict[Any, list[tuple[Shard, dict[str, Any]]]] = {}
        for group in self.param_groups:
            if len(group["betas"]) != 3:
                raise RuntimeError(
                    f"betas is {group['betas']!r}, CAME has three: a scheduler has replaced them; "
                    "DeepSpeed's OneCycle does unless its cycle_momentum is false"
                )
            for tensor in group["params"]:
                if tensor.grad is not None and tensor.numel() > 0:
                    shard = self.shard(tensor)
                    together.setdefault((tensor.device, shard.group), []).append((shard, group))
        for pairs in together.values():
            self._update(pairs)
        return loss

    def _update(self, pairs: list[tuple[Shard, dict[str, Any]]]) -> None:
        """One pass of the rule over tensors that share a device and a process group."""
        todo, write_back = [], []
        dtype = torch.float32
        for shard, group in pairs:
            param, grad = shard.tensor.detach(), shard.tensor.grad
            assert grad is not None
            if grad.is_sparse:
                raise RuntimeError(
                    "CAME needs dense gradients, and this parameter has a sparse one: "
                    f"{shard.layout.params[0].name}; build its embedding with sparse=False"
                )
            state = self.state_of(shard)
            state["step"] += 1
            dtype = torch.promote_types(dtype, state["exp_avg"].dtype)
            if not param.is_contiguous():
                write_back.append((param, param.contiguous()))
                param = write_back[-1][1]
            todo += tasks(shard.layout, param, grad.contiguous(), state, group)
        like = pairs[0][0].tensor.new_empty(0, dtype=dtype)
        drive(rule.step(todo, like), pairs[0][0].group)
        for param, updated in write_back:
            param.copy_(updated)

    def shard(self, tensor: Tensor) -> Shard:
        """What `tensor`, an entry of `param_groups`, holds of the model's parameters.

        Raises:
            RuntimeError: it is neither a parameter that this optimizer was given nor a buffer of a
                wrapper that is known.
        """
        if tensor not in self._shards:
            wrapper = None if tensor in self.original_names else deepspeed.find_wrapper(self)
            shards = discover(self, wrapper, self.original_names)
            require_factors(shards, self.original_names)
            self.adopt(shards)
        if tensor not in self._shards:
            raise unexplained(tensor)
        return self._shards[tensor]

    def state_of(self, shard: Shard) -> dict[str, Tensor]:
        """The state of a shard, allocated where it does not exist yet."""
        state: dict[str, Any] = self.state[shard.tensor]
        if shard.tensor not in self._checked:
            if "exp_avg" in state:
                _complete(state, shard)
            else:
                state.update(allocate(shard.tensor, shard.layout))
            self._checked.add(shard.tensor)
        return state

    def adopt(self, shards: Iterable[Shard]) -> None:
        """Take shards as the truth about the tensors in `param_groups`."""
        self._shards.update((shard.tensor, shard) for shard in shards)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch, but statistics keep their precision: torch casts them to the parameter's."""
        super().load_state_dict(state_dict)
        saved_ids = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        params = chain.from_iterable(group["params"] for group in self.param_groups)
        for saved_id, param in zip(saved_ids, params, strict=True):
            for key, value in state_dict["state"].get(saved_id, {}).items():
                if isinstance(value, Tensor) and key != "step":
                    dtype = compute_dtype(param.dtype)
                    self.state[param][key] = value.detach().clone().to(param.device, dtype)
        self._checked.clear()

    def __getstate__(self) -> dict[str, Any]:
        # A copy knows what it was built with, so that it never takes a flat slice for a vector.
        return {**super().__getstate__(), "original_names": self.original_names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.setdefault("original_names", {})
        self.__dict__.setdefault("_shards", {})
        self.__dict__.setdefault("_checked", set())
        super().__setstate__(state)


def _complete(state: dict[str, Any], shard: Shard) -> None:
    """Make loaded state whole, or raise a RuntimeError if it is not of this layout.

    The state of `came-pytorch` for a whole parameter is taken: it counts in an int, and has no clip
    factor.  What it kept for a flat slice is no state of CAME.
    """
    state.pop("RMS", None)
    state.setdefault("clip_factor", None)
    wanted = allocate(shard.tensor, shard.layout)
    state["step"] = torch.as_tensor(float(state.get("step", 0)))
    if state["clip_factor"] is None:
        del state["clip_factor"]
        if "clip_factor" in wanted:
            state["clip_factor"] = wanted["clip_factor"]
    found = {key: tuple(value.shape) for key, value in state.items()}
    shapes = {key: tuple(value.shape) for key, value in wanted.items()}
    if found != shapes:
        raise RuntimeError(
            f"the loaded state of {shard.layout.params[0].name} does not fit: it has {found}, and "
            f"CAME keeps {shapes}; it was saved by an optimizer that saw a flat vector, or under "
            "another sharding: load the weights without the optimizer"
        )


def _check_options(group: dict[str, Any]) -> None:
    for name in ("betas", "eps"):
        if not isinstance(group[name], list | tuple) or not all(map(_is_number, group[name])):
            raise ValueError(f"{name} is {group[name]!r}; it must be a sequence of numbers")
    for name in ("clip_threshold", "weight_decay"):
        if not _is_number(group[name]):
            raise ValueError(f"{name} is {group[name]!r}; it must be a number")
    betas, eps = group["betas"], group["eps"]
    if not float(group["lr"]) >= 0:
        raise ValueError(f"lr is {group['lr']!r}; it must be a number >= 0")
    if len(betas) != 3 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas is {betas!r}; it must be three numbers in [0, 1)")
    if len(eps) != 2 or not all(value >= 0 for value in eps):
        raise ValueError(f"eps is {eps!r}; it must be two numbers >= 0")
    if not group["clip_threshold"] > 0:
        raise ValueError(f"clip_threshold is {group['clip_threshold']!r}; it must be > 0")
    if not group["weight_decay"] >= 0:
        raise ValueError(f"weight_decay is {group['weight_decay']!r}; it must be >= 0")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)
