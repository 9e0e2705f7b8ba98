"""What is said at the end of a training: memory that does not suffice, Ctrl-C, what can be done next."""

from __future__ import annotations

import errno
import shlex
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from _scenes import assert_clear, checkpoint, start, tiny_config, train, write_scene

from nerfstudio.utils.rich_utils import CONSOLE

from zipnerf_ns.engine.messages import (
    command_line,
    interrupted,
    next_commands,
    out_of_memory,
    tell_in_any_program,
)
from zipnerf_ns.engine.trainer import ZipNerfTrainer
from zipnerf_ns.errors import InputError

pytestmark = pytest.mark.usefixtures("fresh_writers")


@pytest.mark.parametrize("when", ["set-up", "step"])
def test_out_of_memory_names_the_settings_to_lower(scene, tmp_path, monkeypatch, when):
    config = tiny_config(scene, tmp_path, steps=5)

    def fail(*_: Any, **__: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    with CONSOLE.capture() as said, pytest.raises(SystemExit) as ended:
        if when == "set-up":
            monkeypatch.setattr(ZipNerfTrainer, "setup_optimizers", fail)
            start(config)
        else:
            trainer = start(config)
            iterate = trainer.train_iteration
            trainer.train_iteration = lambda step: fail() if step == 3 else iterate(step)
            trainer.train()
    assert ended.value.code == 1
    (line,) = [line for line in said.get().splitlines() if line.startswith("Error:")]
    assert_clear(line, (
        "memory", "--pipeline.datamanager.train-num-rays-per-batch (now 64)",
        "--pipeline.model.grid.log2-hashmap-size (now 10)", "--pipeline.datamanager.images-on-gpu False (now True)",
    ))  # fmt: skip
    assert "zipnerf-lite" not in line, "that is the method that is being trained"


def test_out_of_memory_offers_only_what_is_left(scene, tmp_path):
    config = tiny_config(scene, tmp_path)
    config.method_name = "zipnerf-big"
    assert "train the smaller method zipnerf-lite (now zipnerf-big)." in str(out_of_memory(config))
    config.pipeline.datamanager.images_on_gpu = False
    assert "images-on-gpu" not in str(out_of_memory(config))


def commands_of(text: str) -> list[list[str]]:
    """The command lines of what is said at the end, without the last line, which is no command."""
    lines = [line.partition(":")[2].partition("  (needs")[0] for line in text.splitlines()]
    assert "the same command with --load-dir" in lines[-1]
    return [shlex.split(line) for line in lines[:-1]]


def test_the_next_commands_are_taken_by_their_programs(tmp_path, parse_problems):
    run = tmp_path / "a run's folder"
    commands = commands_of(next_commands(run, run / "nerfstudio_models", num_held_out=4, has_events=True))
    assert [command[0] for command in commands] == ["ns-viewer", "ns-eval", "ns-render", "python", "tensorboard"]
    assert all(str(run / "config.yml") in command for command in commands[:-1])
    assert parse_problems([command for command in commands if command[0].startswith("ns-")]) == [None] * 3
    assert commands[3][1:3] == ["-m", "zipnerf_ns.tools.export_mesh"] and "--output-dir" in commands[3]


@pytest.mark.parametrize("held_out", [0, 1, 2])
@pytest.mark.parametrize("has_ffmpeg", [True, False])
def test_the_next_commands_fit_the_run_and_the_machine(monkeypatch, held_out, has_ffmpeg):
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/ffmpeg" if has_ffmpeg else None)
    text = next_commands(Path("out"), Path("out/models"), held_out, has_events=False)
    assert ("apt-get install ffmpeg" in text) is not has_ffmpeg
    assert ("--pose-source train" in text) is (held_out < 2)
    assert ("ns-eval" in text) is (held_out > 0) and "tensorboard" not in text


def test_commands_are_quoted_as_the_machines_shell_takes_them(monkeypatch):
    assert command_line("ns-eval", Path("a run")) == "ns-eval 'a run'"
    monkeypatch.setattr(sys, "platform", "win32")
    assert command_line("ns-eval", "C:\\a run\\config.yml", "C:\\b") == 'ns-eval "C:\\a run\\config.yml" C:\\b'


def fail_at(trainer: Any, at: int, error: BaseException) -> None:
    """Lets a training fail before one of its steps."""
    iterate = trainer.train_iteration

    def iteration(step: int) -> Any:
        if step == at:
            raise error
        return iterate(step)

    trainer.train_iteration = iteration


@pytest.mark.parametrize("at", [1, 4])
def test_ctrl_c_ends_with_where_to_go_on(scene, tmp_path, at):
    config = tiny_config(scene, tmp_path, steps=9, steps_per_save=2)
    trainer = start(config)
    fail_at(trainer, at, KeyboardInterrupt())
    with CONSOLE.capture() as said, pytest.raises(SystemExit) as ended:
        trainer.train()
    assert ended.value.code == 130
    (line,) = [line for line in said.get().splitlines() if line.startswith("Stopped")]
    assert f"step {at + 1} of 9" in line
    folder = checkpoint(config, 2).parent
    assert line == interrupted(at, 9, folder)
    assert (str(checkpoint(config, 2)) in line and f"--load-dir {folder}" in line) is (at == 4)
    assert ("No checkpoint" in line) is (at == 1)


@pytest.mark.parametrize(("at", "said_by"), [(1, "CUDA error"), (4, "CUDA error"), (4, "Triton Error [CUDA]")])
def test_a_gpu_that_fails_ends_with_where_to_go_on(scene, tmp_path, at, said_by):
    config = tiny_config(scene, tmp_path, steps=9, steps_per_save=2)
    trainer = start(config)
    fail_at(trainer, at, RuntimeError(f"{said_by}: unspecified launch failure\nCUDA kernel errors might be ..."))
    with CONSOLE.capture() as said, pytest.raises(SystemExit) as ended:
        trainer.train()
    assert ended.value.code == 1
    (line,) = [line for line in said.get().splitlines() if line.startswith("Error:")]
    left = (str(checkpoint(config, 2)), "--load-dir") if at == 4 else ("No checkpoint had been written",)
    assert_clear(line, (f"the GPU failed ({said_by}: unspecified launch failure).", *left))


def test_memory_that_runs_out_in_the_middle_ends_with_where_to_go_on(scene, tmp_path):
    """Another program may have taken it."""
    config = tiny_config(scene, tmp_path, steps=9, steps_per_save=2)
    trainer = start(config)
    fail_at(trainer, 4, torch.cuda.OutOfMemoryError("CUDA out of memory"))
    with CONSOLE.capture() as said, pytest.raises(SystemExit) as ended:
        trainer.train()
    (line,) = [line for line in said.get().splitlines() if line.startswith("Error:")]
    assert ended.value.code == 1
    assert_clear(line, ("the GPU's memory does not suffice", str(checkpoint(config, 2)), "--load-dir"))


def test_a_gpu_that_falls_away_ends_with_where_to_go_on(scene, tmp_path):
    """Nothing answers any more: neither the step nor whoever waits for the device, nor what a checkpoint would copy."""
    config = tiny_config(scene, tmp_path, steps=9, steps_per_save=2)
    trainer = start(config)
    iterate = trainer.train_iteration

    def gone(*_: Any) -> None:
        raise RuntimeError("CUDA error: the device is gone")

    def iteration(step: int) -> Any:
        if step < 5:
            return iterate(step)
        trainer._synchronize = trainer.clock._synchronize = trainer.begin_checkpoint = gone
        return gone()

    trainer.train_iteration = iteration
    with CONSOLE.capture() as said, pytest.raises(SystemExit) as ended:
        trainer.train()
    assert ended.value.code == 1
    (line,) = [line for line in said.get().splitlines() if line.startswith("Error:")]
    assert_clear(line, ("the GPU failed (CUDA error: the device is gone).", str(checkpoint(config, 4)), "--load-dir"))
    train(tiny_config(scene, tmp_path, steps=9, load_dir=config.get_checkpoint_dir()))


FAILS = """
import sys, torch
from pathlib import Path
from zipnerf_ns.tools.benchmark.setup import TINY, bench_config
config = bench_config(Path(sys.argv[1]), Path(sys.argv[2]), TINY._replace(warm_steps=40))
config.machine.device_type, config.steps_per_save = "cuda", 20
trainer = config.setup(local_rank=0, world_size=1)
trainer.setup()
iterate = trainer.train_iteration
def iteration(step):
    if step == 30:
        torch.zeros(2, device="cuda")[torch.tensor([7], device="cuda")]
    return iterate(step)
trainer.train_iteration = iteration
trainer.train()
"""


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_real_gpu_that_gives_the_process_up_ends_in_one_line(scene, tmp_path):
    """In the middle of a captured training: every later call fails."""
    command = [sys.executable, "-W", "ignore", "-c", FAILS, str(scene), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("Error:")]
    assert result.returncode == 1 and "Traceback" not in result.stderr + result.stdout
    assert_clear(line, ("the GPU failed (CUDA error:", "step-000000020.ckpt", "--load-dir"))


def test_an_evaluation_that_does_not_fit_is_left_out(scene, tmp_path, capsys):
    config = tiny_config(scene, tmp_path, steps=5, steps_per_eval_image=2)
    trainer = start(config)

    def full(step: int) -> Any:
        trainer.pipeline.eval()
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    trainer.pipeline.get_eval_image_metrics_and_images = full
    trainer.train()
    assert checkpoint(config, 4).is_file()
    assert capsys.readouterr().out.count("Warning: evaluations that do not fit") == 1


def test_held_out_photos_that_are_gone_cost_their_evaluations(tmp_path, capsys):
    config = tiny_config(write_scene(tmp_path / "scene"), tmp_path / "out", steps=5, steps_per_eval_image=2)
    trainer = start(config)
    for photo in trainer.pipeline.datamanager.eval_dataset.image_filenames:
        photo.unlink()
    trainer.train()
    assert checkpoint(config, 4).is_file()
    said = " ".join(capsys.readouterr().out.split())
    assert "Replace it or remove its frame. The training goes on without this evaluation." in said


def test_a_finished_training_says_what_to_do_next_in_unbroken_lines(scene, tmp_path):
    config = tiny_config(scene, tmp_path / ("long" * 30), steps=2)
    with CONSOLE.capture() as said:
        train(config)
    text = next_commands(config.get_base_dir(), config.get_checkpoint_dir(), 2, has_events=True)
    assert text in said.get() and max(map(len, text.splitlines())) > 300


def test_leaving_the_viewer_at_the_end_is_no_error(scene, tmp_path, monkeypatch):
    trainer = start(tiny_config(scene, tmp_path, steps=1))
    asked = []

    class Viewer:
        def training_complete(self) -> None:
            asked.append(True)
            raise KeyboardInterrupt

    trainer.config.vis, trainer.viewer_state = "viewer", Viewer()
    trainer._train_complete_viewer()
    assert asked == [True]


def test_dependencies_are_quiet_from_the_first_line_on(scene, tmp_path):
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        start(tiny_config(scene, tmp_path))
    texts = [str(warning.message) for warning in heard]
    assert not [text for text in texts if "GradScaler" in text or "worker processes" in text]


def test_programs_that_evaluate_and_export_say_what_is_wrong_in_one_line(scene, tmp_path, monkeypatch, capsys):
    """Without the stack trace that Python prints of whatever ends them; of other errors it stays."""
    others = []
    monkeypatch.setattr(sys, "excepthook", lambda *error: others.append(error[0]))
    tiny_config(scene, tmp_path).pipeline.setup(device="cpu", test_mode="test")
    tell_in_any_program()
    refused = OSError(errno.EROFS, "Read-only file system", "eval.json")
    for error in (InputError("the box [0, 1] is empty."), refused, KeyError("box"), OSError(errno.ENOENT, "No", "a")):
        sys.excepthook(type(error), error, None)
    said = capsys.readouterr()
    expected = ["Error: the box [0, 1] is empty.", "Error: eval.json cannot be used: Read-only file system."]
    assert said.out.splitlines()[-2:] == expected and said.err == ""
    assert others == [KeyError, FileNotFoundError]
