"""How training goes, told to a person: a clock that is honest about asynchronous steps, a line every few seconds, and
events on their way into TensorBoard's file, pictures beside the training.

To compress those of one evaluation takes a second or more, in which Python can launch hundreds of steps: Pillow lets it
go on meanwhile.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

# Not from where it lies: the two modules import each other, and only this one may come first.
from nerfstudio.configs.base_config import writer
from nerfstudio.engine.trainer import TRAIN_INTERATION_OUTPUT
from nerfstudio.utils.decorators import check_main_thread
from nerfstudio.utils.writer import EventName

from zipnerf_ns.engine.checkpoints import BackgroundWriter

Event = Any
"""A dictionary, as Nerfstudio's writer keeps it. (A checker of types that draws entries at random, as the tests' does,
would draw by another thread, and from the generator that training resumes with.)"""
IN_USE, RESERVED = "GPU Memory (MB)", "GPU Memory of torch (MB)"
"""TensorBoard's curves of what tensors took at the most, by Nerfstudio's name, and of what torch has of the driver."""


class TrainingClock:
    """Seconds spent on training steps, evaluations and the like left out.

    A step is over for Python long before the device has computed it. The clock therefore waits for the device whenever
    it is read, and whenever it stops or goes on.

    Args:
        synchronize: waits until the device has done all that it was given.
    """

    def __init__(self, synchronize: Callable[[], None]) -> None:
        self._synchronize = synchronize
        self._start = time.monotonic()
        self.paused = 0.0
        self.recurring = 0.0
        """Paused seconds that the rest of the training will need again and again."""

    def seconds(self) -> float:
        """Training time so far."""
        self._synchronize()
        return self.passed() - self.paused

    def passed(self) -> float:
        """All time so far, without waiting for the device."""
        return time.monotonic() - self._start

    @contextmanager
    def pause(self, recurs: bool = True) -> Iterator[None]:
        """What happens within is no training time.

        Args:
            recurs: it belongs to the run, as evaluations and checkpoints do.
        """
        self._synchronize()
        begin = time.monotonic()
        try:
            yield
        finally:
            self._synchronize()
            duration = time.monotonic() - begin
            self.paused += duration
            self.recurring += duration if recurs else 0.0


class StepTimer:
    """Mean training time of the steps between two readings.

    The first reading gives nothing: the steps up to it compiled kernels and grew the memory pool.

    Args:
        clock: is read.
    """

    def __init__(self, clock: TrainingClock) -> None:
        self.clock = clock
        self._last: tuple[int, float] | None = None

    def lap(self, steps: int) -> float | None:
        """Seconds a step since the last reading, which this one replaces; None at the first.

        Args:
            steps: done so far, more than at the last reading.
        """
        last, seconds = self._last, self.clock.seconds()
        self._last = steps, seconds
        return None if last is None else max(seconds - last[1], 1e-9) / (steps - last[0])


class ProgressLine:
    """Says step, speed, quality so far and time left; a line, not a redrawn screen, so that logs stay readable.

    Args:
        first_step, total_steps: the run trains steps first_step .. total_steps - 1.
        clock: started with the training.
        write: where lines go.
        interval: least seconds between two lines.
    """

    def __init__(
        self,
        first_step: int,
        total_steps: int,
        clock: TrainingClock,
        write: Callable[[str], None],
        interval: float = 10.0,
    ) -> None:
        self.first_step = first_step
        self.total_steps = total_steps
        self.clock = clock
        self.write = write
        self.interval = interval
        self.test_psnr: float | None = None
        self._train_psnr: float | None = None
        self._timer = StepTimer(clock)
        self._last_line = 0.0
        self._lines = 0

    def update(self, step: int, rays_per_step: int, metrics: Mapping[str, Tensor]) -> None:
        """To be called after every step; reads ``metrics`` and waits for the device after the first step and when a
        line is due, else only looks at the time."""
        # The first line comes soon: a person wants to see that something moves.
        due = min(self.interval, 2.0) if self._lines == 0 else self.interval
        is_due = step + 1 >= self.total_steps or self.clock.passed() - self._last_line >= due
        if not is_due and step > self.first_step:
            return
        seconds = self._timer.lap(step + 1)
        if not is_due:
            return
        psnr = float(metrics["psnr"]) if "psnr" in metrics else None
        if psnr is not None:
            # A single batch is noisy; the mean over the last few lines is not.
            self._train_psnr = psnr if self._train_psnr is None else 0.5 * (self._train_psnr + psnr)
        self._last_line = self.clock.passed()
        self._lines += 1
        self.write("  ".join(self._parts(step, rays_per_step, seconds)))

    def _parts(self, step: int, rays_per_step: int, seconds: float | None) -> Iterator[str]:
        """What the line says, with the seconds a step if they are known."""
        yield f"step {step + 1}/{self.total_steps} ({100.0 * (step + 1) / self.total_steps:.0f}%)"
        if seconds is not None:
            yield f"{1000.0 * seconds:.{0 if seconds >= 0.02 else 1}f} ms/step"
            yield f"{rays_per_step / seconds / 1000.0:.1f} k rays/s"
        known = {"train": self._train_psnr, "test": self.test_psnr}
        psnrs = ", ".join(f"{of} {psnr:.2f} dB" for of, psnr in known.items() if psnr is not None)
        if psnrs:
            yield f"PSNR {psnrs}"
        yield f"{format_duration(self.clock.passed())} passed"
        if seconds is not None:
            # Evaluations and checkpoints will go on taking the share of the time that they took so far.
            beside = self.clock.recurring / (step + 1 - self.first_step)
            yield f"{format_duration((seconds + beside) * (self.total_steps - step - 1))} left"


def format_duration(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, second = divmod(int(round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def take_pictures() -> list[Event]:
    """Takes the pictures out of Nerfstudio's waiting events; none if some writer is not TensorBoard's.

    Others want their events in the order of the steps, which pictures that come later would break.
    """
    known = (writer.TensorboardWriter, writer.LocalWriter)
    if not all(isinstance(event_writer, known) for event_writer in writer.EVENT_WRITERS):
        return []
    waiting = writer.EVENT_STORAGE
    # From behind and one by one: another thread may add events at the end.
    numbers = [index for index, event in enumerate(waiting) if event["write_type"] is writer.EventType.IMAGE]
    return [waiting.pop(index) for index in reversed(numbers)][::-1]


def write_pictures(pictures: list[Event]) -> None:
    """Writes what :func:`take_pictures` took."""
    for event in pictures:
        for event_writer in writer.EVENT_WRITERS:
            if isinstance(event_writer, writer.TensorboardWriter):
                event_writer.write_image(event["name"], event["event"], event["step"])


def hear_of_events_only_here() -> None:
    """TensorBoard's thread prints a stack trace of what the disk does not take, of which :class:`EventLog` tells."""
    others = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        is_of_events = type(arguments.thread).__module__.startswith("tensorboard.")
        if not (is_of_events and isinstance(arguments.exc_value, OSError)):
            others(arguments)

    if not getattr(others, "leaves_events", False):
        hook.leaves_events = True
        threading.excepthook = hook


