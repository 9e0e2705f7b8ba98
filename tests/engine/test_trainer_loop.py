"""The training loop: the same numbers as Nerfstudio's, without its waiting, its events and its Python in every step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from _scenes import checkpoint, load, start, tiny_config, train, write_scene
from torch.utils._python_dispatch import TorchDispatchMode

from nerfstudio.configs.base_config import LocalWriterConfig, LoggingConfig
from nerfstudio.engine.trainer import Trainer
from nerfstudio.utils import writer

from zipnerf_ns.engine import trainer as trainer_module
from zipnerf_ns.engine.trainer import ZipNerfTrainer

pytestmark = pytest.mark.usefixtures("fresh_writers")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scene(tmp_path_factory.mktemp("loop") / "scene", sizes=[(36, 32)] * 8)


def logging(every: int, **changes: Any) -> LoggingConfig:
    """Events every so many steps."""
    return LoggingConfig(**{"steps_per_log": every, "local_writer": LocalWriterConfig(enable=False), **changes})


class Event(NamedTuple):
    name: str
    value: Any
    step: int


class Recorder(writer.Writer):
    """An event writer that keeps what it is given."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def write_scalar(self, name: str, scalar: Any, step: int) -> None:
        self.events.append(Event(name, float(scalar), step))

    def write_image(self, name: str, image: torch.Tensor, step: int) -> None:
        self.events.append(Event(name, image.shape, step))

    def write_config(self, name: str, config_dict: dict[str, Any], step: int) -> None:
        pass

    def steps(self, name: str) -> list[int]:
        return [event.step for event in self.events if event.name == name]


def record(config: Any, before_step: Callable[[ZipNerfTrainer, int], None] | None = None) -> tuple[Any, Recorder]:
    """Trains a run; the trainer and the events that were written."""
    trainer, recorder = start(config), Recorder()
    writer.EVENT_WRITERS.append(recorder)
    iterate = trainer.train_iteration

    def iteration(step: int) -> Any:
        if before_step is not None:
            before_step(trainer, step)
        return iterate(step)

    trainer.train_iteration = iteration
    trainer.train()
    return trainer, recorder


@pytest.mark.parametrize(
    "changes",
    [{}, {"gradient_accumulation_steps": {"hash_tables": 2}}, {"mixed_precision": True}, {"log_gradients": True}],
    ids=lambda changes: next(iter(changes), "defaults"),
)
def test_steps_compute_exactly_what_nerfstudios_do(scene, tmp_path, monkeypatch, changes):
    options = dict(steps=5, logging=logging(2), **changes)
    ours, losses = train(tiny_config(scene, tmp_path, timestamp="ours", **options))
    monkeypatch.setattr(ZipNerfTrainer, "train_iteration", Trainer.train_iteration)
    theirs, expected = train(tiny_config(scene, tmp_path, timestamp="theirs", **options))
    assert losses == expected
    first, second = ours.pipeline.state_dict(), theirs.pipeline.state_dict()
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    for name, scheduler in ours.optimizers.schedulers.items():
        assert scheduler.state_dict()["last_epoch"] == theirs.optimizers.schedulers[name].state_dict()["last_epoch"]


def test_events_are_written_at_logged_steps_only(scene, tmp_path):
    config = tiny_config(scene, tmp_path, steps=12, logging=logging(5), steps_per_eval_image=4)
    trainer, recorder = record(config)
    names = {event.name for event in recorder.events if event.name.split("/")[0] != "Eval Images"}
    assert {name for name in names if name.startswith(("Train Loss Dict/", "Train Metrics Dict/", "Eval"))} > {
        "Train Loss Dict/rgb_loss", "Train Metrics Dict/psnr", "Eval Images Metrics/psnr"
    }  # fmt: skip
    for name in ("Train Loss", "Train Metrics Dict/psnr", "learning_rate/networks", "Feature RMS/grid/level_0"):
        assert recorder.steps(name) == [0, 5, 10], name
    assert "GPU Memory (MB)" not in names, "there is none on a CPU"
    for name in ("Train Rays / Sec", "Train Iter (time)", "ETA (time)"):
        assert recorder.steps(name) == [5, 10], name
    assert recorder.steps("Test PSNR") == recorder.steps("Eval Images Metrics/psnr") == [4, 8]
    assert recorder.steps("Train Total (time)") == [12]
    # After step 10 the schedule stands at 11 of 12.
    rates = {event.step: event.value for event in recorder.events if event.name == "learning_rate/networks"}
    scheduler = trainer.optimizers.schedulers["networks"]
    peak = scheduler.base_lrs[0]
    assert rates == {step: pytest.approx(peak * scheduler.lr_lambdas[0](step + 1)) for step in (0, 5, 10)}


