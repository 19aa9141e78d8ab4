"""Optimisers: the reference AdamW against a scalar implementation and PyTorch's, weight decay, and saved state."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ray_l4.config.experiment import OptimConfig
from ray_l4.errors import ModelError
from ray_l4.learner.optim import MOMENTS, ReferenceAdamW, build_optimizer

LR = 6.25e-5


def twin(theta: float, gradients: list[float], lrs: list[float], decay: float, eps: float = 1e-4) -> list[float]:
    """Apply REFERENCE.md#adamw to one scalar; returns theta after every step."""
    m = u = 0.0
    path = []
    for t, (g, lr) in enumerate(zip(gradients, lrs, strict=True), start=1):
        m = 0.9 * m + (1 - 0.9) * g
        u = 0.999 * u + (1 - 0.999) * g * g
        theta = theta - lr * (math.sqrt(1 - 0.999**t) / (1 - 0.9**t)) * m / (math.sqrt(u) + eps)
        theta = theta - lr * decay * theta
        path.append(theta)
    return path


def run(optimizer: torch.optim.Optimizer, parameter: Tensor, gradients: list[Tensor], lrs: list[float]) -> list[Tensor]:
    """Return the parameter after each step."""
    path = []
    for gradient, lr in zip(gradients, lrs, strict=True):
        parameter.grad = gradient.clone()
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        path.append(parameter.detach().clone())
    return path


