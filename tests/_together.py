"""Processes of a training, for tests, that exchange over gloo; otherwise as Nerfstudio's launcher starts them.

They are copies of one that has imported everything, and done nothing: where torch has computed gradients already, a
copy of the process cannot.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from _scenes import free_port

from nerfstudio.scripts.train import _set_random_seed

from zipnerf_ns.engine.trainer import ZipNerfTrainer, ZipNerfTrainerConfig

PATIENCE = 120.0
"""Seconds after which processes that do not end fail the test."""


class Ended(NamedTuple):
    """What has become of a process."""

    code: int
    """Negative for a signal."""
    result: Any
    """What its work gave; None if it did not come back."""
    said: str
    """Its standard output and error."""


def together(folder: Path, work: Callable[..., Any], *arguments: Any, count: int = 2) -> list[Ended]:
    """Does some work in several processes at once: ``work(rank, *arguments)``.

    Args:
        folder: for what they say and what comes of it; made if it is not there.
        work: what it gives must be loaded by torch again.
        count: of processes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    start, port = multiprocessing.get_context("forkserver"), free_port()
    start.set_forkserver_preload(["nerfstudio.scripts.train", "zipnerf_ns.config"])
    places = [folder / f"result_{rank}" for rank in range(count)]
    processes = [
        start.Process(target=_run, args=(rank, count, port, place, work, arguments))
        for rank, place in enumerate(places)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
    stuck = [process for process in processes if process.is_alive()]
    for process in stuck:
        process.kill()
        process.join()
    said = [place.with_suffix(".log").read_text() for place in places]
    assert not stuck, "\n".join(said)
    results = [torch.load(place, weights_only=False) if place.exists() else None for place in places]
    return [Ended(process.exitcode, *rest) for process, *rest in zip(processes, results, said, strict=True)]


def results(ended: list[Ended]) -> list[Any]:
    """What came of work that must have succeeded everywhere."""
    assert all(each.code == 0 for each in ended), "\n".join(each.said for each in ended)
    return [each.result for each in ended]


def _run(rank: int, count: int, port: int, place: Path, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    log = os.open(place.with_suffix(".log"), os.O_CREAT | os.O_WRONLY)
    os.dup2(log, 1), os.dup2(log, 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
    torch.set_num_threads(1)
    code = 0
    try:
        url = f"tcp://127.0.0.1:{port}"
        dist.init_process_group("gloo", init_method=url, rank=rank, world_size=count)
        torch.save(work(rank, *arguments), place)
        dist.barrier()
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
        code = 3
    sys.stdout.flush(), sys.stderr.flush()
    # Threads that still wait for others would keep it.
    os._exit(code)


def start_one(rank: int, config: ZipNerfTrainerConfig, seed: int = 0) -> ZipNerfTrainer:
    """One process's trainer, as ``ns-train --machine.num-devices`` sets it up."""
    _set_random_seed(seed + rank)
    config.save_config()
    trainer = config.setup(local_rank=rank, world_size=dist.get_world_size())
    trainer.setup()
    return trainer
