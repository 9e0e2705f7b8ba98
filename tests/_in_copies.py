"""A program: runs command lines of nerfstudio's programs in copies of itself, which has imported what all of them do.

Reads a JSON list of command lines (lists of words) from standard input, each perhaps after settings of the environment
(NAME=value). Each copy runs the program's own script, or after ``python -m`` a module; what it prints goes to a file of
its number in the folder named first, and its return code to a file beside it. Importing nerfstudio takes a program
longer than what tests ask of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import shutil
import sys
from pathlib import Path

AT_ONCE = 2


def run(command: list[str], log: Path) -> None:
    """Becomes the program of a command line; does not return but by its exit."""
    with log.open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    while "=" in command[0]:
        name, value = command.pop(0).split("=", 1)
        os.environ[name] = value
    if command[:2] == ["python", "-m"]:
        sys.argv = command[2:]
        runpy.run_module(command[2], run_name="__main__", alter_sys=True)
        return
    script = shutil.which(command[0])
    sys.argv = [script, *command[1:]]
    runpy.run_path(script, run_name="__main__")


def main() -> None:
    folder, running = Path(sys.argv[1]), {}
    for number, command in enumerate(json.load(sys.stdin)):
        if len(running) == AT_ONCE:
            wait_for_one(running, folder)
        child = os.fork()
        if child == 0:
            return run(command, folder / f"{number}.log")
        running[child] = number
    while running:
        wait_for_one(running, folder)


def wait_for_one(running: dict[int, int], folder: Path) -> None:
    child, status = os.wait()
    (folder / f"{running.pop(child)}.code").write_text(str(os.waitstatus_to_exitcode(status)))


if __name__ == "__main__":
    import nerfstudio.configs.method_configs
    import nerfstudio.scripts.eval
    import nerfstudio.scripts.render
    import nerfstudio.scripts.train  # noqa: F401

    # Where open3d does not load, the program that needs it says so.
    with contextlib.suppress(ImportError, OSError):
        import nerfstudio.scripts.exporter  # noqa: F401

    main()
