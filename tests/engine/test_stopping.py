"""Signals save a training and end it, with a status that says which; what was to be ignored stays ignored."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from _scenes import assert_clear, checkpoint, load, start, tiny_config, train

from nerfstudio.scripts.train import launch

from zipnerf_ns.engine import trainer as engine_trainer
from zipnerf_ns.engine.checkpoints import checkpoints_in
from zipnerf_ns.engine.safety import stopping
from zipnerf_ns.engine.safety.stopping import NAMES, StopRequests

pytestmark = pytest.mark.usefixtures("fresh_writers")

HERE = [name for name in NAMES if hasattr(signal, name)]
unix = pytest.mark.skipif(sys.platform == "win32", reason="signals of this kind are Unix's")


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """What is usual, also where a shell's background or nohup would have signals ignored."""
    numbers = [getattr(signal, name) for name in HERE]
    before = [
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        for number in numbers
    ]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def before_step(trainer: Any, at: int, act: Any) -> None:
    iterate = trainer.train_iteration
    trainer.train_iteration = lambda step: (act() if step == at else None, iterate(step))[1]


@unix
@pytest.mark.parametrize("name", HERE)
def test_a_signal_saves_the_step_and_ends_with_its_status(scene, tmp_path, capsys, name):
    config, number = tiny_config(scene, tmp_path, steps=9), getattr(signal, name)
    trainer, before = start(config), signal.getsignal(number)
    before_step(trainer, 4, lambda: os.kill(os.getpid(), number))
    with pytest.raises(SystemExit) as left:
        trainer.train()
    assert left.value.code == 128 + number and signal.getsignal(number) is before
    assert load(checkpoint(config, 4))["step"] == 4
    (said,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Stopped")]
    assert_clear(said, ("step 5 of 9", str(checkpoint(config, 4)), "--load-dir"))


@unix
def test_what_a_signal_saved_goes_on_as_if_there_had_been_none(scene, tmp_path):
    whole, stopped = (tiny_config(scene, tmp_path, steps=7, timestamp=name) for name in ("whole", "stopped"))
    _, losses = train(whole)
    trainer = start(stopped)
    before_step(trainer, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit):
        trainer.train()
    resumed = tiny_config(scene, tmp_path, steps=7, timestamp="stopped", load_dir=stopped.get_checkpoint_dir())
    _, continued = train(resumed, seed=99)
    assert continued == {step: losses[step] for step in range(3, 7)}
    first, second = load(checkpoint(whole, 6))["pipeline"], load(checkpoint(resumed, 6))["pipeline"]
    assert all(torch.equal(first[name], second[name]) for name in first)


@unix
def test_a_paused_training_that_has_not_begun_has_nothing_to_save(scene, tmp_path, capsys):
    trainer = start(tiny_config(scene, tmp_path, steps=3, start_paused=True))
    trainer.stops.heard = trainer.stops.received = signal.SIGTERM
    with pytest.raises(SystemExit) as left:
        trainer.train()
    assert left.value.code == 143 and "No checkpoint had been written" in capsys.readouterr().out
    assert checkpoints_in(trainer.checkpoint_dir) == {}


@unix
def test_a_second_ctrl_c_interrupts_at_once_but_not_its_echo(monkeypatch):
    with StopRequests(is_alone=True) as stops:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert stops.received == signal.SIGINT
        monkeypatch.setattr(stopping, "BOUNCE", 0.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1.0)


def test_ctrl_c_before_the_first_step_is_no_success(scene, tmp_path, monkeypatch, capsys):
    """Nerfstudio's launcher would print where it came, and end as if all had been done."""
    monkeypatch.setattr(engine_trainer, "check_room_to_train", lambda _: signal.raise_signal(signal.SIGINT))
    config = tiny_config(scene, tmp_path)
    with pytest.raises(SystemExit) as left:
        launch(lambda config, **_: start(config), 1, config=config)
    said = capsys.readouterr().out
    assert left.value.code == 130 and "Stopped. No checkpoint had been written yet." in said and "Trace" not in said


@unix
def test_what_is_ignored_or_anothers_stays_and_one_of_several_processes_only_hears():
    def others(*_: Any) -> None:
        pass

    before = [signal.signal(signal.SIGHUP, signal.SIG_IGN), signal.signal(signal.SIGTERM, others)]
    try:
        with StopRequests(is_alone=True):
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN and signal.getsignal(signal.SIGTERM) is others
            assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        with StopRequests(is_alone=False) as stops:
            signal.raise_signal(signal.SIGINT)
            assert stops.heard == signal.SIGINT and stops.received is None, "the others have not heard it"
    finally:
        signal.signal(signal.SIGHUP, before[0]), signal.signal(signal.SIGTERM, before[1])


def test_leaving_during_the_last_save_does_not_wait_with_the_viewer(scene, tmp_path):
    trainer = start(tiny_config(scene, tmp_path, steps=1))
    trainer.config.vis, trainer.stops.received = "viewer", signal.SIGTERM
    # There is no viewer's state to wait with: asking for it would be an error.
    trainer._train_complete_viewer()


TALKER = """
import sys
from zipnerf_ns.engine.trainer import ZipNerfTrainer

class Talker:
    local_rank = 0

print("ready", flush=True)
sys.stdin.read()
for _ in range(3):
    ZipNerfTrainer._say(Talker(), "a line that nobody reads " * 1000)
sys.exit(7)
"""


@unix
def test_lines_that_nobody_reads_cost_neither_the_training_nor_its_status(tmp_path):
    """As of a terminal that is closed, or of ``ns-train ... | head``."""
    streams = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    talker = subprocess.Popen([sys.executable, "-W", "ignore", "-c", TALKER], **streams)
    assert talker.stdout.readline() == b"ready\n"
    talker.stdout.close()
    _, errors = talker.communicate(timeout=120)
    assert talker.returncode == 7, errors.decode()
