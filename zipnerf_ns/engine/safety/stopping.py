"""Signals that ask a training to end: Ctrl-C, a terminal that closes, and what queues send before they end a job."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from types import FrameType
from typing import Any

NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
"""Windows has the first two; the last is sent for the processor's time that a queue, or ulimit -t, allows."""
BOUNCE = 0.5
"""Seconds within which a second Ctrl-C is the first one's echo: ``timeout -s INT`` sends two."""


class StopRequests:
    """Notes signals while it is entered, so that the training can save and end; a second Ctrl-C interrupts at once.

    What was to be ignored stays so, as ``nohup`` has it, and so do handlers that others have set.

    Args:
        is_alone: whether the training is one process. One of several that stopped by itself would keep the others
            waiting: they set ``received`` when they have agreed.
    """

    def __init__(self, is_alone: bool) -> None:
        self.received: int | None = None
        """The signal for which the training is to end."""
        self.heard: int | None = None
        """The signal that this process was sent."""
        self._is_alone = is_alone
        self._names = NAMES if threading.current_thread() is threading.main_thread() else ()
        self._before: dict[int, Any] = {}
        self._since = 0.0

    @property
    def status(self) -> int:
        """What a shell gives for a program that the signal has ended: 130 for Ctrl-C."""
        return 128 + (self.received or signal.SIGINT)

    def __enter__(self) -> StopRequests:
        for number in (getattr(signal, name) for name in self._names if hasattr(signal, name)):
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler, noted_elsewhere):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: Any) -> None:
        self.release()

    def release(self) -> None:
        """Signals do again what they did before."""
        while self._before:
            signal.signal(*self._before.popitem())

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.heard is None:
            self.heard, self._since = number, now
            if self._is_alone:
                self.received = number
        # Of the others a second one changes nothing: a shell hands on the end of its terminal, a queue repeats itself.
        elif number == signal.SIGINT and now - self._since > BOUNCE:
            raise KeyboardInterrupt


def noted_elsewhere(number: int, frame: FrameType | None) -> None:
    """A handler that does nothing, of a signal that a thread reads."""


def hand_on_signals() -> None:
    """Has a program that starts processes hand on to them what asks it to end, and wait: they save."""

    def hand_on(number: int, frame: FrameType | None) -> None:
        processes = multiprocessing.active_children()
        if not processes:
            raise SystemExit(128 + number)
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process.pid, number)

    for number in (getattr(signal, name) for name in NAMES if hasattr(signal, name)):
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, hand_on)


def speak_to_nobody() -> None:
    """What is still printed goes nowhere, for the terminal is closed or the reader gone: the training goes on."""
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
