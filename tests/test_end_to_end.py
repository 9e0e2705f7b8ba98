"""The real programs, as a user runs them: ns-train, ns-eval, ns-render, kills, bad input. And real scenes, briefly."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from _scenes import folder_bytes, load, pose, read_meta, start, tiny_config, write_meta, write_scene
from PIL import Image

from zipnerf_ns.tools import demo_scene
from zipnerf_ns.tools.system_check import script_environment

STEPS = 200
SMALL = (
    "--pipeline.model.grid.num-levels 8 --pipeline.model.grid.max-res 256 --pipeline.model.grid.log2-hashmap-size 15 "
    "--pipeline.model.proposals.0.grid.num-levels 4 --pipeline.model.proposals.0.grid.max-res 64 "
    "--pipeline.model.proposals.1.grid.num-levels 5 --pipeline.model.proposals.1.grid.max-res 128 "
    "--pipeline.model.proposals.0.num-samples 16 --pipeline.model.proposals.1.num-samples 16 "
    "--pipeline.model.num-samples 12 --pipeline.datamanager.train-num-rays-per-batch 512 "
    "--optimizers.networks.optimizer.lr 0.01 --optimizers.hash-tables.optimizer.lr 0.03 "
    "--viewer.quit-on-train-completion True"
).split()
"""What makes zipnerf-lite train in seconds; learning rates for two hundred steps instead of thousands."""
RENDERED = ("rgb", "depth")


def free_port() -> int:
    """A port for the viewer that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def train_command(data: Path, output: Path, *options: str | int | Path) -> list[str]:
    """An ns-train command line whose run lies in output/e2e/zipnerf-lite/run."""
    named = ["--data", data, "--output-dir", output, "--experiment-name", "e2e", "--timestamp", "run"]
    viewer = ["--viewer.websocket-port", free_port()]
    return [str(part) for part in ["ns-train", "zipnerf-lite", *named, *SMALL, *viewer, *options]]


class Programs:
    """Runs of programs, two at a time, begun before anybody asks for their results: each takes long to import."""

    def __init__(self, scene: Path, folder: Path, run_program: Callable[..., subprocess.CompletedProcess]) -> None:
        self.scene, self.folder = scene, folder
        self.run_folder = folder / "out/e2e/zipnerf-lite/run"
        self.checkpoint = self.run_folder / f"nerfstudio_models/step-{STEPS - 1:09d}.ckpt"
        self.config = self.run_folder / "config.yml"
        self.pool = ThreadPoolExecutor(2)
        self.begun: dict[str, Future] = {}
        self.run_program = run_program

    def begin(self, name: str, command: list, after: str | None = None) -> None:
        def run() -> subprocess.CompletedProcess:
            if after is not None:
                self.begun[after].result()
            # One thread each: two programs share the machine.
            return self.run_program(*command, timeout=400, OMP_NUM_THREADS="1")

        self.begun[name] = self.pool.submit(run)

    def __getitem__(self, name: str) -> subprocess.CompletedProcess:
        return self.begun[name].result()

    def output_of(self, name: str) -> str:
        """What a program printed, which must have succeeded."""
        done = self[name]
        assert done.returncode == 0, f"{name} ended with {done.returncode}:\n{done.stdout[-4000:]}"
        return done.stdout


def missing_image(folder: Path) -> None:
    (folder / "images/002.png").unlink()


def unreadable_image(folder: Path) -> None:
    (folder / "images/000.png").write_text("not an image")


def nan_pose(folder: Path) -> None:
    meta = read_meta(folder)
    matrix = np.array(pose(0, 8))
    matrix[1, 2] = np.nan
    meta["frames"][2]["transform_matrix"] = matrix.tolist()
    write_meta(folder, meta)


BAD_SCENES = {
    "missing image": (missing_image, ("images/002.png", "missing", "Restore")),
    "unreadable image": (unreadable_image, ("images/000.png", "cannot be read", "Replace")),
    "NaN pose": (nan_pose, ("transforms.json", "frame 2", "NaN", "estimate its pose again")),
}


