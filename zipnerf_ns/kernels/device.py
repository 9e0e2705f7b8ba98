"""What the kernels' launches ask of the device they run on; needs no Triton."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Literal, NamedTuple

import torch

SHARED_MEMORY: dict[str, int] = {
    "7.0": 98_304,
    "7.5": 65_536,
    "8.0": 166_912,
    "8.6": 101_376,
    "8.9": 101_376,
    "9.0": 232_448,
    "10.0": 232_448,
    "12.0": 101_376,
}
"""Bytes that a program can have on NVIDIA's GPUs, by their compute capabilities: Volta, Turing (RTX 20, T4), A100,
RTX 30, RTX 40, Hopper, B200, RTX 50. From the CUDA C++ programming guide, "technical specifications per compute
capability"."""
PRETENDED_CAPABILITY = "ZIPNERF_CAPABILITY"
"""Environment variable, such as 8.6: launch as on a GPU of that compute capability, to see what one's kernels would
take there. The code that Triton makes follows ``TRITON_OVERRIDE_ARCH``, such as sm86."""


class Device(NamedTuple):
    """A GPU, as far as launches depend on it."""

    name: str
    backend: Literal["cuda", "hip", "interpreter"]
    """NVIDIA's, AMD's, or the CPU that stands in for either under Triton's interpreter."""
    capability: tuple[int, int]
    """Compute capability; (0, 0) where there is none."""
    shared_memory: int
    """Bytes that one program can have."""
    processors: int
    """Multiprocessors, each of which runs several programs at a time."""


INTERPRETER = Device("Triton's interpreter", "interpreter", (9, 0), 1 << 40, 1)
"""The CPU computes what the largest launches compute: all others differ from them in rounding only."""

AMD: dict[str, Device] = {
    "gfx942": Device("gfx942", "hip", (9, 4), 65_536, 304),
    "gfx1100": Device("gfx1100", "hip", (11, 0), 65_536, 96),
}
"""GPUs of AMD's that kernels are compiled for where there are none: MI300 and RX 7900."""

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


def find(name: str) -> Device:
    """A GPU that need not be there.

    Args:
        name: of NVIDIA's the compute capability, such as 8.6; of AMD's the architecture.
    Raises:
        ValueError: for a name that is in neither ``SHARED_MEMORY`` nor ``AMD``.
    """
    if name in AMD:
        return AMD[name]
    if name not in SHARED_MEMORY:
        raise ValueError(f"compute capability {name} is unknown: choose one of {', '.join([*SHARED_MEMORY, *AMD])}.")
    major, minor = map(int, name.split("."))
    return Device(f"a GPU of compute capability {name}", "cuda", (major, minor), SHARED_MEMORY[name], 68)


@lru_cache(maxsize=16)
def _described(device: torch.device) -> Device:
    if device.type != "cuda":
        return INTERPRETER
    found = torch.cuda.get_device_properties(device)
    processors = found.multi_processor_count
    wanted = os.environ.get(PRETENDED_CAPABILITY)
    if wanted:
        return find(wanted)._replace(name=f"{found.name} as {wanted}", processors=processors)
    shared = getattr(found, "shared_memory_per_block_optin", None) or found.shared_memory_per_block
    if torch.version.hip:
        # Its numbers are of architectures of AMD's: gfx90a would pass for Hopper.
        return Device(found.name, "hip", (0, 0), shared, processors)
    return Device(found.name, "cuda", (found.major, found.minor), shared, processors)
