"""Processes of a training end together, also when one is lost, and torchrun's find each other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

import pytest
import torch
from _scenes import assert_clear, checkpoint, load, tiny_config
from _together import start_one, together

from zipnerf_ns.engine.messages import tell_of_lost_processes
from zipnerf_ns.engine.parallel.processes import LOST, join
from zipnerf_ns.engine.trainer import ZipNerfTrainerConfig
from zipnerf_ns.errors import InputError

pytestmark = pytest.mark.usefixtures("fresh_writers")


def lose_one(rank: int, config: ZipNerfTrainerConfig, lost: int, how: str) -> None:
    trainer = start_one(rank, config)
    iterate = trainer.train_iteration

    def iteration(step: int) -> Any:
        if step == 5 and rank == lost:
            trainer.checkpoints.wait()
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyError("a fault of its own")
        return iterate(step)

    trainer.train_iteration = iteration
    trainer.train()


@pytest.mark.parametrize(("lost", "how"), [(0, "killed"), (1, "killed"), (1, "failed")])
def test_a_lost_process_ends_the_other_and_leaves_the_last_checkpoint(scene, tmp_path, lost, how):
    config = tiny_config(scene, tmp_path, steps=1000, steps_per_save=3)
    ended = together(tmp_path / "logs", lose_one, config, lost, how)
    assert ended[lost].code == (-signal.SIGKILL if how == "killed" else 3)
    # Who has started them tells; the other's own error would only follow from this one.
    assert ended[1 - lost].code == LOST and "Traceback" not in ended[1 - lost].said
    assert how == "killed" or "a fault of its own" in ended[lost].said
    assert load(checkpoint(config, 3))["step"] == 3


def be_told(rank: int, config: ZipNerfTrainerConfig, told: int, number: int) -> None:
    trainer = start_one(rank, config)
    iterate = trainer.train_iteration

    def iteration(step: int) -> Any:
        if step == 5 and rank == told:
            os.kill(os.getpid(), number)
        return iterate(step)

    trainer.train_iteration = iteration
    trainer.train()


@pytest.mark.skipif(sys.platform == "win32", reason="signals of this kind are Unix's")
@pytest.mark.parametrize(("told", "name"), [(0, "SIGTERM"), (1, "SIGUSR1")])
def test_a_signal_that_one_process_hears_saves_and_ends_all_of_them(scene, tmp_path, told, name):
    config, number = tiny_config(scene, tmp_path, steps=1000), getattr(signal, name)
    config.logging.steps_per_log = 4
    ended = together(tmp_path / "logs", be_told, config, told, number)
    said = "\n".join(each.said for each in ended)
    assert [each.code for each in ended] == [128 + number] * 2 and "Traceback" not in said, said
    assert said.count("Stopped at step 9 of 1000") == 1 and load(checkpoint(config, 8))["step"] == 8


LAUNCHER = """
import signal, sys, time
from pathlib import Path
import torch.multiprocessing
from zipnerf_ns.engine.messages import tell_of_lost_processes
from zipnerf_ns.engine.safety.stopping import StopRequests, hand_on_signals

def work(index):
    # As in processes that are no copies of the launcher, such as Nerfstudio's.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with StopRequests(is_alone=True) as stops:
        print("ready", flush=True)
        while stops.received is None:
            time.sleep(0.01)
        print("saved", flush=True)
        sys.exit(stops.status)

tell_of_lost_processes(Path("run"))
hand_on_signals()
torch.multiprocessing.start_processes(work, nprocs=2, join=False, start_method="fork").join()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of this kind are Unix's")
def test_a_launcher_that_is_told_to_end_hands_it_on_and_has_the_signals_status():
    streams = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    launcher = subprocess.Popen([sys.executable, "-W", "ignore", "-c", LAUNCHER], **streams)
    assert [launcher.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
    launcher.terminate()
    said, _ = launcher.communicate(timeout=120)
    # Whoever ends first has the launcher end the other, which is ending, too.
    assert launcher.returncode == 143 and said.count("saved\n") == 2 and "Error" not in said, said


def end_by(index: int, code: int) -> None:
    if code < 0:
        os.kill(os.getpid(), -code)
    os._exit(code)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (-signal.SIGKILL, ("has ended early (SIGKILL), and with it", "step-000000007.ckpt", "--load-dir")),
        (LOST, ("has ended early, and with it", "step-000000007.ckpt", "--load-dir")),
        (1, None),
    ],
    ids=["killed", "another machine's", "has told itself"],
)
def test_the_launcher_tells_of_a_lost_process_in_one_line(tmp_path, monkeypatch, capsys, code, expected):
    others = []
    monkeypatch.setattr(sys, "excepthook", lambda *error: others.append(error[0]))
    (tmp_path / "step-000000007.ckpt").touch()
    tell_of_lost_processes(tmp_path)
    with pytest.raises(torch.multiprocessing.ProcessExitedException) as caught:
        torch.multiprocessing.start_processes(end_by, (code,), nprocs=1, start_method="forkserver")
    sys.excepthook(caught.type, caught.value, None)
    sys.excepthook(KeyError, KeyError("else"), None)
    said = capsys.readouterr().out
    assert others == [KeyError]
    if expected is None:
        assert said == ""
    else:
        assert_clear(said.rstrip("\n"), expected)


def test_torchruns_processes_are_not_started_once_more(scene, tmp_path, monkeypatch):
    config = tiny_config(scene, tmp_path)
    join(config.machine)
    for name, value in {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    config.machine.num_devices = 2
    with pytest.raises(InputError) as caught:
        join(config.machine)
    assert_clear(str(caught.value), ("torchrun", "leave out --machine.num-devices"))
