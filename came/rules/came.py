"""CAME over any sharding: two sums over the ranks, three passes over the numbers.

The statistics of a matrix are sums over its rows and columns, so every rank adds what its own
boxes contribute to one small buffer, the buffer is summed over the ranks, and every rank updates
its copy of the factors.  The momentum stays where its parameter is.  One matrix, with `g2 = g^2`:

    pass 1   sums of g2 by row and column                                 -> summed over the ranks
             r, c = moving averages of the means of g2 + eps1;   u = g / sqrt(r c / mean(r))
    pass 2   sums of d^2, d u, u^2 by row and column, with d = z u - m    -> summed over the ranks
             s = 1 / max(1, RMS(u) / clip_threshold)
             (s u - m')^2 = beta1^2 (s u - m)^2 = beta1^2 (d^2 + 2 (s-z) d u + (s-z)^2 u^2)
             R, C = moving averages of the means of that + eps2
    pass 3   m' = beta1 m + (1 - beta1) s u;   p = p - lr wd p - lr m' / sqrt(R C / mean(R))

`z` is the clip factor of the step before (0 at the first).  About zero in place of `z` the
expansion would cancel: in fp32 a gradient of 1 + 1e-4 noise then gives negative row sums.

With `bias_correction` the factors are read as if they had not begun at zero, in step `t` of their
parameter, and so is the second moment of a vector, `v / (1 - beta2^t)`:

    u = g / sqrt(r^ c^ / mean(r^)),          r^, c^ = r, c / (1 - beta2^t)
    p = ... - lr m' / sqrt(R^ C^ / mean(R^)),    R^, C^ = R, C / (1 - beta3^t)

What is kept stays as it is.  So does the momentum, because the residual is measured from it: a
corrected one is, at the first step, the update itself, the residual is then 0, and the step
`1 / sqrt(eps2)`, a hundred million, times too large.  It is a warm-up: the first step is `lr / 9`
where without correction it is `11 lr`, and after some `2 / (1 - beta1)` steps it is of full size.

`beta1 = 0` is refused.  The residual is `beta1^2 (s u - m)^2`: the smaller beta1, the larger the
step, as `1 / beta1`; and without a momentum all residuals are 0, and confidence tells nothing.

A matrix that lies wholly on one rank needs no other rank's numbers.  Its owner takes it through all
three passes at once, while it is in cache, and leaves the sums for the others to follow.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import Tensor

from came.fields import Field
from came.kernels import select
from came.kernels.alone import Alone
from came.kernels.table import Part, Table
from came.layout import Param, packed_offsets
from came.momentum import FORMATS
from came.rules.options import check_choice, check_flag, check_lr, check_number, check_numbers
from came.tasks import Task

FACTORS = ("exp_avg_sq_row", "exp_avg_sq_col", "exp_avg_res_row", "exp_avg_res_col")


def fields(param: Param, options: dict[str, Any]) -> tuple[Field, ...]:
    """Momentum and four factor vectors for a matrix; full moments in float32 for a vector."""
    if not param.factored:
        return Field("exp_avg"), Field("exp_avg_sq")
    kept = [Field("exp_avg", format=options["momentum"])]
    for key in FACTORS:
        kept.append(Field(key, param.row_shape if key.endswith("row") else param.col_shape))
    kept.append(Field("clip_factor", ()))
    if options["momentum"] == "sign":
        kept += [Field("exp_avg_row", param.row_shape), Field("exp_avg_col", param.col_shape)]
    return tuple(kept)


def check(options: dict[str, Any]) -> None:
    """Raise a ValueError if an option is out of its range."""
    check_lr(options)
    check_numbers(options, "betas", 3, below=1)
    if options["betas"][0] == 0:
        raise ValueError(
            f"betas is {options['betas']!r}; the first must be > 0: confidence is how far updates "
            "are from their momentum, and without one it is nothing. Adafactor keeps no momentum "
            'with beta1=None; momentum="sign" keeps a bit of each number'
        )
    check_numbers(options, "eps", 2, below=None)
    check_number(options, "clip_threshold", positive=True)
    check_number(options, "weight_decay")
    check_flag(options, "bias_correction")
    check_choice(options, "momentum", tuple(FORMATS))
    check_choice(options, "matricize", ("last", "first"))
    check_choice(options, "kernel", select.NAMES)


def num_summed(params: Sequence[Param]) -> tuple[int, ...]:
    """Numbers of each buffer that the ranks sum in a step over `params`.

    Never none, so that a step is two sums whatever it updates.
    """
    num_factors = sum(param.num_factors for param in params if param.factored)
    num_vectors = sum(not param.factored for param in params)
    return max(1, num_factors), max(1, 3 * num_factors + num_vectors)


@dataclass
class Plan:
    """Who is updated when: `alone` by this rank only, `shared` in step with the other ranks.

    `num_factors` numbers of factor space are summed over the ranks; none where nobody else is.
    `first` and `second` are what is summed.  All buffers are kept from step to step: to get memory
    anew takes a CPU longer than to use it.
    """

    table: Table
    alone: list[Alone]
    shared: Part
    num_factors: int
    kernel: ModuleType
    first: Tensor
    second: Tensor

    def refresh(self, grads: list[Tensor]) -> None:
        """Take over this step's gradients and options."""
        self.table.refresh(grads)

    def forget_numbers(self) -> None:
        """Let go of parameters and gradients: the plan is only good for `telemetry` then."""
        for task in self.table.matrices.tasks + self.table.vectors.tasks:
            task.forget_numbers()


