"""Files that are written while the training goes on."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Callable, Optional


class BackgroundWriter:
    """Writes files by a thread of its own, one at a time, in the order in which they are asked for.

    Whoever asked hears of an error at the next :meth:`check`, :meth:`submit` or :meth:`wait`, once.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="writer")
        self._pending: Optional[Future] = None

    @property
    def is_writing(self) -> bool:
        """Whether a file is not done yet."""
        return self._pending is not None and not self._pending.done()

    def submit(self, write: Callable[[], None]) -> None:
        """Begins to write; first waits for what is still being written, so that two snapshots are never held."""
        self.wait()
        self._pending = self._thread.submit(write)

    def check(self) -> None:
        """Raises what went wrong with the last file, if it is done; never waits."""
        if not self.is_writing:
            self.wait()

    def wait(self) -> None:
        """Waits for the last file; raises what went wrong with it."""
        pending = self._pending
        if pending is not None:
            # Still pending while this waits: an interrupted wait can be taken up again.
            pending.exception()
            self._pending = None
            pending.result()