@pytest.fixture(scope="module")
def programs(tmp_path_factory, run_program) -> Iterator[Programs]:
    """Every program of this file, begun at once."""
    folder = tmp_path_factory.mktemp("e2e")
    scene = demo_scene.write_scene(
        folder / "scene", width=48, height=32, num_train=40, num_test=4, samples_per_pixel=16
    )
    here = Programs(scene, folder, run_program)
    options = ("--max-num-iterations", STEPS, "--steps-per-save", 80, "--steps-per-eval-image", 100)
    here.begin("train", train_command(scene, folder / "out", *options))
    for name, (breaking, _) in BAD_SCENES.items():
        bad = write_scene(folder / name)
        breaking(bad)
        here.begin(name, train_command(bad, folder / f"{name} out", "--max-num-iterations", 5))
    here.begin("eval", ["ns-eval", "--load-config", here.config, "--output-path", folder / "eval.json"], "train")
    render = ["--load-config", here.config, "--rendered-output-names", *RENDERED, "--output-path"]
    here.begin("render dataset", ["ns-render", "dataset", *render, folder / "test", "--image-format", "png"], "train")
    if shutil.which("ffmpeg", path=script_environment()["PATH"]):
        path = ["--interpolation-steps", 3, "--output-format", "images", "--image-format", "png"]
        here.begin("render path", ["ns-render", "interpolate", *render, folder / "path", *path], "train")
    here.begin("other configuration", train_command(
        scene, folder / "other out", "--load-checkpoint", here.checkpoint, "--pipeline.model.hidden-dim", 32,
    ), "train")  # fmt: skip
    yield here
    here.pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("name", BAD_SCENES)
def test_bad_input_ends_ns_train_with_one_line(programs, name):
    done, expected = programs[name], BAD_SCENES[name][1]
    errors = [line for line in done.stdout.splitlines() if line.startswith("Error:")]
    assert done.returncode == 1 and len(errors) == 1, done.stdout[-3000:]
    assert all(part in errors[0] for part in expected), errors[0]
    assert "Traceback" not in done.stdout
    assert not list((programs.folder / f"{name} out").rglob("nerfstudio_models"))


def test_ns_train_shows_progress_and_leaves_one_checkpoint(programs):
    said = programs.output_of("train")
    assert "Traceback" not in said
    assert f"step {STEPS}/{STEPS} (100%)" in said and "k rays/s" in said and "left" in said
    assert "PSNR train" in said and "dB" in said
    assert [path.name for path in programs.checkpoint.parent.iterdir()] == [programs.checkpoint.name]
    assert load(programs.checkpoint)["step"] == STEPS - 1


def held_out_pictures(programs: Programs) -> dict[str, np.ndarray]:
    names = read_meta(programs.scene)["test_filenames"]
    return {Path(name).stem: np.asarray(Image.open(programs.scene / name)) / 255.0 for name in names}


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    return float(-10.0 * np.log10(np.square(first - second).mean()))


def test_ns_eval_measures_a_learnt_scene(programs):
    """Measured: 21.4 dB (seeds vary by less than 1 dB); the best single colour gives 14.8 dB."""
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
    if "render path" not in programs.begun:
        pytest.skip("ns-render interpolate needs ffmpeg, which is not installed")
    programs.output_of("render path")
    frames = [np.asarray(Image.open(path)) for path in sorted((programs.folder / "path").rglob("*.png"))]
    # Three steps between each two of four views; the outputs lie side by side.
    assert len(frames) == 9
    assert {frame.shape for frame in frames} == {(32, 48 * len(RENDERED), 3)}
    pictures = [frame[:, :48] / 255.0 for frame in frames]
    for before, after in zip(pictures[:-1], pictures[1:], strict=True):
        assert before.std() > 0.05 and 0.05 < before.mean() < 0.95
        assert np.abs(before - after).mean() > 0.002


def test_a_checkpoint_of_another_configuration_ends_ns_train(programs):
    """With the viewer already running in threads of its own, which must not keep the program alive."""
    done = programs["other configuration"]
    errors = [line for line in done.stdout.splitlines() if line.startswith("Error:")]
    assert done.returncode == 1 and len(errors) == 1, done.stdout[-3000:]
    assert "another configuration" in errors[0] and "config.yml" in errors[0] and "hidden_layer" in errors[0]
    assert "Traceback" not in done.stdout
    assert not list((programs.folder / "other out").rglob("nerfstudio_models"))