def plan(todo: Sequence[Task], grads: list[Tensor], like: Tensor, *, alone: bool) -> Plan:
    """Order the work of a step.  `like` has its device and dtype; `alone`: in a world of one."""
    matrices = [task for task in todo if task.param.factored]
    vectors = [task for task in todo if not task.param.factored]
    factor_at = packed_offsets([task.param.num_factors for task in matrices])
    # A matrix that nobody shares comes first, and is updated by itself.
    order = sorted(range(len(matrices)), key=lambda index: not matrices[index].whole)
    table = Table(
        [matrices[index] for index in order],
        [factor_at[index] for index in order],
        vectors,
        grads,
        like,
    )
    kernel = select.choose(table, like)
    num_alone = sum(task.whole for task in matrices)
    num_factors = 0 if alone else sum(task.param.num_factors for task in matrices)
    batches = _batches(table, num_alone, kernel.batch_numbers(like.device))
    scratch = like.new_empty(7, max((part.size for part in batches), default=0))
    first, second = num_summed([task.param for task in (vectors if alone else todo)])
    return Plan(
        table,
        [Alone.within(part, scratch) for part in batches],
        table.part(num_alone, len(matrices), 0, num_factors),
        num_factors,
        kernel,
        like.new_empty(first),
        like.new_empty(second),
    )


def _batches(table: Table, num_matrices: int, numbers: int) -> list[Part]:
    """The first matrices in batches of neighbours in factor space, of up to so many numbers."""
    parts: list[Part] = []
    begin = numel = end = 0
    for index, task in enumerate(table.matrices.tasks[:num_matrices]):
        apart = table.row_at[index] != end or numel + task.param.numel > numbers
        if index > begin and apart:
            parts.append(table.part(begin, index, table.row_at[begin], end - table.row_at[begin]))
            begin, numel = index, 0
        numel += task.param.numel
        end = table.row_at[index] + task.param.num_factors
    if num_matrices > begin:
        at = table.row_at[begin]
        parts.append(table.part(begin, num_matrices, at, end - at))
    return parts


def step(plan: Plan) -> Iterator[Tensor]:
    """One step of CAME, in place.

    Yields each of its two buffers to be summed over the ranks: on every rank of the same length,
    whatever the rank holds.
    """
    table, kernel, shared, size = plan.table, plan.kernel, plan.shared, plan.num_factors
    squares, second = plan.first.zero_(), plan.second.zero_()
    residuals = second[: 3 * size].view(3, size)
    vector_sums = second[3 * size :][: len(table.vectors.tasks)]

    kernel.step_alone(plan.alone, squares[:size], residuals)
    kernel.add_squares(shared, squares)
    kernel.add_vector_squares(table, vector_sums)
    yield squares
    kernel.update_squares(shared, squares, squares)
    kernel.add_residuals(shared, squares, residuals)
    yield second
    kernel.update_confidence(shared, residuals, residuals[:2])
    kernel.apply_update(shared, squares, residuals[:2])
    kernel.apply_vector_update(table, vector_sums)
    table.grads = []  # the model may free them
