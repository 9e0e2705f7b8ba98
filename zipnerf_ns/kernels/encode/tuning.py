"""How the kernels are launched: chosen by measurement, without any effect on what is computed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

Merge = Literal["none", "interval", "ray"]


@dataclass(frozen=True)
class Launch:
    """How one kernel runs over a range of levels."""

    merge: Merge = "interval"
    """Samples in one cell that become one access: none, consecutive ones of an interval, or also of neighboring
    intervals (backward only; forward takes it for "interval")."""
    wide: bool = False
    """Reads and adds neighboring entries in windows of 16 bytes, where a table has one feature."""
    levels_per_program: int = 1
    """Levels that a program works through with its samples in registers."""
    block: int = 128
    """Intervals a program."""
    num_warps: int = 4
    """Warps a program; an interval is worked on by one lane."""
    branch: bool = False
    """Asks before every access whether any lane makes it, and skips it otherwise: cheap in programs of one warp."""
    rays: int = 1
    """Neighboring rays that share a program where their intervals divide into equal parts, of which every warp has one
    of each ray (forward only)."""


@dataclass(frozen=True)
class Plan:
    """The launches of one direction."""

    coarse: Launch
    """For the levels up to ``coarse_up_to``."""
    fine: Launch
    """For the others."""
    coarse_up_to: int = 256
    """Cells a side of the last coarse level."""
    copies: int = 1
    """Gradients of the levels up to COPIED_UP_TO, summed in the end, among which additions spread (backward only)."""


@dataclass(frozen=True)
class Tuning:
    """All choices of an encoding's launches."""

    forward: Plan
    """The look-up."""
    backward: Plan
    """The table's gradient."""
    half_table: bool = False
    """Whether reading a half-precision copy of the table pays, where the caller keeps one."""
    pictures: Plan | None = None
    """The look-up at evaluation, whose rays are neighbors in a picture; as any other if None."""


MERGED_UP_TO = 256
"""Cells a side up to which neighboring intervals of a ray share cells often enough to pay for the scan: on a trained
scene's rays it halves the accesses at 256 cells, and does little beyond."""
HALF_FROM = 2
"""Features from which reading a half-precision copy pays: it takes a fifth off the look-up at the paper's NeRF grid, a
seventh with two features; with one feature it gains nothing."""
CACHED_FEATURES = 1
"""Features up to which the tables of a group of levels fit into a GPU's cache together, with 2^21 entries each. Two
features take 5.6 ms backward level by level and 9.5 ms in groups of eight, on an H100."""
GROUPED_LEVELS = 8
"""Levels a program where they do: the samples are then read once for all of them."""
ALL_LEVELS = 16
"""Levels a program in pictures, where neighboring programs read the same few cells of all of them: 84 ms for 93 of a
picture of 1920x1080 on an H200."""
SQUARE = 4
"""Rays of a square of two pixels a side: 84 ms for 87."""
COPIED_UP_TO = 32
"""Cells a side up to which so many lanes add to one entry that they wait for each other; a copy of both levels takes
144 KiB a feature."""
COPIES = 8
"""Copies where they pay, at one feature: a quarter fewer milliseconds at the first round's grid on an H200."""


@lru_cache(maxsize=16)
def default_tuning(features_per_level: int) -> Tuning:
    """The launches for tables with rows of ``features_per_level`` values."""
    levels = GROUPED_LEVELS if features_per_level <= CACHED_FEATURES else 1
    each = Launch("interval", levels_per_program=levels)
    if features_per_level == 4:
        # A twentieth fewer milliseconds backward on an H200 at the paper's NeRF grid, and not more forward.
        each = replace(each, block=32, num_warps=1, branch=True)
    along = replace(each, merge="ray")
    backward = Plan(along, each, MERGED_UP_TO)
    if features_per_level == 1:
        # A third fewer milliseconds on an H100 at the paper's proposal grids, whether the scene is trained or not.
        wide = replace(along, wide=True)
        backward = Plan(wide, wide, copies=COPIES)
    near = replace(each, rays=SQUARE)
    if features_per_level == 4:
        near = replace(near, levels_per_program=ALL_LEVELS)
    return Tuning(Plan(each, each), backward, features_per_level >= HALF_FROM, Plan(near, near))


def reads_half(features_per_level: int) -> bool:
    """Whether a half-precision copy of a table with such rows is worth keeping."""
    return default_tuning(features_per_level).half_table
