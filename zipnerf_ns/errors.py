"""What a person is told: what is wrong with what they gave, as an error of one line, and what was chosen for them."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console


class InputError(ValueError):
    """Something the user gave cannot be used; the message says what, where, and what to do."""


def shorten(names: Iterable[str], most: int = 3) -> str:
    """The first names of a list, and how many more there are."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def say(text: str) -> None:
    """Prints a line with the time, for the person who runs the program."""
    # A console of the moment, for tests and notebooks replace the standard output; as wide as Nerfstudio's.
    Console(width=120).log(text, highlight=False, markup=False)
