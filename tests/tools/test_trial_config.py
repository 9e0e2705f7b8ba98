"""Trials' configurations: other methods' schedules, scenes with alpha, scales, and settings by name."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from _published import write_mipnerf360_scene
from _scenes import named_pixels, pose, read_meta, write_blender_scene, write_meta, write_scene
from PIL import Image

from nerfstudio.data.dataparsers.nerfstudio_dataparser import Nerfstudio

from zipnerf_ns.data.dataparsers.formats import with_reader
from zipnerf_ns.data.dataparsers.multiscale import MultiscaleDataParserConfig
from zipnerf_ns.errors import InputError
from zipnerf_ns.tools.demo_scene import write_scene as write_built_in
from zipnerf_ns.tools.trials.config import change, prepare, registered, set_steps
from zipnerf_ns.tools.trials.trial import Trial

OTHERS = ("nerfacto", "splatfacto", "instant-ngp")
RADIUS = 4.0


@pytest.fixture
def object_scene(tmp_path) -> Path:
    """Transparent pictures in nerfstudio's format, from cameras at a distance of 4 of the data's origin."""
    scene = write_scene(tmp_path / "scene", channels=4)
    meta = read_meta(scene)
    for index, frame in enumerate(meta["frames"]):
        frame["transform_matrix"] = pose(index, 8, RADIUS)
        matrix = np.array(frame["transform_matrix"])
        matrix[:3, 3] *= RADIUS / np.linalg.norm(matrix[:3, 3])
        frame["transform_matrix"] = matrix.tolist()
    write_meta(scene, meta)
    return scene


def prepared(scene: Path, method: str, **changes):
    trial = Trial(scene=str(scene), method=method, device="cpu", **changes)
    return prepare(trial, scene.parent / "trials" / method)


def parsed(result, split: str = "train"):
    manager = result.config.pipeline.datamanager
    manager.dataparser.data = manager.data
    return manager.dataparser.setup().get_dataparser_outputs(split)


@pytest.mark.parametrize("method", OTHERS)
def test_other_schedules_are_stretched(tmp_path, method):
    """Every decay has, after the same share of the steps, the value that it has in the method's own schedule."""
    own = prepared(write_scene(tmp_path / "scene"), method)
    config = set_steps(own, 3000, stretch=True)
    assert (config.max_num_iterations, own.config.max_num_iterations, own.is_ours) == (3000, 30_000, False)
    compared = 0
    for name, group in config.optimizers.items():
        if group["scheduler"] is None:
            continue
        rates = []
        for scheduler, last in ((own.config.optimizers[name]["scheduler"], 30_000), (group["scheduler"], 3000)):
            optimizer = group["optimizer"].setup(params=[torch.nn.Parameter(torch.zeros(1))])
            factor = scheduler.setup().get_scheduler(optimizer, group["optimizer"].lr).lr_lambdas[0]
            rates.append([float(factor(round(share * last))) for share in (0.0, 0.01, 0.3, 0.7, 1.0)])
        np.testing.assert_allclose(rates[1], rates[0], rtol=0.02, atol=1e-6)
        compared += 1
    assert compared >= 1
    kept = set_steps(own, 3000, stretch=False)
    assert kept.optimizers == own.config.optimizers and kept.pipeline == own.config.pipeline


def test_steps_that_splatfactos_model_counts_are_stretched(tmp_path):
    own = prepared(write_scene(tmp_path / "scene"), "splatfacto")
    model, before = set_steps(own, 15_000, stretch=True).pipeline.model, own.config.pipeline.model
    for name in ("warmup_length", "resolution_schedule", "sh_degree_interval", "stop_split_at", "reset_alpha_every"):
        assert getattr(model, name) == getattr(before, name) // 2 > 0
    assert model.refine_every == before.refine_every
    # More steps than its own give no longer warm-up, only a longer decay.
    longer = set_steps(own, 60_000, stretch=True)
    assert longer.pipeline.model == before
    assert longer.optimizers["means"]["scheduler"].max_steps == 60_000


@pytest.mark.parametrize("stretch", [True, False])
def test_our_schedule_follows_the_steps(tmp_path, stretch):
    own = prepared(write_scene(tmp_path / "scene"), "zipnerf-lite")
    config = set_steps(own, 123, stretch)
    assert own.is_ours and config.max_num_iterations == 123
    assert config.optimizers == own.config.optimizers and config.pipeline == own.config.pipeline
    assert all(group["scheduler"].max_steps is None for group in config.optimizers.values())


