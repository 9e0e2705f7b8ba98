"""Exact pictures of the built-in scene: the light along a ray, and its mean over a pixel's square.

One sun with hard shadows, a sky, occlusion between neighbors and haze, all in closed form, so that a picture's only
error is that of its pixel samples. Inside, rays are arrays `[3, n]` as in `procedural`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from zipnerf_ns.tools.scene.procedural import extent, fractal_noise, mix, scatter, supports
from zipnerf_ns.tools.scene.world import Backdrop, Moment, bodies

SUN = tuple(float(v) for v in np.array([0.55, -0.40, 0.80]) / np.linalg.norm([0.55, -0.40, 0.80]))
"""Unit direction towards the sun."""

_SUN_COLOR, _SKY_COLOR = (0.52, 0.485, 0.43), (0.54, 0.56, 0.59)
_HORIZON, _ZENITH, _GLOW, _CLOUD = (0.88, 0.89, 0.88), (0.36, 0.57, 0.82), (1.0, 0.93, 0.78), (0.98, 0.97, 0.95)
_ACROSS = np.cross(SUN, (0.0, 0.0, 1.0)) / np.linalg.norm(np.cross(SUN, (0.0, 0.0, 1.0)))
_AXES = np.stack([_ACROSS, np.cross(SUN, _ACROSS), SUN, *np.eye(3)])
_OCCLUSION_REACH = 0.16
_SHADOW_REACH = 18.0
_HAZE_START, _HAZE_LENGTH, _CLEAR_LENGTH = 8.0, 150.0, 1500.0
_RAYS_PER_TILE = 16384


class Pinhole(NamedTuple):
    """A camera without distortion, in pixels; the center of the first pixel is at (0.5, 0.5)."""

    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int

    def reduced(self, downscale: int) -> Pinhole:
        """The same camera with pixels `downscale` times as large."""
        size = (self.width // downscale, self.height // downscale)
        return Pinhole(*(value / downscale for value in self[:4]), *size)


def render_view(
    camera_to_world: Float[np.ndarray, "rows 4"],
    pinhole: Pinhole,
    samples_per_pixel: int,
    seed: int,
    rgba: bool = False,
    far: bool = False,
    time: float | None = None,
) -> Float[np.ndarray, "height width channels"]:
    """The picture that a camera takes of the scene: stratified samples under a box filter, float32 in [0, 1].

    Args:
        camera_to_world: 3x4 or 4x4, OpenGL axes (x right, y up, looking along -z), in the world of `transforms.json`.
        pinhole: the camera.
        seed: of the samples' places in their strata.
        rgba: the still life alone, its colors multiplied by alpha; see `straight_alpha`.
        far: with fine detail far away.
        time: of the moving scene, from 0 to 1.
    """
    backdrop: Backdrop = "far" if far else not rgba if time is None else Moment(time)
    # The C library keeps freed memory up to the largest block it has seen freed; otherwise every tile's arrays would
    # go back to the system and be cleared anew.
    np.empty(1 << 24, dtype=np.uint8)
    side = max(1, math.isqrt(_RAYS_PER_TILE // samples_per_pixel))
    picture = np.empty((pinhole.height, pinhole.width, 4 if rgba else 3), dtype=np.float32)
    tiles = [(y, x) for y in range(0, pinhole.height, side) for x in range(0, pinhole.width, side)]
    for number, (top, left) in enumerate(tiles):
        tile = picture[top : top + side, left : left + side]
        rows, columns = tile.shape[:2]
        x, y = _sample_places(rows, columns, samples_per_pixel, np.random.default_rng([seed, number]))
        directions = _directions(camera_to_world, pinhole, x + left, y + top)
        corners = np.array([[0, columns, columns, 0], [0, 0, rows, rows]]) + [[left], [top]]
        corners = _directions(camera_to_world, pinhole, *corners.astype(np.float32))
        origin = camera_to_world[:3, 3:].astype(np.float32)
        color, distance = radiance(origin, directions, backdrop, _candidates(origin, corners, backdrop))
        channels = [*color, np.isfinite(distance).astype(np.float32)] if rgba else color
        for channel, values in enumerate(channels):
            tile[..., channel] = values.reshape(rows, columns, -1).mean(axis=-1)
    return picture


def _sample_places(rows, columns, samples_per_pixel, random) -> tuple[np.ndarray, np.ndarray]:
    """Image coordinates of every pixel's samples, one in each cell of a grid over the pixel, pixel after pixel."""
    across = next(k for k in range(math.isqrt(samples_per_pixel), 0, -1) if samples_per_pixel % k == 0)
    down = samples_per_pixel // across
    shape = (rows, columns, down, across)
    x = (random.random(shape, dtype=np.float32) + np.arange(across, dtype=np.float32)) / np.float32(across)
    y = (random.random(shape, dtype=np.float32) + np.arange(down, dtype=np.float32)[:, None]) / np.float32(down)
    x += np.arange(columns, dtype=np.float32)[:, None, None]
    y += np.arange(rows, dtype=np.float32)[:, None, None, None]
    return x.ravel(), y.ravel()


