"""From photographs and videos to a scene with poses: what ``python -m zipnerf_ns.tools.photos`` is made of."""
