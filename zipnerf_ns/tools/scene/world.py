"""What stands in the built-in scene: solids, their textures, and the distance to the true surface.

A still life on a round plinth within 1.2 units of the origin, paving and meadow around it, trees from 5 units on,
towers at 30 to 90 and hills beyond 100. Surfaces carry patterns from a few units down to a hundredth of one: strong
low frequencies with weaker fine detail, so that a coarse model already looks right and only a prefiltered one stays
right from afar. Colors are the values that are stored in the pictures.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from zipnerf_ns.tools.scene.procedural import (
    Box,
    Color,
    Cylinder,
    Ground,
    Shape,
    Sphere,
    dots,
    fractal_noise,
    mix,
    parity,
    scatter,
    value_noise,
)

Texture = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Albedo `[3, n]` of surface points `[3, n]` with outward normals `[3, n]`, both in the body's own frame."""

GROUND_LEVEL = -0.5
PLINTH_TOP = -0.4

CREAM, TERRACOTTA, CORAL = (0.94, 0.88, 0.75), (0.76, 0.38, 0.25), (0.91, 0.42, 0.35)
NAVY, TEAL, MUSTARD = (0.20, 0.28, 0.46), (0.20, 0.55, 0.56), (0.92, 0.68, 0.26)
GRASS, STRAW, STONE, BRASS = (0.44, 0.61, 0.28), (0.82, 0.75, 0.42), (0.84, 0.78, 0.69), (0.74, 0.54, 0.34)
_FOLIAGE = ((0.48, 0.70, 0.32), (0.72, 0.76, 0.36), (0.36, 0.62, 0.40), (0.95, 0.72, 0.32), (0.55, 0.74, 0.40))


@dataclass(frozen=True)
class Body:
    """A solid with its texture."""

    shape: Shape
    texture: Texture
    gloss: float = 0.0
    """Strength of the highlight."""
    near: bool = False
    """Part of the still life: present without the backdrop, and part of the true surface."""
    casts: bool = True
    """Whether it throws a shadow on others."""
    thin: bool = False
    """Too thin to hide the sky from its neighbors."""


Backdrop = bool | Literal["far"]
"""Whether more than the still life is there; "far": with fine detail tens to hundreds of units away, and few trees
before it."""


@functools.cache
def bodies(backdrop: Backdrop) -> tuple[Body, ...]:
    """The solids of the scene: with a backdrop all of them, otherwise the still life alone."""
    if backdrop == "far":
        return _still_life() + _surroundings(num_trees=4) + _far_away() + _skyline()
    return _still_life() + (_surroundings() + _far_away() if backdrop else ())


def _still_life() -> tuple[Body, ...]:
    """Everything on the plinth, and the plinth."""
    top = PLINTH_TOP
    crate, parcel = (-0.48, -0.26, top + 0.21), (-0.44, -0.22, top + 0.42 + 0.11)
    near = functools.partial(Body, near=True)
    wire = functools.partial(Body, near=True, thin=True)
    bars = _lattice_bars((0.44, -0.50, top + 0.23), 0.35, 0.22, 0.011)
    return (
        near(Cylinder((0.0, 0.0, (top + GROUND_LEVEL) / 2), 0.0, 1.2, (top - GROUND_LEVEL) / 2), _plinth),
        near(Box((0.0, 0.06, top + 0.07), 0.5, (0.21, 0.21, 0.07)), _slab),
        near(Sphere((0.0, 0.06, top + 0.14 + 0.25), 0.0, 0.25), _globe, gloss=0.18),
        near(Sphere((0.62, 0.34, top + 0.29), 0.9, 0.29), _beach_ball),
        near(Box(crate, 0.35, (0.21, 0.21, 0.21)), _crate),
        near(Box(parcel, 0.95, (0.13, 0.11, 0.11)), _parcel),
        near(Cylinder((-0.42, 0.58, top + 0.27), 0.0, 0.11, 0.27), _column),
        near(Sphere((-0.42, 0.58, top + 0.54 + 0.13), 0.4, 0.13), _spotted),
        wire(Cylinder((-0.93, 0.22, top + 0.55), 0.0, 0.014, 0.55), _pole),
        wire(Sphere((-0.93, 0.22, top + 1.13), 0.0, 0.035), functools.partial(_plain, MUSTARD)),
        wire(Box((-0.93 + 0.163, 0.22, top + 0.99), 0.0, (0.15, 0.006, 0.09)), _flag),
        near(Sphere((0.44, -0.50, top + 0.15), 0.2, 0.15), _marble),
        near(Sphere((-0.02, -0.72, top + 0.09), 0.0, 0.09), _spotted),
        near(Sphere((0.12, 0.80, top + 0.11), 2.0, 0.11), _beach_ball),
        *(wire(bar, functools.partial(_plain, BRASS)) for bar in bars),
    )


