"""What is true of the built-in scene, for whatever is measured against it."""

from __future__ import annotations

import numpy as np

from zipnerf_ns.tools.scene.procedural import Ground
from zipnerf_ns.tools.scene.render import radiance
from zipnerf_ns.tools.scene.world import GROUND_LEVEL, bodies


def cast_rays(origins: np.ndarray, directions: np.ndarray, rgba: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Exact color along each ray, and the distance to the surface it meets (infinite where it meets none).

    Args:
        origins, directions: ``[n, 3]``, outside every solid and unit.
        rgba: leaves the still life alone, black where a ray misses it.
    """
    color, distance = radiance(*map(np.ascontiguousarray, (origins.T, directions.T)), backdrop=not rgba)
    return color.T, distance


def surface_distance(points: np.ndarray, include_ground: bool = False) -> np.ndarray:
    """Signed distance of world points ``[n, 3]`` from the true surface of the still life, negative inside.

    Exact outside; inside, where solids touch or overlap, its magnitude is a lower bound.

    Args:
        points: in the world of ``transforms.json``, before any dataparser turns or scales it.
        include_ground: also counts the plane that the plinth stands on.
    """
    shapes = [body.shape for body in bodies(backdrop=False)]
    if include_ground:
        shapes.append(Ground((0.0, 0.0, GROUND_LEVEL)))
    return np.minimum.reduce([shape.distance(np.ascontiguousarray(points.T)) for shape in shapes])
