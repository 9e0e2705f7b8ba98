"""A run trained in one place and its data, moved to two others: what the programs then make of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from _programs import Programs, has_libusb, train_command
from _scenes import load
from PIL import Image

from zipnerf_ns.tools.system_check import find_program

STEPS = 30
WIDTH, HEIGHT = 48, 32


def camera_path(count: int = 2) -> dict:
    """A path as the viewer's Render tab writes it, towards the model's origin."""
    view = {"fov": 50.0, "aspect": WIDTH / HEIGHT}
    rows = [[[1, 0, 0, 0.1 * index], [0, 0, -1, -0.8], [0, 1, 0, 0], [0, 0, 0, 1]] for index in range(count)]
    poses = [np.array(matrix, dtype=float) for matrix in rows]
    views = [{"camera_to_world": pose.ravel().tolist(), **view} for pose in poses]
    size = {"render_width": WIDTH, "render_height": HEIGHT}
    return {"camera_type": "perspective", **size, "fps": 2, "seconds": count / 2, "camera_path": views}


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory, tiny_scene: Path, run_program) -> Iterator[Programs]:
    """Every program of this file; where the run was trained nothing is left."""
    server, laptop = tmp_path_factory.mktemp("server"), tmp_path_factory.mktemp("laptop")
    scene = shutil.copytree(tiny_scene, server / "scene")
    here = Programs(scene, server, STEPS, run_program)
    said = here.run(*train_command(scene, server / "out", "--max-num-iterations", STEPS, "--vis", "tensorboard"))
    assert said.returncode == 0, said.stdout[-3000:]
    run = Path(shutil.move(here.run_folder, laptop / "copied"))
    photos = shutil.move(scene, laptop / "photos")
    shutil.rmtree(server)
    (run / "nerfstudio_models/.DS_Store").write_bytes(b"?")
    (laptop / "path.json").write_text(json.dumps(camera_path()))

    here.folder, saved = laptop, ("--load-config", run / "config.yml")
    mesh = ("--output-dir", laptop / "mesh", "--resolution", 24, "--density-threshold", 0.01)
    longer = ("--max-num-iterations", STEPS + 2, "--vis", "tensorboard", "--load-dir", run / "nerfstudio_models")
    commands = {
        "eval": (f"ZIPNERF_DATA={photos}", "ns-eval", *saved, "--output-path", laptop / "eval.json"),
        "eval without data": ("ns-eval", *saved, "--output-path", laptop / "none.json"),
        "mesh": ("python", "-m", "zipnerf_ns.tools.export_mesh", *saved, *mesh),
        "resume": train_command(photos, laptop / "out", *longer),
    }
    if has_libusb():
        cloud = ("--output-dir", laptop / "cloud", "--num-points", 500, "--normal-method", "open3d")
        commands["pointcloud"] = ("ns-export", "pointcloud", *saved, *cloud, "--num-rays-per-batch", 1024)
    if find_program("ffmpeg") is not None:
        path = ("--camera-path-filename", laptop / "path.json", "--output-format", "images", "--image-format", "png")
        commands["path"] = ("ns-render", "camera-path", *saved, *path, "--output-path", laptop / "path")
    here.begin("moved", lambda: None)
    here.begin_in_copies(commands, after="moved")
    yield here
    here.pool.shutdown(cancel_futures=True)


def test_a_moved_run_is_measured_where_its_data_are_now(programs):
    programs.output_of("eval")
    report = json.loads((programs.folder / "eval.json").read_text())
    saved = programs.folder / f"copied/nerfstudio_models/step-{STEPS - 1:09d}.ckpt"
    assert report["checkpoint"] == str(saved) and 8.0 < report["results"]["psnr"] < 40.0


def test_what_needs_photos_ends_with_one_line(programs):
    done = programs["eval without data"]
    errors = [line for line in done.stdout.splitlines() if line.startswith("Error:")]
    assert done.returncode == 1 and len(errors) == 1 and "Traceback" not in done.stdout, done.stdout[-3000:]
    assert "ZIPNERF_DATA=" in errors[0] and "server" in errors[0]


def test_a_camera_path_needs_no_data(programs):
    if "path" not in programs:
        pytest.skip("ns-render needs ffmpeg, which is not installed")
    programs.output_of("path")
    pictures = [np.asarray(Image.open(path)) for path in sorted((programs.folder / "path").rglob("*.png"))]
    assert len(pictures) == 2 and all(picture.shape[:2] == (HEIGHT, WIDTH) for picture in pictures)
    assert pictures[0].std() > 1.0 and not np.array_equal(*pictures)


def test_exports_need_no_data(programs):
    programs.output_of("mesh")
    assert (programs.folder / "mesh/density_mesh.ply").stat().st_size > 1000
    if "pointcloud" not in programs:
        pytest.skip("ns-export needs libusb-1.0-0, which is not installed")
    programs.output_of("pointcloud")
    assert (programs.folder / "cloud/point_cloud.ply").stat().st_size > 1000


def test_a_moved_run_goes_on(programs):
    said = programs.output_of("resume")
    assert f"Resuming after step {STEPS - 1}" in said and f"step {STEPS + 2}/{STEPS + 2} (100%)" in said
    state = load(programs.folder / f"out/e2e/zipnerf-lite/run/nerfstudio_models/step-{STEPS + 1:09d}.ckpt")
    assert state["data"]["data"] == str(programs.folder / "photos")
