"""Analytic shapes and procedural patterns, the building blocks of the built-in scene.

Points, directions and normals are arrays `[3, n]`, components first, so that one component is contiguous. Every
function keeps the dtype it is given. World units throughout; z is up.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

Color = tuple[float, float, float]

MIN_DISTANCE = 1e-4
"""Nearest hit that counts, in world units: a ray that starts on a surface does not hit that same surface again."""

_TINY = 1e-12
_ENDLESS = 1e12
_LATTICE = 64


@dataclass(frozen=True)
class Shape(ABC):
    """A convex solid turned by `yaw` (radians, about the vertical) around its center."""

    center: tuple[float, float, float]
    yaw: float = 0.0

    @property
    @abstractmethod
    def support(self) -> tuple[np.ndarray, float, float]:
        """The solid as a sum of parts that bounds it, for `extent`: half-axes `[3, 3]`, level disc, ball."""

    @abstractmethod
    def _interval(self, origins, directions) -> tuple[np.ndarray, np.ndarray]:
        """Distances at which rays enter and leave, origins relative to the center; enter >= leave for a miss."""

    @abstractmethod
    def _local_normals(self, points) -> np.ndarray:
        """Outward unit normals at local points on the surface."""

    @abstractmethod
    def _distance(self, points) -> np.ndarray:
        """Signed distances, negative inside, from points relative to the center."""

    def rotate(self, vectors: Float[np.ndarray, "3 n"], inverse: bool = False) -> Float[np.ndarray, "3 n"]:
        """Turns world vectors into the solid's own axes, or back with `inverse`."""
        if self.yaw == 0.0:
            return vectors
        c, s = float(np.cos(self.yaw)), float(np.sin(self.yaw))
        s = -s if inverse else s
        x, y, z = vectors
        return np.stack([c * x + s * y, c * y - s * x, z])

    def local(self, points: Float[np.ndarray, "3 n"]) -> Float[np.ndarray, "3 n"]:
        """World points in the solid's own frame, its center at the origin."""
        return self.rotate(points - _column(self.center, points))

    def intersect(
        self, origins: Float[np.ndarray, "3 #n"], directions: Float[np.ndarray, "3 #n"]
    ) -> tuple[Float[np.ndarray, " m"], Bool[np.ndarray, " m"]]:
        """Distance along unit directions at which rays from outside enter the solid, and whether they do.

        The distance of a ray that misses means nothing.
        """
        enter, leave = self._interval(origins - _column(self.center, origins), directions)
        return enter, (enter < leave) & (enter > MIN_DISTANCE)

    def surface(
        self, points: Float[np.ndarray, "3 n"]
    ) -> tuple[Float[np.ndarray, "3 n"], Float[np.ndarray, "3 n"], Float[np.ndarray, "3 n"]]:
        """Surface points in the solid's frame, unit normals in that frame, and unit normals in the world's."""
        local = self.local(points)
        normals = self._local_normals(local)
        return local, normals, self.rotate(normals, inverse=True)

    def distance(self, points: Float[np.ndarray, "3 n"]) -> Float[np.ndarray, " n"]:
        """Exact signed distance of world points from the surface, negative inside."""
        return self._distance(points - _column(self.center, points))


@dataclass(frozen=True)
class Sphere(Shape):
    """A ball."""

    radius: float = 1.0

    @property
    def support(self):
        return np.zeros((3, 3)), 0.0, self.radius

    def _interval(self, origins, directions):
        # From the point of closest approach: the textbook discriminant b^2 - c cancels for far, large spheres.
        middle = -(origins[0] * directions[0] + origins[1] * directions[1] + origins[2] * directions[2])
        closest = origins + middle * directions
        return _around(middle, self.radius**2 - _squared(closest))

    def _local_normals(self, points):
        return points / np.sqrt(_squared(points))

    def _distance(self, points):
        return np.sqrt(_squared(points)) - self.radius


