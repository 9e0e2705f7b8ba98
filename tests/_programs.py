"""Nerfstudio's programs run by tests as a user runs them, two at a time on one machine."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from _scenes import free_port

SMALL = (
    "--pipeline.model.grid.num-levels 8 --pipeline.model.grid.max-res 256 --pipeline.model.grid.log2-hashmap-size 15 "
    "--pipeline.model.proposals.0.grid.num-levels 4 --pipeline.model.proposals.0.grid.max-res 64 "
    "--pipeline.model.proposals.1.grid.num-levels 5 --pipeline.model.proposals.1.grid.max-res 128 "
    "--pipeline.model.proposals.0.num-samples 16 --pipeline.model.proposals.1.num-samples 16 "
    "--pipeline.model.num-samples 12 --pipeline.datamanager.train-num-rays-per-batch 512 "
    "--optimizers.networks.optimizer.lr 0.01 --optimizers.hash-tables.optimizer.lr 0.03 "
    "--viewer.quit-on-train-completion True"
).split()
"""What makes zipnerf-lite train in seconds; learning rates for two hundred steps instead of thousands."""


def train_command(data: Path, output: Path, *options: str | int | Path) -> list[str]:
    """An ns-train command line whose run lies in output/e2e/zipnerf-lite/run."""
    named = ["--data", data, "--output-dir", output, "--experiment-name", "e2e", "--timestamp", "run"]
    viewer = ["--viewer.websocket-port", free_port()]
    return [str(part) for part in ["ns-train", "zipnerf-lite", *named, *SMALL, *viewer, *options]]


def has_libusb() -> bool:
    """Whether open3d, and with it ns-export, loads here."""
    try:
        ctypes.CDLL("libusb-1.0.so.0")
    except OSError:
        return False
    return True


class Programs:
    """Work done two at a time, begun before anybody asks for its results: every program takes long to import."""

    def __init__(
        self, scene: Path, folder: Path, steps: int, run_program: Callable[..., subprocess.CompletedProcess]
    ) -> None:
        self.scene, self.folder = scene, folder
        self.run_folder = folder / "out/e2e/zipnerf-lite/run"
        self.checkpoint = self.run_folder / f"nerfstudio_models/step-{steps - 1:09d}.ckpt"
        self.config = self.run_folder / "config.yml"
        self.pool = ThreadPoolExecutor(2)
        self.begun: dict[str, Future] = {}
        self.copies: set[str] = set()
        self.run_program = run_program

    def run(self, *command: object) -> subprocess.CompletedProcess:
        """Runs a program to its end, on one thread: two share the machine."""
        return self.run_program(*map(str, command), timeout=400, OMP_NUM_THREADS="1")

    def begin(self, name: str, work: Callable[..., object], *arguments: object, after: str | None = None) -> None:
        """Queues some work; it waits for other work that was queued before."""

        def wait_and_work() -> object:
            if after is not None:
                self.begun[after].result()
            return work(*arguments)

        self.begun[name] = self.pool.submit(wait_and_work)

    def begin_in_copies(self, commands: dict[str, Sequence[object]], after: str) -> None:
        """Queues programs that are begun together by one that has imported what all of them do."""

        def work() -> dict[str, subprocess.CompletedProcess]:
            folder = self.folder / "copies"
            folder.mkdir()
            lines = json.dumps([[str(word) for word in command] for command in commands.values()])
            program = (sys.executable, Path(__file__).with_name("_in_copies.py"), folder)
            said = self.run_program(*program, timeout=500, input=lines, OMP_NUM_THREADS="1")
            assert said.returncode == 0, said.stdout[-4000:]
            return {
                name: subprocess.CompletedProcess(
                    command, int((folder / f"{index}.code").read_text()), (folder / f"{index}.log").read_text()
                )
                for index, (name, command) in enumerate(commands.items())
            }

        self.begin("copies", work, after=after)
        self.copies = set(commands)

    def __contains__(self, name: str) -> bool:
        return name in self.begun or name in self.copies

    def __getitem__(self, name: str) -> object:
        return self.begun["copies"].result()[name] if name in self.copies else self.begun[name].result()

    def output_of(self, name: str) -> str:
        """What a program printed, which must have succeeded."""
        done = self[name]
        assert done.returncode == 0, f"{name} ended with {done.returncode}:\n{done.stdout[-4000:]}"
        return done.stdout
