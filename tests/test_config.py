"""The methods' configurations: light to import, whole in YAML, documented, set from the command line."""

from __future__ import annotations

import ast
import copy
import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch
import tyro
import yaml

from nerfstudio.configs.method_configs import AnnotatedBaseConfigUnion, all_methods
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig

from zipnerf_ns import config as methods
from zipnerf_ns.data.dataparsers.exact import CenteringColmapConfig, CenteringNerfstudioConfig
from zipnerf_ns.data.dataparsers.mipnerf360 import MipNerf360DataParserConfig
from zipnerf_ns.encoding import HashGridConfig
from zipnerf_ns.errors import InputError
from zipnerf_ns.model import ZipNerfModel
from zipnerf_ns.model_config import ZipNerfModelConfig

ROOT = Path(__file__).resolve().parents[1]
METHODS = {
    "zipnerf": methods.zipnerf, "zipnerf-big": methods.zipnerf_big, "zipnerf-lite": methods.zipnerf_lite,
    "zipnerf-dynamic": methods.zipnerf_dynamic, "zipnerf-360": methods.zipnerf_360,
    "zipnerf-blender": methods.zipnerf_blender, "zipnerf-splat": methods.zipnerf_splat,
}  # fmt: skip


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of nested configs, by its dotted name."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, tuple) and any(map(dataclasses.is_dataclass, value)):
        value = {str(index): entry for index, entry in enumerate(value)}
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from flat(entry, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def differences(variant: Any, base: Any) -> set[str]:
    """Names of the leaves in which two configs differ."""
    first, second = dict(flat(variant)), dict(flat(base))
    return {name for name in first.keys() | second.keys() if first.get(name, "absent") != second.get(name, "absent")}


def parse(*arguments: str) -> Any:
    """What ``ns-train`` makes of a command line."""
    return tyro.cli(AnnotatedBaseConfigUnion, args=list(arguments))


HIDING = """
import importlib.machinery, sys
find = importlib.machinery.PathFinder.find_spec
hidden = ("triton", "open3d", "tinycudann")
def without_hidden(name, path=None, target=None):
    return None if name.split(".")[0] in hidden else find(name, path, target)
importlib.machinery.PathFinder.find_spec = staticmethod(without_hidden)
import zipnerf_ns.config
late = ("nerfstudio.configs.method_configs", "nerfstudio.utils.eval_utils", "zipnerf_ns.tools", *hidden)
print("loaded:", [name for name in late if name in sys.modules])
"""


def test_importing_the_config_needs_little(tmp_path):
    """It is imported by every ns-* command of whoever installed the package, also where there is no Triton at all.

    (Torchvision loads Triton where it can, so its absence from the modules proves nothing while it is installed.)
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", HIDING], capture_output=True, text=True, cwd=tmp_path, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert "loaded: []" in done.stdout, done.stdout


def test_entry_points_name_what_they_register():
    """The keys of Nerfstudio's list come from the configs; the entry points' names must not say otherwise."""
    entries = [entry for entry in entry_points(group="nerfstudio.method_configs") if entry.dist.name == "zipnerf-ns"]
    assert sorted(entry.name for entry in entries) == sorted(METHODS)
    for entry in entries:
        specification = entry.load()
        assert specification is METHODS[entry.name] and specification.config.method_name == entry.name
        assert specification.description.endswith(".")
        assert all_methods[entry.name] == specification.config


@pytest.mark.parametrize("name", METHODS)
def test_yaml_keeps_the_whole_config(name):
    config = copy.deepcopy(METHODS[name].config)
    config.pipeline.model.proposals[1].grid.max_res = 1000
    config.data = config.pipeline.datamanager.data = Path("a folder/scene")
    text = yaml.dump(config)
    loaded = yaml.load(text, Loader=yaml.Loader)
    assert loaded == config and type(loaded) is type(config)
    assert differences(loaded, config) == set()
    assert loaded.pipeline.model._target is ZipNerfModel
    assert yaml.dump(loaded) == text


def config_fields() -> list[tuple[str, str, bool]]:
    """(class, field, documented) of every dataclass field in the package, read from the source."""
    found = []
    for path in sorted((ROOT / "zipnerf_ns").rglob("*.py")):
        if "tools" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ClassDef) or not node.name.endswith("Config"):
                continue
            for entry, following in zip(node.body, [*node.body[1:], ast.Pass()], strict=True):
                if isinstance(entry, ast.AnnAssign):
                    is_text = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
                    text = following.value.value if is_text else ""
                    documented = isinstance(text, str) and len(text) > 10 and text.endswith(".")
                    found.append((node.name, entry.target.id, documented))
    return found


def test_every_config_field_has_its_line():
    """The command line's help is made of them."""
    fields = config_fields()
    assert {"ZipNerfModelConfig", "ProposalConfig", "HashGridConfig", "DecayingAdamConfig"} <= {f[0] for f in fields}
    assert len(fields) > 50
    assert [f"{owner}.{name}" for owner, name, documented in fields if not documented] == []


def test_big_is_the_default_on_the_papers_schedule():
    big, base = methods.zipnerf_big.config, methods.zipnerf.config
    assert differences(big, base) == {
        "method_name", "max_num_iterations", "steps_per_eval_image", "steps_per_save",
        "pipeline.datamanager.train_num_rays_per_batch",
        "optimizers.networks.optimizer.lr", "optimizers.networks.scheduler.lr_final",
    }  # fmt: skip
    assert (big.pipeline.datamanager.train_num_rays_per_batch, big.max_num_iterations) == (65_536, 25_000)
    groups = [big.optimizers[name] for name in ("hash_tables", "networks")]
    assert [(group["optimizer"].lr, group["scheduler"].lr_final) for group in groups] == [(0.01, 0.0001)] * 2
    assert big.pipeline.model == ZipNerfModelConfig()


def test_default_takes_at_most_a_quarter_of_the_papers_rays():
    config = methods.zipnerf.config
    assert config.pipeline.datamanager.train_num_rays_per_batch <= 65_536 // 4
    assert config.pipeline.model.prefilter == "multisample" and config.pipeline.model.proposal_prefilter == "ipe"
    assert config.pipeline.model == ZipNerfModelConfig()


def test_default_model_is_the_papers_but_for_what_measured_better():
    """DESIGN's numbers, from the paper's section 5 and supplement; the ablation's where they differ."""
    model = ZipNerfModelConfig()
    assert model.grid == HashGridConfig(10, 4, 16, 8192, 21)
    assert [p.grid for p in model.proposals] == [HashGridConfig(6, 1, 16, 512, 21), HashGridConfig(8, 1, 16, 2048, 21)]
    assert [p.num_samples for p in model.proposals] + [model.num_samples] == [64, 64, 32]
    assert [p.blur_halfwidth for p in model.proposals] == [0.03, 0.003]
    assert (model.interlevel_loss_mult, model.hash_decay_mult) == (0.01, 0.1)
    assert (model.distortion_loss_mult, model.use_gradient_scaling, model.rgb_loss) == (0.05, True, "pseudo_huber")
    assert (model.hidden_dim, model.bottleneck_dim, model.color_layers, model.color_dim) == (64, 256, 3, 256)
    resolutions = [grid.make().resolutions for grid in (model.proposals[0].grid, model.proposals[1].grid, model.grid)]
    assert resolutions == [tuple(16 * 2**level for level in range(count)) for count in (6, 8, 10)]
    optimizer = methods.zipnerf.config.optimizers["hash_tables"]["optimizer"]
    assert (optimizer.betas, optimizer.eps) == ((0.9, 0.99), 1e-15)


def test_lite_is_smaller_and_takes_one_lookup():
    lite, base = methods.zipnerf_lite.config.pipeline, methods.zipnerf.config.pipeline
    assert lite.model.prefilter == "ipe" and lite.model.grid == HashGridConfig(16, 2, 16, 2048, 19)
    assert all(proposal.grid.num_levels == 8 for proposal in lite.model.proposals)
    names = {name.split(".")[0] for name in differences(lite.model, base.model)}
    assert names == {"grid", "proposals", "num_samples", "prefilter", "bottleneck_dim", "color_layers", "color_dim",
                     "eval_num_rays_per_chunk"}  # fmt: skip
    assert lite.datamanager.train_num_rays_per_batch < base.datamanager.train_num_rays_per_batch


def test_cameras_are_optimized_by_one_flag():
    config = parse("zipnerf", "--pipeline.model.camera-optimizer.mode", "SO3xR3")
    assert differences(config, methods.zipnerf.config) == {"pipeline.model.camera_optimizer.mode"}
    assert config.optimizers["camera_opt"]["optimizer"].lr > config.optimizers["camera_opt"]["scheduler"].lr_final > 0.0
    assert all(specification.config.pipeline.model.camera_optimizer.mode == "off" for specification in METHODS.values())


def test_methods_share_no_mutable_part():
    """Changing one method's config, as Nerfstudio does while it runs, must not reach another."""
    kept = {name: copy.deepcopy(specification.config) for name, specification in METHODS.items()}
    changed = copy.deepcopy(methods.zipnerf.config)
    try:
        methods.zipnerf.config.pipeline.model.proposals[0].num_samples = 3
        methods.zipnerf.config.pipeline.datamanager.dataparser.data = Path("elsewhere")
        methods.zipnerf.config.optimizers["networks"]["optimizer"].lr = 7.0
        for name in METHODS.keys() - {"zipnerf"}:
            assert METHODS[name].config == kept[name]
        assert ZipNerfModelConfig().proposals[0].num_samples == 64
    finally:
        for field in dataclasses.fields(changed):
            setattr(methods.zipnerf.config, field.name, getattr(changed, field.name))


def test_device_is_one_that_is_there():
    for specification in METHODS.values():
        assert specification.config.machine.device_type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(
    "option,value,path",
    [
        ("--pipeline.model.proposals.1.grid.max-res", 1024, "pipeline.model.proposals.1.grid.max_res"),
        ("--pipeline.model.grid.log2-hashmap-size", 18, "pipeline.model.grid.log2_hashmap_size"),
        ("--pipeline.model.prefilter", "none", "pipeline.model.prefilter"),
        ("--pipeline.model.distillation-loss-mult", 0.5, "pipeline.model.distillation_loss_mult"),
        ("--pipeline.model.use-appearance", True, "pipeline.model.use_appearance"),
        ("--pipeline.datamanager.images-on-gpu", False, "pipeline.datamanager.images_on_gpu"),
        ("--optimizers.networks.scheduler.warmup-fraction", 0.2, "optimizers.networks.scheduler.warmup_fraction"),
        ("--optimizers.hash-tables.optimizer.lr", 0.02, "optimizers.hash_tables.optimizer.lr"),
        ("--max-num-iterations", 7, "max_num_iterations"),
    ],
)
def test_command_line_overrides_reach_their_field(option, value, path):
    config = parse("zipnerf", option, str(value))
    assert dict(flat(config))[path] == value
    assert differences(config, methods.zipnerf.config) == {path}


@pytest.mark.parametrize(
    "name,kind",
    [
        ("nerfstudio-data", CenteringNerfstudioConfig), ("colmap", CenteringColmapConfig),
        ("blender-data", BlenderDataParserConfig), ("mipnerf360-data", MipNerf360DataParserConfig),
    ],
)  # fmt: skip
def test_command_line_takes_the_dataparsers(name, kind):
    config = parse("zipnerf-lite", "--data", "scene", name, "--scale-factor", "0.5")
    assert type(config.pipeline.datamanager.dataparser) is kind
    assert config.pipeline.datamanager.dataparser.scale_factor == 0.5
    assert config.pipeline.model == methods.zipnerf_lite.config.pipeline.model


@pytest.mark.parametrize(
    "option,value,words",
    [
        ("--pipeline.model.near-plane", "0", ("near_plane", "positive")),
        ("--pipeline.model.proposals.0.num-samples", "1", ("proposals.0", "num_samples", "at least 2")),
        ("--pipeline.model.implementation", "cuda", ("'cuda'", "'torch'")),
        ("--pipeline.model.prefilter", "bilinear", ("'bilinear'", "'multisample'")),
    ],
)
def test_command_line_refuses_settings_that_cannot_work(capsys, option, value, words):
    with pytest.raises(SystemExit) as caught:
        parse("zipnerf", option, value)
    assert caught.value.code == 2
    said = " ".join((lambda output: output.out + output.err)(capsys.readouterr()).replace("│", " ").split())
    assert all(word in said for word in words), said
    assert "Traceback" not in said


@pytest.mark.parametrize("field", ["num_levels", "features_per_level", "base_res"])
def test_grid_that_cannot_be_names_its_field(field):
    with pytest.raises((ValueError, InputError), match=field):
        dataclasses.replace(HashGridConfig(), **{field: 0}).make()


def test_protocol_presets_are_their_base_on_other_data():
    """What a preset changes, and nothing else: the model and schedule are those of the method it is made of."""
    model = {"near_plane", "far_plane", "scene_bounds", "background_color"}
    for name, base, changed in (
        ("zipnerf-360", "zipnerf-big", {"near_plane"}),
        ("zipnerf-blender", "zipnerf", model),
    ):
        preset, config = METHODS[name].config, METHODS[base].config
        assert differences(preset.pipeline.model, config.pipeline.model) == changed
        others = {path for path in differences(preset, config) if not path.startswith("pipeline.")}
        assert others == {"method_name"}
    blender = METHODS["zipnerf-blender"].config.pipeline
    assert type(blender.datamanager.dataparser) is BlenderDataParserConfig
    assert (blender.model.near_plane, blender.model.far_plane) == (2.0, 6.0)
    assert (blender.model.scene_bounds, blender.model.background_color) == ("box", "white")


@pytest.mark.parametrize("name", ["zipnerf-360", "zipnerf-blender"])
def test_presets_need_no_dataparser_on_the_command_line(name):
    """`ns-train NAME --data scene` is the preset; Nerfstudio would take another parser for one it does not know."""
    config = parse(name, "--data", "scene")
    assert type(config.pipeline.datamanager.dataparser) is type(METHODS[name].config.pipeline.datamanager.dataparser)
    assert differences(config, METHODS[name].config) == {"data"}


def test_shells_can_complete_the_methods(capsys):
    """What `ns-install-cli` installs; Nerfstudio's programs print it for every method at once."""
    with pytest.raises(SystemExit) as ended:
        parse("--tyro-print-completion", "bash")
    script = capsys.readouterr().out
    assert ended.value.code in (None, 0)
    for name in METHODS:
        assert f"'{name}'" in script, name
    assert "--pipeline.model.prefilter" in script and "--use-cuda-graphs" in script


def test_help_hides_what_the_model_does_not_read(capsys):
    """Nerfstudio's base configuration has fields for other models; here they would have no effect."""
    with pytest.raises(SystemExit) as ended:
        parse("zipnerf", "--help")
    said = capsys.readouterr().out
    assert ended.value.code in (None, 0)
    shown = ("--pipeline.model.near-plane", "--pipeline.model.proposals.1.grid.max-res", "--max-num-iterations")
    hidden = ("collider", "loss-coefficients", "--prompt", "model.prompt")
    assert all(option in said for option in shown) and not [option for option in hidden if option in said]
