"""Kernels give finite values and gradients for the most extreme numbers that their twins may be given.

Where they are interpreted, they also touch no memory but their tensors', and use none that nobody has written.
"""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from _extreme_rows import KERNEL_ROWS, kernels
from _extremes import faults
from _interpreter import needs_interpreter, run_under_the_interpreter, runs_kernels
from _twins import DEVICE, INTERPRETED

CASES = 60 if DEVICE.type == "cuda" else 3
"""Of each kernel; the interpreter takes up to a second for one. ``_extremes.py --kernels`` tries more."""


@runs_kernels
@pytest.mark.parametrize("name", KERNEL_ROWS)
def test_values_and_gradients_are_finite(name):
    assert faults(kernels()[name], KERNEL_ROWS[name], range(CASES), DEVICE) == []


@runs_kernels
def test_every_kernel_has_a_row():
    assert kernels().keys() == KERNEL_ROWS.keys() and len(KERNEL_ROWS) >= 16


@triton.jit
def add_one(values, sums, count, N: tl.constexpr):
    lanes = tl.arange(0, N)
    read = tl.load(values + lanes, mask=lanes < count, other=0.0)
    tl.atomic_add(sums + lanes, read + 1.0, mask=lanes < count)
    tl.store(values + lanes, read, mask=lanes < count)


@pytest.mark.skipif(not INTERPRETED, reason="on a GPU, compute-sanitizer watches")
def test_overruns_and_what_nobody_wrote_are_seen():
    """By the watch that all tests of this folder are under."""
    values, sums = torch.ones(5), torch.zeros(5)
    add_one[(1,)](values, sums, 5, N=8)
    assert sums.tolist() == [2.0] * 5
    for short in ((values[:4].clone(), sums), (values, sums[:4].clone())):
        with pytest.raises(Exception, match="places outside of the kernel's tensors"):
            add_one[(1,)](*short, 5, N=8)
    add_one[(1,)](torch.empty(5), sums, 5, N=8)
    assert sums.isnan().all()


@needs_interpreter
def test_under_the_interpreter():
    run_under_the_interpreter(__file__)
