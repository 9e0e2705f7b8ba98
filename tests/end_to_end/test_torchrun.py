"""A training by two processes that torchrun starts, of which one is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from _programs import SMALL
from _scenes import assert_clear, write_scene

from zipnerf_ns.tools.system_check import script_environment

PATIENCE = 300.0
"""Seconds after which a program that does not come so far fails the test."""

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux, to find the processes")


@contextmanager
def torchrun(log: Path, *arguments: str | Path) -> Iterator[subprocess.Popen]:
    """A training on the CPU by two processes; ended by force if the test does."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    environment = {**script_environment(), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    with log.open("w") as output:
        program = subprocess.Popen(
            [*command, "-m", "nerfstudio.scripts.train", *map(str, arguments)],
            env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        yield program
    finally:
        if program.poll() is None:
            os.killpg(program.pid, signal.SIGKILL)
            program.wait()


def children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def test_a_killed_process_of_torchruns_ends_the_training_with_one_line(tmp_path: Path):
    """In the one folder that both have agreed on, and with the status of a failure."""
    scene, log, runs = write_scene(tmp_path / "scene"), tmp_path / "log", tmp_path / "out/e2e/zipnerf-lite"
    named = ("--data", scene, "--output-dir", tmp_path / "out", "--experiment-name", "e2e", "--vis", "tensorboard")
    steps = ("--max-num-iterations", "100000", "--steps-per-save", "2", "--machine.device-type", "cpu")
    with torchrun(log, "zipnerf-lite", *named, *steps, *SMALL) as program:
        end = time.monotonic() + PATIENCE
        while not list(runs.glob("*/nerfstudio_models/*.ckpt")):
            assert program.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        both = children(program.pid)
        assert len(both) == 2
        os.kill(both[1], signal.SIGKILL)
        assert program.wait(PATIENCE) == 1
    assert not any(Path(f"/proc/{process}").exists() for process in both)
    (run,) = runs.iterdir()
    checkpoint = max(run.glob("nerfstudio_models/*"))
    said = log.read_text().splitlines()
    (line,) = [line for line in said if line.startswith("Error:")]
    assert_clear(line, ("a process of this training has ended early", str(checkpoint), "--load-dir"))
    # The second one has left it to the first to speak.
    assert len([line for line in said if line.startswith("Training zipnerf-lite on 2 x cpu")]) == 1
