"""Photographs of a cluttered room corner, with enough detail for COLMAP to find their poses, which are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT, FOCAL = 320, 240, 300.0
"""Pixels."""
TEXTURE = 512
"""Texels of a square's side."""

# Squares: a corner, two edges along which their textures run; the floor, two walls, and the sides of two boxes.
SQUARES = np.array(
    [
        [[0, 0, 0], [4, 0, 0], [0, 4, 0]],
        [[0, 0, 0], [4, 0, 0], [0, 0, 4]],
        [[0, 0, 0], [0, 4, 0], [0, 0, 4]],
        [[0.8, 1.6, 0.7], [0.8, 0, 0], [0, -0.8, 0]],
        [[0.8, 1.6, 0], [0.8, 0, 0], [0, 0, 0.7]],
        [[1.6, 0.8, 0], [0, 0.8, 0], [0, 0, 0.7]],
        [[2.0, 0.9, 0.4], [0.6, 0, 0], [0, -0.6, 0]],
        [[2.0, 0.9, 0], [0.6, 0, 0], [0, 0, 0.4]],
        [[2.6, 0.3, 0], [0, 0.6, 0], [0, 0, 0.4]],
    ],
    dtype=np.float64,
)


def camera_poses(count: int) -> np.ndarray:
    """Cameras on an arc that look into the corner: camera to world, OpenGL axes, ``[count, 3, 4]``."""
    poses = []
    for index in range(count):
        angle = np.radians(22.0 + 46.0 * index / (count - 1))
        eye = np.array([4.6 * np.cos(angle), 4.6 * np.sin(angle), 1.7 + 0.4 * (index % 3)])
        back = eye - [0.9, 0.9, 0.7]
        back /= np.linalg.norm(back)
        right = np.cross([0.0, 0.0, 1.0], back)
        right /= np.linalg.norm(right)
        poses.append(np.stack([right, np.cross(back, right), back, eye], axis=1))
    return np.array(poses)


def write_photos(folder: Path, count: int) -> np.ndarray:
    """Writes ``photo_0.jpg`` and so on; returns their cameras' centers ``[count, 3]``."""
    folder.mkdir(parents=True)
    textures = _textures()
    for index, pose in enumerate(camera_poses(count)):
        # The mean of four rays a pixel.
        large = _render(pose, textures, 2)
        picture = large.reshape(HEIGHT, 2, WIDTH, 2, 3).mean(axis=(1, 3))
        Image.fromarray(np.rint(picture).astype(np.uint8)).save(folder / f"photo_{index}.jpg", quality=95)
    return camera_poses(count)[..., 3]


def _textures() -> np.ndarray:
    """Noise of every size from a few texels to half the square, ``[squares, TEXTURE, TEXTURE, 3]``."""
    random = np.random.default_rng(7)
    total = np.zeros((len(SQUARES), TEXTURE, TEXTURE, 3))
    for cells in (4, 8, 16, 32, 64, 128):
        for square in range(len(SQUARES)):
            noise = Image.fromarray(random.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
            total[square] += np.asarray(noise.resize((TEXTURE, TEXTURE), Image.Resampling.BICUBIC), dtype=np.float64)
    return ((total / 6.0 - 127.5) * 2.2 + 127.5).clip(0.0, 255.0)


def _render(pose: np.ndarray, textures: np.ndarray, samples: int) -> np.ndarray:
    """The nearest square along each ray, its texture's nearest texel; ``samples`` rays along a pixel's side."""
    y, x = (np.mgrid[: HEIGHT * samples, : WIDTH * samples] + 0.5) / samples
    local = np.stack([(x - WIDTH / 2) / FOCAL, (HEIGHT / 2 - y) / FOCAL, np.full_like(x, -1.0)], axis=-1)
    directions, eye = local @ pose[:, :3].T, pose[:, 3]
    picture, nearest = np.full((*x.shape, 3), 128.0), np.full(x.shape, np.inf)
    for (corner, first, second), texture in zip(SQUARES, textures, strict=True):
        normal = np.cross(first, second)
        distance = (corner - eye) @ normal / (directions @ normal)
        hit = eye + distance[..., None] * directions - corner
        u, v = hit @ first / (first @ first), hit @ second / (second @ second)
        seen = (distance > 0.0) & (distance < nearest) & (np.minimum(u, v) >= 0.0) & (np.maximum(u, v) < 1.0)
        picture[seen] = texture[(v[seen] * TEXTURE).astype(int), (u[seen] * TEXTURE).astype(int)]
        nearest[seen] = distance[seen]
    return picture
