"""What makes nerfstudio's programs start sooner."""

from __future__ import annotations

import os
import sys
import tarfile
from concurrent.futures import as_completed, wait
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from pathlib import Path
from traceback import walk_stack
from types import FrameType, SimpleNamespace

import torch

from nerfstudio.configs import external_methods
from nerfstudio.engine.trainer import Trainer
from nerfstudio.utils.rich_utils import CONSOLE, get_progress
from nerfstudio.viewer import viewer

from zipnerf_ns.engine.optimizers import DecayingAdam
from zipnerf_ns.ops import compile_ahead
from zipnerf_ns.render.chunks import evaluating

QUICK = 1.0
"""Seconds in which kernels are read from disk; what takes longer is compiled, and shown."""
PICTURE_SIDE = 32
"""Pixels of the longer side of a picture that is rendered for what it launches."""


def functions_from(frame: FrameType) -> list[SimpleNamespace]:
    """The function of a frame, its caller, and so on: of ``inspect.stack`` what nerfstudio reads."""
    return [SimpleNamespace(function=each.f_code.co_name) for each, _ in walk_stack(frame)]


def spare_nerfstudio_its_look_at_the_stack() -> None:
    """Nerfstudio 1.1.5 asks for its caller's name once for each method that others offer, and ``inspect.stack`` finds
    and reads the source of every function below it each time: a fifth of what a program's start takes.

    Nerfstudio loads its plugins before it lists those methods, so that importing ours is early enough.
    """
    if hasattr(external_methods, "inspect"):
        external_methods.inspect = SimpleNamespace(stack=lambda: functions_from(sys._getframe(1)))


@lru_cache(maxsize=1)
def open_once(path: Path) -> AbstractContextManager[tarfile.TarFile]:
    """An archive that stays open, with the list of its files, once it has been searched."""
    return nullcontext(tarfile.open(path))


def spare_viser_its_search_for_icons() -> None:
    """Viser 0.2.7 opens an archive of 4,290 icons, and lists them all, for each of the viewer's 17 buttons and tabs
    that show one: half of what the viewer's start takes."""
    icons = getattr(viewer.viser, "_icons", None)
    if hasattr(icons, "tarfile"):
        icons.tarfile = SimpleNamespace(open=open_once)


def show_images(trainer: Trainer) -> None:
    """Puts the training images into the viewer, for which Nerfstudio decodes each once more, one after the other."""
    data, threads = trainer.pipeline.datamanager, torch.get_num_threads()
    # For pictures as small as these, threads wait for each other ten times as long as they compute.
    torch.set_num_threads(1)
    try:
        trainer.viewer_state.init_scene(data.viewed_dataset(), trainer.training_state, data.eval_dataset)
    finally:
        torch.set_num_threads(threads)


def compile_kernels(trainer: Trainer) -> None:
    """Compiles what a training launches, by several threads; later ones find it on disk and are through in no time.

    What cannot be compiled, or brought to the device, is left to its launch, which says so or gives way to another.

    Args:
        trainer: set up, with a model that kernels compute.
    """
    with trainer.train_lock:
        # A picture of the viewer's would not be rendered.
        pending = compile_ahead(lambda: rehearse(trainer), torch.device(trainer.device))
    try:
        if wait(pending, timeout=QUICK).not_done and trainer.local_rank == 0:
            folder = os.environ.get("TRITON_CACHE_DIR", "~/.triton/cache")
            CONSOLE.log(f"Kernels are compiled once and kept in {folder} (TRITON_CACHE_DIR).", highlight=False)
            with get_progress(f"Compiling {len(pending)} kernels") as progress:
                for _ in progress.track(as_completed(pending), total=len(pending)):
                    pass
        wait(pending)
    finally:
        # Ctrl-C would wait for all of them.
        for each in pending:
            each.cancel()
    # Of what the rehearsal took.
    torch.cuda.empty_cache()


def rehearse(trainer: Trainer) -> None:
    """A training step and, if the run shows or measures any, a picture; what comes of them is forgotten.

    To be called where launches are noted and not made: values are changed by kernels alone.
    """
    pipeline, config, device = trainer.pipeline, trainer.config, torch.device(trainer.device)
    model = pipeline.model
    model.zipnerf.set_progress(trainer._start_step / config.max_num_iterations)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        pipeline.train()
        trainer.gradients.compute(trainer._start_step)
        if model.lens is not None:
            # Later steps have no gradient to rays.
            model.lens.is_learned = False
            trainer.gradients.compute(trainer._start_step)
        for optimizer in trainer.optimizers.optimizers.values():
            if isinstance(optimizer, DecayingAdam):
                optimizer.rehearse()
        if trainer.viewer_state is not None or config.steps_per_eval_image > 0:
            camera = pipeline.datamanager.train_dataset.cameras[:1]
            camera.rescale_output_resolution(PICTURE_SIDE / int(max(camera.width, camera.height)))
            with evaluating(model):
                model.get_outputs_for_camera(camera)
    trainer.optimizers.zero_grad_all()
    for table in model.zipnerf.tables():
        table.forget()