@dataclass(frozen=True)
class Box(Shape):
    """A cuboid of half-lengths `half`."""

    half: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @property
    def support(self):
        return self.rotate(np.diag(self.half), inverse=True).T, 0.0, 0.0

    def _interval(self, origins, directions):
        directions = self.rotate(directions)
        inverse = 1.0 / np.where(np.abs(directions) < _TINY, _TINY, directions)
        middle = -self.rotate(origins) * inverse
        extent = np.abs(inverse) * _column(self.half, directions)
        return (middle - extent).max(axis=0), (middle + extent).min(axis=0)

    def _local_normals(self, points):
        excess = np.abs(points) - _column(self.half, points)
        x = (excess[0] >= excess[1]) & (excess[0] >= excess[2])
        y = ~x & (excess[1] >= excess[2])
        return np.where(np.stack([x, y, ~(x | y)]), np.sign(points), 0).astype(points.dtype, copy=False)

    def _distance(self, points):
        excess = np.abs(self.rotate(points)) - _column(self.half, points)
        outside = np.maximum(excess, 0)
        return np.sqrt(_squared(outside)) + np.minimum(excess.max(axis=0), 0)


@dataclass(frozen=True)
class Cylinder(Shape):
    """An upright cylinder with flat caps, `half_height` to either side of its center."""

    radius: float = 1.0
    half_height: float = 1.0

    @property
    def support(self):
        return np.diag([0.0, 0.0, self.half_height]), self.radius, 0.0

    def _interval(self, origins, directions):
        across = np.maximum(directions[0] ** 2 + directions[1] ** 2, _TINY)
        middle = -(origins[0] * directions[0] + origins[1] * directions[1]) / across
        closest = (origins[0] + middle * directions[0]) ** 2 + (origins[1] + middle * directions[1]) ** 2
        enter, leave = _around(middle, (self.radius**2 - closest) / across)
        vertical = 1.0 / np.where(np.abs(directions[2]) < _TINY, _TINY, directions[2])
        level, extent = -origins[2] * vertical, np.abs(vertical) * self.half_height
        return np.maximum(enter, level - extent), np.minimum(leave, level + extent)

    def _local_normals(self, points):
        across = np.sqrt(points[0] ** 2 + points[1] ** 2)
        cap = np.abs(points[2]) - self.half_height >= across - self.radius
        side = ~cap / np.maximum(across, _TINY)
        return np.stack([points[0] * side, points[1] * side, cap * np.sign(points[2])]).astype(points.dtype)

    def _distance(self, points):
        side = np.sqrt(points[0] ** 2 + points[1] ** 2) - self.radius
        cap = np.abs(points[2]) - self.half_height
        outside = np.sqrt(np.maximum(side, 0) ** 2 + np.maximum(cap, 0) ** 2)
        return outside + np.minimum(np.maximum(side, cap), 0)


@dataclass(frozen=True)
class Ground(Shape):
    """Everything below the horizontal plane through `center`, without end."""

    @property
    def support(self):
        # Finite, for differences of extents to stay numbers.
        return np.zeros((3, 3)), 0.0, _ENDLESS

    def _interval(self, origins, directions):
        enter = origins[2] / np.maximum(-directions[2], _TINY)
        return enter, np.where(directions[2] < 0, np.inf, -np.inf)

    def _local_normals(self, points):
        return np.stack([np.zeros_like(points[0]), np.zeros_like(points[0]), np.ones_like(points[0])])

    def _distance(self, points):
        return points[2]


def _column(values: Sequence[float], like: np.ndarray) -> np.ndarray:
    return np.asarray(values, dtype=like.dtype)[:, None]


def _squared(vectors) -> np.ndarray:
    return np.einsum("in,in->n", vectors, vectors)


def _around(middle, squared_half_length) -> tuple[np.ndarray, np.ndarray]:
    half = np.sqrt(np.maximum(squared_half_length, 0))
    return middle - half, middle + half


