"""What a person is told: what is wrong with what they gave, as an error of one line, and what was chosen for them."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from functools import cache

from rich.console import Console

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a disk that takes no more of what is written."""
REFUSED = (*FULL, errno.EROFS, errno.EACCES, errno.EPERM)
"""Errors of a place that is full, or may not be used."""


class InputError(ValueError):
    """Something the user gave cannot be used; the message says what, where, and what to do."""


class LaunchFailed(RuntimeError):
    """A kernel could not be compiled for the device or takes more than it has; nothing was computed.

    Args:
        operation: name of the operation in ``ops.Ops``.
        kernel: name of the kernel.
        device: name of the device.
        reason: what the compiler or the driver says.
    """

    def __init__(self, operation: str, kernel: str, device: str, reason: str) -> None:
        super().__init__(f"{kernel} cannot be launched on {device}: {reason}")
        self.operation = operation


def refusal(error: BaseException) -> InputError | None:
    """What a disk's or a folder's refusal means to a person; None for any other error."""
    if not isinstance(error, OSError) or error.errno not in REFUSED or error.filename is None:
        return None
    return InputError(f"{error.filename} cannot be used: {error.strerror}.")


def shorten(names: Iterable[str], most: int = 3) -> str:
    """The first names of a list, and how many more there are."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def say(text: str) -> None:
    """Prints a line with the time, for the person who runs the program."""
    # A console of the moment, for tests and notebooks replace the standard output; as wide as Nerfstudio's.
    Console(width=120).log(text, highlight=False, markup=False)


@cache
def say_once(text: str) -> None:
    """Prints a line the first time that it is asked for."""
    say(text)
