"""What the model refuses, by name: settings, grids, tables that do not fit, and other models' checkpoints."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from _rays import make_bundle, make_model, tiny_config

from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig

from zipnerf_ns.data import memory
from zipnerf_ns.encoding import HashGridConfig
from zipnerf_ns.errors import InputError
from zipnerf_ns.model_config import ZipNerfModelConfig
from zipnerf_ns.zipnerf import ProposalConfig

BAD_SETTINGS = [
    *({name: value} for name in ("near_plane", "far_plane", "anneal_slope") for value in (0.0, -1.0, float("nan"))),
    *({name: 0} for name in ("hidden_dim", "bottleneck_dim", "color_layers", "color_dim")),
    {"eval_num_rays_per_chunk": 0},
    {"near_plane": 2.0, "far_plane": 1.0},
    {"proposals": ()},
    {"num_samples": 1},
    {"camera_optimizer": CameraOptimizerConfig(mode="SO2")},
    *({name: -0.1} for name in [f.name for f in dataclasses.fields(ZipNerfModelConfig) if f.name.endswith("_mult")]),
    {"proposals": (ProposalConfig(num_samples=1),)},
    {"proposals": (ProposalConfig(), ProposalConfig(blur_halfwidth=0.0))},
    *({name: float("inf")} for name in ("far_plane", "anneal_slope", "distortion_loss_mult")),
    {"collision_check_steps": -1},
    # What would have no effect beside the others.
    {"enable_collider": True},
    {"ipe_bandwidth": "scene_scale"},
    {"progressive_levels": True, "grid": HashGridConfig(4, 2, 4, 32, 9)},
]


@pytest.mark.parametrize("bad", BAD_SETTINGS, ids=str)
def test_settings_that_cannot_work_are_refused_by_name(bad):
    with pytest.raises(InputError, match=list(bad)[0]):
        tiny_config(**bad)


@pytest.mark.parametrize(
    "fits",
    [
        {"prefilter": "ipe", "ipe_bandwidth": "scene_scale"},
        {"progressive_levels": True, "grid": HashGridConfig(5, 2, 4, 64, 9)},
        # An ablation: nothing but chance and decay shapes the proposals then.
        {"interlevel_loss_mult": 0.0, "distillation_loss_mult": 0.0},
        {"background_color": "last_sample", "random_background": True},
    ],
    ids=str,
)
def test_settings_that_work_together_pass(fits):
    config = tiny_config(**fits)
    assert all(getattr(config, name) == value for name, value in fits.items())


def test_tinycudann_is_refused_with_a_prefilter_or_grid_that_it_has_not():
    three = {"grid": HashGridConfig(4, 3, 4, 32, 9), "prefilter": "ipe"}
    proposals = {"prefilter": "ipe", "proposal_prefilter": "multisample"}
    cases = (({"prefilter": "multisample"}, "model.grid.*prefilter"), (proposals, "proposals.0.grid.*prefilter"),
             (three, "model.grid.*got 3"))  # fmt: skip
    for changes, words in cases:
        with pytest.raises(InputError, match=words):
            tiny_config(implementation="tcnn", **changes)


NO_LEVELS = ProposalConfig(grid=HashGridConfig(num_levels=0))


@pytest.mark.parametrize(
    "changes, name",
    [
        ({"grid": HashGridConfig(max_res=3)}, r"model\.grid.*max_res"),
        ({"proposals": (ProposalConfig(), NO_LEVELS)}, r"model\.proposals\.1\.grid.*num_levels"),
    ],
)
def test_a_grid_that_cannot_be_built_is_refused_by_name(changes, name):
    with pytest.raises(InputError, match=name):
        make_model(tiny_config(**changes))


@pytest.mark.parametrize("largest", ["grid", "proposals.1.grid"])
def test_tables_that_do_not_fit_are_refused_before_they_are_made(largest, monkeypatch):
    # 64 MiB; the tables would take gigabytes.
    monkeypatch.setattr(memory, "room_on", lambda device: 2**26)
    huge = HashGridConfig(2, 16, 2048, 8192, 26)
    config = tiny_config()
    if largest == "grid":
        config.grid = huge
    else:
        config.proposals = (config.proposals[0], dataclasses.replace(config.proposals[1], grid=huge))
    monkeypatch.setattr(torch, "empty", lambda *size, **_: pytest.fail(f"a table of {size} was made"))
    with pytest.raises(InputError, match=rf"8\.0 GiB.*--pipeline\.model\.{largest}\.log2-hashmap-size"):
        make_model(config)


def test_an_unknown_implementation_is_refused_before_training():
    config = tiny_config()
    config.implementation = "cuda"
    with pytest.raises(ValueError, match="'cuda'.*'auto'.*'torch'"):
        make_model(config)


# --- checkpoints ---


def trained_state() -> dict:
    model = make_model(seed=5)
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_a_checkpoint_restores_every_picture():
    source, other = make_model(seed=5), make_model(seed=6)
    bundle = make_bundle(16)
    with torch.no_grad():
        expected, before = source(bundle), other(bundle)
        other.load_state_dict(source.state_dict())
        after = other(bundle)
    assert not torch.allclose(before["rgb"], expected["rgb"])
    for name in expected:
        assert torch.equal(after[name], expected[name]), name


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("fault", ["missing", "extra", "shape", "version"])
def test_another_models_checkpoint_is_refused_by_name_even_where_nerfstudio_would_not_mind(fault, strict):
    state = trained_state()
    name = "zipnerf.field.encoding.hash_table"
    if fault == "missing":
        del state[name]
    elif fault == "extra":
        name = "camera_optimizer.pose_adjustment"
        state[name] = torch.zeros(3, 6)
    elif fault == "shape":
        state[name] = state[name][:-1]
    else:
        name = "format 4"
        state["format_version"] += 1
    model = make_model(seed=6)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(InputError, match=name.replace(".", r"\.")) as error:
        model.load_state_dict(state, strict=strict)
    # Nerfstudio catches RuntimeError and tries again without a word.
    assert not isinstance(error.value, RuntimeError)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
