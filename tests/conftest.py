"""What tests share: fixed seeds, a small built-in scene, larger scenes where they are, and nerfstudio's programs."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]

# More threads than cores slow small tensors down; programs that tests start inherit the number.
# With several workers each has its share of the cores.
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, min(os.cpu_count() or 1, 4) // WORKERS)))
# Threads that wait for each other sleep, here if the runner says so (make test does) and in programs that tests start:
# where they spin, a training that shares its cores took 10 s a step instead of 0.6 s.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

LONG = (
    "test_viewer_browser",
    "test_end_to_end_exports",
    "test_end_to_end",
    "test_moved_run",
    "test_own_photos",
    "test_check_gpu",
)
"""Files that take longest; tests of all but the last mostly wait for programs."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first: begun last, one of them would keep a single worker busy at the end."""
    place = {name: index for index, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONG)))


@pytest.fixture(autouse=True)
def seed() -> int:
    """Every test draws the same numbers whichever tests ran before it."""
    value = 20230413
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)
    return value


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What is said once, as if for the first time."""
    from zipnerf_ns import errors

    lines: list[str] = []
    monkeypatch.setattr(errors, "say", lines.append)
    errors.say_once.cache_clear()
    yield lines
    errors.say_once.cache_clear()


@pytest.fixture
def fresh_writers() -> Iterator[None]:
    """Nerfstudio keeps its writers in globals, one more for every trainer of this process."""
    from nerfstudio.utils import writer

    yield
    for event_writer in writer.EVENT_WRITERS:
        getattr(event_writer, "tb_writer", None) and event_writer.tb_writer.close()
    writer.EVENT_WRITERS.clear()
    writer.EVENT_STORAGE.clear()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few pictures that a short training takes, in nerfstudio's format."""
    from _scenes import write_scene

    return write_scene(tmp_path_factory.mktemp("scene") / "scene")


@pytest.fixture(scope="session")
def tiny_scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in scene with few, small pictures, in nerfstudio's format."""
    from zipnerf_ns.tools.demo_scene import write_scene

    folder = tmp_path_factory.mktemp("scenes") / "tiny"
    return write_scene(folder, width=64, height=48, num_train=12, num_test=2, samples_per_pixel=16)


@pytest.fixture(scope="session")
def shared_scenes() -> Path:
    """The folder of photographed and synthetic scenes that lies beside the repository on some machines."""
    folder = ROOT.parent / "shared" / "scenes"
    if not folder.is_dir():
        pytest.skip(f"no scenes at {folder}")
    return folder


@pytest.fixture(scope="session")
def run_program() -> Callable[..., subprocess.CompletedProcess]:
    """Runs a program of this interpreter's environment by name: ``run_program("ns-train", "zipnerf-lite", ...)``.

    Its output, both streams as one text, is the result's ``stdout``.
    """
    from zipnerf_ns.tools.system_check import script_environment

    def run(
        *command: str | Path, timeout: float = 600.0, input: str = "", **environment: str
    ) -> subprocess.CompletedProcess:
        return subprocess.run(
            [str(part) for part in command],
            env={**script_environment(), "PYTHONUNBUFFERED": "1", **environment},
            cwd=ROOT,
            input=input,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )

    return run


@pytest.fixture(scope="session")
def parse_problems(tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[list[str]]], list[str | None]]:
    """What nerfstudio's own argument parsers say against command lines, None where they take them."""

    def parse(commands: list[list[str]]) -> list[str | None]:
        answer = tmp_path_factory.mktemp("commands") / "answer.json"
        program = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("_parse_commands.py")), str(answer)]
        subprocess.run(program, input=json.dumps(commands), text=True, cwd=ROOT, check=True, timeout=300)
        return json.loads(answer.read_text())

    return parse
