"""Training by the clock through nerfstudio's own trainer: the clock stands still while views are rendered."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torchmetrics.image import lpip

from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackLocation
from nerfstudio.scripts.train import _set_random_seed
from nerfstudio.utils import writer

from zipnerf_ns.data.disk.window import Window
from zipnerf_ns.tools.benchmark.timing import synchronize


@dataclass
class Course:
    """What happened in one training."""

    steps: int = 0
    """Number of steps that were taken."""
    rays: int = 0
    """Number of rays that were trained on; pixels, for methods that render whole pictures."""
    seconds: float = 0.0
    """Seconds of training by the clock, from the end of the first step on."""
    setup_seconds: float = 0.0
    """Seconds taken by reading the data and building the model."""
    first_step_seconds: float = 0.0
    """Seconds until the first step is done: compilation, data processes."""
    evaluation_seconds: float = 0.0
    """Seconds during which the clock stood still."""
    peak_gpu_bytes: int = 0
    """Bytes that torch has allocated at most in training; 0 without a GPU."""
    steps_per_second: float = 0.0
    """The later half's speed: what is started in the first steps does not count."""
    curve: list[dict[str, float]] = field(default_factory=list)
    """Step, seconds and PSNR of held-out views at each moment."""


def set_up(config: Any) -> tuple[Any, float]:
    """A trainer of a TrainerConfig that is ready to train and writes nothing, and the seconds that took."""
    # Nerfstudio keeps its writers for the whole process; those of an earlier trainer would be written to again.
    writer.EVENT_WRITERS.clear()
    writer.EVENT_STORAGE.clear()
    start = time.perf_counter()
    _set_random_seed(config.machine.seed)
    # Other methods build an LPIPS into their models, which would download weights for it; ours measures all.
    own = lpip.LearnedPerceptualImagePatchSimilarity
    lpip.LearnedPerceptualImagePatchSimilarity = lambda **_: nn.Module()
    try:
        trainer = config.setup(local_rank=0, world_size=1)
        trainer.setup("test")
    finally:
        lpip.LearnedPerceptualImagePatchSimilarity = own
    trainer.save_checkpoint = trainer.begin_checkpoint = lambda step: None
    synchronize(trainer.device)
    return trainer, time.perf_counter() - start


def release(trainer: Any) -> None:
    """Frees a trainer's memory and ends its data processes."""
    for process in getattr(trainer.pipeline.datamanager, "data_procs", ()):
        process.terminate()
        process.join()
    trainer.callbacks = []
    del trainer.pipeline, trainer.optimizers
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def train(
    trainer: Any, seconds: float | None = None, moments: int = 1, evaluate: Callable[[Any], float] | None = None
) -> Course:
    """Trains to the configured number of steps, or until the clock has counted the seconds.

    The clock starts when the first step is done, so that what is compiled or started in it is not counted.

    Args:
        trainer: from :func:`set_up`.
        seconds: at most; None for all steps.
        moments: how often views are rendered, at 1/2, 1/4, 1/8 ... of the training; the end itself, which is one of
            them, is left to the caller.
        evaluate: gives the held-out views' PSNR from the pipeline; None renders nothing.
    """
    due = [0.5**power for power in range(moments - 1, 0, -1)] if evaluate is not None else []
    _forget_memory()
    watch = _Watch(trainer, seconds, due, evaluate)
    after_step = TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN_ITERATION], watch.after_step)
    trainer.callbacks.append(after_step)
    trainer.train()
    return watch.course


class _Watch:
    """Notes a training's course after each step, renders the moments that are due, and ends it in time."""

    def __init__(
        self, trainer: Any, seconds: float | None, due: list[float], evaluate: Callable[[Any], float] | None
    ) -> None:
        self.trainer, self.seconds, self.due, self.evaluate = trainer, seconds, due, evaluate
        self.course = Course()
        self.entered = self.started = time.perf_counter()
        self.middle: tuple[int, float] | None = None

    def counted(self) -> float:
        """The clock's seconds so far; while the device works on, it may lag far behind the processor."""
        return time.perf_counter() - self.started - self.course.evaluation_seconds

    def counted_exactly(self) -> float:
        """The same once the device has done its work; notes the memory that this took."""
        synchronize(self.trainer.device)
        self.course.peak_gpu_bytes = max(self.course.peak_gpu_bytes, torch.cuda.max_memory_allocated())
        return self.counted()

    def after_step(self, step: int) -> None:
        course = self.course
        course.steps, course.rays = step + 1, course.rays + rays_of_step(self.trainer.pipeline)
        if step == 0:
            synchronize(self.trainer.device)
            self.started = time.perf_counter()
            course.first_step_seconds = self.started - self.entered
        steps_done = (step + 1) / self.trainer.config.max_num_iterations
        share = steps_done if self.seconds is None else self.counted() / self.seconds
        if max(share, steps_done) >= 1.0:
            self._end(step)
            return
        if self.middle is None and max(share, steps_done) >= 0.5:
            self.middle = step, self.counted_exactly()
        if self.due and share >= self.due[0]:
            self.due = [moment for moment in self.due if moment > share]
            self._render(step)

    def _end(self, step: int) -> None:
        self.course.seconds = self.counted_exactly()
        first, begin = self.middle or (0, 0.0)
        self.course.steps_per_second = max(step - first, 1) / max(self.course.seconds - begin, 1e-6)
        self.trainer.stop_training = True

    def _render(self, step: int) -> None:
        now = self.counted_exactly()
        self.course.curve.append({"step": step + 1, "seconds": now, "psnr": self.evaluate(self.trainer.pipeline)})
        synchronize(self.trainer.device)
        self.course.evaluation_seconds += self.counted() - now
        # What evaluation allocates is not training's.
        _forget_memory()


def _forget_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def rays_of_step(pipeline: Any) -> int:
    """Rays that the latest step trained on; splatfacto's are the pixels of its picture, at its resolution."""
    if renders_pictures(pipeline):
        height, width = pipeline.model.last_size
        return height * width
    return pipeline.datamanager.get_train_rays_per_batch()


def renders_pictures(pipeline: Any) -> bool:
    """Whether the method renders whole pictures, as splatfacto does, and not rays."""
    return hasattr(pipeline.model, "last_size")


def draw_same_rays(trainer: Any, seed: int) -> None:
    """Makes a training's n-th batch of rays depend on the seed and n alone, not on who else draws.

    What comes from a disk follows from n anyhow.

    Args:
        trainer: from :func:`set_up`.
        seed: of the generator of their own.
    """
    datamanager = trainer.pipeline.datamanager
    pixels = getattr(datamanager, "pixels", None)
    if isinstance(pixels, Window):
        return
    if pixels is None:

        def draw(step: int) -> None:
            # In 32 bits, all that torch takes of a seed on a CPU; a prime keeps seeds apart.
            own = (seed * 1_000_003 + step) % 2**32
            # Nerfstudio's samplers draw from both.
            torch.manual_seed(own)
            random.seed(own)

    else:
        device = pixels.colors.device
        generator = torch.Generator(device).manual_seed(seed)
        drawn = torch.empty(datamanager.get_train_rays_per_batch(), dtype=torch.int64, device=device)
        pixels.draw = lambda num_rays: drawn

        def draw(step: int) -> None:
            # Before the step and into the same memory: a CUDA graph would not know this generator.
            torch.randint(len(pixels), drawn.shape, generator=generator, out=drawn)

    trainer.callbacks.append(TrainingCallback([TrainingCallbackLocation.BEFORE_TRAIN_ITERATION], draw))
