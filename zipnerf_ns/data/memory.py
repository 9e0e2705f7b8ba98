"""How much memory this process may still take on a device, and a share of a GPU for those who do not have it alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch

from zipnerf_ns.errors import InputError

GIB = 2**30
DEFAULT_POOL = (0, 0)
"""Torch's own pool of segments; others are those of captured graphs, which nobody else may use."""
PROCESS_GROUPS, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
"""Where Linux says which control group this process is in, and what the groups may take."""

_shares: dict[int, float] = {}
"""What :func:`limit_memory` gave each device, for a torch that does not say it (before 2.8)."""


def room_on(device: torch.device) -> int:
    """Bytes that this process may still take: of main memory what is available and its container leaves, of a GPU what
    its share leaves.

    What torch holds in reserve counts where it can be given back: whole free segments that are no graph's.
    """
    if device.type != "cuda":
        return int(min(psutil.virtual_memory().available, _left_by_container()))
    free, total = torch.cuda.mem_get_info(device)
    left = int(_share(device) * total) - torch.cuda.memory_reserved(device)
    return max(min(free, left) + unused_bytes(torch.cuda.memory_snapshot(), _index(device)), 0)


def _left_by_container() -> float:
    """Bytes of main memory below the limit of this process's control group; infinite where it has none.

    Containers and jobs have one, above which the kernel ends them however much the machine has.
    """
    left = math.inf
    with suppress(OSError, ValueError, KeyError, StopIteration):
        groups = PROCESS_GROUPS.read_text(encoding="ascii").splitlines()
        folder = GROUPS / next(line[3:] for line in groups if line.startswith("0::")).strip("/")
        # Files that were read lie in it, too, as long as nobody needs the room.
        notes = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
        used = int((folder / "memory.current").read_text(encoding="ascii")) - int(notes["inactive_file"])
        left = max(float((folder / "memory.max").read_text(encoding="ascii").replace("max", "inf")) - used, 0.0)
    return left


def unused_bytes(segments: Iterable[Mapping[str, Any]], index: int) -> int:
    """Bytes that torch can give back to a GPU's driver, or put together anew.

    A free piece of a segment that is in use counts only where segments are expandable: elsewhere no tensor larger than
    the piece finds a place in it.

    Args:
        segments: as ``torch.cuda.memory_snapshot`` lists them.
        index: of the GPU.
    """
    found = 0
    for segment in segments:
        if segment["device"] != index or tuple(segment.get("segment_pool_id", DEFAULT_POOL)) != DEFAULT_POOL:
            continue
        if segment.get("is_expandable"):
            found += sum(block["size"] for block in segment["blocks"] if block["state"] == "inactive")
        elif all(block["state"] == "inactive" for block in segment["blocks"]):
            found += segment["total_size"]
    return found


def limit_memory(device: torch.device, gib: float | None) -> None:
    """Lets torch take no more than so much of a GPU in this process; ``None`` changes nothing."""
    if gib is None or device.type != "cuda":
        return
    _, total = torch.cuda.mem_get_info(device)
    share = min(gib * GIB / total, 1.0)
    torch.cuda.set_per_process_memory_fraction(share, _index(device))
    _shares[_index(device)] = share


def check_room(what: str, needed: int, device: torch.device, mend: str) -> None:
    """Does nothing where so many bytes may still be taken.

    Raises:
        InputError: elsewhere, with both numbers.
    """
    room = room_on(device)
    if needed > room:
        raise InputError(f"{what} {needed / GIB:.1f} GiB, {device} has {room / GIB:.1f} GiB. {mend}")


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def _share(device: torch.device) -> float:
    ask = getattr(torch.cuda, "get_per_process_memory_fraction", None)
    return _shares.get(_index(device), 1.0) if ask is None else ask(_index(device))
