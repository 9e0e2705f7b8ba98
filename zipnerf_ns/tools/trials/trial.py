"""Trials: one method trained on one scene in a process of its own, and what came of it.

A process for each, because a method that fails, or runs out of memory, is then a result and not the end; and because
peak memory and compiled code are then its own.
"""

from __future__ import annotations

import dataclasses
import json
import queue
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from zipnerf_ns.data.disk.files import write_json
from zipnerf_ns.tools.programs import exit_reason, quiet_environment
from zipnerf_ns.tools.trials.report import Result, outcome

RESULT_FILE, LOG_FILE, VIEWS = "result.json", "log.txt", "views"
"""What a trial's folder holds; the last is the folder of kept views."""
WORKER = "zipnerf_ns.tools.trials.worker"
SET_UP_LIMIT, LIMIT_FACTOR = 900.0, 4.0
"""A trial by time is ended after this many seconds, and this many times those that it trains."""


@dataclass(frozen=True)
class Trial:
    """Everything that decides a result; it takes either seconds or steps."""

    scene: str
    """Folder, or transforms file."""
    method: str
    """As ns-train knows it."""
    seconds: float | None = 120.0
    """Length of the training, without evaluation, set-up and first-use compilation."""
    steps: int | None = None
    """Training steps; by seconds as many as fit."""
    scales: tuple[int, ...] = ()
    """Scales at which a scene of one scale is trained and measured; empty: as it is."""
    seed: int = 42
    """Where nerfstudio's random numbers begin."""
    schedule: Literal["stretched", "own"] = "stretched"
    """Another method's schedule: stretched to the steps that are taken, or as it is for its own number of steps."""
    half_side: float = 1.5
    """Half the side of the cube, around the data's own origin, in which a scene with alpha lies."""
    moments: int = 4
    """How often held-out views are rendered during training, the end included; each time twice as late."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where it trains."""
    same_rays: bool = False
    """Draw the rays of every step from the seed and the step alone, whatever else draws random numbers."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the method's configuration by their dotted names, and their values."""
    build_only: bool = False
    """Take two steps, for what is compiled at first use, and measure nothing."""


def read_result(folder: Path, trial: Trial) -> Result | None:
    """The result of exactly this trial, where its folder holds one that did not fail."""
    if not (folder / RESULT_FILE).is_file():
        return None
    result = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
    same = result["trial"] == json.loads(json.dumps(dataclasses.asdict(trial)))
    return result if same and result["status"] == "done" else None


def run_trial(trial: Trial, folder: Path, gpu: str | None = None) -> Result:
    """Runs a trial in its own process and returns its result, which is also in the folder.

    What the process printed is in the folder's log. A failure is a result too, with ``status`` "failed" and a
    ``reason``.

    Args:
        trial: what to run.
        folder: for this trial alone.
        gpu: the only one that it sees, as CUDA_VISIBLE_DEVICES names it; None for what this process sees.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULT_FILE).unlink(missing_ok=True)
    limit = None if trial.seconds is None else SET_UP_LIMIT + LIMIT_FACTOR * trial.seconds
    environment = quiet_environment() | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu})
    command = [sys.executable, "-m", WORKER, str(folder), json.dumps(dataclasses.asdict(trial))]
    with (folder / LOG_FILE).open("wb") as log:
        try:
            ended = subprocess.run(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, timeout=limit
            )
        except subprocess.TimeoutExpired:
            return save_failure(folder, trial, f"ended after {limit:.0f} s without a result")
    if (folder / RESULT_FILE).is_file():
        return json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
    return save_failure(folder, trial, f"{exit_reason(ended.returncode)}: {last_line(folder / LOG_FILE)}")


def save_failure(folder: Path, trial: Trial, reason: str) -> Result:
    """The result of a trial that failed, which is also written to its folder."""
    result = {"trial": dataclasses.asdict(trial), "status": "failed", "reason": reason}
    write_json(folder / RESULT_FILE, result)
    return result


def last_line(log: Path) -> str:
    """The last line of a log that says anything."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip("─- \t")), "it printed nothing")


class Planned(NamedTuple):
    """A trial that is to be run."""

    trial: Trial
    folder: Path
    """Where this trial's files are, and no other's."""
    name: str
    """What a person knows it by."""


def run_all(planned: Sequence[Planned], resume: bool, gpus: Sequence[str] = ()) -> Iterator[list[Result]]:
    """Runs trials, says a line about each, and gives all results so far, in the order of the plan, after each.

    With several GPUs each trial has one to itself and they share the processor's cores and the disk.

    Args:
        planned: in the order in which they begin.
        resume: take results of exactly these trials that are in their folders.
        gpus: as CUDA_VISIBLE_DEVICES names them; none runs one trial after another on what this process sees.
    """
    free: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    for gpu in gpus or [None]:
        free.put(gpu)

    def run(each: Planned) -> tuple[Result, bool]:
        kept = read_result(each.folder, each.trial) if resume else None
        if kept is not None:
            return kept, True
        gpu = free.get()
        try:
            return run_trial(each.trial, each.folder, gpu), False
        finally:
            free.put(gpu)

    results: list[Result] = []
    # An interrupt reaches the trials by itself, whose results then say so; those that wait are not begun.
    with ThreadPoolExecutor(max(len(gpus), 1)) as pool:
        for each, (result, was_there) in zip(planned, pool.map(run, planned), strict=True):
            results.append(result)
            print(f"{outcome(each.name, result, each.folder / LOG_FILE)}{' (kept)' * was_there}", flush=True)
            yield results
