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

    shared_memory: tuple[int, int, int, int]
    """Bytes that a device must have for it, at color networks of 64, 128 and 256 units, and of more than three layers
    of 256."""
    tuning: RadianceTuning


WIDTHS = (64, 128, 256)
MANY_LAYERS = 4
"""Color layers from which on those of 256 units need more shared memory; narrower ones need no more."""
TENSOR_MEMORY = 1.22
"""Factor on what kernels need of shared memory on compute capability 10.0, whose products go to a memory of their own:
a fifth to a quarter more than on 9.0."""

RADIANCE = (
    # H100, H200 and B200: 0.40 ms forward in training, 0.25 at evaluation, 0.39 backward.
    Rung((41_984, 94_720, 186_368, 217_088), RadianceTuning()),
    # A100, of whose programs two are at work side by side: 0.65, 0.42 and 0.59 ms; blocks of 128 rows 0.67, 0.40, 0.88.
    Rung((69_632, 94_208, 158_720, 214_016), RadianceTuning(RowLaunch(64, 4, 2), RowLaunch(64, 4, 3), units=32)),
    # RTX 30, 40 and 50: 0.73, 0.51 and 0.79 ms; smaller tiles are slower, larger ones do not fit or spill.
    Rung((41_984, 63_744, 96_512, 116_736), RadianceTuning(RowLaunch(64, 4, 2), RowLaunch(64, 8, 2))),
    # Whatever else there is: 0.91, 0.75 and 0.80 ms.
    Rung((0, 0, 0, 0), RadianceTuning(RowLaunch(32, 4, 2), RowLaunch(32, 4, 2), RowLaunch(64, 4, 1), units=32)),
)
"""Launches of ``radiance_mlp`` in bfloat16. Times are of 262,144 rows at the paper's sizes on an H200, which ran the
first as it is, and the others in the code for 8.0 or 8.6, and no more programs at a time than there. Bytes are the
compiler's for the largest kernel (Triton 3.8; 9.0 for the first at 256 units, 8.0 for the second at many layers, else
8.6; the second's twice), as ``python -m zipnerf_ns.tools.check_gpu`` prints them; the last takes 54,272."""

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
def radiance_launches(precision: Precision, width: int, layers: int, device: Device) -> tuple[RadianceTuning, ...]:
    """The launches of ``radiance_mlp`` that fit on a device, the fastest first; the smallest if none does.

    Args:
        precision: number format of the operands of matrix products.
        width: units of the color network's layers.
        layers: their number.
        device: where it is launched.
    """
    if precision != "bfloat16":
        return (FLOAT32,)
    column = next((place for place, known in enumerate(WIDTHS) if width <= known), len(WIDTHS) - 1)
    if width > WIDTHS[-2] and layers >= MANY_LAYERS:
        column = len(WIDTHS)
    room = device.shared_memory / (TENSOR_MEMORY if device.capability == (10, 0) else 1.0)
    fitting = tuple(rung.tuning for rung in RADIANCE if rung.shared_memory[column] <= room)
    return fitting or (RADIANCE[-1].tuning,)