def _directions(camera_to_world, pinhole: Pinhole, x, y) -> np.ndarray:
    right, up, back = camera_to_world[:3, :3].T.astype(np.float32)[..., None]
    vectors = (x - pinhole.cx) / pinhole.fx * right - (y - pinhole.cy) / pinhole.fy * up - back
    return vectors / np.sqrt((vectors * vectors).sum(axis=0))


def _candidates(origin, corners, backdrop: Backdrop) -> list[int]:
    """The bodies that may be seen from `origin` between four corner directions, given in order around the tile."""
    sides = np.cross(corners, np.roll(corners, -1, axis=1), axis=0)
    sides /= -np.sign(corners.sum(axis=1) @ sides) * np.linalg.norm(sides, axis=0)
    centers, support = _hulls(backdrop)
    # A thousandth of a unit for rounding.
    reached = (centers - origin[:, 0]) @ sides <= extent(support, sides) + 1e-3
    return np.flatnonzero(reached.all(axis=1)).tolist()


def straight_alpha(premultiplied: Float[np.ndarray, "height width 4"]) -> Float[np.ndarray, "height width 4"]:
    """The picture with its colors divided by alpha, and black where alpha is zero."""
    alpha = premultiplied[..., 3:]
    color = np.divide(premultiplied[..., :3], alpha, out=np.zeros_like(premultiplied[..., :3]), where=alpha > 0)
    return np.concatenate([np.minimum(color, 1), alpha], axis=-1)


def radiance(
    origins: Float[np.ndarray, "3 #n"],
    directions: Float[np.ndarray, "3 n"],
    backdrop: Backdrop,
    candidates: Sequence[int] | None = None,
) -> tuple[Float[np.ndarray, "3 n"], Float[np.ndarray, " n"]]:
    """Color that arrives along each ray, and the distance to the surface it left (infinite: sky or nothing).

    Args:
        origins: one for each ray or one for all, outside every solid, world.
        directions: unit.
        backdrop: False leaves the still life alone, and black where a ray misses it.
        candidates: indices into `bodies(backdrop)` that the rays may meet; all of them by default.
    """
    distance, nearest = _first_hits(origins, directions, backdrop, candidates)
    color = np.zeros_like(directions)
    for index in np.flatnonzero(np.bincount(nearest + 1)) - 1:
        rays = np.flatnonzero(nearest == index)
        along = directions.take(rays, axis=1)
        if index >= 0:
            starts = origins if origins.shape[1] == 1 else origins.take(rays, axis=1)
            scatter(color, rays, _shade(backdrop, int(index), starts, along, distance.take(rays)))
        elif backdrop:
            sky = _sky(along)
            scatter(color, rays, mix(sky, _CLOUD, 0.9 * _small_clouds(along)) if backdrop == "far" else sky)
    return np.clip(color, 0, 1, out=color), distance


def _first_hits(origins, directions, backdrop: Backdrop, candidates) -> tuple[np.ndarray, np.ndarray]:
    """Distance to the nearest hit along each ray, and the index of the body there; infinite and -1 for none."""
    world = bodies(backdrop)
    distance = np.full(directions.shape[1], np.inf, dtype=directions.dtype)
    nearest = np.full(directions.shape[1], -1, dtype=np.int16)
    order = [(0.0, index) for index in (range(len(world)) if candidates is None else candidates)]
    if origins.shape[1] == 1:
        order = sorted((float(world[index].shape.distance(origins)[0]), index) for _, index in order)
    for gap, index in order:
        # What begins beyond every hit so far is hidden, and so is all after it (a thousandth for rounding).
        if 0.999 * gap > distance.max():
            break
        enter, hit = world[index].shape.intersect(origins, directions)
        hit &= enter < distance
        if hit.any():
            np.copyto(distance, enter, where=hit)
            np.copyto(nearest, index, where=hit)
    return distance, nearest


def _shade(backdrop, index, origins, directions, distance) -> np.ndarray:
    body = bodies(backdrop)[index]
    points = origins + distance * directions
    local, local_normals, normals = body.shape.surface(points)
    albedo = body.texture(local, local_normals)
    lit, openness = _occlusion(backdrop, index, points, normals)
    sun, sky = np.maximum(_dot(SUN, normals), 0) * lit, openness * (0.8 + 0.2 * normals[2])
    color = np.stack([a * (s * sun + k * sky) for a, s, k in zip(albedo, _SUN_COLOR, _SKY_COLOR, strict=True)])
    if body.gloss:
        halfway = np.stack([towards - along for towards, along in zip(SUN, directions, strict=True)])
        halfway /= np.sqrt(_dot(halfway, halfway))
        color += body.gloss * lit * _squared(np.maximum(_dot(halfway, normals), 0), 5)
    if not body.near:
        length = _CLEAR_LENGTH if backdrop == "far" else _HAZE_LENGTH
        haze = 1 - np.exp(np.minimum(_HAZE_START - distance, 0) / length)
        color = mix(color, _sky(directions, clouds=False), haze)
    return color


