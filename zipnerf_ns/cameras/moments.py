"""When cameras see a scene that moves: at their own times, or all at one moment."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from nerfstudio.cameras import camera_paths
from nerfstudio.cameras.cameras import Cameras

from zipnerf_ns.errors import InputError, say_once
from zipnerf_ns.rays import Rays

TIME_VARIABLE = "ZIPNERF_TIME"
"""Environment variable with the moment, from 0 to 1, at which Nerfstudio's programs are to see all of a run."""
RENDER = "nerfstudio.scripts.render"
"""The module of ``ns-render``, which knows makers of paths by names of its own."""


def stopped_time() -> float | None:
    """The moment at which a person wants to see everything; None where time runs.

    Raises:
        InputError: for what is no such moment.
    """
    said = os.environ.get(TIME_VARIABLE, "")
    if not said:
        return None
    try:
        time = float(said)
    except ValueError:
        time = -1.0
    if not 0.0 <= time <= 1.0:
        raise InputError(f"{TIME_VARIABLE} is {said}. It must be a moment from 0 (the beginning) to 1 (the end).")
    return time


def refuse_stopped_time(purpose: str) -> None:
    """Refuses the variable where each photo must be seen at its own time.

    Args:
        purpose: what is done, as the beginning of a sentence.
    Raises:
        InputError: if it is set.
    """
    if stopped_time() is not None:
        raise InputError(f"{purpose} sees photos at their own times. Unset {TIME_VARIABLE}.")


def at_moment(rays: Rays, stopped: float | None) -> Rays:
    """Rays of a model that needs times.

    Args:
        rays: where they have no times, which is said, they see the beginning.
        stopped: the moment that all of them see instead; None where time runs.
    """
    if stopped is None and rays.times is not None:
        return rays
    if stopped is None:
        say_once(f"Cameras that have no times see the scene at its beginning. Set {TIME_VARIABLE} to another moment.")
    return rays._replace(times=torch.full_like(rays.near, stopped or 0.0))


@dataclass(frozen=True)
class RunningPath:
    """Makes a path along which time runs once from the beginning to the end, unless its cameras have times."""

    make: Callable[..., Cameras]
    """Nerfstudio's maker of a path."""

    def __call__(self, *args: Any, **kwargs: Any) -> Cameras:
        cameras = self.make(*args, **kwargs)
        if cameras.times is None:
            cameras.times = torch.linspace(0.0, 1.0, len(cameras), device=cameras.device)[:, None]
        return cameras


def let_time_run_along_paths() -> None:
    """From now on, ``ns-render``'s paths have times: Nerfstudio's interpolated ones have none."""
    for module in (camera_paths, sys.modules.get(RENDER)):
        for name in ("get_interpolated_camera_path", "get_path_from_json", "get_spiral_path"):
            make = getattr(module, name, None)
            if make is not None and not isinstance(make, RunningPath):
                setattr(module, name, RunningPath(make))
