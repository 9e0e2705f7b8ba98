"""One trial: one method trained on one scene in a process of its own, and what came of it.

A process for each, because a method that fails, or runs out of memory, is then a result and not the end; and because
peak memory and compiled code are then its own.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from zipnerf_ns.tools.demo import exit_reason
from zipnerf_ns.tools.system_check import script_environment

TRIAL_FILE, RESULT_FILE, LOG_FILE, VIEWS = "trial.json", "result.json", "log.txt", "views"
"""What a trial's folder holds; the last is the folder of kept views."""
WORKER = "zipnerf_ns.tools.trials.worker"


@dataclass(frozen=True)
class Trial:
    """Everything that decides a result."""

    scene: str
    """Folder, or transforms file."""
    method: str
    """As ns-train knows it."""
    seconds: float | None = 120.0
    """Of training; evaluation, set-up and first-use compilation are not counted. None: as many as the steps take."""
    steps: int | None = None
    """Training steps; None: as many as fit into the seconds."""
    scales: tuple[int, ...] = ()
    """Scales at which a scene of one scale is trained and measured; empty: as it is."""
    seed: int = 42
    """Of nerfstudio's random numbers."""
    schedule: Literal["stretched", "own"] = "stretched"
    """Of methods other than ours: stretched to the steps that are taken, or as it is for its own number of steps."""
    half_side: float = 1.5
    """Half the side of the cube, around the data's own origin, in which a scene with alpha lies."""
    moments: int = 4
    """How often held-out views are rendered during training, the end included; each time twice as late."""
    kept_views: int = 4
    """Held-out views whose pictures are kept, evenly spread."""
    device: str = "cuda"
    """On which it trains."""
    same_rays: bool = False
    """Draw the rays of every step from the seed and the step alone, whatever else draws random numbers."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the method's configuration by their dotted names, and their values."""
    build_only: bool = False
    """Take two steps, for what is compiled at first use, and measure nothing."""

    def __post_init__(self) -> None:
        if (self.seconds is None) == (self.steps is None):
            raise ValueError("a trial takes either seconds or steps")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Within, a file to write beside a path; then it takes that path: no reader, or kill, ever meets half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    yield unfinished
    os.replace(unfinished, path)


def save_json(path: Path, content: Any) -> None:
    """Writes a JSON file whole."""
    with written_whole(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load_trial(folder: Path) -> Trial:
    """The trial that a folder is for."""
    content = json.loads((folder / TRIAL_FILE).read_text(encoding="utf-8"))
    return Trial(**{**content, "scales": tuple(content["scales"])})


def read_result(folder: Path, trial: Trial) -> dict[str, Any] | None:
    """The result of exactly this trial, where its folder holds one that did not fail."""
    if not (folder / RESULT_FILE).is_file():
        return None
    result = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
    same = result["trial"] == json.loads(json.dumps(dataclasses.asdict(trial)))
    return result if same and result["status"] == "done" else None


def run_trial(
    trial: Trial, folder: Path, timeout: float | None = None, gpu: str | None = None
) -> dict[str, Any]:
    """Runs a trial in its own process and returns its result, which is also in the folder.

    What the process printed is in the folder's log. A failure is a result too, with ``status`` "failed" and a
    ``reason``.

    Args:
        trial: what to run.
        folder: of this trial alone.
        timeout: seconds after which it is ended.
        gpu: the only one that it sees, as CUDA_VISIBLE_DEVICES names it; None for what this process sees.
    """
    (folder / RESULT_FILE).unlink(missing_ok=True)
    content = dataclasses.asdict(trial)
    save_json(folder / TRIAL_FILE, content)
    environment = {"PYTHONWARNINGS": "ignore", **script_environment(), "PYTHONUNBUFFERED": "1"}
    environment |= {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
    with (folder / LOG_FILE).open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", WORKER, str(folder)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return _failed(folder, content, f"ended after {timeout:.0f} s without a result")
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if (folder / RESULT_FILE).is_file():
        return json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
    return _failed(folder, content, f"{exit_reason(process.returncode)}: {last_line(folder / LOG_FILE)}")


def _failed(folder: Path, trial: dict[str, Any], reason: str) -> dict[str, Any]:
    result = {"trial": trial, "status": "failed", "reason": reason}
    save_json(folder / RESULT_FILE, result)
    return result


def last_line(log: Path) -> str:
    """The last line of a log that says anything."""
    lines: list[str] = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line.strip("─- ")), "it printed nothing")
