"""CAME as anybody uses a torch optimizer."""

import copy
from typing import Any

import pytest
import torch
from came_pytorch import CAME as PublishedCAME
from torch import Tensor, nn

import came
from came import CAME

SHAPES = [(48, 80), (7,), (3, 5, 11), (1, 9), (9, 1), (), (4, 2, 3, 3), (64,)]


def make_params(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    weights = [0.02 * torch.randn(shape, generator=generator) for shape in SHAPES]
    return [nn.Parameter(weight.to(dtype)) for weight in weights]


def set_grads(step: int, *models: list[nn.Parameter]) -> None:
    generator = torch.Generator().manual_seed(step)
    for params in zip(*models, strict=True):
        grad = 0.01 * torch.randn(params[0].shape, generator=generator)
        for param in params:
            param.grad = grad.to(param.dtype)


def state_of(optimizer: torch.optim.Optimizer, param: Tensor) -> dict[str, Tensor]:
    return {
        key: value
        for key, value in optimizer.state[param].items()
        if key not in ("RMS", "step", "clip_factor")
    }


def test_twenty_steps_equal_the_published_package() -> None:
    ours, theirs = make_params(), make_params()
    options: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.01}
    optimizer, published = CAME(ours, **options), PublishedCAME(theirs, **options)
    start = [param.detach().clone() for param in ours]
    for step in range(20):
        set_grads(step, ours, theirs)
        optimizer.step()
        published.step()
    for first, mine, yours in zip(start, ours, theirs, strict=True):
        error = (mine - yours).norm()
        assert error <= 2e-6 * yours.norm()
        assert error <= 1e-5 * (yours - first).norm()
        wanted = state_of(published, yours)
        assert state_of(optimizer, mine).keys() == wanted.keys()
        for key, value in wanted.items():
            found = optimizer.state[mine][key]
            assert found.shape == value.shape
            assert (found - value).norm() <= 1e-5 * value.norm(), key


def test_parameters_without_gradient_are_left_alone() -> None:
    used, unused = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3, 3))
    optimizer = CAME([used, unused], weight_decay=0.1)
    used.grad = torch.ones(3, 3)
    optimizer.step()
    assert unused.eq(1).all() and unused not in optimizer.state
    assert not used.eq(1).any()


def test_half_precision_is_computed_in_float32() -> None:
    ours = make_params(torch.bfloat16)
    wide = [nn.Parameter(param.detach().float()) for param in ours]
    optimizer, reference = CAME(ours, lr=1e-3), CAME(wide, lr=1e-3)
    set_grads(0, ours)
    for mine, wanted in zip(ours, wide, strict=True):
        wanted.grad = mine.grad.float()
    optimizer.step()
    reference.step()
    for mine, wanted in zip(ours, wide, strict=True):
        assert torch.equal(mine, wanted.bfloat16())
        for key, value in state_of(reference, wanted).items():
            assert optimizer.state[mine][key].dtype == torch.float32
            assert torch.equal(optimizer.state[mine][key], value)


def test_state_dict_goes_on_bit_for_bit_and_in_float32() -> None:
    """torch casts loaded statistics to the parameter's dtype; fp32 statistics came back as bf16."""
    ours = make_params(torch.bfloat16)
    optimizer = CAME(ours, lr=1e-3)
    for step in range(3):
        set_grads(step, ours)
        optimizer.step()
    resumed = [nn.Parameter(param.detach().clone()) for param in ours]
    loaded = CAME(resumed, lr=1e-3)
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for step in range(3, 6):
        set_grads(step, ours, resumed)
        optimizer.step()
        loaded.step()
    for mine, again in zip(ours, resumed, strict=True):
        assert torch.equal(mine, again)
        for key, value in optimizer.state[mine].items():
            assert loaded.state[again][key].dtype == torch.float32
            assert torch.equal(loaded.state[again][key], value), key


def test_state_of_a_flat_vector_is_refused() -> None:
    """What came-pytorch keeps under ZeRO: a full second moment of a slice, and no factors."""
    matrix, vector = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(16))
    published = PublishedCAME([vector], lr=1e-3)
    vector.grad = torch.ones(16)
    published.step()
    optimizer = CAME([matrix])
    optimizer.load_state_dict(published.state_dict())
    matrix.grad = torch.ones(4, 4)
    with pytest.raises(RuntimeError, match="does not fit"):
        optimizer.step()


def test_statistics_that_were_saved_in_half_precision_are_widened() -> None:
    """0.9999 x rounds back to x in bfloat16: the factors would never move again."""
    param = nn.Parameter(torch.ones(4, 4, dtype=torch.bfloat16))
    param.grad = torch.ones_like(param)
    optimizer = CAME([param], lr=1e-3)
    optimizer.step()
    saved = optimizer.state_dict()
    saved["state"][0] = {key: value.bfloat16() for key, value in saved["state"][0].items()}
    optimizer.load_state_dict(saved)
    optimizer.step()
    assert {value.dtype for value in optimizer.state[param].values()} == {torch.float32}
    assert optimizer.state[param]["step"] == 2


def test_empty_parameters_have_nothing_to_update() -> None:
    param = nn.Parameter(torch.ones(0, 4))
    param.grad = torch.ones(0, 4)
    CAME([param]).step()


def test_tensor_parallel_slices_are_refused() -> None:
    param = nn.Parameter(torch.ones(4, 4))
    param.tensor_model_parallel = True
    param.grad = torch.ones(4, 4)
    with pytest.raises(RuntimeError, match="tensor parallelism"):
        CAME([param]).step()


