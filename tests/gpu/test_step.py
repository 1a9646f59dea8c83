"""A step on a GPU as its user sees it: nobody waits, it can be captured, it needs no memory."""

import pytest
import torch
from torch import Tensor, nn

from came import CAME
from came.kernels import gpu, select
from tests.came.kernels.pairs import check_close, random_grads
from tests.gpu.device import needs_gpu

pytestmark = [needs_gpu, pytest.mark.timeout(900)]  # what is new is compiled
SHAPES = [(3000, 1024), (1030, 1537), (300, 4, 3, 3), (30522,), (5,)]


Model = tuple[list[nn.Parameter], CAME]


def model(**options: object) -> Model:
    params = [nn.Parameter(weight) for weight in random_grads(SHAPES, 1000, device="cuda")]
    groups = [{"params": params[:2], "weight_decay": 0.1}, {"params": params[2:]}]
    return params, CAME(groups, **options)


def set_grads(params: list[nn.Parameter], step: int) -> None:
    """New numbers in the same tensors."""
    for param, grad in zip(params, random_grads(SHAPES, step, device="cuda"), strict=True):
        if param.grad is None:
            param.grad = grad
        else:
            param.grad.copy_(grad)


def check_same(
    first: tuple[list[nn.Parameter], CAME], second: tuple[list[nn.Parameter], CAME]
) -> None:
    for mine, other in zip(first[0], second[0], strict=True):
        assert torch.equal(mine, other)
        for key, value in first[1].state[mine].items():
            assert key == "step" or torch.equal(second[1].state[other][key], value), key


def test_it_is_taken_by_itself() -> None:
    params, optimizer = model()
    set_grads(params, 0)
    optimizer.step()
    (plan,) = (plan for _, plan in optimizer._plans.values())
    assert plan.kernel is gpu and select._load("gpu") == (gpu, None)
    assert gpu.batch_numbers(params[0].device) >= 1 << 20


def test_nobody_waits_for_a_step() -> None:
    """Also where gradients lie elsewhere, and the learning rate is another, at every step."""
    params, optimizer = model(momentum="int8")
    steps = [random_grads(SHAPES, step, device="cuda") for step in range(5)]
    try:
        for step, grads in enumerate(steps):
            for param, grad in zip(params, grads, strict=True):
                param.grad = grad
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 / (step + 1)
            optimizer.step()
            if step == 1:  # from here on
                torch.cuda.synchronize()
                torch.cuda.set_sync_debug_mode("error")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(param.isfinite().all() for param in params)


@pytest.mark.parametrize("momentum", ["float32", "int8", "sign"])
def test_replays_of_a_captured_step_are_steps(momentum: str) -> None:
    """Bit for bit, with a learning rate that changes on the device."""
    rates = [torch.tensor(1e-2, device="cuda") for _ in range(2)]
    captured, plain = (model(lr=rate, momentum=momentum) for rate in rates)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # as torch's notes on CUDA graphs want the warm-up
        for step in range(2):
            set_grads(captured[0], step)
            captured[1].step()
    torch.cuda.current_stream().wait_stream(stream)
    for step in range(2):
        set_grads(plain[0], step)
        plain[1].step()
    check_same(captured, plain)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured[1].step()
    for step in range(2, 6):
        for rate in rates:
            rate.mul_(0.7)
        set_grads(captured[0], step)
        graph.replay()
        set_grads(plain[0], step)
        plain[1].step()
    torch.cuda.synchronize()
    check_same(captured, plain)


def test_what_cannot_be_captured_says_so() -> None:
    for options, match in (
        ({}, "warm up"),
        ({"stochastic_rounding": True}, "stochastic_rounding cannot be captured"),
        ({"bias_correction": True}, "bias_correction cannot be captured"),
    ):
        params, optimizer = model(**options)
        set_grads(params, 0)
        if options:
            optimizer.step()
            torch.cuda.synchronize()
        with pytest.raises(RuntimeError, match=match), torch.cuda.graph(torch.cuda.CUDAGraph()):
            optimizer.step()


def test_a_learning_rate_on_the_device_is_the_number() -> None:
    first, second = model(lr=torch.tensor(1e-2, device="cuda")), model(lr=1e-2)
    for step in range(3):
        for params, optimizer in (first, second):
            set_grads(params, step)
            optimizer.step()
    for mine, other in zip(first[0], second[0], strict=True):
        check_close(mine.detach(), other.detach(), 1e-6, str(tuple(mine.shape)))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU, or none")
def test_parameters_on_another_gpu_than_the_current_one() -> None:
    runs = []
    for device in ("cuda:0", "cuda:1"):
        param = nn.Parameter(random_grads([(300, 272)], 0, device=device)[0])
        param.grad = random_grads([(300, 272)], 1, device=device)[0]
        CAME([param]).step()
        runs.append(param.detach().cpu())
    assert torch.equal(*runs)


def bert_large() -> list[tuple[int, ...]]:
    width, inner = 1024, 4096
    layer = [(width, width)] * 4 + [(width,)] * 9 + [(inner, width), (inner,), (width, inner)]
    return [(30522, width), (512, width), (2, width), *layer * 24, (width, width), (30522,)]


@pytest.mark.parametrize("momentum", ["float32", "int8"])
def test_a_step_needs_less_than_one_percent_of_the_parameters(momentum: str) -> None:
    shapes = bert_large()
    size = 4 * sum(torch.Size(shape).numel() for shape in shapes)
    free, _ = torch.cuda.mem_get_info()
    if free < 4 * size:
        pytest.skip(f"BERT-Large needs {4 * size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free")
    params = [nn.Parameter(torch.zeros(shape, device="cuda")) for shape in shapes]
    for param in params:
        param.grad = torch.ones_like(param)
    before = torch.cuda.memory_allocated()
    optimizer = CAME(params, momentum=momentum)
    optimizer.step()
    state = sum(rounded(value) for kept in optimizer.state.values() for value in kept.values())
    beside = torch.cuda.memory_allocated() - before - state  # tables and scratch memory, kept
    torch.cuda.reset_peak_memory_stats()
    allocated = torch.cuda.memory_allocated()
    optimizer.step()
    torch.cuda.synchronize()
    extra = torch.cuda.max_memory_allocated() - allocated
    assert beside + extra < 0.01 * size, f"{beside} bytes are kept, {extra} for the time of a step"


def rounded(value: Tensor) -> int:
    """What torch's allocator takes for a tensor."""
    return 0 if value.device.type == "cpu" else -(-value.nbytes // 512) * 512
