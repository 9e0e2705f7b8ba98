"""What every command has: a parser that names it, one line where what it was given is of no use, tables."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import wraps

from zipnerf_ns.errors import InputError, refusal

Main = Callable[..., int]
"""A command: takes its arguments, the process's own if None, and returns its exit status."""


class _Defaults(argparse.ArgumentDefaultsHelpFormatter):
    """Tells the default of every option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        is_told = not (action.default is None or action.default is False or action.default == [])
        return super()._get_help_string(action) if is_told else action.help


def command_parser(name: str, description: str) -> argparse.ArgumentParser:
    """A parser that calls the command as a person does, and whose help tells the defaults.

    Args:
        name: the command's module in this package.
        description: a sentence about it.
    """
    prog = f"python -m zipnerf_ns.tools.{name}"
    return argparse.ArgumentParser(prog=prog, description=description, formatter_class=_Defaults)


def command(*told: type[Exception]) -> Callable[[Callable[..., int | None]], Main]:
    """Makes a command of a function: status 0 where it returns None, and 1 with one line, not a stack trace, for an
    error that a person can mend.

    Args:
        told: errors whose text says all that is needed, besides InputError and a place that takes no file.
    """

    def decorate(function: Callable[..., int | None]) -> Main:
        @wraps(function)
        def main(arguments: Sequence[str] | None = None) -> int:
            try:
                return function(arguments) or 0
            except (InputError, OSError, *told) as error:
                known = refusal(error) or error
                if not isinstance(known, (InputError, *told)):
                    raise
                print(f"Error: {known}", file=sys.stderr)
                return 1

        return main

    return decorate


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table's lines; the first column is text, the others are numbers."""
    lines = ["| " + " | ".join(headings) + " |", "|---|" + "---:|" * (len(headings) - 1)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]
