"""What makes checkpoints trustworthy: files that are whole or absent, and the state of every random generator.

They are written while the training goes on: a copy of the state takes a fraction of the time that the file takes. The
trainer here saves and resumes; how it trains is a matter of its own.
"""

from __future__ import annotations

import copy
import random
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nerfstudio.engine.trainer import Trainer
from nerfstudio.utils.decorators import check_main_thread
from nerfstudio.utils.rich_utils import CONSOLE

from zipnerf_ns.data.memory import room_on
from zipnerf_ns.engine.safety.files import is_whole, newest_whole, write_whole
from zipnerf_ns.errors import FULL, InputError, say, say_once, shorten

PARTS = ("step", "pipeline", "optimizers", "schedulers", "scalers", "rng")
"""What a checkpoint holds at least; newer ones also "data", of a run's data (:mod:`zipnerf_ns.data.trained`)."""
CHECKPOINT = re.compile(r"step-(\d+)\.ckpt")
"""The name of a checkpoint's file."""
LAST_TRIES, SECONDS_BETWEEN = 30, 10.0
"""How often, and after how long, the last checkpoint of a training is tried again where it cannot be written."""


def seed_all(seed: int) -> None:
    """Seeds every random generator that training draws from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def capture_rng() -> dict[str, Any]:
    """The state of every random generator that training draws from, in types that torch loads without pickle."""
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],
    }


def restore_rng(state: dict[str, Any], process: int = 0) -> None:
    """Sets the generators to a state from :func:`capture_rng`, whose first GPU is the one that trained.

    Args:
        state: of the first of several processes.
        process: number of this one; each draws numbers of its own, which follow from the state.
    """
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if process > 0:
        seed_all(int(torch.randint(2**31, ())) + process)
    elif state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


class NotWrittenError(OSError):
    """A checkpoint was not written."""


class BackgroundWriter:
    """Writes files by a thread of its own, one at a time, in the order in which they are asked for.

    Whoever asked hears of an error at the next :meth:`check`, :meth:`submit` or :meth:`wait`, once.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="writer")
        self._pending: Future | None = None

    @property
    def is_writing(self) -> bool:
        """Whether a file is not done yet."""
        return self._pending is not None and not self._pending.done()

    def submit(self, write: Callable[[], None]) -> None:
        """Begins to write; first waits for what is still being written, so that two snapshots are never held."""
        self.wait()
        self._pending = self._thread.submit(write)

    def check(self) -> None:
        """Raises what went wrong with the last file, if it is done; never waits."""
        if not self.is_writing:
            self.wait()

    def wait(self) -> None:
        """Waits for the last file; raises what went wrong with it."""
        pending = self._pending
        if pending is not None:
            # Still pending while this waits: an interrupted wait can be taken up again.
            pending.exception()
            self._pending = None
            pending.result()


class Snapshot:
    """A state as it is now, whatever becomes of its tensors; to be written by any thread.

    Tensors on a GPU are copied there, which takes a millisecond, if half of the free memory suffices for it; otherwise
    to main memory, which takes a hundred times as long.

    Args:
        state: nested dictionaries, lists and tuples of tensors and plain values.
    """

    def __init__(self, state: dict[str, Any]) -> None:
        self._device = next((tensor.device for tensor in _tensors(state) if tensor.is_cuda), None)
        if self._device is not None:
            if _fits_twice(state, self._device):
                # What is free may lie in pieces, or be taken meanwhile.
                with suppress(torch.cuda.OutOfMemoryError):
                    self.state: dict[str, Any] = _copy(state, None)
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


def _copy(value: Any, device: torch.device | None) -> Any:
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


def _fits_twice(state: dict[str, Any], device: torch.device) -> bool:
    """Whether half of the device's free memory is enough for a copy of what the state holds there."""
    needed = sum(tensor.numel() * tensor.element_size() for tensor in _tensors(state) if tensor.is_cuda)
    return 2 * needed <= room_on(device)


def load_checkpoint_file(path: Path, mapped: bool = False) -> dict[str, Any]:
    """Reads a checkpoint of this project's trainer.

    Args:
        path: the file.
        mapped: its tensors stay on the disk until they are looked at, which takes no memory.
    Raises:
        InputError: if the file is missing, cut short, altered or not a checkpoint.
    """
    if not path.is_file():
        raise InputError(f"checkpoint {path} does not exist. Look into the run's nerfstudio_models folder.")
    try:
        if not is_whole(path):
            raise InputError("checksum")
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:
        raise InputError(
            f"checkpoint {path} cannot be read: it is cut short, altered or not a checkpoint. "
            "Resume from an earlier one with --load-checkpoint, or train anew without it."
        ) from error
    absent = [key for key in PARTS if not isinstance(state, dict) or key not in state]
    if absent:
        raise InputError(f"checkpoint {path} lacks {shorten(absent)}: it is not of a training by this trainer.")
    return state


def checkpoints_in(folder: Path) -> dict[int, Path]:
    """The checkpoints in a folder by their steps; whatever else lies there is no concern of ours."""
    files = folder.iterdir() if folder.is_dir() else []
    named = ((CHECKPOINT.fullmatch(path.name), path) for path in files)
    return {int(match[1]): path for match, path in named if match is not None}


def checkpoint_of(folder: Path, step: int) -> Path:
    """The file of a step's checkpoint in a folder."""
    return folder / f"step-{step:09d}.ckpt"


