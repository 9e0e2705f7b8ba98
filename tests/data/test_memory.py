"""Room on a device: its share, what others hold, and what of torch's reserve can be had."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import psutil
import pytest
import torch

from zipnerf_ns.data import memory
from zipnerf_ns.data.images import CheckedDataset
from zipnerf_ns.data.memory import GIB, limit_memory, room_on, unused_bytes
from zipnerf_ns.data.pixels import PixelStore
from zipnerf_ns.errors import InputError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def segment(*blocks: tuple[int, str], device: int = 0, **more: object) -> dict:
    """As torch.cuda.memory_snapshot lists it, blocks given by size and state."""
    listed = [{"size": size, "state": state} for size, state in blocks]
    return {"device": device, "total_size": sum(size for size, _ in blocks), "blocks": listed, **more}


USED, FREE = "active_allocated", "inactive"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A GPU of 80 GiB, 10 of them free, of which torch holds one segment in use, one free and one of a graph."""
    state = SimpleNamespace(free=10 * GIB, share=1.0)
    segments = [
        segment((GIB, USED), (GIB, FREE)),
        segment((2 * GIB, FREE)),
        segment((GIB, FREE), segment_pool_id=(0, 1)),
    ]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (state.free, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 5 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: segments)

    # As torch has it, both want the GPU's number.
    def ask(device: int) -> float:
        return {0: state.share}[device]

    def give(share: float, device: int) -> None:
        state.share = {0: share}[device]

    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", ask, raising=False)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", give)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(memory, "_shares", {})
    yield state


@pytest.mark.parametrize(
    ("segments", "expected"),
    [
        ([segment((8, FREE))], 8),
        ([segment((8, FREE), (1, USED))], 0),
        ([segment((8, "active_pending_free"))], 0),
        ([segment((8, FREE), segment_pool_id=(0, 0)), segment((4, FREE), segment_pool_id=(0, 3))], 8),
        ([segment((8, FREE), (1, USED), (2, FREE), is_expandable=True)], 10),
        ([segment((8, FREE), is_expandable=True, segment_pool_id=(1, 0))], 0),
        ([segment((8, FREE), device=1)], 0),
    ],
)
def test_of_the_reserve_whole_segments_count_that_are_no_graphs(segments, expected):
    assert unused_bytes(segments, 0) == expected


@pytest.mark.parametrize(
    ("free", "share", "room"), [(10, 1.0, 12), (0, 1.0, 2), (10, 0.1, 5), (10, 0.05, 1), (10, 0.01, 0)]
)
def test_a_gpus_room_is_what_is_free_within_the_share(gpu, free, share, room):
    """Of 80 GiB; torch holds 5, and 2 of them can be given back."""
    gpu.free, gpu.share = free * GIB, share
    assert room_on(CUDA) == pytest.approx(room * GIB, abs=1.0)


@pytest.mark.parametrize("is_told", [True, False])
def test_a_limit_is_kept_and_known_also_to_a_torch_that_does_not_say_it(gpu, is_told, monkeypatch):
    if not is_told:
        monkeypatch.delattr(torch.cuda, "get_per_process_memory_fraction")
    limit_memory(CUDA, None)
    assert gpu.share == 1.0 and room_on(CUDA) == 12 * GIB
    limit_memory(CUDA, 6.0)
    assert gpu.share == pytest.approx(6 / 80) and room_on(CUDA) == pytest.approx(3 * GIB, abs=1.0)
    limit_memory(CUDA, 1000.0)
    assert gpu.share == 1.0


def test_main_memory_has_what_is_available(monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=123, total=456))
    limit_memory(CPU, 6.0)
    assert room_on(CPU) == 123


@pytest.mark.parametrize(("limit", "room"), [("1000", 700), ("600", 300), ("200", 0), ("max", 800), (None, 800)])
def test_a_containers_limit_counts(tmp_path, monkeypatch, limit, room):
    """Of what it holds, files that nobody needs can go."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=800))
    monkeypatch.setattr(memory, "PROCESS_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "GROUPS", tmp_path)
    (tmp_path / "cgroup").write_text("1:cpu:/else\n0::/job\n")
    (tmp_path / "job").mkdir()
    (tmp_path / "job/memory.current").write_text("500\n")
    (tmp_path / "job/memory.stat").write_text("anon 250\ninactive_file 200\n")
    if limit is not None:
        (tmp_path / "job/memory.max").write_text(f"{limit}\n")
    assert room_on(CPU) == room


class TwoImages(CheckedDataset):
    """Two images of 2 x 3 pixels: 36 bytes of colors, 16 of offsets, 16 of widths."""

    sizes = ((3, 2), (3, 2))

    def __init__(self, is_readable: bool) -> None:
        self.is_readable = is_readable

    def __len__(self) -> int:
        return 2

    def get_data(self, index: int, image_type: str) -> dict:
        assert self.is_readable, "read though it does not fit"
        return {"image": torch.zeros(2, 3, 3, dtype=torch.uint8)}


@pytest.mark.parametrize(
    ("device", "mend"),
    [
        ("cuda:0", r"--pipeline\.datamanager\.images-on-gpu False"),
        ("meta", "main memory"),
        ("cpu", "--downscale-factor 2"),
    ],
)
def test_pixels_that_do_not_fit_are_refused_before_they_are_read(monkeypatch, device, mend):
    monkeypatch.setattr(memory, "room_on", lambda device: 67)
    with pytest.raises(InputError, match=rf"pixels of 2 images.*GiB.*{mend}"):
        PixelStore.load(TwoImages(is_readable=False), device)
    monkeypatch.setattr(memory, "room_on", lambda device: 68)
    if device != "cuda:0":
        store = PixelStore.load(TwoImages(is_readable=True), device)
        assert store.num_bytes == 68 and store.colors.device.type == device
