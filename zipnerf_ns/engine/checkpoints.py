"""What makes checkpoints trustworthy: files that are whole or absent, and the state of every random generator.

They are written while the training goes on: a copy of the state takes a fraction of the time that the file takes.
"""

from __future__ import annotations

import copy
import os
import random
from contextlib import suppress
from pathlib import Path
from typing import Any, Dict, Iterator, Optional

import numpy as np
import torch
from torch import Tensor

from zipnerf_ns.errors import InputError, shorten


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


class Snapshot:
    """A state as it is now, whatever becomes of its tensors; to be written by any thread.

    Tensors on a GPU are copied there, which takes a millisecond, if half of the free memory suffices for it; otherwise
    to main memory, which takes a hundred times as long.

    Args:
        state: nested dictionaries, lists and tuples of tensors and plain values.
    """

    def __init__(self, state: Dict[str, Any]) -> None:
        self._device = next((tensor.device for tensor in _tensors(state) if tensor.is_cuda), None)
        if self._device is not None:
            if _fits_twice(state, self._device):
                # What is free may lie in pieces, or be taken meanwhile.
                with suppress(torch.cuda.OutOfMemoryError):
                    self.state: Dict[str, Any] = _copy(state, None)
                    self._copied = torch.cuda.current_stream(self._device).record_event()
                    return
            self._device = None
        self.state = _copy(state, torch.device("cpu"))

    def write(self, path: Path, unfinished: Path) -> None:
        """See :func:`write_whole`. Training's own work on the GPU need not wait for the copies to main memory."""
        if self._device is None:
            write_whole(self.state, path, unfinished)
            return
        stream = torch.cuda.Stream(self._device)
        stream.wait_event(self._copied)
        with torch.cuda.stream(stream):
            write_whole(self.state, path, unfinished)
        # Only then may the copies' memory be given to others.
        stream.synchronize()


def _copy(value: Any, device: Optional[torch.device]) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone() if device is None else value.detach().to(device, copy=True)
    if isinstance(value, dict):
        # With its own type and attributes: torch's state dictionaries carry their modules' versions.
        copied = copy.copy(value)
        for key, entry in value.items():
            copied[key] = _copy(entry, device)
        return copied
    if isinstance(value, (list, tuple)):
        return type(value)(_copy(entry, device) for entry in value)
    return copy.deepcopy(value)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _tensors(entry)


def _fits_twice(state: Dict[str, Any], device: torch.device) -> bool:
    """Whether half of the device's free memory is enough for a copy of what the state holds there.

    What torch holds in reserve does not count as free: it can be a captured graph's, which nobody else may use.
    """
    needed = sum(tensor.numel() * tensor.element_size() for tensor in _tensors(state) if tensor.is_cuda)
    free, _ = torch.cuda.mem_get_info(device)
    return 2 * needed <= free


def load_checkpoint_file(path: Path) -> Dict[str, Any]:
    """Reads a checkpoint of this project's trainer.

    Raises:
        InputError: if the file is missing, cut short or not a checkpoint.
    """
    if not path.is_file():
        raise InputError(f"checkpoint {path} does not exist. Look into the run's nerfstudio_models folder.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(
            f"checkpoint {path} cannot be read ({type(error).__name__}): it is cut short or not a checkpoint. "
            "Resume from an earlier one with --load-checkpoint, or train anew without it."
        ) from error
    absent = [key for key in ("step", "pipeline", "optimizers") if not isinstance(state, dict) or key not in state]
    if absent:
        raise InputError(f"checkpoint {path} lacks {shorten(absent)}: it is not a training checkpoint of Nerfstudio.")
    return state


def latest_checkpoint(folder: Path) -> Path:
    """The checkpoint with the highest step in a folder.

    Raises:
        InputError: if there is none.
    """
    found = sorted(folder.glob("step-*.ckpt")) if folder.is_dir() else []
    if not found:
        raise InputError(f"{folder} holds no checkpoint (step-*.ckpt). Give the run's nerfstudio_models folder.")
    return found[-1]
