"""Training by the clock: what is counted, when views are rendered, which rays are drawn."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from _scenes import make_datamanager, tiny_config, write_scene

from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackLocation

from zipnerf_ns.data.disk.window import PixelsConfig, Window
from zipnerf_ns.tools.trials import training as trial_training
from zipnerf_ns.tools.trials import worker as trial_worker
from zipnerf_ns.tools.trials.config import Prepared
from zipnerf_ns.tools.trials.training import Course, draw_same_rays, set_up, train
from zipnerf_ns.tools.trials.trial import Trial

STEP, FIRST_STEP, EVALUATION = 1.0, 50.0, 7.0
"""Seconds that each takes in the tests' own time."""


class OwnTime:
    """A clock that goes only when told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(trial_training.time, "perf_counter", lambda: self.now)


class OwnTrainer:
    """Nerfstudio's loop, with steps that take known times."""

    device = "cpu"

    def __init__(self, time: OwnTime, steps: int, slow_steps: int = 0) -> None:
        self.time, self.callbacks, self.slow_steps = time, [], slow_steps
        self.config = SimpleNamespace(max_num_iterations=steps)
        manager = SimpleNamespace(get_train_rays_per_batch=lambda: 100)
        self.pipeline = SimpleNamespace(datamanager=manager, model=SimpleNamespace())
        self.taken = 0

    def train(self) -> None:
        self.stop_training = False
        for step in range(self.config.max_num_iterations):
            if self.stop_training:
                break
            self.time.now += FIRST_STEP if step == 0 else 5.0 * STEP if step < self.slow_steps else STEP
            self.taken += 1
            for callback in self.callbacks:
                callback.run_callback(step)


def evaluation(time: OwnTime, at: list[float]) -> Callable:
    def evaluate(pipeline) -> float:
        at.append(time.now)
        time.now += EVALUATION
        return 20.0 + len(at)

    return evaluate


@pytest.fixture
def own_time(monkeypatch) -> OwnTime:
    return OwnTime(monkeypatch)


def test_steps_are_all_taken_and_evaluation_is_not_counted(own_time):
    trainer = OwnTrainer(own_time, 17)
    course = train(trainer, None, 4, evaluation(own_time, []))
    assert (course.steps, course.rays, trainer.taken) == (17, 1700, 17)
    assert course.first_step_seconds == FIRST_STEP and course.seconds == 16 * STEP
    assert course.evaluation_seconds == 3 * EVALUATION
    assert [point["step"] for point in course.curve] == [3, 5, 9]
    assert [point["seconds"] for point in course.curve] == [2.0, 4.0, 8.0]
    assert [point["psnr"] for point in course.curve] == [21.0, 22.0, 23.0]


def test_the_clock_ends_a_training(own_time):
    """After sixteen seconds of training, whatever evaluation and the first step took."""
    trainer = OwnTrainer(own_time, 1000)
    course = train(trainer, 16.0, 3, evaluation(own_time, []))
    assert course.seconds == 16.0 and course.steps == trainer.taken == 17
    assert [point["seconds"] for point in course.curve] == [4.0, 8.0]


def test_a_training_that_ends_before_its_time(own_time):
    course = train(OwnTrainer(own_time, 5), 100.0, 4, evaluation(own_time, []))
    assert (course.steps, course.seconds, course.curve) == (5, 4.0, [])


@pytest.mark.parametrize("steps,seconds", [(40, None), (40, 500.0), (1000, 60.0)])
def test_what_starts_in_the_first_steps_is_not_the_speed(own_time, steps, seconds):
    course = train(OwnTrainer(own_time, steps, slow_steps=6), seconds)
    assert course.steps_per_second == pytest.approx(1.0 / STEP)
    assert (course.steps - 1) / course.seconds < 0.8 / STEP


def test_evaluation_in_the_later_half_does_not_slow_it(own_time):
    course = train(OwnTrainer(own_time, 40), None, 4, evaluation(own_time, []))
    assert course.steps_per_second == pytest.approx(1.0 / STEP)


def test_memory_of_evaluation_is_not_trainings(own_time, monkeypatch):
    """Training holds 5 of something at most, a rendering in between 9."""
    most = [0]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: most.__setitem__(0, 0))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: most[0])

    def holding(amount: int, rest: Callable) -> Callable:
        def hold(*arguments):
            most[0] = max(most[0], amount)
            return rest(*arguments)

        return hold

    trainer = OwnTrainer(own_time, 9)
    trainer.pipeline.datamanager.get_train_rays_per_batch = holding(5, lambda: 100)
    assert train(trainer, None, 2, holding(9, evaluation(own_time, []))).peak_gpu_bytes == 5


def test_nothing_is_rendered_without_being_asked(own_time):
    course = train(OwnTrainer(own_time, 8), None, 4, None)
    assert course.curve == [] and course.evaluation_seconds == 0.0


def test_moments_that_pass_together_are_one(own_time):
    """With few steps several shares are reached at once: rendering twice would show nothing new."""
    at: list[float] = []
    train(OwnTrainer(own_time, 3), None, 6, evaluation(own_time, at))
    assert len(at) == 2


