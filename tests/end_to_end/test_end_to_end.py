"""The real programs, as a user runs them: ns-train, ns-eval, ns-render, kills, bad input."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from _programs import Programs, train_command
from _scenes import folder_bytes, load, read_meta, write_scene
from PIL import Image

from zipnerf_ns.tools import demo_scene
from zipnerf_ns.tools.system_check import script_environment

STEPS = 200
RENDERED = ("rgb", "depth")


class Killed(NamedTuple):
    """What a kill left, and what resuming from it did."""

    returncode: int
    log: str
    left: list[Path]
    step: int
    resumed: subprocess.CompletedProcess


TOTAL, EVERY = 60, 10
"""Steps of the run that is killed, and between its checkpoints."""


def kill_and_resume(here: Programs) -> Killed:
    """Kills a training between two checkpoints, and resumes it with the command that a user would give."""
    output = here.folder / "killed out"
    # Steps long enough for the kill to fall between two checkpoints.
    rays = ("--pipeline.datamanager.train-num-rays-per-batch", 1024, "--vis", "tensorboard")
    command = train_command(here.scene, output, "--max-num-iterations", TOTAL, "--steps-per-save", EVERY, *rays)
    checkpoints = output / "e2e/zipnerf-lite/run/nerfstudio_models"
    log = here.folder / "killed.log"
    environment = {**script_environment(), "OMP_NUM_THREADS": "1"}
    with log.open("w") as stream:
        victim = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT
        )
        try:
            deadline = time.monotonic() + 300.0
            while not list(checkpoints.glob("*.ckpt")) and victim.poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)
        finally:
            victim.kill()
        returncode = victim.wait()
    left = sorted(checkpoints.iterdir())
    step = load(left[-1])["step"]
    return Killed(returncode, log.read_text(), left, step, here.run(*command, "--load-dir", checkpoints))


def run_again(here: Programs) -> tuple[subprocess.CompletedProcess, dict[str, bytes], dict[str, bytes]]:
    """The same command over a finished run, and the run's files before and after it."""
    before = folder_bytes(here.run_folder)
    done = here.run(*train_command(here.scene, here.folder / "out", "--max-num-iterations", 5))
    return done, before, folder_bytes(here.run_folder)


@pytest.fixture(scope="module")
def programs(tmp_path_factory, run_program) -> Iterator[Programs]:
    """Every program of this file, begun at once."""
    folder = tmp_path_factory.mktemp("e2e")
    scene = demo_scene.write_scene(
        folder / "scene", width=48, height=32, num_train=40, num_test=4, samples_per_pixel=16
    )
    here = Programs(scene, folder, STEPS, run_program)
    options = ("--max-num-iterations", STEPS, "--steps-per-save", 80, "--steps-per-eval-image", 100)
    here.begin("train", here.run, *train_command(scene, folder / "out", *options))
    bad = write_scene(folder / "bad")
    (bad / "images/002.png").unlink()
    here.begin("bad", here.run, *train_command(bad, folder / "bad out", "--max-num-iterations", 5))
    here.begin("kill", kill_and_resume, here)
    saved = ("--load-config", here.config)
    pictures = ("--image-format", "png", "--rendered-output-names", *RENDERED)
    commands = {
        "eval": ("ns-eval", *saved, "--output-path", folder / "eval.json"),
        "render dataset": ("ns-render", "dataset", *saved, "--output-path", folder / "test", *pictures),
    }
    if shutil.which("ffmpeg", path=script_environment()["PATH"]):
        path = ("--output-path", folder / "path", "--interpolation-steps", 3, "--output-format", "images")
        commands["render path"] = ("ns-render", "interpolate", *saved, *path, *pictures)
    other = ("--load-checkpoint", here.checkpoint, "--pipeline.model.hidden-dim", 32)
    commands["other"] = train_command(scene, folder / "other out", *other)
    here.begin_in_copies(commands, after="train")
    here.begin("again", run_again, here, after="train")
    yield here
    here.pool.shutdown(cancel_futures=True)


def test_bad_input_ends_ns_train_with_one_line(programs):
    """As other faults of a scene end a trainer's set-up; see test_checks_run."""
    done = programs["bad"]
    errors = [line for line in done.stdout.splitlines() if line.startswith("Error:")]
    assert done.returncode == 1 and len(errors) == 1, done.stdout[-3000:]
    assert all(part in errors[0] for part in ("images/002.png", "missing", "Restore")), errors[0]
    assert "Traceback" not in done.stdout
    assert not list((programs.folder / "bad out").rglob("nerfstudio_models"))


def test_ns_train_shows_progress_and_leaves_the_last_two_checkpoints(programs):
    said = programs.output_of("train")
    assert "Traceback" not in said
    assert f"step {STEPS}/{STEPS} (100%)" in said and "k rays/s" in said and "left" in said
    assert "PSNR train" in said and "dB" in said
    # Every command of the end is one line, to be pasted.
    lines = said.splitlines()
    for words in ("ns-viewer --load-config", "ns-eval --load-config", "ns-render interpolate --load-config"):
        assert [line for line in lines if words in line and str(programs.config) in line], words
    before, last = sorted(path.name for path in programs.checkpoint.parent.iterdir())
    assert before < last == programs.checkpoint.name
    assert load(programs.checkpoint)["step"] == STEPS - 1


