"""What leaves nerfstudio, as a user exports it, measured against the built-in scene's true surface; and its videos."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Iterator

import numpy as np
import open3d
import pytest
import trimesh
from _programs import Programs, has_libusb, train_command
from _true_scene import surface_distance
from PIL import Image

from zipnerf_ns.tools import demo_scene
from zipnerf_ns.tools.system_check import script_environment

STEPS = 300
WIDTH, HEIGHT = 64, 48
VIEWS = 3
"""Of the camera path."""


def camera_path() -> dict:
    """A path as the viewer's Render tab writes it, with a field of view that changes, above the model's origin."""
    views = []
    for index in range(VIEWS):
        angle = 0.4 * index
        eye = np.array([0.8 * math.cos(angle), 0.8 * math.sin(angle), 0.5])
        back = eye / np.linalg.norm(eye)
        right = np.cross([0.0, 0.0, 1.0], back)
        right /= np.linalg.norm(right)
        matrix = np.eye(4)
        matrix[:3] = np.stack([right, np.cross(back, right), back, eye], axis=1)
        views.append({"camera_to_world": matrix.ravel().tolist(), "fov": 45.0 + 20.0 * index, "aspect": WIDTH / HEIGHT})
    size = {"render_width": WIDTH, "render_height": HEIGHT}
    return {"camera_type": "perspective", **size, "fps": 4, "seconds": VIEWS / 4, "camera_path": views}


@pytest.fixture(scope="module")
def programs(tmp_path_factory, run_program) -> Iterator[Programs]:
    """Every program of this file, begun at once."""
    folder = tmp_path_factory.mktemp("exports")
    scene = demo_scene.write_scene(
        folder / "scene", width=WIDTH, height=HEIGHT, num_train=40, num_test=2, samples_per_pixel=16
    )
    here = Programs(scene, folder, STEPS, run_program)
    options = ("--max-num-iterations", STEPS, "--vis", "tensorboard")
    here.begin("train", here.run, *train_command(scene, folder / "out", *options))
    saved = ("--load-config", here.config)

    mesh = ("--resolution", 112, "--save-world-frame", "--output-dir", folder / "mesh")
    here.begin("mesh", here.run, sys.executable, "-m", "zipnerf_ns.tools.export_mesh", *saved, *mesh, after="train")
    commands = {}
    if has_libusb():
        rays = ("--num-rays-per-batch", 4096, "--normal-method")
        # Unwrapping a mesh takes seconds for every thousand faces.
        texture = ("--texture-method", "nerf", "--num-pixels-per-side", 128, "--target-num-faces", 1500)
        tsdf = ("--downscale-factor", 1, "--resolution", 96, *texture)
        commands["tsdf"] = ("ns-export", "tsdf", *saved, "--output-dir", folder / "tsdf", *tsdf)
        poisson = ("--num-points", 20_000, "--texture-method", "point_cloud", *rays, "open3d")
        commands["poisson"] = ("ns-export", "poisson", *saved, "--output-dir", folder / "poisson", *poisson)
        commands["cameras"] = ("ns-export", "cameras", *saved, "--output-dir", folder / "cameras")
    if shutil.which("ffmpeg", path=script_environment()["PATH"]):
        (folder / "path.json").write_text(json.dumps(camera_path()))
        path = ("--camera-path-filename", folder / "path.json", "--rendered-output-names", "rgb", "depth")
        commands["path"] = ("ns-render", "camera-path", *saved, *path, "--output-path", folder / "path.mp4")
        spiral = ("--seconds", 1, "--frame-rate", VIEWS, "--output-format", "images", "--image-format", "png")
        commands["spiral"] = ("ns-render", "spiral", *saved, *spiral, "--output-path", folder / "spiral")
    here.begin_in_copies(commands, after="train")
    if has_libusb():
        cloud = ("--num-points", 8000, "--save-world-frame", "True", *rays, "model_output")
        command = ("ns-export", "pointcloud", *saved, "--output-dir", folder / "cloud", *cloud)
        here.begin("pointcloud", here.run, *command, after="train")
    yield here
    here.pool.shutdown(cancel_futures=True)


def said(programs: Programs, name: str) -> str:
    if name not in programs:
        needs = "ffmpeg" if name in ("path", "spiral") else "libusb-1.0-0"
        pytest.skip(f"{name} needs {needs}, which is not installed")
    return programs.output_of(name)


def to_world(programs: Programs, points: np.ndarray) -> np.ndarray:
    """From the model's frame into the scene's, by what nerfstudio wrote beside config.yml."""
    written = json.loads((programs.run_folder / "dataparser_transforms.json").read_text())
    transform = np.array(written["transform"])
    return (points / written["scale"] - transform[:, 3]) @ np.linalg.inv(transform[:, :3]).T


def shares(points: np.ndarray, *tolerances: float) -> list[float]:
    """Shares of the points around the still life and outside its solids, which no camera sees, that are near it."""
    distance = surface_distance(points, include_ground=True)
    around = (np.hypot(points[:, 0], points[:, 1]) < 1.6) & (points[:, 2] < 1.0) & (distance > -0.05)
    assert around.sum() > 300
    return [float((np.abs(distance[around]) < tolerance).mean()) for tolerance in tolerances]


def test_density_mesh_is_closed_and_on_the_surface(programs):
    """Measured: all within a tenth of a unit, 98% within half of that; a voxel is a twentieth."""
    output = said(programs, "mesh")
    mesh = trimesh.load(programs.folder / "mesh/density_mesh.ply", process=False)
    assert "watertight" in output and "not watertight" not in output and mesh.is_watertight
    points, faces = trimesh.sample.sample_surface(mesh, 50_000, seed=0)
    near, nearer = shares(points, 0.1, 0.05)
    colors = np.asarray(mesh.visual.vertex_colors)[mesh.faces[faces, 0], :3]
    assert near > 0.97 and nearer > 0.9
    assert colors.std(axis=0).min() > 10.0


def test_point_cloud_is_on_the_surface(programs):
    """Measured: 99.8% within a tenth of a unit, 97% within half of that."""
    said(programs, "pointcloud")
    cloud = trimesh.load(programs.folder / "cloud/point_cloud.ply")
    near, nearer = shares(np.asarray(cloud.vertices), 0.1, 0.05)
    assert near > 0.97 and nearer > 0.9


def test_point_clouds_normals_are_the_surfaces(programs):
    """Analytic ones, of the density, against the gradient of the true distance. Measured: half of them within 25
    degrees after 300 steps; the transposed frame or the wrong sign would give negative ones or none."""
    said(programs, "pointcloud")
    cloud = open3d.io.read_point_cloud(str(programs.folder / "cloud/point_cloud.ply"))
    points, normals = np.asarray(cloud.points), np.asarray(cloud.normals)
    steps = 1e-3 * np.eye(3)
    truth = np.stack([surface_distance(points + step) - surface_distance(points - step) for step in steps], axis=-1)
    truth /= np.linalg.norm(truth, axis=-1, keepdims=True).clip(1e-9)
    near = np.abs(surface_distance(points)) < 0.05
    cosines = (normals * truth).sum(axis=-1)[near]
    assert near.sum() > 300 and np.median(cosines) > 0.8 and (cosines > 0.0).mean() > 0.9


def test_a_meshs_texture_has_the_scenes_colors(programs):
    """Nerfstudio renders it with rays that begin just before the surface and belong to no pixel."""
    said(programs, "tsdf")
    texture = np.asarray(Image.open(programs.folder / "tsdf/material_0.png").convert("RGB")).astype(float)
    assert texture.shape == (128, 128, 3)
    truth = np.asarray(Image.open(sorted((programs.scene / "images").glob("*.png"))[0]).convert("RGB")).astype(float)
    assert np.abs(texture.mean(axis=(0, 1)) - truth.mean(axis=(0, 1))).max() < 60.0 and texture.std() > 15.0
    assert (texture.max(axis=-1) < 10.0).mean() < 0.1, "none of it is black"


def test_tsdf_and_poisson_meshes_are_on_the_surface(programs):
    """Measured: 97% and 98% within a tenth of a unit, 83% and 92% within half of that."""
    for name, file in (("tsdf", "tsdf_mesh.ply"), ("poisson", "poisson_mesh.ply")):
        said(programs, name)
        mesh = trimesh.load(programs.folder / name / file, process=False)
        near, nearer = shares(to_world(programs, np.asarray(mesh.vertices)), 0.1, 0.05)
        assert near > 0.9 and nearer > 0.7


def test_camera_poses_are_the_scenes_in_the_models_frame(programs):
    said(programs, "cameras")
    truth = json.loads((programs.scene / "transforms.json").read_text())
    poses = {frame["file_path"]: np.array(frame["transform_matrix"]) for frame in truth["frames"]}
    for name, count in (("train", 40), ("eval", 2)):
        frames = json.loads((programs.folder / f"cameras/transforms_{name}.json").read_text())
        assert len(frames) == count
        for frame in frames:
            path = str(frame["file_path"]).removeprefix(f"{programs.scene}/")
            center = to_world(programs, np.array(frame["transform"])[None, :3, 3])[0]
            np.testing.assert_allclose(center, poses[path][:3, 3], atol=1e-4)


def test_a_camera_path_gives_a_video_of_its_size(programs):
    import cv2

    said(programs, "path")
    video = cv2.VideoCapture(str(programs.folder / "path.mp4"))
    frames = []
    while (read := video.read())[0]:
        frames.append(read[1].astype(np.float32))
    assert [frame.shape for frame in frames] == [(HEIGHT, 2 * WIDTH, 3)] * VIEWS
    for frame in frames:
        color, depth = frame[:, :WIDTH], frame[:, WIDTH:]
        assert color.std() > 15.0 and depth.std() > 15.0 and np.abs(color - depth).mean() > 15.0
    assert min(np.abs(first - second).mean() for first, second in zip(frames, frames[1:], strict=False)) > 5.0


def test_a_spiral_gives_pictures(programs):
    said(programs, "spiral")
    frames = [np.asarray(Image.open(path)) for path in sorted((programs.folder / "spiral").rglob("*.png"))]
    assert [frame.shape for frame in frames] == [(HEIGHT, WIDTH, 3)] * VIEWS
    assert all(frame.std() > 15.0 for frame in frames)
