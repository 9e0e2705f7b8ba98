"""What stands in the built-in scene, and what moves in it: solids with their textures.

A still life on a round plinth within 1.2 units of the origin, paving and meadow around it, trees from 5 units on,
towers at 30 to 90 and hills beyond 100. At a moment of the moving scene, the things on the plinth are where they are
then: they turn, bounce, roll, grow, crawl, and one is there for a while only.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from zipnerf_ns.tools.scene import textures
from zipnerf_ns.tools.scene.procedural import Box, Cylinder, Ground, Shape, Sphere
from zipnerf_ns.tools.scene.textures import BRASS, CREAM, MUSTARD, STONE, TEAL, TERRACOTTA

Texture = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Albedo `[3, n]` of surface points `[3, n]` with outward normals `[3, n]`, both in the body's own frame."""

GROUND_LEVEL = -0.5
PLINTH_TOP = -0.4

_FOLIAGE = ((0.48, 0.70, 0.32), (0.72, 0.76, 0.36), (0.36, 0.62, 0.40), (0.95, 0.72, 0.32), (0.55, 0.74, 0.40))
_THERE = (0.3, 0.75)
"""When the parcel appears, and when it has gone."""


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


class Moment(NamedTuple):
    """The moving scene at one time, with the backdrop."""

    time: float
    """From 0 to 1."""


Backdrop = bool | Literal["far"] | Moment
"""Whether more than the still life is there; "far": with fine detail tens to hundreds of units away, and few trees
before it; a moment: what stands on the plinth is as it is then."""


@functools.lru_cache(maxsize=8)
def bodies(backdrop: Backdrop) -> tuple[Body, ...]:
    """The solids of the scene: with a backdrop all of them, otherwise the still life alone."""
    if backdrop == "far":
        return _still_life() + _surroundings(num_trees=4) + _far_away() + _skyline()
    life = _moving_life(backdrop.time) if isinstance(backdrop, Moment) else _still_life()
    return life + (_surroundings() + _far_away() if backdrop else ())


# What the still life and the moving one are made of.
_near = functools.partial(Body, near=True)
_wire = functools.partial(Body, near=True, thin=True)


def _standing(has_parcel: bool = True) -> tuple[Body, ...]:
    """What neither turns nor moves, though the parcel may be away: the plinth, and on it the crate and the pole."""
    top = PLINTH_TOP
    parcel = _near(Box((-0.44, -0.22, top + 0.42 + 0.11), 0.95, (0.13, 0.11, 0.11)), textures.parcel)
    return (
        _near(Cylinder((0.0, 0.0, (top + GROUND_LEVEL) / 2), 0.0, 1.2, (top - GROUND_LEVEL) / 2), textures.plinth),
        _near(Box((0.0, 0.06, top + 0.07), 0.5, (0.21, 0.21, 0.07)), textures.slab),
        _near(Box((-0.48, -0.26, top + 0.21), 0.35, (0.21, 0.21, 0.21)), textures.crate),
        *([parcel] if has_parcel else []),
        _wire(Cylinder((-0.93, 0.22, top + 0.55), 0.0, 0.014, 0.55), textures.pole),
        _wire(Sphere((-0.93, 0.22, top + 1.13), 0.0, 0.035), functools.partial(textures.plain, MUSTARD)),
    )


def _still_life() -> tuple[Body, ...]:
    """Everything on the plinth, and the plinth."""
    top = PLINTH_TOP
    bars = _lattice_bars((0.44, -0.50, top + 0.23), 0.35, 0.22, 0.011)
    return (
        *_standing(),
        _near(Sphere((0.0, 0.06, top + 0.14 + 0.25), 0.0, 0.25), textures.globe, gloss=0.18),
        _near(Sphere((0.62, 0.34, top + 0.29), 0.9, 0.29), textures.beach_ball),
        _near(Cylinder((-0.42, 0.58, top + 0.27), 0.0, 0.11, 0.27), textures.column),
        _near(Sphere((-0.42, 0.58, top + 0.54 + 0.13), 0.4, 0.13), textures.spotted),
        _wire(Box((-0.93 + 0.163, 0.22, top + 0.99), 0.0, (0.15, 0.006, 0.09)), textures.flag),
        _near(Sphere((0.44, -0.50, top + 0.15), 0.2, 0.15), textures.marble),
        _near(Sphere((-0.02, -0.72, top + 0.09), 0.0, 0.09), textures.spotted),
        _near(Sphere((0.12, 0.80, top + 0.11), 2.0, 0.11), textures.beach_ball),
        *(_wire(bar, functools.partial(textures.plain, BRASS)) for bar in bars),
    )