class EventLog:
    """Nerfstudio's waiting events on their way to its writers, pictures beside the training.

    A disk that takes no more of them costs the curves from there on, not the training.

    Args:
        say: prints a line.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._pictures = BackgroundWriter()
        hear_of_events_only_here()

    def write(self) -> None:
        """Writes what waits; the viewer's thread adds to it, too."""
        if not writer.EVENT_STORAGE:
            return
        with self._given_up():
            pictures = take_pictures()
            if pictures:
                self._pictures.submit(lambda: write_pictures(pictures))
            writer.write_out_storage()

    def finish(self) -> None:
        """Waits until all is written."""
        with self._given_up():
            self._pictures.wait()
            for event_writer in writer.EVENT_WRITERS:
                if isinstance(event_writer, writer.TensorboardWriter):
                    event_writer.tb_writer.flush()

    @contextmanager
    def _given_up(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._say(f"Warning: no more events are written ({error}). The training goes on, its curves end here.")
            writer.EVENT_WRITERS.clear()
            writer.EVENT_STORAGE.clear()


@check_main_thread
def log_step(trainer: Any, step: int, rays: int, result: TRAIN_INTERATION_OUTPUT) -> None:
    """Writes what Nerfstudio writes of a step, with times that include the device's.

    Args:
        trainer: whose step it is.
        step: its number.
        rays: of the step, in all processes.
        result: of the step.
    """
    # Nerfstudio's local writer, which is off by default, looks there for the step.
    writer.GLOBAL_BUFFER["step"] = step
    seconds = trainer._log_timer.lap(step + 1)
    if seconds is not None:
        writer.put_time(EventName.ITER_TRAIN_TIME, seconds, step=step, update_eta=True)
        writer.put_time(EventName.TRAIN_RAYS_PER_SEC, rays / seconds, step=step)
    for name, scheduler in trainer.optimizers.schedulers.items():
        writer.put_scalar(name=f"learning_rate/{name}", scalar=scheduler.get_last_lr()[0], step=step)
    loss, loss_dict, metrics_dict = result
    writer.put_scalar(name="Train Loss", scalar=loss, step=step)
    writer.put_dict(name="Train Loss Dict", scalar_dict=loss_dict, step=step)
    writer.put_dict(name="Train Metrics Dict", scalar_dict=metrics_dict, step=step)
    writer.put_dict(name="Feature RMS", scalar_dict=trainer.pipeline.model.feature_sizes(), step=step)
    if trainer._device_type == "cuda":
        writer.put_scalar(name=IN_USE, scalar=torch.cuda.max_memory_allocated() / 2**20, step=step)
        writer.put_scalar(name=RESERVED, scalar=torch.cuda.memory_reserved() / 2**20, step=step)
