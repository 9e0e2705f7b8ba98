"""What nerfstudio does for long while it is imported, done briefly; for processes of the tests alone."""

from __future__ import annotations

import sys
from types import SimpleNamespace

from nerfstudio.configs import external_methods


def callers() -> list[SimpleNamespace]:
    """The functions that are being called, the innermost first: of ``inspect.stack`` what nerfstudio reads."""
    frame, found = sys._getframe(1), []
    while frame is not None:
        found.append(SimpleNamespace(function=frame.f_code.co_name))
        frame = frame.f_back
    return found


def spare_nerfstudio_its_look_at_the_stack() -> None:
    """For each method that others offer nerfstudio asks for its caller's name, once: inspect would first look for the
    source of every function below it, which under pytest takes longer than all else that is imported."""
    external_methods.inspect = SimpleNamespace(stack=callers)