def held_out_pictures(programs: Programs) -> dict[str, np.ndarray]:
    names = read_meta(programs.scene)["test_filenames"]
    return {Path(name).stem: np.asarray(Image.open(programs.scene / name)) / 255.0 for name in names}


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    return float(-10.0 * np.log10(np.square(first - second).mean()))


def test_ns_eval_measures_a_learnt_scene(programs):
    """Measured: 22.6 dB; the best single color gives 14.8 dB."""
    programs.output_of("eval")
    report = json.loads((programs.folder / "eval.json").read_text())
    results, truth = report["results"], np.stack(list(held_out_pictures(programs).values()))
    assert report["method_name"] == "zipnerf-lite" and report["checkpoint"] == str(programs.checkpoint)
    constant = psnr(truth, np.broadcast_to(truth.mean(axis=(0, 1, 2)), truth.shape))
    assert results["psnr"] > 19.0 and results["psnr"] > constant + 4.0
    assert 0.0 < results["ssim"] <= 1.0 and all(np.isfinite(value) for value in results.values())


def test_ns_render_dataset_shows_the_held_out_pictures(programs):
    programs.output_of("render dataset")
    truth = held_out_pictures(programs)
    frames = {path.stem: path for path in (programs.folder / "test/test/rgb").iterdir()}
    assert frames.keys() == truth.keys()
    values = [psnr(np.asarray(Image.open(frames[name])) / 255.0, truth[name]) for name in truth]
    reported = json.loads((programs.folder / "eval.json").read_text())["results"]["psnr"]
    # The same pictures, rounded to 8 bits.
    assert np.mean(values) == pytest.approx(reported, abs=0.05)
    assert len(list((programs.folder / "test/test/depth").iterdir())) == len(truth)


def test_ns_render_follows_a_path(programs):
    if "render path" not in programs:
        pytest.skip("ns-render interpolate needs ffmpeg, which is not installed")
    programs.output_of("render path")
    frames = [np.asarray(Image.open(path)) for path in sorted((programs.folder / "path").rglob("*.png"))]
    # Three steps between each two of four views; the outputs lie side by side.
    assert len(frames) == 9
    assert {frame.shape for frame in frames} == {(32, 48 * len(RENDERED), 3)}
    pictures = [frame[:, :48] / 255.0 for frame in frames]
    assert all(picture.std() > 0.05 and 0.05 < picture.mean() < 0.95 for picture in pictures)
    # Where two legs of the path meet, their view is drawn twice.
    assert len({picture.tobytes() for picture in pictures}) == 7


def test_a_checkpoint_of_another_configuration_ends_ns_train(programs):
    """With the viewer already running in threads of its own, which must not keep the program alive."""
    done = programs["other"]
    errors = [line for line in done.stdout.splitlines() if line.startswith("Error:")]
    assert done.returncode == 1 and len(errors) == 1, done.stdout[-3000:]
    assert "another configuration" in errors[0] and "config.yml" in errors[0] and "hidden_layer" in errors[0]
    assert "Traceback" not in done.stdout
    assert not list((programs.folder / "other out").rglob("nerfstudio_models"))


def test_an_earlier_run_is_never_overwritten(programs):
    done, before, after = programs["again"]
    assert {"config.yml", f"nerfstudio_models/{programs.checkpoint.name}"} <= before.keys()
    assert after == before
    errors = [line for line in done.stdout.splitlines() if line.startswith("Error:")]
    assert done.returncode == 1 and len(errors) == 1, done.stdout[-3000:]
    assert all(part in errors[0] for part in ("earlier run", "--load-dir", "--timestamp"))
    assert "Traceback" not in done.stdout


def test_a_killed_ns_train_resumes_to_its_total(programs):
    """SIGKILL between two checkpoints: the last one is whole, and the resumed run does the missing steps only."""
    killed = programs["kill"]
    assert killed.returncode == -signal.SIGKILL, killed.log[-3000:]
    assert all(path.suffix == ".ckpt" for path in killed.left)
    assert killed.step % EVERY == 0 and 0 < killed.step < TOTAL - 1
    assert killed.resumed.returncode == 0, killed.resumed.stdout[-4000:]
    assert f"Resuming after step {killed.step}" in killed.resumed.stdout
    assert f"step {TOTAL}/{TOTAL} (100%)" in killed.resumed.stdout
    last = killed.left[0].with_name(f"step-{TOTAL - 1:09d}.ckpt")
    assert len(list(last.parent.iterdir())) == 2
    state = load(last)
    updates = {float(entry["step"]) for group in state["optimizers"].values() for entry in group["state"].values()}
    assert state["step"] == TOTAL - 1 and updates == {float(TOTAL)}
