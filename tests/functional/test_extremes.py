"""Every function of ``functional/`` gives finite values and gradients, whatever its documented domain holds."""

from __future__ import annotations

import pytest
import torch
from _extreme_rows import ROWS
from _extremes import LARGEST, Draw, fault, faults, public_functions

CASES = 12
"""Of each function; ``python tests/_extremes.py --cases 500`` tries more."""
FUNCTIONS = dict(public_functions())


def test_every_function_has_a_row():
    """A new function is tried with extremes as soon as it is there."""
    assert len(FUNCTIONS) >= 70
    assert sorted(FUNCTIONS) == sorted(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_values_and_gradients_are_finite(name):
    assert faults(ROWS[name].call or FUNCTIONS[name], ROWS[name], range(CASES), torch.device("cpu")) == []


def test_cases_are_what_they_say():
    """No ray, one and several; the ends of float32, subnormal numbers and zeros; equal for equal seeds."""
    draws = [Draw(seed) for seed in range(60)]
    assert {draw.rays for draw in draws} == {0, 1, 3}
    values = torch.cat([draw.numbers(50) for draw in draws])
    assert torch.isfinite(values).all() and values.max() == LARGEST and values.min() == -LARGEST
    assert (values == 0.0).any() and ((values != 0.0) & (values.abs() < torch.finfo(torch.float32).tiny)).any()
    halves = torch.cat([Draw(seed).numbers(50, dtype=torch.float16) for seed in range(60)])
    assert torch.isfinite(halves).all() and halves.max() == torch.finfo(torch.float16).max
    limits = [draw.limits() for draw in draws]
    assert any(near == 0.0 for near, _ in limits) and max(far for _, far in limits) == 1e10
    assert min(far for _, far in limits) <= 1e-3 and all(near < far for near, far in limits)
    assert torch.equal(Draw(7).numbers(9), Draw(7).numbers(9))


@pytest.mark.parametrize(("function", "what"), [
    (torch.reciprocal, "value"), (torch.sqrt, "gradient"), (lambda x: x.mul_(0.0).add_(torch.inf).sum() * 0.0, "value"),
    (lambda x: torch.relu(x).abs(), None),
])  # fmt: skip
def test_what_is_not_finite_is_found(function, what):
    """In results, in gradients, and in what was written into an argument."""
    leaf = torch.zeros(3)
    with torch.set_grad_enabled(what != "value"):
        found = fault(function, (leaf.requires_grad_(what != "value"),), 0)
    assert (found is None) if what is None else found.startswith(what)
