"""The whole model on the kernels against the whole model in torch, on a GPU or under Triton's interpreter.

Each kernel has been compared with its twin; here they are handed each other's results.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from _interpreter import needs_interpreter, run_under_the_interpreter, runs_kernels
from _rays import make_bundle, make_model, tiny_config, uniform
from _twins import DEVICE

from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig

from zipnerf_ns.encoding import HashGridConfig
from zipnerf_ns.functional import mlp
from zipnerf_ns.kernels.encode import cone_encode as cone_kernels
from zipnerf_ns.kernels.mlp import networks as kernels
from zipnerf_ns.model import ZipNerfModel
from zipnerf_ns.zipnerf import ProposalConfig

RAYS = 500 if DEVICE.type == "cuda" else 5


@needs_interpreter
def test_under_the_interpreter():
    run_under_the_interpreter(__file__)


def kernel_model(implementation: str, **changes) -> ZipNerfModel:
    """Small, but of sizes that the kernels take, with visible values in its tables."""
    proposals = tuple(ProposalConfig(8, HashGridConfig(2, 1, 4, finest, 9), 32, 0.4 / finest) for finest in (16, 32))
    sizes = {"proposals": proposals, "grid": HashGridConfig(2, 2, 4, 32, 9), "hidden_dim": 32, "color_dim": 64}
    fixed = {"implementation": implementation, "precision": "float32", "random_background": False}
    config = tiny_config(**{**sizes, **fixed, **changes})
    model = make_model(config, device=DEVICE)
    # The same initial values on every device: each draws its own.
    model.load_state_dict(make_model(replace(config, implementation="torch")).state_dict())
    generator = torch.Generator().manual_seed(1)
    for table in model.get_param_groups()["hash_tables"]:
        with torch.no_grad():
            table.copy_(0.05 * torch.randn(table.shape, generator=generator))
    return model


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
        # Distances reach 1e6, where float32 keeps few digits of the normalized distance that they come from.
        assert_close(found[name], truth[name], name, 1e-4 if "depth" in name else 1e-5)


@runs_kernels
@pytest.mark.parametrize("changes", [
    {"far_plane": 20.0},
    {"far_plane": 20.0, "camera_optimizer": CameraOptimizerConfig(mode="SO3xR3")},
    {"far_plane": 20.0, "camera_optimizer": CameraOptimizerConfig(mode="SO3xR3"), "prefilter": "ipe",
     "scene_bounds": "box"},
    {"far_plane": 20.0, "prefilter": "ipe", "distillation_loss_mult": 0.1, "level_consistency_mult": 0.1,
     "progressive_levels": True, "grid": HashGridConfig(6, 2, 4, 64, 9), "use_appearance": True},
])  # fmt: skip
def test_losses_and_gradients_are_the_same(changes):
    """Those to cameras among them, where cameras are optimized."""
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
    assert ("camera_optimizer.pose_adjustment" in v_truth) == ("camera_optimizer" in changes)
    for name, value in truth.items():
        assert_close(found[name].detach(), value.detach(), name, 1e-5)
    for name, value in v_truth.items():
        assert value.any(), name
        # A weight that rounding moves by 1e-6 of itself moves the intervals drawn from it, and all that follows.
        assert_close(v_found[name], value, name, 1e-4)


@runs_kernels
@pytest.mark.parametrize(
    "prefilter,scene_bounds,camera_mode",
    [("multisample", "unbounded", "SO3xR3"), ("ipe", "box", "SO3xR3"), ("multisample", "box", "off")],
)
def test_a_step_makes_no_tensor_of_the_hosts_numbers(monkeypatch, prefilter, scene_bounds, camera_mode):
    """Such a tensor is copied to the GPU, which waits for it and which a CUDA graph cannot capture."""
    changes = {"prefilter": prefilter, "scene_bounds": scene_bounds, "random_background": True}
    model = kernel_model("triton", camera_optimizer=CameraOptimizerConfig(mode=camera_mode), **changes).train()
    bundle, image = make_bundle(RAYS).to(DEVICE), uniform((RAYS, 3), 5).to(DEVICE)

    def step() -> None:
        outputs = model(bundle)
        model.get_metrics_dict(outputs, {"image": image})
        sum(model.get_loss_dict(outputs, {"image": image}).values()).backward()

    # What stays the same is copied at the first step.
    step()

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("made from the host's numbers")

    for name in ("tensor", "as_tensor", "from_numpy"):
        monkeypatch.setattr(torch, name, refused)
    monkeypatch.setattr(torch.Tensor, "new_tensor", refused)
    step()


@runs_kernels
def test_only_the_rendered_round_has_positions_in_memory(monkeypatch):
    """They are made where rays need a gradient: the proposals' rays do not."""
    made = []
    plain = cone_kernels.cones_in_cube
    monkeypatch.setattr(cone_kernels, "cones_in_cube", lambda *args: made.append(args[0]) or plain(*args))
    model = kernel_model("triton", camera_optimizer=CameraOptimizerConfig(mode="SO3xR3")).train()
    model(make_bundle(RAYS).to(DEVICE))
    assert [cones.tdist.shape[1] - 1 for cones in made] == [model.config.num_samples]
    with torch.no_grad():
        model.eval()(make_bundle(RAYS).to(DEVICE))
    assert len(made) == 1


@runs_kernels
def test_encoded_directions_give_directions_their_gradient():
    directions = torch.nn.functional.normalize(torch.randn(7, 3, device=DEVICE), dim=-1).requires_grad_()
    v = torch.randn(7, 16, device=DEVICE)
    found = torch.autograd.grad(kernels.encode_directions(directions), directions, v)[0]
    truth = torch.autograd.grad(mlp.encode_directions(directions), directions, v)[0]
    assert torch.equal(found, truth) and (found.norm(dim=-1) > 0.1).all()
