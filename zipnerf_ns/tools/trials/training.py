"""Training by the clock through nerfstudio's own trainer: the clock stands still while views are rendered."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackLocation
from nerfstudio.scripts.train import _set_random_seed
from nerfstudio.utils import writer

from zipnerf_ns.tools.benchmark.timing import synchronize
from zipnerf_ns.tools.trials.views import without_own_lpips


class Clock:
    """Seconds that pass between start and stop, the device's work included."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._counted = 0.0
        self._started: float | None = None

    @property
    def seconds(self) -> float:
        """Counted so far; while it runs, without waiting for the device."""
        running = 0.0 if self._started is None else time.perf_counter() - self._started
        return self._counted + running

    def start(self) -> None:
        """Goes on counting, after the device has done what it was given."""
        synchronize(self.device)
        self._started = time.perf_counter()

    def stop(self) -> float:
        """Stands still, after the device has done what it was given; the seconds counted so far."""
        synchronize(self.device)
        self._counted, self._started = self.seconds, None
        return self._counted


@dataclass
class Course:
    """What happened in one training."""

    steps: int = 0
    """That were taken."""
    rays: int = 0
    """That were trained on; pixels, for methods that render whole pictures."""
    seconds: float = 0.0
    """By the clock, from the end of the first step on."""
    setup_seconds: float = 0.0
    """Of reading the data and building the model."""
    first_step_seconds: float = 0.0
    """Until the first step is done: compilation, data processes."""
    evaluation_seconds: float = 0.0
    """During which the clock stood still."""
    peak_gpu_bytes: int = 0
    """Allocated by torch at most in training; 0 without a GPU."""
    steps_per_second: float = 0.0
    """Of the later half of the steps: what is started in the first ones does not count."""
    curve: list[dict[str, float]] = field(default_factory=list)
    """Step, seconds and PSNR of held-out views at each moment."""


def set_up(config: Any, split: str = "test") -> tuple[Any, float]:
    """A trainer that is ready to train and writes nothing, and the seconds that took.

    Args:
        config: nerfstudio's TrainerConfig.
        split: of the held-out views.
    """
    # Nerfstudio keeps its writers for the whole process; those of an earlier trainer would be written to again.
    writer.EVENT_WRITERS.clear()
    writer.EVENT_STORAGE.clear()
    start = time.perf_counter()
    _set_random_seed(config.machine.seed)
    with without_own_lpips():
        trainer = config.setup(local_rank=0, world_size=1)
        trainer.setup(split)
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


class PeakMemory:
    """The most GPU memory that training had allocated; what evaluation allocates is not training's."""

    def __init__(self) -> None:
        self.bytes = 0
        self.begin()

    def begin(self) -> None:
        """Training begins, or goes on."""
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def end(self) -> None:
        """Training ends, or is interrupted."""
        if torch.cuda.is_available():
            self.bytes = max(self.bytes, torch.cuda.max_memory_allocated())


def train(
    trainer: Any,
    seconds: float | None = None,
    moments: int = 1,
    evaluate: Callable[[Any], float] | None = None,
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
    course = Course()
    planned = trainer.config.max_num_iterations
    clock, memory = Clock(trainer.device), PeakMemory()
    due = [0.5**power for power in range(moments - 1, 0, -1)] if evaluate is not None else []
    entered = time.perf_counter()
    middle: tuple[int, float] | None = None

    def after_step(step: int) -> None:
        nonlocal middle
        course.steps, course.rays = step + 1, course.rays + rays_of_step(trainer.pipeline)
        if step == 0:
            synchronize(trainer.device)
            course.first_step_seconds = time.perf_counter() - entered
            clock.start()
        done = step + 1 >= planned or (seconds is not None and clock.seconds >= seconds)
        share = (step + 1) / planned if seconds is None else clock.seconds / seconds
        if done:
            course.seconds = clock.stop()
            first, begin = middle or (0, 0.0)
            course.steps_per_second = max(step - first, 1) / max(course.seconds - begin, 1e-6)
            memory.end()
            trainer.stop_training = True
            return
        if middle is None and max(share, (step + 1) / planned) >= 0.5:
            # The device may lag far behind the processor, which only asks for a captured step to be replayed.
            middle = step, clock.stop()
            clock.start()
        if due and share >= due[0]:
            while due and share >= due[0]:
                due.pop(0)
            counted, start = clock.stop(), time.perf_counter()
            memory.end()
            course.curve.append({"step": step + 1, "seconds": counted, "psnr": evaluate(trainer.pipeline)})
            course.evaluation_seconds += time.perf_counter() - start
            memory.begin()
            clock.start()

    trainer.callbacks.append(TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN_ITERATION], after_step))
    trainer.train()
    course.peak_gpu_bytes = memory.bytes
    return course


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
    """From now on a training's n-th batch of rays depends on the seed and n alone, not on who else draws.

    Args:
        trainer: from :func:`set_up`.
        seed: of the generator of their own.
    """
    datamanager = trainer.pipeline.datamanager
    pixels = getattr(datamanager, "pixels", None)
    if pixels is not None:
        device = pixels.colors.device
        generator = torch.Generator(device).manual_seed(seed)
        drawn = torch.empty(datamanager.get_train_rays_per_batch(), dtype=torch.int64, device=device)

        def draw(step: int) -> None:
            # Before the step and into the same memory: a CUDA graph would not know this generator.
            torch.randint(len(pixels), drawn.shape, generator=generator, out=drawn)

        trainer.callbacks.append(TrainingCallback([TrainingCallbackLocation.BEFORE_TRAIN_ITERATION], draw))
        pixels.draw = lambda num_rays: drawn
        return
    drawn = datamanager.next_train

    def next_train(step: int) -> Any:
        # In 32 bits, all that torch takes of a seed on a CPU; a prime keeps seeds apart.
        own = (seed * 1_000_003 + step) % 2**32
        before = random.getstate()
        try:
            with torch.random.fork_rng(range(torch.cuda.device_count())):
                torch.manual_seed(own)
                # Nerfstudio's samplers draw from both.
                random.seed(own)
                return drawn(step)
        finally:
            random.setstate(before)

    datamanager.next_train = next_train
