"""The whole model on the kernels against the whole model in torch, on a GPU or under Triton's interpreter.

Each kernel has been compared with its twin; here they are handed each other's results.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from _rays import make_bundle, make_model, tiny_config, uniform
from _twins import DEVICE, RUNS_KERNELS

from zipnerf_ns.encoding import HashGridConfig
from zipnerf_ns.model import ZipNerfModel
from zipnerf_ns.model_config import ProposalConfig

RAYS = 500 if DEVICE.type == "cuda" else 5

runs_kernels = pytest.mark.skipif(
    not RUNS_KERNELS, reason="no GPU: test_under_the_interpreter runs it in a process of its own"
)


@pytest.mark.skipif(RUNS_KERNELS, reason="the other tests run the kernels themselves")
def test_under_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
    assert " passed" in result.stdout


def kernel_model(implementation: str, **changes) -> ZipNerfModel:
    """Small, but of sizes that the kernels take, with visible values in its tables."""
    proposals = tuple(ProposalConfig(8, HashGridConfig(2, 1, 4, finest, 9), 32, 0.4 / finest) for finest in (16, 32))
    sizes = {"proposals": proposals, "grid": HashGridConfig(2, 2, 4, 32, 9), "hidden_dim": 32, "color_dim": 64}
    fixed = {"implementation": implementation, "precision": "float32", "random_background": False}
    model = make_model(tiny_config(**{**sizes, **fixed, **changes}))
    generator = torch.Generator().manual_seed(1)
    for table in model.get_param_groups()["hash_tables"]:
        with torch.no_grad():
            table.copy_(0.05 * torch.randn(table.shape, generator=generator))
    return model.to(DEVICE)


def both(**changes) -> tuple[ZipNerfModel, ZipNerfModel]:
    return kernel_model("torch", **changes), kernel_model("triton", **changes)


def assert_close(found: torch.Tensor, truth: torch.Tensor, name: str, tolerance: float) -> None:
    assert found.shape == truth.shape and torch.isfinite(found).all(), name
    error = float((found - truth).norm())
    assert error <= tolerance * float(truth.norm()) + 1e-7, f"{name}: {error / float(truth.norm()):.1e}"


@runs_kernels
@pytest.mark.parametrize("changes", [{}, {"prefilter": "ipe", "scene_bounds": "box", "background_color": "white"}])
def test_pictures_are_the_same(changes):
    twin, model = both(**changes)
    assert model.uses_kernels and not twin.uses_kernels
    bundle = make_bundle(RAYS).to(DEVICE)
    bundle.directions[1] = -bundle.directions[1]  # beside the box
    with torch.no_grad():
        truth, found = twin(bundle), model(bundle)
    assert list(found) == list(truth)
    assert 0.05 < float(truth["accumulation"].mean()) and float(truth["rgb"].std()) > 0.01
    for name in truth:
        # Distances reach 1e6, where float32 keeps few digits of the normalised distance that they come from.
        assert_close(found[name], truth[name], name, 1e-4 if "depth" in name else 1e-5)


@runs_kernels
@pytest.mark.parametrize("changes", [
    {"far_plane": 20.0},
    {"far_plane": 20.0, "prefilter": "ipe", "distillation_loss_mult": 0.1, "level_consistency_mult": 0.1,
     "progressive_levels": True, "grid": HashGridConfig(6, 2, 4, 64, 9), "use_appearance": True},
])  # fmt: skip
def test_losses_and_gradients_are_the_same(changes):
    bundle, image, results = make_bundle(RAYS).to(DEVICE), uniform((RAYS, 3), 5).to(DEVICE), []
    for model in both(**changes):
        model.train().progress = 0.3
        torch.manual_seed(0)
        loss_dict = model.get_loss_dict(model(bundle), {"image": image})
        sum(loss_dict.values()).backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        results.append((loss_dict, gradients))
    (truth, v_truth), (found, v_found) = results
    assert list(found) == list(truth) and list(v_found) == list(v_truth)
    for name, value in truth.items():
        assert_close(found[name].detach(), value.detach(), name, 1e-5)
    for name, value in v_truth.items():
        assert value.any() or "appearance.affine.weight" in name, name
        # A weight that rounding moves by 1e-6 of itself moves the intervals drawn from it, and all that follows.
        assert_close(v_found[name], value, name, 1e-4)