def test_events_of_the_viewers_thread_are_not_kept_waiting(scene, tmp_path):
    """They are written at the end of the step in which they came."""
    waiting: dict[int, list[str]] = {}

    def before(trainer: ZipNerfTrainer, step: int) -> None:
        waiting[step] = [event["name"] for event in writer.EVENT_STORAGE]
        if step == 3:
            writer.put_scalar("Vis Rays / Sec", 7.0, step)

    _, recorder = record(tiny_config(scene, tmp_path, steps=5, logging=logging(100)), before)
    assert recorder.steps("Vis Rays / Sec") == [3]
    # Nerfstudio's configuration event, put while it sets up, waits for the first step.
    assert waiting.pop(0) == ["config"] and not any(waiting.values())


def test_nerfstudios_local_writer_still_prints(scene, tmp_path, capsys):
    local = LocalWriterConfig(enable=True, max_log_size=0)
    train(tiny_config(scene, tmp_path, steps=5, logging=logging(2, local_writer=local)))
    lines = [line for line in capsys.readouterr().out.splitlines() if "%)" in line and "[" not in line]
    assert [line.split()[0] for line in lines if line[0].isdigit()] == ["0", "2", "4"]


class Waits(TorchDispatchMode):
    """Counts, step by step, the operations that hand a tensor's value to Python."""

    def __init__(self, trainer: ZipNerfTrainer) -> None:
        super().__init__()
        self.trainer = trainer
        self.steps: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.steps.append(self.trainer.step)
        return func(*args, **(kwargs or {}))


def stub_pipeline(trainer: ZipNerfTrainer) -> None:
    """A model that does next to nothing, and never waits."""
    weight = trainer.optimizers.parameters["networks"][-1]

    def losses(step: int) -> Any:
        loss = weight.square().sum()
        return {}, {"rgb_loss": loss, "other": 2.0 * loss}, {"psnr": loss.detach()}

    trainer.pipeline.get_train_loss_dict = losses


@pytest.mark.parametrize("steps", [10, 30])
def test_between_logged_steps_nothing_waits_for_the_device(scene, tmp_path, monkeypatch, steps):
    waited: list[int] = []
    monkeypatch.setattr(ZipNerfTrainer, "_synchronize", lambda self: waited.append(self.step))
    trainer = start(tiny_config(scene, tmp_path, steps=steps, logging=logging(20)))
    stub_pipeline(trainer)
    with Waits(trainer) as waits:
        trainer.train()
    told = {0, 20, steps - 1} & set(range(steps))
    assert set(waited) == told
    # Values are read for the events of logged steps, and for the last step's progress line.
    assert set(waits.steps) == told


def test_the_modules_mode_is_switched_only_when_it_was_changed(scene, tmp_path):
    """Whatever left the model in evaluation mode, the next step trains; visiting all modules costs 0.1 ms."""
    trainer = start(tiny_config(scene, tmp_path, steps=7, logging=logging(100)))
    switched: list[int] = []
    switch, iterate = trainer.pipeline.train, trainer.train_iteration

    def switch_and_tell(mode: bool = True) -> Any:
        if mode:
            switched.append(trainer.step)
        return switch(mode)

    def iteration(step: int) -> Any:
        assert all(module.training for module in trainer.pipeline.modules())
        result = iterate(step)
        if step in (2, 4):
            # As a rendering leaves it that is interrupted.
            (trainer.pipeline.model if step == 2 else trainer.pipeline).eval()
        return result

    trainer.pipeline.train, trainer.train_iteration = switch_and_tell, iteration
    trainer.train()
    assert switched == [3, 5]