def test_an_earlier_run_is_never_overwritten(programs):
    for name in list(programs.begun):
        programs[name]
    before = folder_bytes(programs.run_folder)
    assert {"config.yml", f"nerfstudio_models/{programs.checkpoint.name}"} <= before.keys()
    again = train_command(programs.scene, programs.folder / "out", "--max-num-iterations", 5)
    done = programs.run_program(*again, timeout=400)
    assert done.returncode == 1
    errors = [line for line in done.stdout.splitlines() if line.startswith("Error:")]
    assert len(errors) == 1 and "earlier run" in errors[0] and "--load-dir" in errors[0] and "--timestamp" in errors[0]
    assert "Traceback" not in done.stdout
    assert folder_bytes(programs.run_folder) == before


def test_a_killed_ns_train_resumes_to_its_total(programs):
    """SIGKILL between two checkpoints; what it wrote last is whole, and the resumed run does the missing steps only."""
    total, every = 120, 15
    output = programs.folder / "killed out"
    options = ("--max-num-iterations", total, "--steps-per-save", every, "--pipeline.datamanager.train-num-rays-per-batch",
               4096, "--vis", "tensorboard")  # fmt: skip
    command = train_command(programs.scene, output, *options)
    checkpoints = output / "e2e/zipnerf-lite/run/nerfstudio_models"
    log = programs.folder / "killed.log"
    with log.open("w") as stream:
        victim = subprocess.Popen(
            command, env=script_environment(), stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT
        )
        try:
            deadline = time.monotonic() + 300.0
            while not list(checkpoints.glob("step-*.ckpt")) and victim.poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)
        finally:
            victim.kill()
    assert victim.wait() == -signal.SIGKILL, log.read_text()[-3000:]
    left = sorted(checkpoints.iterdir())
    assert left and all(path.suffix == ".ckpt" for path in left)
    reached = load(left[-1])["step"]
    assert reached % every == 0 and 0 < reached < total - 1
    done = programs.run_program(*command, "--load-dir", str(checkpoints), timeout=400)
    assert done.returncode == 0, done.stdout[-4000:]
    assert f"Resuming after step {reached}" in done.stdout and f"step {total}/{total} (100%)" in done.stdout
    assert [path.name for path in checkpoints.iterdir()] == [f"step-{total - 1:09d}.ckpt"]
    state = load(checkpoints / f"step-{total - 1:09d}.ckpt")
    updates = {float(entry["step"]) for group in state["optimizers"].values() for entry in group["state"].values()}
    assert state["step"] == total - 1 and updates == {float(total)}


@pytest.mark.parametrize("name", ["fox", "lego"])
def test_real_scene_for_a_few_steps(shared_scenes, tmp_path, name):
    """A distorted real camera, and transparent synthetic pictures: the loss falls, and a held-out view is rendered."""
    config = tiny_config(shared_scenes / name, tmp_path, steps=30)
    config.pipeline.datamanager.train_num_rays_per_batch = 512
    config.pipeline.datamanager.dataparser.downscale_factor = 1
    trainer = start(config)
    losses: list[float] = []
    iterate = trainer.train_iteration

    def recorded(step: int):
        result = iterate(step)
        losses.append(float(result[1]["rgb_loss"]))
        return result

    trainer.train_iteration = recorded
    trainer.train()
    assert np.isfinite(losses).all() and np.mean(losses[-5:]) < np.mean(losses[:5])
    metrics, images = trainer.pipeline.get_eval_image_metrics_and_images(step=0)
    assert np.isfinite(metrics["psnr"]) and metrics["psnr"] > 8.0
    assert float(trainer.pipeline.model.background[0]) == (1.0 if name == "lego" else 0.0)
    width, height = (270, 480) if name == "fox" else (400, 400)
    assert images["img"].shape == (height, 2 * width, 3)
