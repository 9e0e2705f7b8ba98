"""A soak of programs that stand for trainings: what grows is said, what stays is not, and what ends is an error."""

from __future__ import annotations

import math
import sys
import threading
from pathlib import Path

import pytest
from torch.utils.tensorboard import SummaryWriter
from websockets.sync.server import serve

from zipnerf_ns.tools import soak
from zipnerf_ns.tools.benchmark.events import Events, read_events, tenths
from zipnerf_ns.tools.soak import Sample

PROGRAM = """
import signal, sys, threading, time
from websockets.sync.server import serve

port, leaks, ends = int(sys.argv[1]), sys.argv[2] == "leak", sys.argv[2] == "end"

def answer(connection):
    for message in connection:
        assert b"ViewerCameraMessage" in message
        connection.send(b"... BackgroundImageMessage ...")

server = serve(answer, "127.0.0.1", port)
threading.Thread(target=server.serve_forever, daemon=True).start()
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
kept = []
for step in range(1, 1000):
    print(f"step {step}/1000 (0%)  4.0 ms/step", flush=True)
    if ends and step == 5:
        sys.exit("out of order")
    time.sleep(0.02)
    if leaks:
        kept.append(open(sys.executable))
"""


def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, what: str, seconds: float = 1.0) -> int:
    monkeypatch.setattr(soak, "train_command", lambda options, folder, port: [
        sys.executable, "-c", PROGRAM, str(port), what
    ])  # fmt: skip
    monkeypatch.setattr(soak, "gpu_memory", lambda processes: math.nan)
    monkeypatch.setattr(soak.Viewer.__init__, "__defaults__", (0.05, 0.2))
    return soak.main(["--data", str(tmp_path), "--minutes", str(seconds / 30), "--processes", "2", "--every", "0.1"])


@pytest.mark.parametrize(("what", "verdict"), [("nothing", "Flat."), ("leak", "GROWING: files in process 1")])
def test_what_grows_is_said(monkeypatch, tmp_path, capsys, what, verdict):
    assert run(monkeypatch, tmp_path, what) == (what == "leak")
    said = capsys.readouterr().out
    assert verdict in said and said.count("status 143") == 2 and "4.0 - 4.0" in said


def test_the_viewers_client_comes_and_goes():
    def answer(connection) -> None:
        for _ in connection:
            connection.send(b"... BackgroundImageMessage ...")

    with serve(answer, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        viewer = soak.Viewer(f"ws://127.0.0.1:{server.socket.getsockname()[1]}", pause=0.01, stay=0.05)
        viewer.start()
        while viewer.connections < 3 or not viewer.pictures:
            viewer.join(0.01)
            assert viewer.is_alive()
        viewer.end()
        server.shutdown()


@pytest.mark.parametrize(("own", "expected"), [
    ("7, 100\n8, 20\n9, 3000", 120.0), ("9, 3000", math.nan), ("7, [N/A]", math.nan), ("", math.nan),
])  # fmt: skip
def test_memory_of_the_gpu_is_the_processes_own_where_the_driver_tells(monkeypatch, tmp_path, own, expected):
    program = tmp_path / "nvidia-smi"
    program.write_text(f'#!/bin/sh\nprintf "{own}"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    found = soak.gpu_memory([7, 8])
    assert found == expected or (math.isnan(found) and math.isnan(expected))


def test_what_a_training_told_tensorboard_is_read_of_its_last_process(tmp_path):
    assert read_events(tmp_path) == Events([], [], [], [], 0.0)
    for process in range(2):
        writer = SummaryWriter(str(tmp_path))
        for step in range(0, 1000, 50):
            writer.add_scalar("Train Loss", 0.1, step, walltime=1000.0 + step)
            writer.add_scalar("Train Iter (time)", 0.004 if step < 900 else 0.008, step)
            writer.add_scalar("GPU Memory (MB)", 90.0, step)
            writer.add_scalar("GPU Memory of torch (MB)", 100.0 * process + step // 500, step)
        for psnr in (20.0, 21.0):
            writer.add_scalar("Test PSNR", psnr, int(psnr))
        writer.close()
    events = read_events(tmp_path)
    assert events.seconds == 950.0 and events.evaluations == [20.0, 21.0]
    assert tenths(events.times) == pytest.approx([4.0] * 9 + [8.0]) and tenths([0.0, 1.0]) == [0.0, 1.0]
    assert tenths(events.reserved) == [100.0] * 5 + [101.0] * 5
    assert "950 s of steps, 2 evaluations, 20.00 to 21.00 dB" in str(events) and "4.00 8.00; torch's" in str(events)
    assert events.in_use == [90.0] * 20 and str(events).endswith(" 101, in use at most 90")


def test_torchs_memory_stands_for_what_the_driver_does_not_say():
    unsaid = [Sample(1.0, math.nan, 9.0, 8.0, 4.0)] * 4
    assert [sample.gpu for sample in soak.with_torch_memory(unsaid, [10.0, 20.0])] == [10.0, 10.0, 20.0, 20.0]
    said = [unsaid[0]._replace(gpu=5.0)]
    assert soak.with_torch_memory(said, [10.0]) == said and math.isnan(soak.with_torch_memory(unsaid, [])[0].gpu)


def test_a_training_that_ends_is_an_error(monkeypatch, tmp_path, capsys):
    assert run(monkeypatch, tmp_path, "end", seconds=20.0) == 1
    assert "ended with status 1" in (said := capsys.readouterr().err) and "out of order" in said


def test_halves_and_growth():
    """The first third does not count, nor what is not known; and a process may not begin where the last one ended."""

    def looks(memory: list[float]) -> list[Sample]:
        return [Sample(value, math.nan, 9.0, 8.0, 4.0) for value in memory]

    still = looks([900.0] * 3 + [1000.0, 1001.0, 999.0, 1000.0, 1001.0, 999.0])
    early, late = soak.halves(still)
    assert (early.memory, late.memory) == (1000.0, 1000.0) and math.isnan(early.gpu)
    assert soak.report([still, still], [math.nan] * 2)[1] == []
    assert soak.report([looks([0.0] * 3 + [1000.0] * 3 + [1100.0] * 3)], [math.nan])[1] == ["process MiB in process 1"]
    more = looks([1100.0] * 9)
    assert soak.report([still, more], [math.nan] * 2)[1] == ["process MiB from the first process to the last"]
    # What torch keeps of the GPU follows from the order of pictures, what is in use does not.
    held = [[sample._replace(gpu=gpu) for sample in still] for gpu in (3000.0, 3600.0)]
    assert soak.report(held, [2000.0, 2010.0])[1] == []
    assert soak.report(held, [2000.0, 2200.0])[1] == ["GPU MiB from the first process to the last"]


def test_trainings_go_on_and_take_what_stands_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(soak, "data_arguments", lambda *_: ["nerfstudio-data"])
    behind = ["--pipeline.model.use-appearance", "True"]
    options = soak.parse(["--data", "scene", "--method", "zipnerf-lite", "--", *behind])
    first = soak.train_command(options, tmp_path, 7007)
    assert first[-3:] == [*behind, "nerfstudio-data"] and "--load-dir" not in first
    checkpoints = tmp_path / "soak/zipnerf-lite/run/nerfstudio_models"
    checkpoints.mkdir(parents=True)
    (checkpoints / "step-000000100.ckpt").touch()
    second = soak.train_command(options, tmp_path, 7007)
    assert second[second.index("--load-dir") + 1] == str(checkpoints)