def test_stopping_saves_the_last_step_that_was_trained(scene, tmp_path):
    config = tiny_config(scene, tmp_path, steps=9)

    def before(trainer: ZipNerfTrainer, step: int) -> None:
        if step == 4:
            trainer.shutdown()

    trainer, _ = record(config, before)
    assert trainer.step == 4 and trainer.training_state == "completed"
    state = load(checkpoint(config, 4))
    assert {float(entry["step"]) for group in state["optimizers"].values() for entry in group["state"].values()} == {
        5.0
    }


@pytest.mark.parametrize("stopped", [False, True])
def test_a_paused_training_waits_and_its_time_is_no_training_time(scene, tmp_path, monkeypatch, stopped):
    trainer = start(tiny_config(scene, tmp_path, steps=3, start_paused=True))
    naps: list[float] = []

    class Time:
        @staticmethod
        def sleep(seconds: float) -> None:
            naps.append(seconds)
            if len(naps) == 4:
                trainer.training_state = "paused" if stopped else "training"
                trainer.stop_training = stopped

    monkeypatch.setattr(trainer_module, "time", Time)
    steps: list[int] = []
    iterate = trainer.train_iteration
    trainer.train_iteration = lambda step: (steps.append(step), iterate(step))[1]
    trainer.train()
    assert len(naps) == 4 and steps == ([] if stopped else [0, 1, 2])
    assert trainer.clock.paused > 0.0 and (stopped or trainer.clock.recurring == 0.0)


def test_gradients_norms_are_taken_when_they_are_logged(scene, tmp_path):
    config = tiny_config(scene, tmp_path, steps=6, logging=logging(3), log_gradients=True)
    _, recorder = record(config)
    total = "Train Metrics Dict/Gradients/Total"
    assert recorder.steps(total) == [0, 3]
    parts = [event for event in recorder.events if "/Gradients/" in event.name and event.name != total]
    assert len({event.name for event in parts}) > 10
    for step in (0, 3):
        (whole,) = (event.value for event in recorder.events if event.name == total and event.step == step)
        assert whole == pytest.approx(sum(event.value for event in parts if event.step == step), rel=1e-5)
        assert whole > 0.0


class Scaler:
    """Stands for torch's GradScaler, with scales that the test names: before and after each update."""

    def __init__(self, *scales: float) -> None:
        self.scales, self.reads, self.updates = list(scales), 0, 0

    def is_enabled(self) -> bool:
        return bool(self.scales)

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        return loss

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        optimizer.step()

    def get_scale(self) -> float:
        self.reads += 1
        return self.scales[self.updates]

    def update(self) -> None:
        self.updates += 1


@pytest.mark.parametrize(
    "scales, every, advanced, updates",
    [((), 1, 1, 0), ((8.0, 8.0), 1, 1, 1), ((8.0, 16.0), 1, 1, 1), ((8.0, 4.0), 1, 0, 1), ((8.0, 4.0), 2, 1, 0)],
    ids=["switched off", "kept", "grown", "fallen", "accumulating"],
)
def test_schedules_wait_for_steps_that_a_scaler_skipped(scene, tmp_path, scales, every, advanced, updates):
    accumulation = {"hash_tables": every, "networks": every}
    trainer = start(tiny_config(scene, tmp_path, gradient_accumulation_steps=accumulation))
    trainer.grad_scaler = Scaler(*scales)
    trainer.train_iteration(0)
    assert {scheduler.last_epoch for scheduler in trainer.optimizers.schedulers.values()} == {advanced}
    # A scale lives on the device: reading one waits.
    assert trainer.grad_scaler.updates == updates and trainer.grad_scaler.reads == 2 * updates


def test_a_viewers_client_that_goes_meanwhile_costs_nothing(scene, tmp_path, capsys):
    """Nerfstudio asks for what it keeps of every client, also of one that it has just forgotten."""
    trainer = start(tiny_config(scene, tmp_path, steps=4))
    trainer.config.vis, trainer.config.viewer.quit_on_train_completion = "viewer+tensorboard", True

    class Viewer:
        asked = 0

        def init_scene(self, *_: Any) -> None:
            pass

        def update_scene(self, step: int, num_rays: int) -> None:
            Viewer.asked += 1
            raise KeyError(7)

    trainer.viewer_state = Viewer()
    trainer.train()
    assert Viewer.asked == 4 and load(checkpoint(trainer.config, 3))["step"] == 3
    assert capsys.readouterr().out.count("the viewer failed (KeyError: 7)") == 1