def _moving_life(time: float) -> tuple[Body, ...]:
    """The same at a time of the moving scene; a crawling row of balls is where one lies in the still one."""
    top, turn = PLINTH_TOP, 2 * math.pi * time
    # Two bounces and a half.
    flight = (2.5 * time + 0.25) % 1
    bounce = 1.6 * flight * (1 - flight)
    grown = 1 + 0.37 * math.sin(turn)
    half = 0.27 * grown
    breath = 1 + 0.18 * math.sin(1.5 * turn)
    radius = 0.15 * breath
    rolled = math.radians(-95 - 135 * time)
    wind = 0.7 * math.sin(1.5 * turn)
    flag = (-0.93 + 0.163 * math.cos(wind), 0.22 + 0.163 * math.sin(wind), top + 0.99)
    bars = _lattice_bars((0.44, -0.50, top + 0.23), 0.35 + 0.25 * turn, 0.22, 0.011)
    crawler = []
    for number in range(7):
        angle, lift = math.radians(62 + 9 * number), max(math.sin(1.5 * turn - 0.8 * number), 0.0)
        at = (0.93 * math.cos(angle), 0.93 * math.sin(angle), top + 0.085 + 0.14 * lift)
        crawler.append(_near(Sphere(at, angle, 0.085), textures.beach_ball if number == 0 else textures.spotted))
    return (
        *_standing(has_parcel=_THERE[0] <= time < _THERE[1]),
        _near(Sphere((0.0, 0.06, top + 0.14 + 0.25), 0.6 * turn, 0.25), textures.globe, gloss=0.18),
        _near(Sphere((0.62, 0.34, top + 0.29 + bounce), 0.9, 0.29), textures.beach_ball),
        _near(Cylinder((-0.42, 0.58, top + half), 0.0, 0.11, half), _stretched(textures.column, (1.0, 1.0, grown))),
        _near(Sphere((-0.42, 0.58, top + 2 * half + 0.13), 0.4, 0.13), textures.spotted),
        _wire(Box(flag, wind, (0.15, 0.006, 0.09)), textures.flag),
        _near(Sphere((0.44, -0.50, top + radius), 0.2, radius), _stretched(textures.marble, [breath] * 3)),
        _near(Sphere((1.09 * math.cos(rolled), 1.09 * math.sin(rolled), top + 0.09), rolled, 0.09), textures.spotted),
        *crawler,
        *(_wire(bar, functools.partial(textures.plain, BRASS)) for bar in bars),
    )


def _stretched(texture: Texture, factors: Sequence[float]) -> Texture:
    """A texture that goes along with a body which is larger than it was, along each of its axes, by a factor."""
    return lambda points, normals: texture(points / np.asarray(factors, dtype=points.dtype)[:, None], normals)


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
    placed = [Body(Ground((0.0, 0.0, GROUND_LEVEL)), textures.ground, casts=False)]
    random = np.random.default_rng(11)
    for number in range(num_trees):
        angle, away = 2.4 * number + random.uniform(-0.3, 0.3), 4.9 + 0.55 * number
        height, crown = random.uniform(0.5, 1.0), random.uniform(0.55, 1.0)
        x, y = float(away * np.cos(angle)), float(away * np.sin(angle))
        leaves = _FOLIAGE[number % len(_FOLIAGE)]
        trunk = Cylinder((x, y, GROUND_LEVEL + height / 2), 0.0, 0.09 * crown + 0.03, height / 2)
        placed.append(Body(trunk, textures.bark))
        top = (x, y, GROUND_LEVEL + height + 0.8 * crown)
        placed.append(Body(Sphere(top, float(angle), crown), functools.partial(textures.leaves, leaves)))
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
        wall = functools.partial(textures.tower, walls[number % len(walls)])
        placed.append(Body(Box(at, float(random.uniform(0, 3)), half), wall, casts=False))
    for number in range(9):
        angle, away = 2 * np.pi * (number + random.uniform(-0.3, 0.3)) / 9, random.uniform(150, 330)
        height, radius = away * random.uniform(0.06, 0.13), away * random.uniform(0.7, 1.1)
        at = (float(away * np.cos(angle)), float(away * np.sin(angle)), float(GROUND_LEVEL + height - radius))
        placed.append(Body(Sphere(at, 0.0, float(radius)), textures.hill, casts=False))
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
            placed += _frame((x, y), turn, 0.02 * away, height, 0.0022 * away, functools.partial(textures.plain, color))
            continue
        half = (random.uniform(0.02, 0.05) * away, random.uniform(0.02, 0.05) * away, height / 2)
        at = (x, y, GROUND_LEVEL + height / 2)
        placed.append(Body(Box(at, turn, half), functools.partial(textures.windows, color, 0.011 * away), casts=False))
        mast = Cylinder((x, y, GROUND_LEVEL + 1.3 * height), 0.0, 0.0025 * away, 0.3 * height)
        placed.append(Body(mast, functools.partial(textures.banded, 0.012 * away), casts=False, thin=True))
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
