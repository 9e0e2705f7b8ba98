"""The gradient of the color loss to a pose correction, against differences of renderings with the intervals held."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import torch
from _rays import make_model, normal, sphere_batch, tiny_config
from torch import Tensor

from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig

from zipnerf_ns import encoding
from zipnerf_ns.encoding import AntiAliasedHashEncoding
from zipnerf_ns.model import ZipNerfModel


def pose_model(implementation: str, dtype: torch.dtype = torch.float64, **changes: Any) -> ZipNerfModel:
    """A training model with visible values in its tables, whose cameras are optimized and slightly off."""
    # Scaled gradients, those at a knee that follows the errors, and colors of groups, through whose weights none flows,
    # are meant to be others than the differences are.
    fixed = {"implementation": implementation, "precision": "float32", "random_background": False, "far_plane": 20.0,
             "use_gradient_scaling": False, "rgb_loss": "charbonnier", "color_group": 1}  # fmt: skip
    optimizer = CameraOptimizerConfig(mode="SO3xR3")
    model = make_model(tiny_config(**{**fixed, "camera_optimizer": optimizer, **changes})).to(dtype).train()
    for index, table in enumerate(model.get_param_groups()["hash_tables"]):
        with torch.no_grad():
            table.copy_(0.1 * normal(table.shape, index, dtype))
    if dtype == torch.float64:
        for network in model.zipnerf.fields:
            keep_digits(network.encoding)
    with torch.no_grad():
        # Beyond the angle below which Nerfstudio's exponential is not quite a rotation.
        model.camera_optimizer.pose_adjustment.copy_(0.05 * normal((3, 6), 9, dtype))
    return model


def keep_digits(encoding: AntiAliasedHashEncoding) -> None:
    """Channels in float64: differences of rounded ones would be noise at steps that are small beside a cell."""
    forward = encoding.forward
    encoding.forward = lambda cones, num_active, prefilter, dtype: forward(cones, num_active, prefilter, torch.float64)


def shifted(model: ZipNerfModel, amount: float) -> None:
    """Moves every correction."""
    with torch.no_grad():
        model.camera_optimizer.pose_adjustment.add_(amount)


def in_precision(value: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """A bundle or batch with its floating tensors in another precision."""
    if isinstance(value, dict):
        return {name: in_precision(entry, dtype, device) for name, entry in value.items()}
    if isinstance(value, Tensor):
        return value.to(device, dtype) if value.is_floating_point() else value.to(device)
    names = ("origins", "directions", "pixel_area", "camera_indices")
    return type(value)(**{name: in_precision(getattr(value, name), dtype, device) for name in names})


@patch.object(encoding, "CLOSE", 0.0)
def check_pose_gradient(model: ZipNerfModel, step: float = 1e-6, tolerance: float = 1e-6) -> Tensor:
    """Compares every entry of the gradient with a central difference, and returns the gradient.

    The intervals that the rays are cut into depend on the rays, too, and no gradient flows there: for the differences
    they are those of the unmoved cameras. All multisamples are looked up, which without a gradient they would not be.
    """
    parameter = model.camera_optimizer.pose_adjustment
    bundle, batch = (in_precision(part, parameter.dtype, parameter.device) for part in sphere_batch(9, 3))
    sample, held = model.zipnerf.sampler.forward, []

    def held_intervals(*arguments: Any, **options: Any) -> Any:
        if not held:
            held.append(sample(*arguments, **options))
        return held[0]

    def loss() -> Tensor:
        torch.manual_seed(0)
        return model.get_loss_dict(model(bundle), batch)["rgb_loss"]

    model.zipnerf.sampler.forward = held_intervals
    loss()
    (found,) = torch.autograd.grad(loss(), parameter)
    truth = torch.zeros_like(parameter)
    with torch.no_grad():
        for entry in range(parameter.numel()):
            values = []
            for sign in (1.0, -1.0):
                parameter.view(-1)[entry] += sign * step
                values.append(float(loss()))
                parameter.view(-1)[entry] -= sign * step
            truth.view(-1)[entry] = (values[0] - values[1]) / (2.0 * step)
    assert (truth.norm(dim=-1) > 1e-4).all()
    error = float((found - truth).norm() / truth.norm())
    assert error < tolerance, f"{error:.1e}: {found} against {truth}"
    return found
