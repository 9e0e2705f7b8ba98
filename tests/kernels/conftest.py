"""Fixtures of the kernels' tests."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator

import pytest

from zipnerf_ns.kernels import support

# Importing a kernel imports triton, which torch brings for CUDA only.
collect_ignore_glob = [] if importlib.util.find_spec("triton") else ["test_*.py"]


@pytest.fixture(autouse=True)
def watch() -> Iterator[None]:
    """Interpreted kernels touch no memory but their tensors'; whatever nobody has written shows in results."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        yield
        return
    from _watched import watched

    with watched():
        yield


@pytest.fixture
def without_interpreter(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whether the kernels can run on the CPU, asked anew in a process that seems not to interpret them."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    support._why_unavailable.cache_clear()
    yield
    support._why_unavailable.cache_clear()