def test_loads_the_state_of_the_published_package() -> None:
    ours, theirs = make_params(), make_params()
    published = PublishedCAME(theirs, lr=1e-3)
    for step in range(3):
        set_grads(step, theirs)
        published.step()
    for mine, yours in zip(ours, theirs, strict=True):
        mine.data.copy_(yours.data)
    optimizer = CAME(ours, lr=1e-3)
    optimizer.load_state_dict(published.state_dict())
    for step in range(3, 6):
        set_grads(step, ours, theirs)
        optimizer.step()
        published.step()
    for mine, yours in zip(ours, theirs, strict=True):
        assert (mine - yours).norm() <= 2e-6 * yours.norm()
        assert optimizer.state[mine]["step"] == 6


def test_a_deep_copy_goes_on_by_itself() -> None:
    module = nn.Linear(5, 4)
    optimizer = CAME(module.parameters(), lr=1e-3)
    module(torch.ones(2, 5)).sum().backward()
    optimizer.step()
    twin, twin_optimizer = copy.deepcopy((module, optimizer))
    for model, own in ((module, optimizer), (twin, twin_optimizer)):
        own.zero_grad()
        model(torch.ones(2, 5)).sum().backward()
        own.step()
    assert torch.equal(module.weight, twin.weight)
    assert twin.weight is not module.weight


def test_non_contiguous_parameters() -> None:
    plain = nn.Parameter(torch.arange(12.0).reshape(3, 4) / 12)
    turned = nn.Parameter(plain.detach().t().contiguous().t())
    assert not turned.is_contiguous()
    for param in (plain, turned):
        optimizer = CAME([param], lr=1e-2)
        for step in range(3):
            param.grad = torch.cos(torch.arange(12.0) * (step + 1)).reshape(3, 4)
            optimizer.step()
    assert torch.equal(plain, turned)


def test_closure_is_called_with_gradients() -> None:
    param = nn.Parameter(torch.ones(3, 3))
    optimizer = CAME([param])

    def closure() -> float:
        optimizer.zero_grad()
        loss = param.square().sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 9.0
    assert not param.eq(1).any()


def test_learning_rate_may_be_scheduled() -> None:
    param = nn.Parameter(torch.ones(3, 3))
    optimizer = CAME([param], lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    param.grad = torch.ones(3, 3)
    optimizer.step()
    scheduler.step()
    assert param.eq(1).all()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("lr", -1.0),
        ("lr", float("nan")),
        ("betas", 0.9),
        ("weight_decay", "0.1"),
        ("betas", (0.9, 0.999)),
        ("betas", (0.9, 1.0, 0.999)),
        ("eps", (1e-30,)),
        ("eps", (-1.0, 1e-16)),
        ("clip_threshold", 0.0),
        ("weight_decay", -0.1),
    ],
)
def test_options_out_of_range_are_refused_by_name(option: str, value: Any) -> None:
    params = [nn.Parameter(torch.ones(2, 2))]
    with pytest.raises(ValueError, match=option):
        CAME(params, **{option: value})
    with pytest.raises(ValueError, match=option):
        CAME([{"params": params, option: value}])


def test_a_scheduler_that_replaces_the_betas_is_named() -> None:
    """DeepSpeed's OneCycle writes a pair into `betas`, as Adam has it."""
    param = nn.Parameter(torch.ones(3, 3))
    param.grad = torch.ones(3, 3)
    optimizer = CAME([param])
    optimizer.param_groups[0]["betas"] = (0.9, 0.99)
    with pytest.raises(RuntimeError, match="cycle_momentum"):
        optimizer.step()


def test_a_tensor_that_nobody_explains_is_refused() -> None:
    optimizer = CAME([nn.Parameter(torch.ones(4, 4))])
    flat = nn.Parameter(torch.ones(16))
    flat.grad = torch.ones(16)
    optimizer.param_groups[0]["params"] = [flat]
    with pytest.raises(RuntimeError, match=r"\(16,\).*deepspeed.initialize"):
        optimizer.step()
    with pytest.raises(RuntimeError, match="neither a parameter"):
        copied = copy.deepcopy(optimizer)
        copied.param_groups[0]["params"][0].grad = torch.ones(16)
        copied.step()


def test_sparse_gradients_and_flattened_parameters_are_refused() -> None:
    embedding = nn.Embedding(5, 3, sparse=True)
    optimizer = CAME(embedding.parameters())
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    flat = nn.Parameter(torch.ones(4))
    flat._is_flat_param = True  # what FullyShardedDataParallel sets
    flat.grad = torch.ones(4)
    with pytest.raises(RuntimeError, match="FullyShardedDataParallel"):
        CAME([flat]).step()


def test_ledger_of_a_plain_optimizer() -> None:
    module = nn.ModuleDict({"a": nn.Linear(3, 5), "norm": nn.LayerNorm(5)})
    optimizer = CAME(list(module.named_parameters()), weight_decay=0.1)
    ledger = came.bind(optimizer)
    assert [(row.name, row.rule) for row in ledger.rows] == [
        ("a.weight", "factored"),
        ("a.bias", "vector"),
        ("norm.weight", "vector"),
        ("norm.bias", "vector"),
    ]
    # momentum, two pairs of factors, one clip factor: in float32
    assert ledger.rows[0].state_bytes == 4 * (15 + 2 * (3 + 5) + 1)
    kept = sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for key, value in state.items()
        if key != "step"
    )
    assert ledger.state_bytes == kept
    table = str(ledger)
    assert "a.weight" in table and "5x3" in table and "4 parameters (1 factored)" in table


def test_bind_refuses_other_optimizers() -> None:
    with pytest.raises(TypeError, match="AdamW"):
        came.bind(torch.optim.AdamW([nn.Parameter(torch.ones(2))]))


def test_register_makes_torch_know_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "CAME", raising=False)
    came.register()
    assert torch.optim.CAME is CAME  # type: ignore[attr-defined]
