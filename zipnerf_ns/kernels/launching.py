"""What surrounds every launch: the right device, and an error that says which kernel could not be launched there.

Where several launches of one operation are known, from the fastest down, an operation that failed goes one down.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from types import TracebackType
from typing import TypeVar

import torch
from torch import Tensor

from zipnerf_ns.errors import LaunchFailed, say
from zipnerf_ns.kernels.device import describe

Launch = TypeVar("Launch")

UNRELATED = ("illegal", "misaligned", "assert", "launch failure", "CUDA error")
"""In the message of a RuntimeError: a kernel that was launched went wrong, maybe an earlier one."""
NO_MEMORY = "out of memory"
"""In Triton's, where a kernel's code finds no room on the GPU."""
MAX_REASON = 300
"""Characters of what a compiler says that are passed on."""

_failures: dict[str, int] = {}
"""How often the launches of an operation have failed."""
_choices: dict[str, int] = {}
"""How many launches of an operation there were to choose from, at its last choice."""


class launching:
    """Context of an operation's launches on the device of a tensor.

    Raises:
        LaunchFailed: instead of what Triton, its compiler or the driver raise when a kernel cannot be launched.
        torch.OutOfMemoryError: where there is no memory for it.
    """

    def __init__(self, operation: str, tensor: Tensor) -> None:
        self._operation = operation
        self._tensor = tensor
        self._device = torch.cuda.device_of(tensor)

    def __enter__(self) -> None:
        self._device.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._device.__exit__(kind, error, trace)
        if type(error) is RuntimeError and NO_MEMORY in str(error):
            raise torch.OutOfMemoryError(str(error)) from error
        if error is not None and _is_of_launch(error):
            kernel, device = _kernel_name(trace) or self._operation, describe(self._tensor.device).name
            raise LaunchFailed(self._operation, kernel, device, _reason(error)) from error


def choose(operation: str, launches: Sequence[Launch]) -> Launch:
    """The first of an operation's launches, from the fastest down, that has not failed yet; else the last."""
    _choices[operation] = len(launches)
    return launches[min(_failures.get(operation, 0), len(launches) - 1)]


def give_way(failed: LaunchFailed) -> bool:
    """Goes one launch down after a failure, and says so; False, and nothing said, if there is none."""
    failures = _failures.get(failed.operation, 0) + 1
    if failures >= _choices.get(failed.operation, 1):
        return False
    _failures[failed.operation] = failures
    say(f"{failed} A smaller launch takes its place.")
    return True


def _is_of_launch(error: BaseException) -> bool:
    if isinstance(error, (LaunchFailed, torch.OutOfMemoryError)):
        return False
    if isinstance(error, RuntimeError):
        return not any(word in str(error) for word in UNRELATED)
    # Triton builds its launchers with a C compiler, which may lack.
    return isinstance(error, (subprocess.CalledProcessError, FileNotFoundError)) or any(
        base.__module__.startswith("triton.") for base in type(error).__mro__
    )


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, subprocess.CalledProcessError) or "C compiler" in text:
        return "Triton needs a C compiler and Python's headers: install gcc and python3-dev."
    return text if len(text) <= MAX_REASON else f"{text[:MAX_REASON]} ..."


def _kernel_name(trace: TracebackType | None) -> str | None:
    """Name of the innermost kernel whose launch an error passed through."""
    found = None
    while trace is not None:
        owner = trace.tb_frame.f_locals.get("self")
        if type(owner).__module__.startswith("triton.runtime.") and hasattr(owner, "fn"):
            found = getattr(owner, "__name__", found)
        trace = trace.tb_next
    return found
