"""A thread that a render takes for the viewer's."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from nerfstudio.viewer.render_state_machine import RenderStateMachine


class Render(RenderStateMachine):
    """A viewer's render thread that does something else."""

    def __init__(self, work: Callable[[], Any]) -> None:
        threading.Thread.__init__(self)
        self.work, self.result, self.error = work, None, None

    def run(self) -> None:
        try:
            self.result = self.work()
        except Exception as error:
            self.error = error


def in_viewer(work: Callable[[], Any]) -> Any:
    """What some work gives to the viewer; its exception is raised here."""
    thread = Render(work)
    thread.start()
    thread.join()
    if thread.error is not None:
        raise thread.error
    return thread.result