@pytest.mark.parametrize("method", ["zipnerf", *OTHERS])
def test_objects_are_seen_in_their_own_frame(object_scene, method):
    """The same views of the same box for all, from the distances that NeRF-synthetic scenes are published with."""
    result = prepared(object_scene, method)
    assert result.has_alpha and any("over white" in note for note in result.notes)
    outputs, model = parsed(result), result.config.pipeline.model
    scale = 1.0 / RADIUS if method == "splatfacto" else 1.0
    torch.testing.assert_close(outputs.cameras.camera_to_worlds[:, :, 3].norm(dim=-1), torch.full((6,), RADIUS * scale))
    torch.testing.assert_close(outputs.scene_box.aabb, 1.5 * scale * torch.tensor([[-1.0] * 3, [1.0] * 3]))
    matrices = {frame["file_path"]: frame["transform_matrix"] for frame in read_meta(object_scene)["frames"]}
    for path, matrix in zip(outputs.image_filenames, outputs.cameras.camera_to_worlds, strict=True):
        truth = torch.tensor(matrices[f"images/{path.name}"])[:3]
        torch.testing.assert_close(matrix[:, :3], truth[:, :3])
    if method == "zipnerf":
        assert (model.scene_bounds, model.background_color) == ("box", "white")
    if method == "nerfacto":
        assert (model.near_plane, model.far_plane) == (pytest.approx(2.0), pytest.approx(6.0))
        assert (model.background_color, model.disable_scene_contraction) == ("white", True)
    if method == "splatfacto":
        assert model.random_scale == pytest.approx(3.0 / RADIUS)
    if method == "instant-ngp":
        assert (model.grid_levels, model.disable_scene_contraction) == (1, True)


@pytest.mark.parametrize("scales", [(), (1, 2)])
def test_published_objects_keep_their_alpha(tmp_path, scales):
    """NeRF-synthetic's parser paints white where it may; here every method puts white behind itself."""
    result = prepared(write_blender_scene(tmp_path / "scene"), "nerfacto", scales=scales)
    outputs = parsed(result)
    assert result.has_alpha and outputs.alpha_color is None
    assert len(outputs.image_filenames) == 6 * max(len(scales), 1)


@pytest.mark.parametrize("method", ["zipnerf", *OTHERS])
def test_opaque_scenes_are_left_to_the_methods(tmp_path, method):
    """Nothing but quiet, and cameras that stay where they are."""
    result = prepared(write_scene(tmp_path / "scene"), method)
    assert not result.has_alpha
    expected = copy.deepcopy(registered(method).pipeline.model)
    if method == "nerfacto":
        assert expected.camera_optimizer.mode != "off"
        expected.camera_optimizer.mode = "off"
        assert any("camera optimization off" in note for note in result.notes)
    assert result.config.pipeline.model == expected
    assert result.config.steps_per_eval_image == result.config.steps_per_save == 0


def test_scales_are_made_for_every_method_in_one_place(tmp_path):
    scene = write_scene(tmp_path / "scene")
    files = set()
    for method in ("zipnerf-lite", "nerfacto"):
        result = prepared(scene, method, scales=(1, 2))
        assert type(result.config.pipeline.datamanager.dataparser) is MultiscaleDataParserConfig
        files.add(tuple(parsed(result).image_filenames))
        assert any("several sizes" in note for note in result.notes) == (method == "nerfacto")
    assert len(files) == 1
    written = next(iter(files))[-1]
    assert written.is_relative_to(tmp_path / "trials/multiscale") and not (scene / "multiscale").exists()


def test_scenes_of_several_scales_are_read_as_they_are(tmp_path):
    scene = write_built_in(tmp_path / "scene", width=16, height=16, num_train=2, num_test=1, samples_per_pixel=1)
    result = prepared(scene / "transforms_multiscale.json", "zipnerf-lite", scales=(1, 2, 4, 8))
    assert type(result.config.pipeline.datamanager.dataparser) is not MultiscaleDataParserConfig
    assert len(parsed(result).image_filenames) == 8


@pytest.mark.parametrize("method,center", [("zipnerf", "auto"), *((method, "poses") for method in OTHERS)])
def test_other_methods_keep_their_own_center(tmp_path, method, center):
    parser = prepared(write_scene(tmp_path / "scene"), method).config.pipeline.datamanager.dataparser
    assert parser.center_method == center
    changes = {"pipeline.datamanager.dataparser.center_method": "focus"}
    asked = prepared(write_scene(tmp_path / "other"), method, changes=changes).config.pipeline.datamanager
    assert asked.dataparser.center_method == "focus"


