"""What makes nerfstudio's programs start sooner."""

from __future__ import annotations

import sys
import tarfile
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from pathlib import Path
from types import FrameType, SimpleNamespace

from viser import _icons

from nerfstudio.configs import external_methods


def functions_from(frame: FrameType | None) -> list[SimpleNamespace]:
    """The function of a frame, its caller, and so on: of ``inspect.stack`` what nerfstudio reads."""
    found = []
    while frame is not None:
        found.append(SimpleNamespace(function=frame.f_code.co_name))
        frame = frame.f_back
    return found


def spare_nerfstudio_its_look_at_the_stack() -> None:
    """Nerfstudio 1.1.5 asks for its caller's name once for each method that others offer, and ``inspect.stack`` finds
    and reads the source of every function below it each time: a fifth of what a program's start takes.

    Nerfstudio loads its plugins before it lists those methods, so that importing ours is early enough.
    """
    if hasattr(external_methods, "inspect"):
        external_methods.inspect = SimpleNamespace(stack=lambda: functions_from(sys._getframe(1)))


@lru_cache(maxsize=1)
def open_once(path: Path) -> AbstractContextManager[tarfile.TarFile]:
    """An archive that stays open, with the list of its files, once it has been searched."""
    return nullcontext(tarfile.open(path))


def spare_viser_its_search_for_icons() -> None:
    """Viser 0.2.7 opens an archive of 4,290 icons, and lists them all, for each of the viewer's 17 buttons and tabs
    that show one: half of what the viewer's start takes."""
    if hasattr(_icons, "tarfile"):
        _icons.tarfile = SimpleNamespace(open=open_once)
