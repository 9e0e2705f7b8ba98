"""Kernels run where there is a GPU; elsewhere each file's tests run once more in a process whose triton interprets."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from _twins import INTERPRETED, RUNS_KERNELS

runs_kernels = pytest.mark.skipif(
    not RUNS_KERNELS, reason="no GPU: test_under_the_interpreter runs it in a process of its own"
)
needs_interpreter = pytest.mark.skipif(RUNS_KERNELS, reason="the other tests run the kernels themselves")


def run_under_the_interpreter(file: str) -> None:
    """All tests of a file in a process whose triton interprets.

    The interpreter has to be chosen before triton is imported, and choosing it here would make
    ``implementation="auto"`` pick it in other tests.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
    assert " passed" in result.stdout
