"""What launches are told of the device."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from zipnerf_ns.kernels import support
from zipnerf_ns.kernels.device import INTERPRETER, SHARED_MEMORY, _described, describe, find, pretending

CPU = torch.device("cpu")


def test_a_pretended_device_is_described_until_the_end() -> None:
    with pretending(find("8.6")):
        assert describe(CPU).shared_memory == 101_376
        with pretending(find("7.5")):
            assert describe(CPU).capability == (7, 5)
        assert describe(CPU).capability == (8, 6)
        assert support.why_unavailable(CPU) is None
    assert describe(CPU) == INTERPRETER


def test_a_gpu_of_amds_is_untried_and_has_no_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch calls gfx90a's version 9.0, which is Hopper's among NVIDIA's."""
    found = SimpleNamespace(name="MI210", major=9, minor=0, multi_processor_count=104, shared_memory_per_block=65_536)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("ZIPNERF_CAPABILITY", raising=False)
    for hip, expected in (("6.4", ("hip", (0, 0))), (None, ("cuda", (9, 0)))):
        monkeypatch.setattr(torch.version, "hip", hip)
        _described.cache_clear()
        device = torch.device("cuda:0")
        assert describe(device)[1:3] == expected
        sentence = support.why_untried(device)
        assert sentence is None or ("MI210" in sentence and "--pipeline.model.implementation triton" in sentence)
        assert (sentence is None) is (hip is None)
    _described.cache_clear()
    assert support.why_untried(CPU) is None


def test_an_unknown_capability_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"3\.5 is unknown.*7\.5.*12\.0"):
        find("3.5")


def test_every_listed_device_can_hold_the_smallest_blocks() -> None:
    assert all(48 << 10 < shared < 256 << 10 for shared in SHARED_MEMORY.values())
