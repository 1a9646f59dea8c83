"""A `torch.optim.Optimizer` that is the same optimizer under every sharding."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from came.fields import Field, compute_dtype
from came.reduce import drive
from came.rules.rule import Plan, Rule
from came.sharding import deepspeed, dtensor
from came.sharding.allocation import allocation_step
from came.sharding.discover import discover, require_factors
from came.sharding.portable import exported, fill
from came.sharding.shard import Shard, names_by_position, unexplained
from came.tasks import Task, tasks

MAX_PLANS = 8  # which parameters have a gradient may change from step to step


class ShardedOptimizer(torch.optim.Optimizer):
    """The frame around a rule: finds what each tensor holds, keeps its state, drives the step.

    Raises:
        ValueError: a hyperparameter is out of its range.
        RuntimeError: at `step`, where parameters are sharded in a way that cannot be proven.
    """

    rule: Rule

    def __init__(self, params: Any, defaults: dict[str, Any]) -> None:
        self.original_names: dict[Tensor, str] = {}
        self._shards: dict[Tensor, Shard] = {}
        self._checked: dict[Tensor, Any] = {}  # whose state is known to fit
        self._plans: dict[Any, tuple[list[int], Plan]] = {}
        self._last_plan: dict[Tensor, Plan] = {}
        self._places: dict[Tensor, int] = {}
        self._groups: list[dict[str, Any]] = []
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its parameters are remembered as the model's own."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            self.rule.check(group)
        except ValueError:
            self.param_groups.pop()
            raise
        self._groups = list(self.param_groups)
        index = len(self.param_groups) - 1
        names = names_by_position(index, group)
        self.original_names.update(zip(group["params"], names, strict=True))

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Callable[[], float] | None = None
    ) -> float | None:
        """Update the parameters that have a gradient.

        Sums a few small buffers over the group that shards the parameters, however many there are;
        where a wrapper shards them, the first step also shares one verdict on the layout.

        Raises:
            RuntimeError: the parameters are sharded or wrapped in a way that is not supported.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        allocates = allocation_step()
        if allocates == "wrapper":  # it is not finished, and cannot be read yet
            return loss
        together: dict[Any, list[tuple[Shard, dict[str, Any]]]] = {}
        for group in self.param_groups:
            betas = self.defaults.get("betas", ())
            if len(group.get("betas", ())) != len(betas):
                raise RuntimeError(
                    f"betas is {group['betas']!r}, {type(self).__name__} has "
                    f"{len(betas)}: a scheduler has replaced them; DeepSpeed's "
                    "OneCycle does unless its cycle_momentum is false"
                )
            for tensor in group["params"]:
                if tensor.grad is not None and tensor.numel() > 0:
                    shard = self.shard(tensor)
                    together.setdefault((tensor.device, shard.group), []).append((shard, group))
        for pairs in together.values():
            if allocates:
                for shard, _ in pairs:
                    self.state_of(shard)
            else:
                self._update(pairs)
        return loss

    def _update(self, pairs: list[tuple[Shard, dict[str, Any]]]) -> None:
        """One pass of the rule over tensors that share a device and a process group."""
        params, grads, steps, pointers, copies = [], [], [], [], []
        for shard, _ in pairs:
            grad = shard.local_grad
            if grad.is_sparse:
                raise RuntimeError(
                    f"{type(self).__name__} needs dense gradients, and this parameter has a sparse "
                    f"one: {shard.layout.params[0].name}; build its embedding with sparse=False"
                )
            local = shard.local
            params.append(local.contiguous())
            if params[-1] is not local:
                copies.append((local, params[-1]))
            grads.append(grad.contiguous().view(-1))
            state = self.state_of(shard)
            steps.append(state["step"])
            pointers += [params[-1].data_ptr(), *(value.data_ptr() for value in state.values())]
        key = tuple(
            (id(shard), id(group), grad.dtype, group.get("kernel"))
            for (shard, group), grad in zip(pairs, grads, strict=True)
        )
        known = self._plans.pop(key, None)
        if known is None or known[0] != pointers:
            known = (pointers, self._plan(pairs, params, grads))
        torch._foreach_add_(steps, 1)
        known[1].refresh(grads)
        drive(self.rule.step(known[1]), pairs[0][0].group)
        self._remember(pairs, known[1])
        for local, updated in copies:
            local.copy_(updated)
        if copies:  # neither is to be kept
            known[1].forget_numbers()
        else:
            self._plans[key] = known
            if len(self._plans) > MAX_PLANS:
                del self._plans[next(iter(self._plans))]

    def _remember(self, pairs: list[tuple[Shard, dict[str, Any]]], plan: Plan) -> None:
        """Keep the plan for who asks about the last step.

        ZeRO makes several calls of a step, each with other tensors: a tensor that comes again
        begins the next one.
        """
        if any(shard.tensor in self._last_plan for shard, _ in pairs):
            self._last_plan.clear()
        self._last_plan.update((shard.tensor, plan) for shard, _ in pairs)

    def _plan(
        self,
        pairs: list[tuple[Shard, dict[str, Any]]],
        params: list[Tensor],
        grads: list[Tensor],
    ) -> Plan:
        todo: list[Task] = []
        dtype = torch.float32
        for source, ((shard, group), param) in enumerate(zip(pairs, params, strict=True)):
            dtype = torch.promote_types(dtype, compute_dtype(param.dtype))
            shard.require_size()
            found = tasks(
                source, param, shard.layout, self.fields(shard), self.state_of(shard), group
            )
            for task, original in zip(found, shard.sources, strict=True):
                task.index = self._place(original)
            todo += found
        ranks = pairs[0][0].group
        alone = ranks is None or dist.get_world_size(ranks) == 1
        with torch.device("cpu"):  # where tables lie, whatever the default is
            like = grads[0].new_empty(0, dtype=dtype)
            return self.rule.plan(todo, grads, like, alone=alone)  # type: ignore[no-any-return]

    def _place(self, original: Tensor) -> int:
        """The place of a parameter among those the optimizer was built with."""
        if len(self._places) != len(self.original_names):
            self._places = {param: place for place, param in enumerate(self.original_names)}
        return self._places.get(original, len(self._places))

    def _forget_plans(self) -> None:
        self._plans.clear()
        self._last_plan.clear()

    def last_plans(self) -> list[Plan]:
        """The work of the last step of each tensor, as it was done."""
        return list({id(plan): plan for plan in self._last_plan.values()}.values())

    def fields(self, shard: Shard) -> list[tuple[Field, ...]]:
        """What is kept for each parameter of a shard."""
        options = self._options(shard)
        return [self.rule.fields(param, options) for param in shard.layout.params]

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
        """What this rank holds of the state of a shard, allocated where it does not exist yet."""
        state: dict[str, Any] = self.state[shard.tensor]
        # The model may have been cast, or a format written into its group, since.
        kind = shard.tensor.dtype, self._options(shard).get("momentum")
        if self._checked.get(shard.tensor) != kind or not state:
            fill(shard, self.fields(shard), state)
            self._checked[shard.tensor] = kind
        return shard.local_state(state)

    def adopt(self, shards: Iterable[Shard]) -> list[Shard]:
        """Take shards as the truth about the tensors in `param_groups`; returns them with their
        parameters matricized as their group says."""
        adopted = [self._matricized(shard) for shard in shards]
        if not all(shard.tensor in self._shards for shard in adopted):
            self._last_plan.clear()
        self._shards.update((shard.tensor, shard) for shard in adopted)
        foreign = (tensor for tensor in self._shards if tensor not in self.original_names)
        if any(map(dtensor.is_dtensor, foreign)):
            # accelerate shards a model after its optimizer is built, and replaces the parameters;
            # to remember the old ones would keep the whole model in memory.
            self.original_names = {
                tensor: name
                for index, group in enumerate(self.param_groups)
                for tensor, name in zip(
                    group["params"], names_by_position(index, group), strict=True
                )
            }
        self._plans.clear()
        return adopted

    def _matricized(self, shard: Shard) -> Shard:
        flatten = self._options(shard).get("matricize") == "first"
        params = tuple(replace(param, flatten=flatten) for param in shard.layout.params)
        return replace(shard, layout=replace(shard.layout, params=params))

    def _options(self, shard: Shard) -> dict[str, Any]:
        # DeepSpeed cuts `param_groups` down to one while it steps at stages 1 and 2.
        cut = len(self.param_groups) < len(self._groups)
        return (self._groups if cut else self.param_groups)[shard.group_index]

    def state_dict(self) -> dict[str, Any]:
        """As in torch, and such as `torch.distributed.checkpoint` may save it: of DTensors (FSDP2)
        nothing is one rank's own, and there is an entry for every parameter that is trained."""
        tensors = list(chain.from_iterable(group["params"] for group in self.param_groups))
        if any(map(dtensor.is_dtensor, tensors)):
            for tensor in tensors:
                if tensor.requires_grad and tensor.numel() > 0:
                    self.state_of(self.shard(tensor))
        found = super().state_dict()
        for index, tensor in enumerate(tensors):
            if index in found["state"] and tensor in self._checked:  # else it is as it was loaded
                shard = self._shards[tensor]
                found["state"][index] = exported(shard, self.fields(shard), self.state[tensor])
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch, but state keeps its precision (torch casts it to the parameter's), and the
        kernel is that of this machine. The format of the momentum is that of what is loaded.

        Raises:
            ValueError: the options are not of this optimizer.
        """
        try:
            for group in state_dict["param_groups"]:
                self.rule.check({**self.defaults, **group})
        except (ValueError, TypeError, KeyError) as error:
            name = type(self).__name__
            raise ValueError(f"saved by another optimizer than {name}: {error}") from error
        kernels = [group.get("kernel") for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, kernel in zip(self.param_groups, kernels, strict=True):
            group.update({} if kernel is None else {"kernel": kernel})
        self._shards = {shard.tensor: self._matricized(shard) for shard in self._shards.values()}
        saved_ids = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        params = chain.from_iterable(group["params"] for group in self.param_groups)
        for saved_id, param in zip(saved_ids, params, strict=True):
            for key, value in state_dict["state"].get(saved_id, {}).items():
                if isinstance(value, Tensor) and key != "step":
                    self.state[param][key] = value.detach().clone().to(param.device)
        self._checked.clear()
        self._forget_plans()

    def __getstate__(self) -> dict[str, Any]:
        # A copy knows what it was built with, so that it never takes a flat slice for a vector.
        return {**super().__getstate__(), "original_names": self.original_names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name in ("original_names", "_shards", "_checked", "_plans", "_last_plan", "_places"):
            self.__dict__.setdefault(name, {})
        super().__setstate__(state)
        self._groups = list(self.param_groups)
        for group in self.param_groups:
            for option, value in self.defaults.items():
                if option != "differentiable":  # torch has just added it to the defaults
                    group.setdefault(option, value)  # saved by a version that did not have it