def test_worked_value_of_one_step() -> None:
    """g = 1 at t = 1: the step is 6.23030e-5, and the decay then uses the new theta."""
    decayed, plain = (nn.Parameter(torch.ones((), dtype=torch.float64)) for _ in range(2))
    for parameter, decay in ((decayed, 0.01), (plain, 0.0)):
        parameter.grad = torch.ones_like(parameter)
        ReferenceAdamW([parameter], lr=LR, weight_decay=decay).step()
    assert 1 - plain.item() == pytest.approx(6.23030e-5, rel=1e-6)
    assert decayed.item() == pytest.approx(plain.item() * (1 - 6.25e-7), rel=1e-15)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(1, 4), max_size=3),
    num_steps=st.integers(1, 8),
    decay=st.sampled_from([0.0, 0.01, 0.3]),
    scale=st.sampled_from([1e-6, 1e-3, 1.0]),
    seed=st.integers(0, 2**20),
)
def test_several_steps_equal_the_plain_implementation(
    shape: list[int], num_steps: int, decay: float, scale: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(shape, generator=generator)
    gradients = [scale * torch.randn(shape, generator=generator) for _ in range(num_steps)]
    lrs = [1e-2 * step for step in range(num_steps)]  # the first step of a stage has rate 0 (REFERENCE.md#schedule)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        parameter = nn.Parameter(start.to(dtype, copy=True))
        optimizer = ReferenceAdamW([parameter], lr=1.0, weight_decay=decay)
        path = run(optimizer, parameter, [gradient.to(dtype) for gradient in gradients], lrs)
        for index, theta in enumerate(start.flatten().tolist()):
            column = [gradient.flatten()[index].item() for gradient in gradients]
            expected = twin(theta, column, lrs, decay)
            actual = [step.flatten()[index].item() for step in path]
            assert actual == pytest.approx(expected, rel=tolerance, abs=tolerance)
    assert torch.equal(path[0], start)


def test_parameters_without_a_gradient_keep_their_step_count() -> None:
    early, late = (nn.Parameter(torch.tensor([1.0], dtype=torch.float64)) for _ in range(2))
    optimizer = ReferenceAdamW([early, late], lr=1e-2)
    gradients = [0.3, -0.2, 0.5]
    for step, gradient in enumerate(gradients):
        early.grad = torch.tensor([gradient], dtype=torch.float64)
        late.grad = early.grad.clone() if step > 0 else None
        optimizer.step()
    assert early.item() == pytest.approx(twin(1.0, gradients, [1e-2] * 3, 0.01)[-1], rel=1e-12)
    assert late.item() == pytest.approx(twin(1.0, gradients[1:], [1e-2] * 2, 0.01)[-1], rel=1e-12)


def test_only_eps_differs_from_pytorch() -> None:
    """REFERENCE.md#adamw: PyTorch's eps would have to be eps / sqrt(1 - beta2^t), 3.2e-3 at the first step."""
    gradients = [torch.tensor([1e-4, 1e-2, 1.0], dtype=torch.float64)] * 4
    ours, theirs, matched = (nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(3))
    reference = run(ReferenceAdamW([ours], LR, weight_decay=0.0), ours, gradients, [LR] * 4)
    torchs = run(torch.optim.AdamW([theirs], LR, eps=1e-4, weight_decay=0.0), theirs, gradients, [LR] * 4)
    ratio = (1 - reference[0]) / (1 - torchs[0])
    root = math.sqrt(1 - 0.999)
    expected = (gradients[0] + 1e-4) / (gradients[0] + 1e-4 / root)
    torch.testing.assert_close(ratio, expected, rtol=1e-6, atol=0)
    assert ratio[0] < 0.07  # for a small gradient the reference's step is 15 times smaller

    optimizer = torch.optim.AdamW([matched], LR, weight_decay=0.0)
    for step, expected in enumerate(reference, start=1):
        optimizer.param_groups[0]["eps"] = 1e-4 / math.sqrt(1 - 0.999**step)
        (actual,) = run(optimizer, matched, gradients[:1], [LR])
        torch.testing.assert_close(actual, expected, rtol=1e-14, atol=0)


def test_small_decay_survives_float32() -> None:
    theta = nn.Parameter(torch.linspace(0.1, 1.0, 20_001))
    before = theta.detach().double().clone()
    theta.grad = torch.zeros_like(theta)
    ReferenceAdamW([theta], lr=LR, weight_decay=0.01).step()
    lost = ((before - theta.detach().double()) / before).mean().item()
    assert lost == pytest.approx(6.25e-7, rel=0.01)


def test_bfloat16_parameters_equal_float32_ones_rounded_after_each_step() -> None:
    start = torch.randn(50, generator=torch.Generator().manual_seed(0)).bfloat16()
    gradients = [torch.randn(50, generator=torch.Generator().manual_seed(1 + t)).bfloat16() for t in range(5)]
    narrow = nn.Parameter(start.clone())
    optimizer = ReferenceAdamW([narrow], lr=1e-2)
    path = run(optimizer, narrow, gradients, [1e-2] * 5)
    assert {optimizer.state[narrow][moment].dtype for moment in MOMENTS} == {torch.float32}

    wide = nn.Parameter(start.float())
    twin_optimizer = ReferenceAdamW([wide], lr=1e-2)
    for gradient, expected in zip(gradients, path, strict=True):
        run(twin_optimizer, wide, [gradient.float()], [1e-2])
        with torch.no_grad():
            wide.copy_(wide.bfloat16())
        assert torch.equal(wide.bfloat16(), expected)


def test_small_steps_do_not_move_bfloat16_parameters() -> None:
    narrow = nn.Parameter(torch.full((1,), 0.1, dtype=torch.bfloat16))
    path = run(ReferenceAdamW([narrow], lr=LR), narrow, [torch.ones(1, dtype=torch.bfloat16)] * 5, [LR] * 5)
    assert torch.equal(path[-1], torch.full((1,), 0.1, dtype=torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", ["reference", "torch"])
def test_a_restored_optimizer_continues_bit_for_bit(variant: str, dtype: torch.dtype) -> None:
    def fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = nn.Linear(3, 2).to(dtype)
        return model, build_optimizer(model, OptimConfig(variant=variant, lr=1e-2))

    def steps(model: nn.Module, optimizer: torch.optim.Optimizer, seeds: range) -> None:
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator).to(dtype)
            optimizer.step()

    model, optimizer = fresh()
    steps(model, optimizer, range(3))
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    steps(model, optimizer, range(3, 6))

    restored, other = fresh()
    restored.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    steps(restored, other, range(3, 6))
    for ours, theirs in zip(restored.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        for moment in MOMENTS:
            assert torch.equal(other.state[ours][moment], optimizer.state[theirs][moment])


def stepped(optimizer: torch.optim.Optimizer, steps: range) -> None:
    """Take some steps with gradients that follow from their numbers."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (1 + step)
            for parameter in group["params"]:
                scale = 10.0 ** float(torch.randint(-6, 1, (), generator=generator))
                parameter.grad = scale * torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def unfused(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Build PyTorch's AdamW as a loop over the parameters."""
    named = [(name, own) for name, own in model.named_parameters() if own.requires_grad]
    groups = [
        {"params": [own for name, own in named if "bias" not in name], "weight_decay": config.weight_decay},
        {"params": [own for name, own in named if "bias" in name], "weight_decay": 0.0},
    ]
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW(groups, config.lr, betas, config.eps, foreach=False, fused=False)


def assert_close(model: nn.Module, twin: nn.Module) -> None:
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)


@given(
    decay=st.sampled_from([0.0, 0.01, 0.3]),
    eps=st.sampled_from([1e-8, 1e-4]),
    beta2=st.sampled_from([0.95, 0.999]),
    num_steps=st.integers(1, 6),
)
def test_the_fused_optimizer_equals_a_loop_over_the_parameters(
    decay: float, eps: float, beta2: float, num_steps: int
) -> None:
    config = OptimConfig(variant="torch", lr=1e-3, beta2=beta2, eps=eps, weight_decay=decay)
    torch.manual_seed(0)
    model = Tiny()
    before, twin = copy.deepcopy(model), copy.deepcopy(model)
    optimizer, plain = build_optimizer(model, config), unfused(twin, config)
    assert [group["fused"] for group in optimizer.param_groups] == [True, True]
    for own in (optimizer, plain):
        stepped(own, range(num_steps))
    assert_close(model, twin)
    assert not torch.equal(model.mlp.weight, before.mlp.weight)
    for one, other in zip(optimizer.state.values(), plain.state.values(), strict=True):
        assert one.keys() == other.keys() == {"step", *MOMENTS}
        for name, value in one.items():
            torch.testing.assert_close(value, other[name], rtol=2e-6, atol=0)


@pytest.mark.parametrize("fused_first", [True, False])
def test_the_fused_optimizer_and_the_loop_continue_each_others_state(fused_first: bool) -> None:
    config = OptimConfig(variant="torch", lr=1e-3, eps=1e-8)
    torch.manual_seed(0)
    model = Tiny()
    twin = copy.deepcopy(model)
    first, second = (build_optimizer, unfused) if fused_first else (unfused, build_optimizer)
    whole = second(twin, config)
    stepped(whole, range(6))
    optimizer = first(model, config)
    stepped(optimizer, range(3))
    restored = copy.deepcopy(model)
    other = second(restored, config)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    stepped(other, range(3, 6))
    assert_close(restored, twin)


def test_a_state_without_some_parameters_can_be_restored() -> None:
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = ReferenceAdamW([used, unused], lr=LR)
    run(optimizer, used, [torch.ones(2)], [LR])
    other = ReferenceAdamW([used, unused], lr=LR)
    other.load_state_dict(optimizer.state_dict())
    assert used in other.state
    assert unused not in other.state


def test_a_closure_is_called_with_gradients_enabled() -> None:
    theta = nn.Parameter(torch.tensor(2.0))
    optimizer = ReferenceAdamW([theta], lr=1e-2)

    def closure() -> float:
        optimizer.zero_grad()
        loss = theta**2
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 4.0
    assert theta.item() < 2.0


class Tiny(nn.Module):
    """Has parameters named like GPT-2's: layer norm, tied output, biases."""

    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(5, 4)
        self.ln_f = nn.LayerNorm(4)
        self.mlp = nn.Linear(4, 4)
        self.lm_head = nn.Linear(4, 5, bias=False)
        self.lm_head.weight = self.wte.weight
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)


@pytest.mark.parametrize(("variant", "kind"), [("reference", ReferenceAdamW), ("torch", torch.optim.AdamW)])
def test_all_parameters_but_biases_decay_and_shared_ones_appear_once(variant: str, kind: type) -> None:
    model = Tiny()
    config = OptimConfig(variant=variant, lr=3e-4, beta1=0.8, beta2=0.95, eps=1e-6, weight_decay=0.07)
    optimizer = build_optimizer(model, config)
    assert type(optimizer) is kind
    decayed, plain = optimizer.param_groups
    assert [id(p) for p in decayed["params"]] == [
        id(p) for p in (model.wte.weight, model.ln_f.weight, model.mlp.weight)
    ]
    assert [id(p) for p in plain["params"]] == [id(p) for p in (model.ln_f.bias, model.mlp.bias)]
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.07, 0.0)
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (3e-4, (0.8, 0.95), 1e-6)


def test_default_settings() -> None:
    (group, _) = build_optimizer(Tiny(), OptimConfig()).param_groups
    assert type(build_optimizer(Tiny(), OptimConfig())) is ReferenceAdamW
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (6.25e-5, (0.9, 0.999), 1e-4, 0.01)


def test_a_model_without_trainable_parameters_is_refused() -> None:
    with pytest.raises(ModelError, match="Tiny has no trainable parameter"):
        build_optimizer(Tiny().requires_grad_(False), OptimConfig())