def source_of(config: Any) -> Path | None:
    """The checkpoint that a training is to go on from; None if it begins anew.

    Args:
        config: the trainer's.
    Raises:
        InputError: if a folder is named that holds none, or none that is whole.
    """
    folder, step = config.load_dir, config.load_step
    if folder is None:
        return config.load_checkpoint
    if step is not None:
        return checkpoint_of(folder, step)
    found = checkpoints_in(folder)
    if not found:
        raise InputError(f"{folder} holds no checkpoint (step-*.ckpt). Give the run's nerfstudio_models folder.")
    return found[newest_whole(found)]


class ResumableTrainer(Trainer):
    """Saves and loads everything that training depends on.

    Whoever trains calls ``checkpoints.check`` in between and ``checkpoints.wait`` at the end, which raise what went
    wrong with writing. That a disk takes no checkpoint is no reason to stop: it is said once, and kept in ``unsaved``
    until one is written.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.checkpoints = BackgroundWriter()
        self.unsaved: NotWrittenError | None = None
        self._resumed_rng: dict[str, Any] | None = None

    def _load_checkpoint(self) -> None:
        """Loads a checkpoint strictly, random state included."""
        path = source_of(self.config)
        if path is None:
            CONSOLE.print("No checkpoint to load: training from scratch.")
            return
        state = load_checkpoint_file(path)
        absent = sorted(set(self.optimizers.optimizers) - set(state["optimizers"]))
        if absent:
            raise InputError(
                f"checkpoint {path} lacks the optimizer state of {', '.join(absent)}: it is of another configuration. "
                "Load it with the options it was trained with (its config.yml), or train anew without it."
            )
        self._start_step = state["step"] + 1
        self.pipeline.load_pipeline(state["pipeline"], state["step"])
        self.optimizers.load_optimizers(state["optimizers"])
        if self.config.load_scheduler:
            self.optimizers.load_schedulers(state["schedulers"])
        self.grad_scaler.load_state_dict(state["scalers"])
        self._resumed_rng = state["rng"]
        CONSOLE.print(f"Resuming after step {state['step']} of {path}")

    def save_checkpoint(self, step: int) -> None:
        """Writes a checkpoint so that a kill at any moment leaves either the old one or the new one, whole.

        Raises:
            NotWrittenError: if the disk takes none for minutes.
        """
        for tries in range(1, LAST_TRIES + 1):
            self.begin_checkpoint(step)
            self.checkpoints.wait()
            if self.unsaved is None:
                return
            if tries < LAST_TRIES:
                minutes = LAST_TRIES * SECONDS_BETWEEN / 60
                say_once(f"The last checkpoint is tried again for {minutes:.0f} minutes: free some space meanwhile.")
                time.sleep(SECONDS_BETWEEN)
        raise self.unsaved

    @check_main_thread
    def begin_checkpoint(self, step: int) -> None:
        """What :meth:`save_checkpoint` does, but the state is written while the training goes on."""
        # Before the copy is made, for there is memory for one.
        self.checkpoints.wait()
        pipeline = getattr(self.pipeline, "module", self.pipeline)
        snapshot = Snapshot(
            {
                "step": step,
                "pipeline": pipeline.state_dict(),
                "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.optimizers.items()},
                "schedulers": {name: scheduler.state_dict() for name, scheduler in self.optimizers.schedulers.items()},
                "scalers": self.grad_scaler.state_dict(),
                "rng": capture_rng(),
                "data": pipeline.datamanager.describe().state(),
            }
        )
        keeps_few = self.config.save_only_latest_checkpoint
        self.checkpoints.submit(lambda: self._write_checkpoint(snapshot, step, keeps_few))

    def _write_checkpoint(self, snapshot: Snapshot, step: int, keeps_few: bool) -> None:
        try:
            self._replace_checkpoints(snapshot, step, keeps_few)
        except OSError as error:
            if self.unsaved is None:
                say(
                    f"Warning: the checkpoint of step {step} cannot be written to {self.checkpoint_dir}: "
                    f"{error.strerror}. The training goes on, and tries again at the next."
                )
            self.unsaved = NotWrittenError(error.errno, error.strerror)
        else:
            self.unsaved = None

    def _replace_checkpoints(self, snapshot: Snapshot, step: int, keeps_few: bool) -> None:
        self.checkpoint_dir.mkdir(parents=True, exist_ok=True)
        path = checkpoint_of(self.checkpoint_dir, step)
        # Unfinished, it lies beside the folder, not in it: ns-eval takes any file in there for a checkpoint. Under one
        # name, so that what a kill has left is written over.
        unfinished = self.checkpoint_dir.parent / ".checkpoint.unfinished"
        others = checkpoints_in(self.checkpoint_dir) if keeps_few else {}
        others.pop(step, None)
        earlier = sorted((other for other in others if other < step), reverse=True)
        before = next((other for other in earlier if is_whole(others[other])), None)
        # Later ones are of a training that this one has left behind.
        spare = [other for number, other in others.items() if number != before]
        try:
            snapshot.write(path, unfinished)
        except OSError as error:
            if error.errno not in FULL or not spare:
                raise
            for other in spare:
                _remove(other)
            snapshot.write(path, unfinished)
        for other in spare:
            _remove(other)


def _remove(path: Path) -> None:
    # What another program holds open, as on Windows it may, goes with the next checkpoint.
    with suppress(OSError):
        path.unlink(missing_ok=True)
