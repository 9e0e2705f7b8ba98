"""What the kernels' launches ask of the device they run on; needs no Triton."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Literal, NamedTuple

import torch

Capability = tuple[int, int]

SHARED_MEMORY: dict[Capability, int] = {
    (7, 0): 98_304,
    (7, 5): 65_536,
    (8, 0): 166_912,
    (8, 6): 101_376,
    (8, 9): 101_376,
    (9, 0): 232_448,
    (10, 0): 232_448,
    (12, 0): 101_376,
}
"""Bytes that a program can have on NVIDIA's GPUs: Volta, Turing (RTX 20, T4), A100, RTX 30, RTX 40, Hopper, B200,
RTX 50. From the CUDA C++ programming guide, "technical specifications per compute capability"."""
PRETENDED_CAPABILITY = "ZIPNERF_CAPABILITY"
"""Environment variable, such as 8.6: launch as on a GPU of that compute capability, to see what one's kernels would
take there. The code that Triton makes follows ``TRITON_OVERRIDE_ARCH``, such as sm86."""


class Device(NamedTuple):
    """A GPU, as far as launches depend on it."""

    name: str
    backend: Literal["cuda", "hip", "interpreter"]
    """NVIDIA's, AMD's, or the CPU that stands in for either under Triton's interpreter."""
    capability: Capability
    """Compute capability; (0, 0) where there is none."""
    shared_memory: int
    """Bytes that one program can have."""
    processors: int
    """Multiprocessors, each of which runs several programs at a time."""


INTERPRETER = Device("Triton's interpreter", "interpreter", (9, 0), 1 << 40, 1)
"""The CPU computes what the largest launches compute: all others differ from them in rounding only."""

_pretended: list[Device] = []


def describe(device: torch.device) -> Device:
    """What launches need to know of a torch device; under :func:`pretending`, of the other one."""
    return _pretended[-1] if _pretended else _described(device)


def is_pretending() -> bool:
    """Whether :func:`pretending` is in force: kernels are then compiled for a GPU that need not be there."""
    return bool(_pretended)


@contextmanager
def pretending(device: Device) -> Iterator[None]:
    """Within it, every launch is made as for that device, wherever its tensors lie."""
    _pretended.append(device)
    try:
        yield
    finally:
        _pretended.pop()


def nvidia(capability: Capability, name: str = "", processors: int = 68) -> Device:
    """A GPU of NVIDIA's that need not be there.

    Raises:
        ValueError: for a compute capability that is not in ``SHARED_MEMORY``.
    """
    if capability not in SHARED_MEMORY:
        known = ", ".join(f"{major}.{minor}" for major, minor in SHARED_MEMORY)
        raise ValueError(f"compute capability {capability[0]}.{capability[1]} is unknown: choose one of {known}.")
    name = name or f"a GPU of compute capability {capability[0]}.{capability[1]}"
    return Device(name, "cuda", capability, SHARED_MEMORY[capability], processors)


@lru_cache(maxsize=16)
def _described(device: torch.device) -> Device:
    if device.type != "cuda":
        return INTERPRETER
    found = torch.cuda.get_device_properties(device)
    processors = found.multi_processor_count
    wanted = os.environ.get(PRETENDED_CAPABILITY)
    if wanted:
        major, _, minor = wanted.partition(".")
        return nvidia((int(major), int(minor or 0)), f"{found.name} as {wanted}", processors)
    shared = getattr(found, "shared_memory_per_block_optin", None) or found.shared_memory_per_block
    if torch.version.hip:
        # Its numbers are of architectures of AMD's: gfx90a would pass for Hopper.
        return Device(found.name, "hip", (0, 0), shared, processors)
    return Device(found.name, "cuda", (found.major, found.minor), shared, processors)
