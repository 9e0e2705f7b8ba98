"""Kernels compiled before they are needed, by several threads.

By itself Triton compiles one after the other, each where it is first launched.
"""

from __future__ import annotations

import json
import os
import pkgutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from triton import knobs
from triton.runtime.jit import JITFunction

from zipnerf_ns.kernels.device import is_pretending

MAX_THREADS = 8
"""Threads that compile: beyond, the part of the work that is Python's, which goes on in one thread at a time, is all
that is left of the time."""
DEAR = ("table_kernels", "radiance_kernels", "camera_kernel", "density_kernels")
"""Modules whose kernels take longest to compile: begun last, one of them would keep a single thread busy at the end."""


class Launch(NamedTuple):
    """A kernel and what its code depends on: two launches are equal where Triton makes one code for both."""

    module: str
    kernel: str
    specialization: str
    """Types, alignments, constants and options, as Triton writes them down."""

    @property
    def function(self) -> JITFunction:
        """The kernel itself."""
        return pkgutil.resolve_name(f"{self.module}:{self.kernel}")

    def __str__(self) -> str:
        """The kernel with its constants, which are in capitals, and its warps and stages."""
        written = json.loads(self.specialization)
        names = list(written["signature"])
        values = zip(written["constant_keys"], written["constant_vals"], strict=True)
        constants = {names[place]: value for (place,), value in values if names[place].isupper()}
        options = {name: written["options"][name] for name in ("num_stages", "num_warps")}
        return f"{self.kernel}({', '.join(f'{name}={value}' for name, value in {**constants, **options}.items())})"


class Zeros(TorchFunctionMode):
    """New tensors are zero where they would be anything."""

    ZEROS: dict[Callable, Callable] = {
        torch.empty: torch.zeros,
        torch.empty_like: torch.zeros_like,
        Tensor.new_empty: Tensor.new_zeros,
    }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.ZEROS.get(func, func)(*args, **(kwargs or {}))


def prepare(rehearse: Callable[[], object], device: torch.device) -> list[Future[None]]:
    """Begins to compile, or to load from Triton's cache on disk, all that a computation launches and is not loaded yet.

    Args:
        rehearse: makes the launches; see :func:`noted` for what becomes of them.
        device: that computes.
    Returns:
        One for each kernel; its error is what the launch will raise.
    """
    with noted() as launches:
        rehearse()
    pool = ThreadPoolExecutor(min(_available_cores(), MAX_THREADS))
    for launch in launches:
        # The hash of its source, which is kept: threads of older Tritons would not wait for each other in finding it.
        _ = launch.function.cache_key
    dear_first = sorted(launches, key=lambda launch: not launch.module.endswith(DEAR))
    pending = [pool.submit(_load, launch, device) for launch in dear_first]
    # Its threads end with their work.
    pool.shutdown(wait=False)
    return pending


@contextmanager
def noted(zeros: Zeros | None = None) -> Iterator[dict[Launch, None]]:
    """Within it no kernel is launched, and those that are not loaded yet are noted in what it gives.

    What they would have written is zero, so that numbers of pixels and images which others make use of are valid.
    (In a backward pass it is anything: there none are.)

    Args:
        zeros: another mode of torch in place of ``Zeros``.
    """
    launches: dict[Launch, None] = {}
    run, hook = JITFunction.run, knobs.runtime.jit_cache_hook

    def warm_up(kernel: JITFunction, *args: Any, warmup: bool, **kwargs: Any) -> Any:
        return run(kernel, *args, warmup=True, **kwargs)

    def note(fn: Any, compile: dict[str, Any], **others: Any) -> bool:
        kernel = fn.jit_function.fn
        launches[Launch(kernel.__module__, kernel.__name__, compile["specialization_data"])] = None
        # Triton then leaves it at that.
        return True

    JITFunction.run, knobs.runtime.jit_cache_hook = warm_up, note
    try:
        with zeros or Zeros():
            yield launches
    finally:
        JITFunction.run, knobs.runtime.jit_cache_hook = run, hook


def _load(launch: Launch, device: torch.device) -> None:
    if device.type == "cuda":
        # Every thread has a device of its own.
        torch.cuda.set_device(device)
    kernel = launch.function.preload(launch.specialization)
    if not is_pretending():
        # Looked up, it is brought to the device. Triton below 3.7 also compiles its launch, from C.
        _ = kernel.run


def _available_cores() -> int:
    """Those that the process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
