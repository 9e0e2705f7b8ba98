"""Sampling along rays: two proposal rounds and the final one, each drawing intervals from the round before."""

from __future__ import annotations

import dataclasses
from typing import Callable, List, NamedTuple, Optional, Sequence, Tuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from nerfstudio.cameras.rays import Frustums, RayBundle, RaySamples

from zipnerf_ns.functional.spacing import s_to_t
from zipnerf_ns.functional.stepfun import sample_intervals
from zipnerf_ns.functional.volume import density_to_weights


class RayLimits(NamedTuple):
    """Where along each ray to look."""

    near: Float[Tensor, "rays 1"]
    far: Float[Tensor, "rays 1"]
    valid: Bool[Tensor, "rays 1"]
    """False for rays with nothing to see (a crop or a scene box that they miss); their limits are placeholders."""


def unit_ray_bundle(ray_bundle: RayBundle) -> RayBundle:
    """A flat copy of the bundle with unit directions; the bundle itself is left as it is."""
    flat = ray_bundle.flatten()
    directions = flat.directions
    length = torch.linalg.vector_norm(directions, dim=-1, keepdim=True).clamp_min(1e-12)
    return dataclasses.replace(flat, directions=directions / length)


def ray_limits(
    ray_bundle: RayBundle, near_plane: float, far_plane: float, aabb: Optional[Float[Tensor, "2 3"]] = None
) -> RayLimits:
    """Near and far of each ray: the configured planes, narrowed by the bundle's own and by the scene's box.

    Args:
        ray_bundle: unit directions; ``nears`` and ``fars`` may be missing, or equal where a crop is missed.
        near_plane, far_plane: world units.
        aabb: the box of a bounded scene, world frame.
    """
    near = torch.full_like(ray_bundle.origins[..., :1], near_plane)
    far = torch.full_like(near, far_plane)
    if ray_bundle.nears is not None and ray_bundle.fars is not None:
        near, far = torch.maximum(near, ray_bundle.nears), torch.minimum(far, ray_bundle.fars)
    if aabb is not None:
        # A zero component of the direction gives an infinite slab, which min and max below handle.
        tiny = torch.where(ray_bundle.directions < 0.0, -1e-12, 1e-12)
        safe = torch.where(ray_bundle.directions.abs() < 1e-12, tiny, ray_bundle.directions)
        slabs = (aabb[:, None, :] - ray_bundle.origins) / safe
        near = torch.maximum(near, slabs.amin(dim=0).amax(dim=-1, keepdim=True))
        far = torch.minimum(far, slabs.amax(dim=0).amin(dim=-1, keepdim=True))
    valid = far > near
    return RayLimits(torch.where(valid, near, near_plane), torch.where(valid, far, near_plane + 1.0), valid)


class IntervalSampler(nn.Module):
    """Draws intervals in rounds, each from the previous round's histogram (Zip-NeRF, section 4).

    No gradient flows through where the intervals lie.

    Args:
        num_samples: intervals of each round; the last is the rendered one.
    """

    def __init__(self, num_samples: Sequence[int]) -> None:
        super().__init__()
        self.num_samples = tuple(num_samples)

    def forward(
        self,
        ray_bundle: RayBundle,
        limits: RayLimits,
        density_fns: Sequence[Callable[[RaySamples], Tensor]],
        anneal: float = 1.0,
    ) -> Tuple[RaySamples, List[Float[Tensor, "rays _ 1"]], List[RaySamples]]:
        """Intervals for the final round, with the proposal rounds' weights and intervals.

        Args:
            ray_bundle: flat, unit directions.
            limits: of each ray.
            density_fns: one a proposal round, from intervals to density ``[rays, n, 1]``.
            anneal: exponent on the weights that are drawn from, 0 to 1.
        Raises:
            ValueError: if there is not one density function fewer than rounds.
        """
        if len(density_fns) != len(self.num_samples) - 1:
            raise ValueError(f"{len(self.num_samples)} rounds need one density_fn fewer, got {len(density_fns)}.")
        sdist = torch.cat([torch.zeros_like(limits.near), torch.ones_like(limits.far)], dim=-1)
        weights = torch.ones_like(limits.near)
        weights_list: List[Tensor] = []
        samples_list: List[RaySamples] = []
        for index, num_samples in enumerate(self.num_samples):
            jitter = torch.rand_like(limits.near) if self.training else None
            sdist = sample_intervals(sdist, weights.detach(), num_samples, jitter, anneal if index > 0 else 1.0)
            ray_samples = make_ray_samples(ray_bundle, limits, sdist)
            if index == len(density_fns):
                return ray_samples, weights_list, samples_list
            weights = samples_to_weights(density_fns[index](ray_samples), ray_samples, limits)[..., 0]
            weights_list.append(weights[..., None])
            samples_list.append(ray_samples)
        raise ValueError("num_samples must name at least one round.")


def make_ray_samples(ray_bundle: RayBundle, limits: RayLimits, sdist: Float[Tensor, "rays edges"]) -> RaySamples:
    """Nerfstudio's RaySamples of the intervals between ``sdist``'s fenceposts."""
    tdist = s_to_t(sdist, limits.near, limits.far)[..., None]
    sdist = sdist[..., None]
    shape = (*tdist.shape[:-2], tdist.shape[-2] - 1)
    frustums = Frustums(
        origins=ray_bundle.origins[..., None, :].expand(*shape, 3),
        directions=ray_bundle.directions[..., None, :].expand(*shape, 3),
        starts=tdist[..., :-1, :],
        ends=tdist[..., 1:, :],
        pixel_area=ray_bundle.pixel_area[..., None, :].expand(*shape, 1),
    )
    camera_indices = ray_bundle.camera_indices
    return RaySamples(
        frustums=frustums,
        camera_indices=None if camera_indices is None else camera_indices[..., None, :].expand(*shape, 1),
        deltas=tdist.diff(dim=-2),
        spacing_starts=sdist[..., :-1, :],
        spacing_ends=sdist[..., 1:, :],
    )


def samples_to_weights(
    density: Float[Tensor, "rays n 1"], ray_samples: RaySamples, limits: RayLimits
) -> Float[Tensor, "rays n 1"]:
    """Weights of the intervals; rays that are not valid see nothing."""
    starts, ends = ray_samples.frustums.starts[..., 0], ray_samples.frustums.ends[..., 0]
    weights = density_to_weights(density[..., 0], starts, ends)
    return torch.where(limits.valid, weights, 0.0)[..., None]
