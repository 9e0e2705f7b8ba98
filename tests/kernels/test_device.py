"""What launches are told of the device."""

from __future__ import annotations

import pytest
import torch

from zipnerf_ns.kernels import support
from zipnerf_ns.kernels.device import INTERPRETER, SHARED_MEMORY, describe, nvidia, pretending

CPU = torch.device("cpu")


def test_a_pretended_device_is_described_until_the_end() -> None:
    with pretending(nvidia((8, 6))):
        assert describe(CPU).shared_memory == 101_376
        with pretending(nvidia((7, 5))):
            assert describe(CPU).capability == (7, 5)
        assert describe(CPU).capability == (8, 6)
        assert support.why_unavailable(CPU) is None
    assert describe(CPU) == INTERPRETER


def test_an_unknown_capability_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"3\.5 is unknown.*7\.5.*12\.0"):
        nvidia((3, 5))


def test_every_listed_device_can_hold_the_smallest_blocks() -> None:
    assert all(48 << 10 < shared < 256 << 10 for shared in SHARED_MEMORY.values())
