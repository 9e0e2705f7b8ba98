"""How the networks' kernels are launched: chosen without any effect on what is computed, up to rounding."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from zipnerf_ns.functional.mlp import Precision
from zipnerf_ns.kernels.device import Device


@dataclass(frozen=True)
class RowLaunch:
    """How one kernel divides its rows."""

    block: int = 64
    """Rows of a block, a power of two."""
    num_warps: int = 4
    """Warps a program; a tensor core instruction of Hopper takes four of them and 64 rows."""
    num_stages: int = 2
    """Chunks of weights, or blocks of rows, that are on their way at a time."""


@dataclass(frozen=True)
class DensityTuning:
    """The launches of ``density_mlp``."""

    forward: RowLaunch = RowLaunch(128, 4, 1)
    backward: RowLaunch = RowLaunch(128, 4, 3)
    programs: int = 2
    """Programs of the backward kernel on a multiprocessor at a time."""


@dataclass(frozen=True)
class RadianceTuning:
    """The launches of ``radiance_mlp``."""

    forward: RowLaunch = RowLaunch(128, 8, 3)
    backward: RowLaunch = RowLaunch(128, 8, 3)
    hidden: RowLaunch = RowLaunch(128, 4, 2)
    """Launch of the backward kernel from the hidden layer to the features."""
    programs: int = 2
    """Programs of the latter on a multiprocessor at a time."""
    units: int = 64
    """Units of a layer that are worked on at a time, at most; a power of two from 32 on."""
    rows: int = 1 << 18
    """Rows whose layers' cotangents exist at a time: at the paper's width 1.5 kB each."""


class Rung(NamedTuple):
    """One row of a table of launches, the fastest first."""

    shared_memory: tuple[int, int, int]
    """Bytes that the largest of its kernels takes at color networks of 64, 128 and 256 units."""
    tuning: RadianceTuning


WIDTHS = (64, 128, 256)

RADIANCE = (
    # H100, H200, B200: the fastest on an H200.
    Rung((36_864, 94_720, 225_856), RadianceTuning()),
    # A100: three chunks on their way, but blocks of 64 rows; at 128 the backward kernel spills there.
    Rung((20_480, 92_672, 141_824), RadianceTuning(RowLaunch(64, 8, 3), RowLaunch(64, 8, 3))),
    # RTX 30, 40 and 50: two chunks on their way; of all that fit in 99 KiB without spills the largest tiles.
    Rung((20_480, 63_744, 96_512), RadianceTuning(RowLaunch(64, 8, 2), RowLaunch(64, 8, 2))),
    # Whatever else there is.
    Rung(
        (20_480, 32_768, 46_208),
        RadianceTuning(RowLaunch(32, 8, 2), RowLaunch(32, 8, 2), RowLaunch(64, 4, 1), units=32),
    ),
)
"""Launches of ``radiance_mlp`` in bfloat16. Bytes are the compiler's (Triton 3.8) at 8.0 for all but the first at 256
units, which are those at 10.0; ``python -m zipnerf_ns.tools.check_gpu`` prints them anew."""

FLOAT32 = RadianceTuning(RowLaunch(16, 4, 1), RowLaunch(16, 4, 1), RowLaunch(16, 4, 1), units=32)
"""Without tensor cores a block's products must fit into a program's registers. 54,272 bytes of shared memory; there for
comparison, and for GPUs whose tensor cores Triton does not use, not for speed."""

DENSITY = (DensityTuning(), DensityTuning(RowLaunch(64, 4, 1), RowLaunch(64, 4, 2)))
"""Launches of ``density_mlp`` in bfloat16, the fastest first: 24,576 and 12,800 bytes of shared memory."""

DENSITY_FLOAT32 = (
    DensityTuning(RowLaunch(64, 4, 1), RowLaunch(32, 4, 1)),
    DensityTuning(RowLaunch(16, 4, 1), RowLaunch(16, 4, 1)),
)
"""The same in float32: 49,152 bytes at most."""


@lru_cache(maxsize=32)
def density_launches(precision: Precision) -> tuple[DensityTuning, ...]:
    """The launches of ``density_mlp`` for a precision, the fastest first; all fit on every device."""
    if precision == "bfloat16":
        return DENSITY
    return DENSITY_FLOAT32


@lru_cache(maxsize=32)
def radiance_launches(precision: Precision, width: int, device: Device) -> tuple[RadianceTuning, ...]:
    """The launches of ``radiance_mlp`` that fit on a device, the fastest first; the smallest if none does.

    Args:
        precision: number format of the operands of matrix products.
        width: units of the color network's layers.
        device: where it is launched.
    """
    if precision != "bfloat16":
        return (FLOAT32,)
    column = next((place for place, known in enumerate(WIDTHS) if width <= known), len(WIDTHS) - 1)
    fitting = tuple(rung.tuning for rung in RADIANCE if rung.shared_memory[column] <= device.shared_memory)
    return fitting or (RADIANCE[-1].tuning,)