def _lattice_bars(center: tuple[float, float, float], yaw: float, half: float, thickness: float) -> list[Box]:
    """The twelve edges of a cube as thin bars; each reaches through the corners."""
    c, s = float(np.cos(yaw)), float(np.sin(yaw))
    bars = []
    for axis in range(3):
        for a, b in ((-half, -half), (-half, half), (half, -half), (half, half)):
            x, y, z = np.roll([0.0, a, b], axis).tolist()
            at = (center[0] + c * x - s * y, center[1] + s * x + c * y, center[2] + z)
            bars.append(Box(at, yaw, tuple(np.roll([half + thickness, thickness, thickness], axis).tolist())))
    return bars


def _surroundings(num_trees: int = 18) -> tuple[Body, ...]:
    """The ground and the trees on it."""
    placed = [Body(Ground((0.0, 0.0, GROUND_LEVEL)), _ground, casts=False)]
    random = np.random.default_rng(11)
    for number in range(num_trees):
        angle, away = 2.4 * number + random.uniform(-0.3, 0.3), 4.9 + 0.55 * number
        height, crown = random.uniform(0.5, 1.0), random.uniform(0.55, 1.0)
        x, y = float(away * np.cos(angle)), float(away * np.sin(angle))
        leaves = _FOLIAGE[number % len(_FOLIAGE)]
        trunk = Cylinder((x, y, GROUND_LEVEL + height / 2), 0.0, 0.09 * crown + 0.03, height / 2)
        placed.append(Body(trunk, _bark))
        top = (x, y, GROUND_LEVEL + height + 0.8 * crown)
        placed.append(Body(Sphere(top, float(angle), crown), functools.partial(_leaves, leaves)))
    return tuple(placed)


def _far_away() -> tuple[Body, ...]:
    """Towers and hills: too far to throw a shadow on anything that is seen clearly."""
    placed = []
    random = np.random.default_rng(5)
    walls = (TERRACOTTA, CREAM, (0.55, 0.62, 0.70), MUSTARD, (0.70, 0.50, 0.48), TEAL)
    for number in range(22):
        # Two groups of towers with open views of the hills between them.
        angle = random.uniform(0.2, 1.9) + (number % 2) * 2.9
        away, height = random.uniform(28, 90), random.uniform(3, 13)
        half = (random.uniform(1.5, 4.0), random.uniform(1.5, 4.0), height / 2)
        at = (float(away * np.cos(angle)), float(away * np.sin(angle)), GROUND_LEVEL + height / 2)
        wall = functools.partial(_tower, walls[number % len(walls)])
        placed.append(Body(Box(at, float(random.uniform(0, 3)), half), wall, casts=False))
    for number in range(9):
        angle, away = 2 * np.pi * (number + random.uniform(-0.3, 0.3)) / 9, random.uniform(150, 330)
        height, radius = away * random.uniform(0.06, 0.13), away * random.uniform(0.7, 1.1)
        at = (float(away * np.cos(angle)), float(away * np.sin(angle)), float(GROUND_LEVEL + height - radius))
        placed.append(Body(Sphere(at, 0.0, float(radius)), _hill, casts=False))
    return tuple(placed)


def _skyline() -> tuple[Body, ...]:
    """Blocks with windows, masts and open frames all around, whose bars and panes are 4 to 7 thousandths of a radian
    wide as the still life sees them: a pixel or two of pictures of the default size."""
    placed = []
    random = np.random.default_rng(17)
    walls = (CREAM, (0.62, 0.42, 0.36), (0.42, 0.48, 0.56), STONE, (0.34, 0.33, 0.38))
    for number in range(54):
        angle, away = 2 * np.pi * (number + random.uniform(-0.4, 0.4)) / 54, float(np.exp(random.uniform(3.0, 5.6)))
        x, y, height = float(away * np.cos(angle)), float(away * np.sin(angle)), away * random.uniform(0.09, 0.19)
        color, turn = walls[number % len(walls)], float(random.uniform(0, 3))
        if number % 3 == 2:
            placed += _frame((x, y), turn, 0.02 * away, height, 0.0022 * away, functools.partial(_plain, color))
            continue
        half = (random.uniform(0.02, 0.05) * away, random.uniform(0.02, 0.05) * away, height / 2)
        at = (x, y, GROUND_LEVEL + height / 2)
        placed.append(Body(Box(at, turn, half), functools.partial(_windows, color, 0.011 * away), casts=False))
        mast = Cylinder((x, y, GROUND_LEVEL + 1.3 * height), 0.0, 0.0025 * away, 0.3 * height)
        placed.append(Body(mast, functools.partial(_banded, 0.012 * away), casts=False, thin=True))
    return tuple(placed)


