"""How the processes of a training find each other, and how all of them end when one is lost.

Nerfstudio's launcher starts and joins processes itself; torchrun only starts them, each as a training of its own.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from datetime import timedelta
from pathlib import Path
from threading import Event, Thread
from typing import Any

import torch
import torch.distributed as dist

from nerfstudio.utils.comms import is_dist_avail_and_initialized

from zipnerf_ns.engine.checkpoints import seed_all
from zipnerf_ns.engine.messages import mute, process_lost, raise_for_user
from zipnerf_ns.engine.safety.stopping import noted_elsewhere
from zipnerf_ns.errors import InputError

HEARTBEAT = 1.0
"""Seconds between two signs of life."""
SILENCE = timedelta(minutes=5)
"""Time after which a silent process counts as lost: its machine is, or it hangs."""
LOST = 75
"""Exit code of a process that ends because another one was lost (sysexits.h: try again)."""
PAUSE = timedelta(days=1)
"""Time for which the first process may evaluate, or stand still in the viewer, while the others wait."""
GRACE = 3.0
"""Seconds in which launchers see for themselves whom they have lost, say so, and end the others."""
LEAVING = 25.0
"""Seconds in which processes that are asked to end agree and save: torchrun ends them by force after 30."""


def join(machine: Any) -> None:
    """Joins the processes that torchrun has started, if it has started any.

    Args:
        machine: its part of the trainer's configuration.
    Raises:
        InputError: if the configuration asks for processes beside them, or there are fewer GPUs.
    """
    if not _is_to_join():
        return
    if machine.num_devices * machine.num_machines > 1:
        raise InputError(
            "torchrun has started a process for each GPU already: leave out --machine.num-devices and "
            "--machine.num-machines, or torchrun."
        )
    is_cuda = machine.device_type == "cuda"
    _join(is_cuda, "nccl" if is_cuda else "gloo")


def join_to_look() -> bool:
    """Joins the processes that torchrun has started to look at a run; whether it has started any.

    Raises:
        InputError: if there are fewer GPUs.
    """
    if not _is_to_join():
        return False
    is_cuda = torch.cuda.is_available()
    _join(is_cuda, "cpu:gloo,cuda:nccl" if is_cuda else "gloo")
    return True


def _is_to_join() -> bool:
    """Whether torchrun has started this process among others, which it has not joined yet."""
    is_joined = is_dist_avail_and_initialized()
    return not is_joined and "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ["WORLD_SIZE"]) > 1


def _join(is_cuda: bool, backend: str) -> None:
    here = int(os.environ["LOCAL_RANK"])
    if is_cuda and here >= torch.cuda.device_count():
        count, found = os.environ["LOCAL_WORLD_SIZE"], torch.cuda.device_count()
        raise InputError(f"torchrun --nproc-per-node {count}: there are {found} GPUs here. Give {found}.")
    if is_cuda:
        torch.cuda.set_device(here)
    if here > 0:
        mute()
    dist.init_process_group(backend, timeout=PAUSE)


def place(local_rank: int, world_size: int, machine: Any) -> tuple[int, int]:
    """Which of this machine's processes this one is, and how many there are on all machines.

    Args:
        local_rank, world_size: as Nerfstudio's launcher says, to which torchrun's processes are single ones.
        machine: its part of the trainer's configuration.
    """
    if world_size == 1 and is_dist_avail_and_initialized():
        local_rank, world_size = int(os.environ["LOCAL_RANK"]), dist.get_world_size()
        # Other random numbers in each, as Nerfstudio's launcher has it.
        seed_all(machine.seed + dist.get_rank())
    elif local_rank > 0:
        mute()
    if world_size > 1 and machine.device_type == "cuda":
        # Nerfstudio leaves the first GPU the current one of every process: there graphs would be captured.
        torch.cuda.set_device(local_rank)
    return local_rank, world_size


def agree(value: str) -> str:
    """The first process's value."""
    if not is_dist_avail_and_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


class Watch:
    """Ends this process when another one of the training is lost, and keeps it until all are done.

    On a GPU nobody else would notice: a captured step waits for the lost process's gradients for ever. A thread
    therefore exchanges signs of life by itself, over the network.

    Args:
        checkpoints: the run's folder of checkpoints, of which the last one serves then.
    """

    def __init__(self, checkpoints: Path) -> None:
        self._checkpoints = checkpoints
        self._group = dist.new_group(backend="gloo", timeout=SILENCE)
        self._stops = dist.new_group(backend="gloo", timeout=PAUSE)
        self._done, self._lost = Event(), Event()
        self._thread = Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()
        if not _has_launcher():
            self._listen()

    def __enter__(self) -> None:
        """Within is what the processes do together."""

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.finish()
        elif issubclass(kind, Exception) and self._lost.wait(GRACE):
            # The error only follows from another one's loss, which ends this process.
            self._thread.join()

    def agree(self, heard: int | None) -> int | None:
        """The signal for which all end: asked of all at the same step, so that none waits for another's next one.

        Args:
            heard: by this process.
        """
        number = torch.tensor(heard or 0)
        dist.all_reduce(number, dist.ReduceOp.MAX, group=self._stops)
        return int(number) or None

    def finish(self) -> None:
        """Waits until all are done: the first process may still be saving, or show the viewer."""
        self.leave()
        self._thread.join()
        if not _has_launcher():
            dist.destroy_process_group()

    def leave(self) -> None:
        """From now on the others are no concern of this process."""
        self._done.set()

    def _run(self) -> None:
        try:
            while not self._are_all_done():
                pass
        except RuntimeError:
            self._end()

    def _are_all_done(self) -> bool:
        done = torch.tensor(int(self._done.wait(HEARTBEAT)))
        dist.all_reduce(done, dist.ReduceOp.MIN, group=self._group)
        return bool(done)

    def _listen(self) -> None:
        """Tells what there is to tell also where torchrun ends this process before it has noticed anything.

        Python's own handlers would wait for the main thread, which may be waiting for the device.
        """
        heard, told = os.pipe()
        os.set_blocking(told, False)
        signal.signal(signal.SIGTERM, noted_elsewhere)
        signal.set_wakeup_fd(told)

        def wait() -> None:
            while os.read(heard, 1)[0] != signal.SIGTERM:
                pass
            # While it trains, the processes agree to end, unless one is lost.
            if signal.getsignal(signal.SIGTERM) is noted_elsewhere or not self._done.wait(LEAVING):
                self._end()

        Thread(target=wait, name="listener", daemon=True).start()

    def _end(self) -> None:
        if self._done.is_set():
            return
        self._lost.set()
        if _has_launcher() or not _is_first_to_tell():
            # The launcher has lost a process, too, and tells.
            time.sleep(GRACE)
            os._exit(LOST)
        try:
            raise_for_user(process_lost(None, self._checkpoints))
        finally:
            os._exit(LOST)


def _has_launcher() -> bool:
    """Whether Nerfstudio's launcher has started this process, which it also ends."""
    return multiprocessing.parent_process() is not None


def _is_first_to_tell() -> bool:
    """Whether no other process that torchrun has started has told what there is to tell."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        store = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=GRACE))
        return store.add("zipnerf_ns/told", 1) == 1
    except RuntimeError:
        return True
