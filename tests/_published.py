"""Small scenes in the layouts in which benchmarks publish theirs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from _scenes import named_pixels
from PIL import Image

from nerfstudio.data.utils import colmap_parsing_utils as colmap

FULL_WIDTH, FULL_HEIGHT = 98, 66
"""Of the unreduced pictures: their quarter is 24.5 x 16.5, which three roundings take to three sizes."""
LENS = np.array([80.0, 81.0, 48.0, 32.5, 0.02, -0.01, 0.001, 0.002])
"""Focal lengths, principal point and distortion in COLMAP's order, full size."""


def half_up(value: float) -> int:
    """As the published pictures are rounded."""
    return int(np.floor(value + 0.5))


def view(index: int, count: int) -> np.ndarray:
    """Camera to world with OpenGL axes: a wide, flat, tilted ring of cameras far from the origin."""
    angle = 2.0 * np.pi * index / count
    tilt = np.array([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]]) @ np.array(
        [[1.0, 0.0, 0.0], [0.0, 0.96, -0.28], [0.0, 0.28, 0.96]]
    )
    ring = np.array([4.0 * np.cos(angle), 2.5 * np.sin(angle), 1.0 + 0.4 * (index % 3)])
    back = ring / np.linalg.norm(ring)
    right = np.cross([0.0, 0.0, 1.0], back)
    right /= np.linalg.norm(right)
    matrix = np.eye(4)
    matrix[:3] = np.stack([right, np.cross(back, right), back, ring], axis=1)
    matrix[:3] = tilt @ matrix[:3]
    matrix[:3, 3] += [7.0, -3.0, 2.0]
    return matrix


def write_mipnerf360_scene(
    folder: Path, count: int = 19, factors: tuple[int, ...] = (1, 2, 4)
) -> dict[str, np.ndarray]:
    """A folder as the mip-NeRF 360 scenes are published: sparse/0 in binary, images, images_2, images_4.

    COLMAP's numbers run against the order of the names, and a 3D point lies at every camera's center.

    Returns:
        The cameras by the names of their pictures, whose colors say their places in the order of names.
    """
    (folder / "sparse/0").mkdir(parents=True)
    names = [f"DSC{7956 + 3 * index:05d}.JPG" for index in range(count)]
    cameras = {1: colmap.Camera(1, "OPENCV", FULL_WIDTH, FULL_HEIGHT, LENS)}
    images, points, poses = {}, {}, {}
    for index, name in enumerate(names):
        poses[name] = view(index, count)
        rotation = (poses[name][:3, :3] * [1.0, -1.0, -1.0]).T
        number, center = count - index, poses[name][:3, 3]
        images[number] = colmap.Image(
            number, colmap.rotmat2qvec(rotation), -rotation @ center, 1, name, np.zeros((0, 2)), np.zeros(0, int)
        )
        color = np.array([index, 2 * index, 0])
        points[number] = colmap.Point3D(number, center, color, 0.1, np.array([number]), np.array([0]))
        for factor in factors:
            size = (half_up(FULL_WIDTH / factor), half_up(FULL_HEIGHT / factor))
            pictures = folder / ("images" if factor == 1 else f"images_{factor}")
            pictures.mkdir(exist_ok=True)
            # PNG under a photograph's name: exact, and readers look at the contents.
            Image.fromarray(named_pixels(index, *size)).save(pictures / name, format="PNG")
    colmap.write_model(cameras, images, points, str(folder / "sparse/0"), ".bin")
    return poses