def _frame(at: tuple[float, float], yaw: float, half: float, height: float, bar: float, texture) -> list[Body]:
    """Two posts on the ground with rungs between them, through which the sky is seen.

    Args:
        at: x and y of its middle.
        half: half the distance of the posts.
        bar: half the thickness of posts and rungs.
    """
    c, s = float(np.cos(yaw)), float(np.sin(yaw))
    posts = [Box((at[0] + side * c, at[1] + side * s, GROUND_LEVEL + height / 2), yaw, (bar, bar, height / 2))
             for side in (-half, half)]  # fmt: skip
    rungs = [Box((*at, GROUND_LEVEL + height * step / 7), yaw, (half, bar, bar)) for step in range(1, 8)]
    return [Body(shape, texture, casts=False, thin=True) for shape in posts + rungs]


def _plain(color: Color, points, normals):
    return mix(color, color, np.zeros_like(points[0]))


def _face(points, normals) -> tuple[np.ndarray, np.ndarray]:
    """Two coordinates along the face of a box."""
    on_x, on_z = np.abs(normals[0]) > 0.5, np.abs(normals[2]) > 0.5
    return np.where(on_x, points[1], points[0]), np.where(on_z, points[1], points[2])


def _solid_noise(points, frequency: float, octaves: int) -> np.ndarray:
    """Fractal noise through space: two flat ones from different sides, so that neither's streaks show."""
    x, y, z = frequency * points
    first = fractal_noise(x + 0.5 * z, y - 0.6 * z + 1.7, octaves)
    return (first + fractal_noise(z - 0.4 * x + 5.1, 0.8 * y + 0.6 * x, octaves)) / 2


def _turn(points) -> np.ndarray:
    """Angle about the upright axis in turns, -0.5 to 0.5."""
    return np.arctan2(points[1], points[0]) * 0.15915494


def _plinth(points, normals):
    x, y = points[0], points[1]
    away = np.sqrt(x * x + y * y)
    tiles = mix(CREAM, TERRACOTTA, 0.62 * parity(x / 0.24, y / 0.24))
    tiles = mix(tiles, STONE, 0.22 * parity(x / 0.02, y / 0.02))
    tiles = mix(tiles, NAVY, 0.25 * fractal_noise(9 * x, 9 * y, 3))
    rim = np.flatnonzero(away > 1.06)
    scatter(tiles, rim, mix(TEAL, CREAM, 0.6 * parity(36 * _turn(points.take(rim, axis=1)))))
    return tiles


def _slab(points, normals):
    u, v = _face(points, normals)
    return mix(mix(NAVY, TEAL, 0.5 * parity(u / 0.07)), CREAM, 0.35 * fractal_noise(14 * u, 14 * v, 3))


def _globe(points, normals):
    x, y, z = points
    shores = np.clip(12 * _solid_noise(points, 4.5, 4) - 5.6, 0, 1)
    earth = mix(GRASS, STRAW, value_noise(24 * x + 9 * z, 24 * y))
    sea = mix(TEAL, (0.20, 0.36, 0.66), np.clip(0.5 + 2.5 * z, 0, 1))
    return mix(mix(sea, earth, shores), CREAM, np.clip(8 * np.abs(normals[2]) - 6.9, 0, 1))


def _beach_ball(points, normals):
    # Tilted, so that its poles do not coincide with the vertical.
    tilted = np.stack([points[0], 0.8 * points[1] - 0.6 * points[2], 0.6 * points[1] + 0.8 * points[2]])
    turn = 8 * _turn(tilted)
    gore = turn - 4 * np.floor(turn / 4)
    strip = mix(mix(CORAL, CREAM, parity(gore)), MUSTARD, (np.floor(gore) == 2).astype(turn.dtype))
    return mix(strip, STONE, 0.25 * parity(tilted[2] / 0.018))


def _crate(points, normals):
    u, v = _face(points, normals)
    wood = mix((0.80, 0.58, 0.34), (0.56, 0.36, 0.20), fractal_noise(5 * u, 40 * v, 3))
    gaps = (np.abs(v / 0.14 - np.round(v / 0.14)) < 0.05).astype(u.dtype)
    frame = (np.maximum(np.abs(u), np.abs(v)) > 0.165).astype(u.dtype)
    return mix(mix(wood, (0.30, 0.19, 0.12), 0.7 * gaps), (0.72, 0.48, 0.26), 0.8 * frame)


def _parcel(points, normals):
    u, v = _face(points, normals)
    ribbon = ((np.abs(u) < 0.02) | (np.abs(v) < 0.02)).astype(u.dtype)
    return mix(mix(TEAL, CREAM, 0.45 * dots(u / 0.03, v / 0.03, 0.28)), CORAL, ribbon)


