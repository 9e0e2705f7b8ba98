"""A program: puts command lines before the argument parsers of nerfstudio's programs and ours, and runs none of them.

Reads a JSON list of command lines (lists of words) from standard input, writes a JSON list of what is wrong with
each, or null, to the file named first. Run apart from the tests, for it imports every method and dataparser.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.metadata
import inspect
import io
import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import tyro

from nerfstudio.utils import install_checks


class ParsedError(BaseException):
    """The command line was understood; not an Exception, for some programs catch those."""


def stop_after_parsing(parse):
    """A parser's entry, raising where the program itself would begin."""

    def parse_and_stop(first, *arguments, **options):
        if inspect.isfunction(first):
            # Tyro calls it with what it has understood.
            first = functools.wraps(first)(lambda *_, **__: None)
        parse(first, *arguments, **options)
        raise ParsedError

    return parse_and_stop


def run_module(name: str) -> None:
    """A module as ``python -m`` runs it, up to where its arguments are parsed."""
    parser = argparse.ArgumentParser
    with mock.patch.object(parser, "parse_args", stop_after_parsing(parser.parse_args)):
        runpy.run_module(name, run_name="__main__", alter_sys=True)


def problem(command: list[str]) -> str | None:
    """What the program of a command line says against it."""
    if command[:2] == ["python", "-m"]:
        return what_is_said(lambda: run_module(command[2]), command[2:])
    programs = importlib.metadata.entry_points(group="console_scripts", name=command[0])
    if not programs:
        return f"{command[0]} is not installed"
    return what_is_said(lambda: next(iter(programs)).load()(), command)


def what_is_said(program: Callable[[], None], arguments: list[str]) -> str | None:
    """What a program says against its arguments."""
    said = io.StringIO()
    sys.argv = list(arguments)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            program()
    except ParsedError:
        return None
    except ImportError as error:
        return f"ImportError: {error}"
    except SystemExit:
        return said.getvalue()
    return "it did not parse its arguments with tyro or argparse"


tyro.cli = stop_after_parsing(tyro.cli)
# ns-process-data looks for COLMAP while its arguments are read; they are right or wrong without it.
for name in ("check_colmap_installed", "check_ffmpeg_installed", "check_curl_installed"):
    setattr(install_checks, name, lambda *_: None)
Path(sys.argv[1]).write_text(json.dumps([problem(command) for command in json.load(sys.stdin)]))
