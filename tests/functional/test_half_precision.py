"""Networks in float16: as float32 to its digits, however small or large the cotangents are."""

from __future__ import annotations

import pytest
import torch
from _networks import named_leaves, random_weights
from torch import Tensor

from zipnerf_ns.functional import mlp
from zipnerf_ns.functional.half_precision import LARGEST_COTANGENT, LARGEST_RESULT, linear, scaled_cotangents

TOLERANCE = 5e-3
"""Relative L2: 2^-11 an operand through four layers."""
ALWAYS_ACTIVE = 8.0
"""A bias with which no unit's activation can lie on either side of zero, as rounding would have it."""


@pytest.fixture
def float16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Computes in float16 on the CPU, too."""
    monkeypatch.setattr(mlp, "_operand_dtype", lambda features, precision: mlp.HALF.get(precision))


def gradients(precision: mlp.Precision, size: float) -> dict[str, Tensor]:
    """Results of a small color network, and its gradients for cotangents of a size."""
    generator = torch.Generator().manual_seed(3)
    torch.manual_seed(2)
    weights = random_weights(12, 16, 32, 3)
    leaves = {"features": torch.randn(96, 12).requires_grad_(), "view": torch.randn(8, 16).requires_grad_()}
    leaves |= named_leaves(weights)
    with torch.no_grad():
        for name in leaves.keys() - {"features", "view", "density_bias", "rgb_bias"}:
            leaves[name].fill_(ALWAYS_ACTIVE) if "bias" in name else leaves[name].mul_(0.1)
    density, rgb = mlp.radiance_mlp(leaves["features"], leaves["view"], weights, -1.0, 0.001, precision)
    cotangents = [size * torch.randn(out.shape, generator=generator) for out in (density, rgb)]
    found = torch.autograd.grad([density, rgb], list(leaves.values()), cotangents)
    return {"of density": density.detach(), "of rgb": rgb.detach(), **dict(zip(leaves, found, strict=True))}


@pytest.mark.parametrize("size", [1e-9, 1.0, 1e6])
def test_float16_is_float32_to_its_digits_whatever_the_cotangents_size(float16, size):
    truth, found = gradients("float32", size), gradients("float16", size)
    for name, expected in truth.items():
        assert found[name].dtype == expected.dtype, name
        assert (found[name] - expected).norm() <= TOLERANCE * expected.norm(), name
    assert not torch.equal(found["of rgb"], truth["of rgb"])


def test_cotangents_of_half_the_size_give_exactly_half_the_gradients(float16):
    whole, half = gradients("float16", 1.0), gradients("float16", 0.5)
    for name in whole.keys() - {"of density", "of rgb"}:
        assert torch.equal(0.5 * whole[name], half[name]), name


def test_no_cotangent_gives_no_gradient(float16):
    assert all(not v.any() for name, v in gradients("float16", 0.0).items() if name not in ("of density", "of rgb"))


def test_sums_over_rows_may_exceed_what_float16_holds():
    x, w = torch.full((4096, 2), 30.0), torch.ones(3, 2, requires_grad=True)
    b = torch.zeros(3, requires_grad=True)
    linear(x, w, b, torch.float16).backward(torch.full((4096, 3), 20.0, dtype=torch.float16))
    assert torch.equal(w.grad, torch.full((3, 2), 4096 * 600.0)) and torch.equal(b.grad, torch.full((3,), 4096 * 20.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_float16_does_not_hold_is_cut_off_and_can_come_back(dtype):
    """Operands, results and cotangents; infinity would be no number in the layer above."""
    x = torch.tensor([[1e5, -1e5], [300.0, 300.0]], dtype=dtype, requires_grad=True)
    w = torch.tensor([[200.0, 200.0], [1.0, -1.0]], requires_grad=True)
    out = linear(x, w, torch.tensor([1e6, 0.0]), torch.float16)
    assert out.dtype == torch.float16 and out[1].tolist() == [LARGEST_RESULT, 0.0]
    assert torch.isfinite(out).all() and torch.isfinite(out[:, :1] + out[:, :1] + out[:, :1]).all()
    out.backward(torch.full((2, 2), 6e4, dtype=torch.float16))
    assert x.grad.dtype == dtype and torch.isfinite(x.grad).all() and (x.grad[:, 0] > 0.0).all()
    assert torch.isfinite(w.grad).all()


def test_a_number_that_is_none_stays_none():
    x = torch.tensor([[torch.nan, 1.0]])
    assert linear(x, torch.ones(1, 2), None, torch.float16).isnan().all()


def test_inside_the_network_the_largest_cotangent_is_near_its_bound():
    enter, leave = scaled_cotangents(torch.float16)
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    inside, seen = enter(x) * 1.0, []
    inside.register_hook(lambda v: seen.append(v.clone()))
    (out,) = leave(inside)
    out.backward(torch.tensor([3e-7, -5e-8]))
    assert 0.5 * LARGEST_COTANGENT < seen[0].abs().max() <= LARGEST_COTANGENT
    assert torch.equal(x.grad, torch.tensor([3e-7, -5e-8]))
