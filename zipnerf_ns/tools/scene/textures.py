"""Surface patterns of the built-in scene: albedo `[3, n]` of points `[3, n]` with outward normals `[3, n]`.

Points and normals are in the body's own frame. Patterns go from a few units down to a hundredth of one: strong low
frequencies with weaker fine detail, so that a coarse model already looks right and only a prefiltered one stays right
from afar. Colors are the values that are stored in the pictures.
"""

from __future__ import annotations

import numpy as np

from zipnerf_ns.tools.scene.procedural import Color, dots, fractal_noise, mix, parity, scatter, value_noise

CREAM, TERRACOTTA, CORAL = (0.94, 0.88, 0.75), (0.76, 0.38, 0.25), (0.91, 0.42, 0.35)
NAVY, TEAL, MUSTARD = (0.20, 0.28, 0.46), (0.20, 0.55, 0.56), (0.92, 0.68, 0.26)
GRASS, STRAW, STONE, BRASS = (0.44, 0.61, 0.28), (0.82, 0.75, 0.42), (0.84, 0.78, 0.69), (0.74, 0.54, 0.34)


def plain(color: Color, points, normals):
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


def plinth(points, normals):
    x, y = points[0], points[1]
    away = np.sqrt(x * x + y * y)
    tiles = mix(CREAM, TERRACOTTA, 0.62 * parity(x / 0.24, y / 0.24))
    tiles = mix(tiles, STONE, 0.22 * parity(x / 0.02, y / 0.02))
    tiles = mix(tiles, NAVY, 0.25 * fractal_noise(9 * x, 9 * y, 3))
    rim = np.flatnonzero(away > 1.06)
    scatter(tiles, rim, mix(TEAL, CREAM, 0.6 * parity(36 * _turn(points.take(rim, axis=1)))))
    return tiles


def slab(points, normals):
    u, v = _face(points, normals)
    return mix(mix(NAVY, TEAL, 0.5 * parity(u / 0.07)), CREAM, 0.35 * fractal_noise(14 * u, 14 * v, 3))


def globe(points, normals):
    x, y, z = points
    shores = np.clip(12 * _solid_noise(points, 4.5, 4) - 5.6, 0, 1)
    earth = mix(GRASS, STRAW, value_noise(24 * x + 9 * z, 24 * y))
    sea = mix(TEAL, (0.20, 0.36, 0.66), np.clip(0.5 + 2.5 * z, 0, 1))
    return mix(mix(sea, earth, shores), CREAM, np.clip(8 * np.abs(normals[2]) - 6.9, 0, 1))


def beach_ball(points, normals):
    # Tilted, so that its poles do not coincide with the vertical.
    tilted = np.stack([points[0], 0.8 * points[1] - 0.6 * points[2], 0.6 * points[1] + 0.8 * points[2]])
    turn = 8 * _turn(tilted)
    gore = turn - 4 * np.floor(turn / 4)
    strip = mix(mix(CORAL, CREAM, parity(gore)), MUSTARD, (np.floor(gore) == 2).astype(turn.dtype))
    return mix(strip, STONE, 0.25 * parity(tilted[2] / 0.018))


def crate(points, normals):
    u, v = _face(points, normals)
    wood = mix((0.80, 0.58, 0.34), (0.56, 0.36, 0.20), fractal_noise(5 * u, 40 * v, 3))
    gaps = (np.abs(v / 0.14 - np.round(v / 0.14)) < 0.05).astype(u.dtype)
    frame = (np.maximum(np.abs(u), np.abs(v)) > 0.165).astype(u.dtype)
    return mix(mix(wood, (0.30, 0.19, 0.12), 0.7 * gaps), (0.72, 0.48, 0.26), 0.8 * frame)


def parcel(points, normals):
    u, v = _face(points, normals)
    ribbon = ((np.abs(u) < 0.02) | (np.abs(v) < 0.02)).astype(u.dtype)
    return mix(mix(TEAL, CREAM, 0.45 * dots(u / 0.03, v / 0.03, 0.28)), CORAL, ribbon)


def column(points, normals):
    flutes = parity(20 * _turn(points)) * (np.abs(normals[2]) < 0.5)
    shade = mix(STONE, (0.52, 0.50, 0.54), 0.5 * flutes)
    return mix(shade, CREAM, 0.5 * fractal_noise(12 * points[0], 6 * points[2], 3))


def spotted(points, normals):
    return mix(MUSTARD, TERRACOTTA, 0.85 * dots(10 * _turn(points), 6.5 * normals[2] * 0.5 + 0.25, 0.3))


def pole(points, normals):
    return mix(CREAM, CORAL, parity(points[2] / 0.09 + _turn(points)))


def flag(points, normals):
    u, v = points[0], points[2]
    bands = mix((0.45, 0.56, 0.70), CREAM, parity(v / 0.06 + 0.5))
    return mix(bands, CORAL, (u < -0.05).astype(u.dtype))


def marble(points, normals):
    return mix(CORAL, CREAM, np.clip(16 * np.abs(_solid_noise(points, 9.0, 4) - 0.5), 0, 1))


def ground(points, normals):
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


def bark(points, normals):
    return mix((0.46, 0.33, 0.22), (0.30, 0.21, 0.15), parity(points[2] / 0.05))


def leaves(color, points, normals):
    dark = tuple(0.62 * c for c in color)
    return mix(dark, color, np.clip(3.4 * _solid_noise(points, 4.5, 3) - 1.0 + 0.3 * normals[2], 0, 1))


def tower(color, points, normals):
    u, v = _face(points, normals)
    pane_u, pane_v = u / 0.8 - np.floor(u / 0.8), v / 1.1 - np.floor(v / 1.1)
    pane = (np.abs(pane_u - 0.5) < 0.28) & (np.abs(pane_v - 0.5) < 0.3) & (np.abs(normals[2]) < 0.5)
    return mix(color, NAVY, 0.5 * pane.astype(u.dtype))


def windows(color, size, points, normals):
    """A block's front: rows of panes, dark and lit."""
    u, v = _face(points, normals)
    u, v = u / size, v / size
    pane = (np.abs(u - np.floor(u) - 0.5) < 0.3) & (np.abs(v - np.floor(v) - 0.5) < 0.3) & (np.abs(normals[2]) < 0.5)
    pane = 0.95 * pane.astype(u.dtype)
    lit = value_noise(np.floor(u) * 7.31, np.floor(v) * 5.17) > 0.6
    return mix(mix(color, (0.13, 0.17, 0.26), pane), (1.0, 0.86, 0.52), pane * lit)


def banded(size, points, normals):
    return mix(CREAM, (0.72, 0.16, 0.13), parity(points[2] / size))


def hill(points, normals):
    x, y, z = points
    woods = fractal_noise(x / 30, y / 30, 4)
    slope = mix((0.34, 0.47, 0.30), (0.66, 0.64, 0.42), np.clip(2.5 * woods - 0.75, 0, 1))
    return mix(slope, CREAM, 0.15 * parity(z / 3))
