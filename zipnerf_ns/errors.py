"""What is wrong with what a person gave, as an error of one line."""

from __future__ import annotations

from typing import Iterable


class InputError(ValueError):
    """Something the user gave cannot be used; the message says what, where, and what to do."""


def shorten(names: Iterable[str], most: int = 3) -> str:
    """The first names of a list, and how many more there are."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
