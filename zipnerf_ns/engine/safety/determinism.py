"""Trainings whose bits repeat: with the same seed, on the same device, by the same versions."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from zipnerf_ns.errors import InputError
from zipnerf_ns.ops import resolve_ops

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
"""Read by cuBLAS when it is first used: with a workspace of its own for each stream its sums have one order."""


def prepare_to_repeat(config: Any) -> None:
    """Makes a training repeatable as far as that is decided before it begins.

    Args:
        config: the trainer's.
    Raises:
        InputError: if what computes the model has no repeatable form.
    """
    device, implementation = torch.device(config.machine.device_type), config.pipeline.model.implementation
    if not config.deterministic or device.type != "cuda":
        return
    if implementation == "tcnn" or resolve_ops(implementation, device).name != "triton":
        raise InputError(
            "--deterministic True: on a GPU only the Triton kernels have sums of one order. Leave it out, or let "
            "--pipeline.model.implementation be auto on a GPU where they run."
        )
    os.environ.setdefault(WORKSPACE, ":4096:8")


@contextmanager
def repeatable(wanted: bool) -> Iterator[None]:
    """Within, torch and the kernels compute gradients that are the same bits every time; an operation that cannot
    raises an error.

    Args:
        wanted: False changes nothing.
    """
    before, filled = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    if wanted:
        torch.use_deterministic_algorithms(True)
        # Everything here that is empty is written before it is read.
        torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.utils.deterministic.fill_uninitialized_memory = filled