def _column(points, normals):
    flutes = parity(20 * _turn(points)) * (np.abs(normals[2]) < 0.5)
    shade = mix(STONE, (0.52, 0.50, 0.54), 0.5 * flutes)
    return mix(shade, CREAM, 0.5 * fractal_noise(12 * points[0], 6 * points[2], 3))


def _spotted(points, normals):
    return mix(MUSTARD, TERRACOTTA, 0.85 * dots(10 * _turn(points), 6.5 * normals[2] * 0.5 + 0.25, 0.3))


def _pole(points, normals):
    return mix(CREAM, CORAL, parity(points[2] / 0.09 + _turn(points)))


def _flag(points, normals):
    u, v = points[0], points[2]
    bands = mix((0.45, 0.56, 0.70), CREAM, parity(v / 0.06 + 0.5))
    return mix(bands, CORAL, (u < -0.05).astype(u.dtype))


def _marble(points, normals):
    return mix(CORAL, CREAM, np.clip(16 * np.abs(_solid_noise(points, 9.0, 4) - 0.5), 0, 1))


def _ground(points, normals):
    """Paving around the plinth, up to a wavy edge, and the meadow beyond it."""
    x, y = points[0], points[1]
    away = np.sqrt(x * x + y * y)
    beyond = away > 3.7 + 0.5 * value_noise(0.9 * x + 3, 0.9 * y)
    color = np.empty_like(points)
    for part, pattern in ((np.flatnonzero(~beyond), _paving), (np.flatnonzero(beyond), _meadow)):
        if part.size:
            scatter(color, part, pattern(x.take(part), y.take(part)))
    return color


def _paving(x, y):
    stones = mix(STONE, (0.66, 0.58, 0.54), 0.6 * parity(x / 0.6, y / 0.6))
    stones = mix(stones, CREAM, 0.3 * parity(x / 0.05, y / 0.05))
    return mix(stones, (0.58, 0.50, 0.42), 0.4 * fractal_noise(2.5 * x, 2.5 * y, 3))


def _meadow(x, y):
    grass = mix(GRASS, STRAW, np.clip(2.2 * fractal_noise(0.23 * x, 0.23 * y, 3) - 0.6, 0, 1))
    u, v = 0.0711 * x + 0.0414 * y + 0.37, 0.0711 * y - 0.0414 * x + 0.61
    field = parity(u, v)
    grass = mix(grass, (0.58, 0.62, 0.30), 0.45 * field)
    grass = mix(grass, (0.30, 0.42, 0.20), 0.16 * field * parity(9 * u) + 0.3 * value_noise(5 * x, 5 * y))
    bloom = dots(x / 0.55, y / 0.55, 0.16) * (value_noise(0.8 * x + 7, 0.8 * y) > 0.55)
    return mix(grass, CREAM, 0.7 * bloom)


def _bark(points, normals):
    return mix((0.46, 0.33, 0.22), (0.30, 0.21, 0.15), parity(points[2] / 0.05))


def _leaves(color, points, normals):
    dark = tuple(0.62 * c for c in color)
    return mix(dark, color, np.clip(3.4 * _solid_noise(points, 4.5, 3) - 1.0 + 0.3 * normals[2], 0, 1))


def _tower(color, points, normals):
    u, v = _face(points, normals)
    pane_u, pane_v = u / 0.8 - np.floor(u / 0.8), v / 1.1 - np.floor(v / 1.1)
    pane = (np.abs(pane_u - 0.5) < 0.28) & (np.abs(pane_v - 0.5) < 0.3) & (np.abs(normals[2]) < 0.5)
    return mix(color, NAVY, 0.5 * pane.astype(u.dtype))


def _windows(color, size, points, normals):
    """A block's front: rows of panes, dark and lit."""
    u, v = _face(points, normals)
    u, v = u / size, v / size
    pane = (np.abs(u - np.floor(u) - 0.5) < 0.3) & (np.abs(v - np.floor(v) - 0.5) < 0.3) & (np.abs(normals[2]) < 0.5)
    pane = 0.95 * pane.astype(u.dtype)
    lit = value_noise(np.floor(u) * 7.31, np.floor(v) * 5.17) > 0.6
    return mix(mix(color, (0.13, 0.17, 0.26), pane), (1.0, 0.86, 0.52), pane * lit)


def _banded(size, points, normals):
    return mix(CREAM, (0.72, 0.16, 0.13), parity(points[2] / size))


def _hill(points, normals):
    x, y, z = points
    woods = fractal_noise(x / 30, y / 30, 4)
    slope = mix((0.34, 0.47, 0.30), (0.66, 0.64, 0.42), np.clip(2.5 * woods - 0.75, 0, 1))
    return mix(slope, CREAM, 0.15 * parity(z / 3))
