"""A placed model as a scene in Nerfstudio's format, with its points and a drawing of both."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from zipnerf_ns.data.disk.files import write_json

POINTS = "points3D.ply"
DRAWING = "cameras.png"
_DRAWN_POINTS = 20_000


def camera_to_world(cam_from_world: Float[np.ndarray, "3 4"]) -> Float[np.ndarray, "4 4"]:
    """The pose in OpenGL's axes (y up, looking along -z) of a camera in COLMAP's (y down, looking along +z)."""
    rotation, translation = cam_from_world[:, :3], cam_from_world[:, 3]
    pose = np.eye(4)
    pose[:3, :3] = rotation.T @ np.diag([1.0, -1.0, -1.0])
    pose[:3, 3] = -rotation.T @ translation
    return pose


def intrinsics(camera: Any) -> dict[str, float | int]:
    """A camera of COLMAP's models OPENCV and OPENCV_FISHEYE, in Nerfstudio's words."""
    names = ("k1", "k2", "k3", "k4") if camera.model_name == "OPENCV_FISHEYE" else ("k1", "k2", "p1", "p2")
    values = (float(value) for value in camera.params)
    lens = dict(zip(("fl_x", "fl_y", "cx", "cy", *names), values, strict=True))
    return {**lens, "w": camera.width, "h": camera.height}


def describe(model: Any, has_masks: bool, timestamps: Mapping[str, int]) -> dict[str, Any]:
    """What transforms.json says of a model; intrinsics stand once where all pictures share them.

    Args:
        timestamps: of pictures by name, where known.
    """
    cameras = {number: intrinsics(camera) for number, camera in model.cameras.items()}
    images = sorted((model.image(number) for number in model.reg_image_ids()), key=lambda image: image.name)
    used = {image.camera_id for image in images}
    # Nerfstudio decides by the first picture whether reduced ones are taken: one of the largest.
    images.sort(key=lambda image: -max(image.camera.width, image.camera.height))
    frames = []
    for image in images:
        frame: dict[str, Any] = {"file_path": f"images/{image.name}"}
        if has_masks:
            frame["mask_path"] = f"masks/{image.name}.png"
        if image.name in timestamps:
            frame["timestamp"] = timestamps[image.name]
        if len(used) > 1:
            frame |= cameras[image.camera_id]
        frame["transform_matrix"] = camera_to_world(image.cam_from_world().matrix()).tolist()
        frames.append(frame)
    shared = cameras[min(used)] if len(used) == 1 else {}
    model_name = next(iter(model.cameras.values())).model_name
    return {"camera_model": model_name, **shared, "ply_file_path": POINTS, "frames": frames}


def write_scene(model: Any, folder: Path, has_masks: bool, timestamps: Mapping[str, int]) -> dict[str, Any]:
    """Writes transforms.json and the points with their colors; returns what the former says."""
    model.extract_colors_for_all_images(folder / "images")
    model.export_PLY(folder / POINTS)
    meta = describe(model, has_masks, timestamps)
    write_json(folder / "transforms.json", meta)
    return meta


def draw(meta: Mapping[str, Any], model: Any, target: Path) -> None:
    """Draws cameras and points from above and from the side, as a PNG."""
    poses = np.array([frame["transform_matrix"] for frame in meta["frames"]])
    points = np.array([point.xyz for point in model.points3D.values()])
    colors = np.array([point.color for point in model.points3D.values()]) / 255.0
    chosen = np.random.default_rng(0).permutation(len(points))[:_DRAWN_POINTS]
    axes = _upright_axes(poses)
    centers, looks = poses[:, :3, 3] @ axes.T, -poses[:, :3, 2] @ axes.T
    points = points[chosen] @ axes.T
    low, high = np.percentile(np.concatenate([points, centers]), [2, 98], axis=0)
    low, high = np.minimum(low, centers.min(axis=0)), np.maximum(high, centers.max(axis=0))
    reach = 0.06 * np.linalg.norm(high - low)
    figure = Figure(figsize=(12, 6), layout="constrained")
    for place, (first, second, title) in enumerate(((0, 1, "from above"), (0, 2, "from the side"))):
        plot = figure.add_subplot(1, 2, place + 1, aspect="equal", title=title)
        plot.scatter(points[:, first], points[:, second], s=1, c=colors[chosen], linewidths=0)
        ends = centers + reach * looks
        plot.plot(*np.stack([centers, ends])[..., [first, second]].transpose(2, 0, 1), color="tab:red", linewidth=0.8)
        plot.scatter(centers[:, first], centers[:, second], s=12, c="tab:red")
        plot.set_xlim(low[first] - reach, high[first] + reach)
        plot.set_ylim(low[second] - reach, high[second] + reach)
    figure.suptitle(f"{len(poses)} cameras (red, with where they look) and {len(model.points3D)} points")
    FigureCanvasAgg(figure).print_png(str(target))


def _upright_axes(poses: Float[np.ndarray, "cameras 4 4"]) -> Float[np.ndarray, "3 3"]:
    """Three axes, the last of which is the mean of the cameras' upward directions."""
    up = poses[:, :3, 1].mean(axis=0)
    up /= max(np.linalg.norm(up), 1e-9)
    right = np.cross(up, np.eye(3)[np.abs(up).argmin()])
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(up, right), up])
