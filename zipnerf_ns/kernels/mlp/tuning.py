"""How the networks' kernels are launched: chosen without any effect on what is computed, up to rounding."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from zipnerf_ns.functional.mlp import Precision


@dataclass(frozen=True)
class RowLaunch:
    """How one kernel divides its rows."""

    block: int = 64
    """Rows of a block, a power of two."""
    num_warps: int = 4
    """Warps a program; a tensor core instruction takes four of them and 64 rows."""
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
    """Of the backward kernel from the hidden layer to the features."""
    programs: int = 2
    """Programs of the latter on a multiprocessor at a time."""
    units: int = 64
    """Units of a layer that are worked on at a time, at most; a power of two from 32 on."""
    rows: int = 1 << 18
    """Rows whose layers' cotangents exist at a time: at the paper's width 1.5 kB each."""


@lru_cache(maxsize=2)
def default_density_tuning(precision: Precision) -> DensityTuning:
    """The launches for a precision. Without tensor cores, a block's products must fit into a program's registers."""
    if precision == "bfloat16":
        return DensityTuning()
    return DensityTuning(RowLaunch(64, 4, 1), RowLaunch(32, 4, 1))


@lru_cache(maxsize=2)
def default_radiance_tuning(precision: Precision) -> RadianceTuning:
    """The launches for a precision; float32 is there for comparison, not for speed."""
    if precision == "bfloat16":
        return RadianceTuning()
    return RadianceTuning(RowLaunch(16, 4, 1), RowLaunch(16, 4, 1), RowLaunch(16, 4, 1), units=32)
