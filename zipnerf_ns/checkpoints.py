"""What makes checkpoints trustworthy: files that are whole or absent, and the state of every random generator."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any, Dict

import numpy as np
import torch


def write_whole(state: Dict[str, Any], path: Path, unfinished: Path) -> None:
    """Writes a state so that a kill at any moment leaves ``path`` as it was or complete.

    Args:
        state: what torch.save takes.
        path: the file.
        unfinished: where it grows; on the same file system.
    """
    with open(unfinished, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)


def capture_rng() -> Dict[str, Any]:
    """The state of every random generator that training draws from, in types that torch loads without pickle."""
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_rng(state: Dict[str, Any]) -> None:
    """Sets the generators to a state from :func:`capture_rng`; CUDA's only where the number of devices is the same."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
