"""GPUs to compile for, by name: NVIDIA's by their compute capability, AMD's by their architecture."""

from __future__ import annotations

from triton.backends.compiler import GPUTarget

from zipnerf_ns.kernels.device import SHARED_MEMORY, Device, nvidia

AMD: dict[str, tuple[Device, int]] = {
    "gfx942": (Device("gfx942", "hip", (9, 4), 65_536, 304), 64),
    "gfx1100": (Device("gfx1100", "hip", (11, 0), 65_536, 96), 32),
}
"""MI300 and RX 7900, with their threads a warp."""
NAMES = (*(f"{major}.{minor}" for major, minor in SHARED_MEMORY), *AMD)
"""Every name that :func:`device_of` knows."""


def device_of(name: str) -> Device:
    """The GPU that launches are to be made for.

    Raises:
        ValueError: for a name that is not among ``NAMES``.
    """
    if name not in NAMES:
        raise ValueError(f"no GPU is known as {name}: choose among {', '.join(NAMES)}.")
    if name in AMD:
        return AMD[name][0]
    major, _, minor = name.partition(".")
    return nvidia((int(major), int(minor)))


def compiler_target(name: str) -> GPUTarget:
    """The same as Triton's compiler takes it."""
    device = device_of(name)
    if name in AMD:
        return GPUTarget("hip", name, AMD[name][1])
    return GPUTarget("cuda", 10 * device.capability[0] + device.capability[1], 32)