def test_points_are_read_only_where_a_file_names_them(tmp_path, monkeypatch):
    """Nerfstudio would otherwise ask on the terminal."""
    scene = write_scene(tmp_path / "scene")
    assert not prepared(scene, "splatfacto").config.pipeline.datamanager.dataparser.load_3D_points
    write_meta(scene, {**read_meta(scene), "ply_file_path": "points.ply"})
    assert not prepared(scene, "zipnerf").config.pipeline.datamanager.dataparser.load_3D_points
    assert not prepared(scene, "nerfacto").config.pipeline.datamanager.dataparser.load_3D_points
    monkeypatch.setattr(Nerfstudio, "_load_3D_points", lambda *_: None)
    assert prepared(scene, "splatfacto").config.pipeline.datamanager.dataparser.load_3D_points


@pytest.mark.parametrize("method", ["zipnerf-360", "zipnerf", *OTHERS])
def test_published_scenes_are_read_as_published_by_every_method(tmp_path, method):
    """The benchmark's own images, views held out and axes; splatfacto begins with COLMAP's points."""
    poses = write_mipnerf360_scene(tmp_path / "bonsai")
    result = prepared(tmp_path / "bonsai", method)
    names = sorted(poses)
    train, held_out = parsed(result), parsed(result, "val")
    assert [path.name for path in held_out.image_filenames] == names[::8]
    assert [path.name for path in train.image_filenames] == [name for name in names if name not in names[::8]]
    assert {path.parent.name for path in train.image_filenames} == {"images_2"}
    assert ("points3D_xyz" in train.metadata) == (method == "splatfacto")
    assert not result.has_alpha and result.config.max_num_iterations == registered(method).max_num_iterations
    own = registered("zipnerf-360").pipeline
    if method == "zipnerf-360":
        assert result.config.pipeline.model == own.model
    written = parse_published(own.datamanager.dataparser, tmp_path / "bonsai").cameras.camera_to_worlds
    torch.testing.assert_close(train.cameras.camera_to_worlds, written)


def parse_published(dataparser, data: Path):
    return with_reader(dataclasses.replace(dataparser, data=data)).setup().get_dataparser_outputs("train")


def test_settings_of_the_parser_say_what_is_read(tmp_path):
    """A folder that is not named like a published scene needs one; at several scales it reaches the inner parser."""
    write_mipnerf360_scene(tmp_path / "mine")
    with pytest.raises(InputError, match="not named like a scene"):
        prepared(tmp_path / "mine", "zipnerf")
    factor = {"pipeline.datamanager.dataparser.downscale_factor": 4}
    for scales in ((), (1, 2)):
        outputs = parsed(prepared(tmp_path / "mine", "splatfacto", changes=factor, scales=scales))
        assert outputs.image_filenames[0].parent.name == "images_4"
        assert len(outputs.image_filenames) == 16 * max(len(scales), 1)


def test_settings_by_name():
    config = copy.deepcopy(registered("zipnerf-lite"))
    settings = {
        "pipeline.model.prefilter": "none", "pipeline.model.proposals.1.num_samples": 7,
        "pipeline.model.hash_decay_mult": 1, "optimizers.networks.optimizer.lr": 0.5,
    }  # fmt: skip
    assert change(config, settings) and not change(config, settings)
    assert config.pipeline.model.prefilter == "none" and config.pipeline.model.proposals[1].num_samples == 7
    assert type(config.pipeline.model.hash_decay_mult) is float and config.optimizers["networks"]["optimizer"].lr == 0.5
    assert registered("zipnerf-lite").pipeline.model.proposals[1].num_samples != 7


@pytest.mark.parametrize(
    "path,value,words",
    [
        ("pipeline.model.prefliter", "none", "no setting pipeline.model.prefliter"),
        ("pipeline.model.proposals.9.num_samples", 3, "no setting"),
        ("optimizers.tables.optimizer.lr", 0.1, "no setting"),
        ("pipeline.model.num_samples", "many", "cannot become 'many'"),
        ("pipeline.model.use_appearance", 1, "cannot become 1"),
        ("pipeline.model.num_samples", 1.5, "cannot become 1.5"),
    ],
)
def test_settings_that_are_not_there(path, value, words):
    with pytest.raises(InputError, match=words):
        change(copy.deepcopy(registered("zipnerf-lite")), {path: value})


@pytest.mark.parametrize("method", ["in2n", "no-such-method"])
def test_methods_that_are_not_installed(method):
    """Nerfstudio knows some by name only."""
    with pytest.raises(InputError, match=f"no method {method} is installed"):
        registered(method)


def test_alpha_outside_of_known_formats_is_refused(tmp_path):
    from _published import write_mipnerf360_scene

    write_mipnerf360_scene(tmp_path / "garden", count=8)
    for path in (tmp_path / "garden/images_4").iterdir():
        Image.fromarray(named_pixels(0, 25, 17, 4)).save(path, format="PNG")
    with pytest.raises(InputError, match="scene with alpha must be"):
        prepared(tmp_path / "garden", "zipnerf")
