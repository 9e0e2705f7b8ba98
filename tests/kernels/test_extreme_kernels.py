"""Kernels give finite values and gradients for the most extreme numbers that their twins may be given."""

from __future__ import annotations

import pytest
from _extreme_rows import KERNEL_ROWS, kernels
from _extremes import faults
from _interpreter import needs_interpreter, run_under_the_interpreter, runs_kernels
from _twins import DEVICE

CASES = 60 if DEVICE.type == "cuda" else 3
"""Of each kernel; the interpreter takes up to a second for one. ``_extremes.py --kernels`` tries more."""


@runs_kernels
@pytest.mark.parametrize("name", KERNEL_ROWS)
def test_values_and_gradients_are_finite(name):
    assert faults(kernels()[name], KERNEL_ROWS[name], range(CASES), DEVICE) == []


@runs_kernels
def test_every_kernel_has_a_row():
    assert kernels().keys() == KERNEL_ROWS.keys() and len(KERNEL_ROWS) >= 16


@needs_interpreter
def test_under_the_interpreter():
    run_under_the_interpreter(__file__)