def supports(shapes: Sequence[Shape]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The supports of several solids together: half-axes `[m, 3, 3]`, discs `[m]`, balls `[m]`."""
    axes, discs, balls = zip(*(shape.support for shape in shapes), strict=True)
    return np.stack(axes), np.array(discs), np.array(balls)


def extent(
    support: tuple[np.ndarray, np.ndarray, np.ndarray], directions: Float[np.ndarray, "3 n"]
) -> Float[np.ndarray, "m n"]:
    """How far each solid reaches from its center along unit directions (its support function)."""
    axes, discs, balls = support
    level = np.hypot(directions[0], directions[1])
    return np.abs(axes @ directions).sum(axis=1) + discs[:, None] * level + balls[:, None]


def mix(
    first: Color | Float[np.ndarray, "3 n"], second: Color | Float[np.ndarray, "3 n"], share: np.ndarray
) -> Float[np.ndarray, "3 n"]:
    """Colors between `first` (share 0) and `second` (share 1)."""
    share = np.asarray(share, dtype=share.dtype if share.dtype.kind == "f" else np.float32)
    first, second = (_column(c, share) if isinstance(c, tuple) else c for c in (first, second))
    mixed = (second - first) * share
    mixed += first
    return mixed


def scatter(target: Float[np.ndarray, "3 n"], places: np.ndarray, values: Float[np.ndarray, "3 m"]) -> None:
    """Writes the columns `values` to `places` of `target`: row by row, which is twice as fast as all rows at once."""
    for row, new in zip(target, values, strict=True):
        row[places] = new


def parity(u: Float[np.ndarray, " n"], *others: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """0 or 1 by the parity of the unit cell: stripes of one coordinate, checkers of two."""
    total = np.floor(u)
    for other in others:
        total = total + np.floor(other)
    return total - 2 * np.floor(total * 0.5)


def dots(u: Float[np.ndarray, " n"], v: Float[np.ndarray, " n"], radius: float) -> Float[np.ndarray, " n"]:
    """1 inside a disc of `radius` at the middle of every unit cell, 0 elsewhere."""
    du, dv = u - np.floor(u) - 0.5, v - np.floor(v) - 0.5
    return (du * du + dv * dv < radius * radius).astype(u.dtype)


def value_noise(u: Float[np.ndarray, " n"], v: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Smooth noise in [0, 1] of one cell per unit: a random value at each lattice point, eased between them."""
    iu, iv = np.floor(u), np.floor(v)
    fu, fv = _ease(u - iu), _ease(v - iv)
    # A lattice wound up on one long row repeats, which no one sees under the turned octaves of fractal_noise.
    iu *= _LATTICE
    iu += iv
    cell = iu.astype(np.int64) & (_LATTICE * _LATTICE - 1)
    base, along_u, along_v, along_both = _lattice(u.dtype.str).take(cell, axis=0).T
    across = along_both * fu
    across += along_v
    across *= fv
    across += along_u * fu
    across += base
    return across


def _ease(fraction: np.ndarray) -> np.ndarray:
    eased = 3 - 2 * fraction
    eased *= fraction
    eased *= fraction
    return eased


def fractal_noise(u: Float[np.ndarray, " n"], v: Float[np.ndarray, " n"], octaves: int) -> Float[np.ndarray, " n"]:
    """Sum of `octaves` of value noise in [0, 1], each about twice as fine and half as strong as the last."""
    total, weight, norm = np.zeros_like(u), 1.0, 0.0
    for _ in range(octaves):
        total += weight * value_noise(u, v)
        norm += weight
        weight *= 0.5
        # Turned as well as scaled, so that the lattice's axes do not line up over the octaves.
        u, v = 1.63 * u - 1.21 * v + 17.3, 1.21 * u + 1.63 * v - 5.9
    return total / norm


@functools.cache
def _lattice(dtype: str) -> np.ndarray:
    """The bilinear coefficients of every cell, `[cells, 4]`: constant, along u, along v, along both."""
    value = np.random.default_rng(2306).random(_LATTICE * _LATTICE)
    next_u, next_v, next_both = (np.roll(value, -step) for step in (_LATTICE, 1, _LATTICE + 1))
    columns = [value, next_u - value, next_v - value, next_both - next_u - next_v + value]
    return np.stack(columns, axis=-1).astype(dtype)