def _occlusion(backdrop, index, points, normals) -> tuple[np.ndarray, np.ndarray]:
    """Whether the sun reaches each point (0 or 1), and how far neighbors leave the sky open (0.35 to 1)."""
    lit, gap = np.ones_like(points[0]), np.full_like(points[0], _OCCLUSION_REACH)
    close = np.flatnonzero(points[0] ** 2 + points[1] ** 2 < _SHADOW_REACH**2)
    if close.size:
        points, normals = points.take(close, axis=1), normals.take(close, axis=1)
        world = bodies(backdrop)
        shades, touches = _neighbors(backdrop, index, points)
        sun = np.asarray(SUN, dtype=points.dtype)[:, None]
        reached, room = lit.take(close), gap.take(close)
        for other in shades:
            reached *= ~world[other].shape.intersect(points, sun)[1]
        if touches:
            probes = points + _OCCLUSION_REACH * normals
            for other in touches:
                np.minimum(room, world[other].shape.distance(probes), out=room)
        lit[close], gap[close] = reached, room
    return lit, 0.35 + 0.65 * np.clip(gap / _OCCLUSION_REACH, 0, 1)


def _neighbors(backdrop: Backdrop, index: int, points: np.ndarray) -> tuple[list[int], list[int]]:
    """The bodies whose shadow may fall on some of the points, and those that may be within the occlusion's reach."""
    low, high = _slabs(backdrop)
    # Not a matrix product, which would start threads in every process that draws.
    along = [*(_dot(axis, points) for axis in _AXES[:3].tolist()), *points]
    least, most = np.array([row.min() for row in along]), np.array([row.max() for row in along])
    casts = np.array([body.casts for body in bodies(backdrop)])
    casts[index] = False
    bulky = np.array([not body.thin for body in bodies(backdrop)])
    sunward = (high[:, 2] > least[2]) & ((low < most) & (high > least))[:, :2].all(axis=1)
    reach = 2 * _OCCLUSION_REACH
    beside = ((low < most + reach) & (high > least - reach)).all(axis=1)
    return np.flatnonzero(casts & sunward).tolist(), np.flatnonzero(casts & bulky & beside).tolist()


@functools.lru_cache(maxsize=8)
def _hulls(backdrop: Backdrop) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    shapes = [body.shape for body in bodies(backdrop)]
    return np.array([shape.center for shape in shapes]), supports(shapes)


@functools.lru_cache(maxsize=8)
def _slabs(backdrop: Backdrop) -> tuple[np.ndarray, np.ndarray]:
    """Where every body begins and ends along each of `_AXES`, `[bodies, axes]`."""
    centers, support = _hulls(backdrop)
    middle, reach = centers @ _AXES.T, extent(support, _AXES.T)
    return middle - reach, middle + reach


def _sky(directions, clouds: bool = True) -> np.ndarray:
    """Color of the sky; below the horizon it is the horizon's, which far surfaces fade into."""
    height = np.clip(directions[2], 0, 1)
    level = 1 - height
    color = mix(_HORIZON, _ZENITH, 1 - level * level * level)
    glow = _squared(np.maximum(_dot(SUN, directions), 0), 3)
    color = mix(color, _GLOW, 0.45 * glow)
    if clouds:
        # A flat layer overhead: its plane is met at 1 / height, which the offset keeps finite at the horizon.
        u, v = directions[0] / (height + 0.25), directions[1] / (height + 0.25)
        cover = np.clip(3.0 * fractal_noise(1.6 * u + 3.7, 1.6 * v + 9.1, 3) - 1.5, 0, 1)
        color = mix(color, _CLOUD, 0.7 * cover * np.minimum(4 * height, 1))
    return color


def _small_clouds(directions) -> np.ndarray:
    """Share of small clouds, in fields that reach down to the horizon, in what is seen above it."""
    height = np.maximum(directions[2], 0) + 0.12
    u, v = directions[0] / height, directions[1] / height
    fields = np.clip(4.0 * fractal_noise(0.4 * u + 2.9, 0.4 * v + 6.3, 3) - 1.4, 0, 1)
    return fields * np.clip(5.0 * fractal_noise(2.6 * u, 2.6 * v, 4) - 2.0, 0, 1)


def _dot(first, second) -> np.ndarray:
    return first[0] * second[0] + first[1] * second[1] + first[2] * second[2]


def _squared(values: np.ndarray, times: int) -> np.ndarray:
    # Powers of two by repeated squaring: a general power costs more than all the rest of the sky.
    for _ in range(times):
        values = values * values
    return values
