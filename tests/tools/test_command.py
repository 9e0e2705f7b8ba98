"""Commands end with one line where a person can mend something, and with a stack trace where nobody can."""

from __future__ import annotations

import errno
import os

import pytest

from zipnerf_ns.errors import InputError
from zipnerf_ns.tools.command import command, command_parser


def test_what_can_be_mended_is_one_line(capsys):
    @command(FileNotFoundError)
    def main(arguments: list[str]) -> int | None:
        error = {"input": InputError, "file": FileNotFoundError, "fault": PermissionError}.get(arguments[0])
        if error is not None:
            raise error("no scene.")
        return None if arguments == ["none"] else int(arguments[0])

    assert [main([status]) for status in ("none", "0", "3")] == [0, 0, 3]
    assert [main([error]) for error in ("input", "file")] == [1, 1]
    assert capsys.readouterr().err == 2 * "Error: no scene.\n"
    with pytest.raises(PermissionError):
        main(["fault"])


def test_a_place_that_takes_nothing_is_one_line(capsys):
    @command()
    def main(arguments: list[str]) -> None:
        raise OSError(int(arguments[0]), os.strerror(int(arguments[0])), "mesh.ply")

    assert [main([str(number)]) for number in (errno.ENOSPC, errno.EACCES)] == [1, 1]
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "Error: mesh.ply cannot be used: No space left on device." and len(said) == 2
    with pytest.raises(FileNotFoundError):
        main([str(errno.ENOENT)])


def test_help_tells_the_defaults_that_there_are():
    parser = command_parser("tool", "Does it.")
    parser.add_argument("--steps", type=int, default=0, help="of it")
    parser.add_argument("--seconds", type=float, help="of it")
    parser.add_argument("--fast", action="store_true", help="or not")
    told = parser.format_help()
    assert "python -m zipnerf_ns.tools.tool" in told and "(default: 0)" in told and told.count("default") == 1
