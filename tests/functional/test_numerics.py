"""The safe elementary functions against math's own, and their gradients where the plain ones break."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from _truth import gradients, random_cotangents, rng

from zipnerf_ns.functional.numerics import MAX_EXPONENT, TINY, bounded_exp, log_lerp


@pytest.mark.parametrize("shape", [(), (0,), (50,), (2, 3, 4)])
def test_bounded_exp_is_exp_below_the_bound(shape):
    x = (torch.rand(shape, generator=rng(0), dtype=torch.float64) * 60.0 - 45.0).float()
    truth = torch.tensor([math.exp(v) for v in x.flatten().tolist()]).reshape(shape)
    torch.testing.assert_close(bounded_exp(x), truth, rtol=1e-6, atol=0.0)


def test_bounded_exp_stops_at_the_bound():
    x = torch.tensor([MAX_EXPONENT, MAX_EXPONENT + 1e-3, 50.0, 1e30, torch.inf])
    torch.testing.assert_close(bounded_exp(x), torch.full((5,), math.exp(MAX_EXPONENT)), rtol=1e-6, atol=0.0)
    assert bounded_exp(torch.tensor(-torch.inf)) == 0.0


def test_bounded_exp_gradient_below_the_bound_is_that_of_exp():
    x = torch.rand(40, generator=rng(1), dtype=torch.float64) * 30.0 - 16.0
    assert torch.autograd.gradcheck(bounded_exp, x.requires_grad_())


def test_bounded_exp_gradient_is_its_value_on_both_sides_of_the_bound():
    x = torch.tensor([-1e30, -200.0, -1.0, 0.0, 14.9, 15.1, 88.0, 200.0, 1e30])
    y, (grad,) = gradients(bounded_exp, [x], seed=2)
    torch.testing.assert_close(grad, y.detach() * random_cotangents(y, seed=2)[0], rtol=1e-6, atol=0.0)
    assert (grad[x > MAX_EXPONENT] != 0.0).all(), "a density above the bound could never come down"


def test_bounded_exp_turns_sums_into_products_below_the_bound():
    a, b = torch.rand(2, 100, generator=rng(3), dtype=torch.float64) * 7.0
    torch.testing.assert_close(bounded_exp(a + b), bounded_exp(a) * bounded_exp(b), rtol=1e-12, atol=0.0)


def test_tiny_leaves_room_in_float32():
    tiny, smallest = torch.tensor(TINY), torch.finfo(torch.float32).tiny
    assert tiny.sqrt() > smallest and tiny > smallest and torch.isfinite(tiny.reciprocal())


@pytest.mark.parametrize("start,end", [(1e-2, 1e-3), (0.5, 8.0), (3.0, 3.0)])
def test_log_lerp_is_linear_in_the_logarithm(start, end):
    for progress in np.linspace(0.0, 1.0, 21).tolist():
        truth = math.exp((1.0 - progress) * math.log(start) + progress * math.log(end))
        assert log_lerp(progress, start, end) == pytest.approx(truth, rel=1e-12)
        assert log_lerp(progress, start, end) * log_lerp(1.0 - progress, start, end) == pytest.approx(
            start * end, rel=1e-12
        )
    assert log_lerp(-3.0, start, end) == start
    assert log_lerp(7.0, start, end) == pytest.approx(end, rel=1e-15)


def test_log_lerp_returns_a_python_float_for_numpy_scalars():
    # numpy.float64 in a checkpoint cannot be loaded with torch's weights_only.
    assert type(log_lerp(np.float64(0.3), np.float64(1e-2), np.float64(1e-3))) is float