def test_rays_of_methods_that_render_pictures(own_time):
    trainer = OwnTrainer(own_time, 2)
    trainer.pipeline.model.last_size = (30, 20)
    assert train(trainer).rays == 1200


def test_a_trial_holds_its_pixels_as_any_training_does(tmp_path, fresh_writers):
    """Though it is measured on the test split, as programs are that do not train; without them no step is captured."""
    trainer, _ = set_up(tiny_config(write_scene(tmp_path / "scene"), tmp_path))
    assert trainer.pipeline.datamanager.test_mode == "test"
    assert len(trainer.pipeline.datamanager.pixels) == 6 * 16 * 24


class Loop:
    """A trainer's part in drawing: what is called before a step, and the step's batch."""

    def __init__(self, manager: Any, seed: int) -> None:
        self.callbacks: list[TrainingCallback] = []
        self.pipeline = SimpleNamespace(datamanager=manager)
        draw_same_rays(self, seed)

    def next_train(self, step: int) -> tuple[Any, Any]:
        for callback in self.callbacks:
            callback.run_callback_at_location(step, TrainingCallbackLocation.BEFORE_TRAIN_ITERATION)
        return self.pipeline.datamanager.next_train(step)


def test_same_pixels_are_drawn_evenly_and_into_the_same_memory(tmp_path):
    """A captured step is replayed without Python: it finds what was drawn before it where the capture found it."""
    rays, batches = 4096, 40
    manager = make_datamanager(write_scene(tmp_path / "scene"), train_num_rays_per_batch=rays)
    loop, count = Loop(manager, 3), len(manager.pixels)
    captured, counts = manager.pixels.draw(rays), torch.zeros(count, dtype=torch.float64)
    for step in range(batches):
        loop.next_train(step)
        counts += torch.bincount(captured, minlength=count)
    expected = rays * batches / count
    # Chi squared has the mean count - 1 and the variance twice that.
    chi_squared = float(((counts - expected) ** 2 / expected).sum())
    assert abs(chi_squared - count + 1) < 5.0 * (2.0 * count) ** 0.5


def test_what_a_disk_gives_is_the_same_anyhow(tmp_path):
    pixels = PixelsConfig("disk", buffer=1e-9)
    manager = make_datamanager(write_scene(tmp_path / "scene"), pixels=pixels, train_num_rays_per_batch=64)
    loop, draw = Loop(manager, 3), Window.draw
    assert not loop.callbacks and manager.pixels.draw == draw.__get__(manager.pixels)


@pytest.mark.parametrize("has_store", [True, False])
def test_same_rays_whoever_else_draws(tmp_path, has_store):
    """The same pixels for the same seed and batch, other ones for others; where we draw, the rest does as ever."""
    scene = write_scene(tmp_path / "scene")
    # Patches are drawn by Nerfstudio's own sampler.
    changes = {} if has_store else {"patch_size": 8, "train_num_rays_per_batch": 2048}
    managers = []
    for _ in range(3):
        # As every trial's set-up does: Nerfstudio shuffles the images.
        random.seed(1)
        managers.append(make_datamanager(scene, **changes))
    assert all((manager.pixels is not None) == has_store for manager in managers)
    loops = [Loop(manager, seed) for manager, seed in zip(managers, (5, 5, 6), strict=True)]
    drawn = []
    for loop in loops:
        torch.manual_seed(len(drawn))
        torch.rand(len(drawn) + 1)
        drawn.append([loop.next_train(step)[1]["indices"] for step in (0, 1)])
    assert all(torch.equal(first, second) for first, second in zip(drawn[0], drawn[1], strict=True))
    assert not torch.equal(drawn[0][0], drawn[0][1]) and not torch.equal(drawn[0][0], drawn[2][0])
    if not has_store:
        return
    torch.manual_seed(3)
    loops[0].next_train(9)
    after = torch.rand(4)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(4))


def test_steps_that_fit_are_those_of_a_rehearsal(monkeypatch):
    """The warm-up says how many steps make a rehearsal, and the rehearsal's speed how many make the training."""
    seen = []
    prepared = Prepared(None, False, False, [])
    monkeypatch.setattr(trial_worker, "set_steps", lambda prepared, steps, stretch: (steps, stretch))
    monkeypatch.setattr(trial_worker, "set_up", lambda config: (seen.append(config) or config, 1.0))
    monkeypatch.setattr(trial_worker, "release", lambda trainer: None)
    # Ten steps a second in the warm-up; half as fast over a whole schedule.
    monkeypatch.setattr(trial_worker, "train", lambda trainer, seconds: Course(steps_per_second=5.0))
    for seconds, rehearsal, fitting in ((120.0, 100, 600), (12.0, 20, 60), (1.0, 10, 5)):
        seen.clear()
        trial = Trial(scene="", method="", seconds=seconds)
        steps = trial_worker.steps_that_fit(trial, prepared, Course(steps_per_second=10.0))
        assert seen == [(rehearsal, True)] and steps == fitting
