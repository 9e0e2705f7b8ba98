"""Launches that are taken down and made again, as compute-sanitizer watches them; here the interpreter makes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from _interpreter import needs_interpreter, run_under_the_interpreter, runs_kernels
from _twins import DEVICE

from zipnerf_ns.kernels.check import replay
from zipnerf_ns.kernels.march.groups import group_channels

INTERVALS, CHANNELS, SIZE = 8, 3, 2


def group(rays: int, seed: int = 0) -> torch.Tensor:
    """Means of channels, in torch's layout and as they lie in the kernel's memory."""
    generator = torch.Generator().manual_seed(seed)
    channels = torch.rand(rays * INTERVALS, CHANNELS, generator=generator)
    weights = torch.rand(rays, INTERVALS, generator=generator)
    return group_channels(channels.to(DEVICE), weights.to(DEVICE), SIZE).t()


@needs_interpreter
def test_under_the_interpreter() -> None:
    run_under_the_interpreter(__file__)


@runs_kernels
def test_a_launch_is_made_again_with_all_it_was_given(tmp_path: Path) -> None:
    """What it wrote comes again from what it was given, although what had been given has changed since."""
    with replay.taken_down() as found:
        expected = group(rays=5)
        group(rays=5, seed=1)
    replay.write(found.values(), tmp_path / "launches")
    (launch,) = replay.read(tmp_path / "launches")
    assert launch.kernel == "group_kernel"
    channels, weights, means = replay.launch_again(launch, DEVICE)
    torch.testing.assert_close(means, expected, rtol=0, atol=0)
    assert channels.shape == (5 * INTERVALS, CHANNELS) and weights.shape == (5, INTERVALS)


@runs_kernels
def test_what_nobody_has_written_is_left_unwritten() -> None:
    """Results lie in memory into which nothing is copied; a sanitizer would not see otherwise that they are read."""
    with replay.taken_down() as found:
        group(rays=5)
    (launch,) = found.values()
    copied = [replay.written(content.numpy()) for content in launch.memories]
    assert copied == [[(0, 4 * 5 * INTERVALS * CHANNELS)], [(0, 4 * 5 * INTERVALS)], []]


def test_stretches_of_written_memory_are_found() -> None:
    """Also where a written byte is what unwritten ones are, or memory ends within a word."""
    content = np.full(30, replay.UNWRITTEN, dtype=np.uint8)
    assert replay.written(content) == []
    content[[0, 5, 6, 28]] = 1
    assert replay.written(content) == [(0, 8), (28, 30)]
    many = np.full(8 * (replay.MOST_RUNS + 1), replay.UNWRITTEN, dtype=np.uint8)
    many[::8] = 0
    assert replay.written(many) == [(0, len(many))]
    assert replay.written(content[:0]) == []


def test_each_kernel_is_seen_before_any_is_seen_again(tmp_path: Path) -> None:
    """A run that is cut off has then seen as many kernels as it could."""
    names = ["a", "a", "a", "b", "c", "c"]
    memory = torch.zeros(1, dtype=torch.uint8)
    launches = [replay.Taken("module", name, (number,), [memory], [], {}) for number, name in enumerate(names)]
    replay.write(launches, tmp_path / "launches")
    assert [launch.kernel for launch in replay.read(tmp_path / "launches")] == ["a", "b", "c", "a", "c", "a"]
    assert [launch.grid for launch in replay.read(tmp_path / "launches")][0] == (0,)
