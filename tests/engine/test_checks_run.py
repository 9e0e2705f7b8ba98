"""Settings and checkpoints that cannot work give one clear error before training starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _scenes import (
    assert_clear,
    checkpoint,
    folder_bytes,
    load,
    pose,
    read_meta,
    said_when_started,
    start,
    tiny_config,
    write_meta,
    write_scene,
)

from nerfstudio.utils.rich_utils import CONSOLE

from zipnerf_ns.encoding import HashGridConfig
from zipnerf_ns.engine.checkpoints import checkpoints_in
from zipnerf_ns.engine.trainer import ZipNerfTrainerConfig
from zipnerf_ns.errors import InputError
from zipnerf_ns.model_config import ZipNerfModelConfig, check_table_memory
from zipnerf_ns.zipnerf import ProposalConfig


def missing_image(folder: Path) -> None:
    (folder / "images/002.png").unlink()


def unreadable_image(folder: Path) -> None:
    (folder / "images/000.png").write_text("not an image")


def nan_pose(folder: Path) -> None:
    meta = read_meta(folder)
    matrix = np.array(pose(0, 8))
    matrix[1, 2] = np.nan
    meta["frames"][2]["transform_matrix"] = matrix.tolist()
    write_meta(folder, meta)


@pytest.mark.parametrize(
    "breaking,expected",
    [
        (missing_image, ("images/002.png", "missing", "Restore")),
        (unreadable_image, ("images/000.png", "cannot be read", "Replace")),
        (nan_pose, ("transforms.json", "frame 2", "NaN", "Estimate it again")),
    ],
)
def test_trainer_prints_one_line_and_ends(tmp_path, breaking, expected):
    scene = write_scene(tmp_path / "scene")
    breaking(scene)
    assert_clear(said_when_started(tiny_config(scene, tmp_path)), expected)


def test_message_keeps_brackets_of_paths(tmp_path):
    """Brackets are markup for the console and must not be swallowed: the path would be wrong."""
    scene = write_scene(tmp_path / "a[red]b[1]")
    (scene / "images/002.png").unlink()
    assert "a[red]b[1]" in said_when_started(tiny_config(scene, tmp_path))


MODEL_FAULTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "unknown implementation": ({"implementation": "cuda"}, ("implementation", "'cuda'", "'torch'")),
    "table too large": (
        {"grid": HashGridConfig(64, 256, 16, 8192, 26)}, ("GiB", "--pipeline.model.grid.log2-hashmap-size")
    ),
    "proposal's table too large": (
        {"proposals": (ProposalConfig(8, HashGridConfig(64, 256, 16, 8192, 26)),)},
        ("GiB", "--pipeline.model.proposals.0.grid.log2-hashmap-size"),
    ),
    "table size out of range": ({"grid": HashGridConfig(4, 2, 8, 64, 60)}, ("grid", "log2_hashmap_size", "60")),
    "no levels": ({"grid": HashGridConfig(0)}, ("grid", "num_levels", "at least 1")),
    "finest below coarsest": ({"grid": HashGridConfig(4, 2, 64, 32)}, ("grid", "max_res", "32")),
    "no proposals": ({"proposals": ()}, ("proposals", "at least one")),
    "negative near plane": ({"near_plane": -1.0}, ("near_plane", "positive")),
}  # fmt: skip


@pytest.mark.parametrize("name", MODEL_FAULTS)
def test_model_that_cannot_be_built(tmp_path, name):
    """Set after construction, as a config.yml edited by hand would be."""
    changes, expected = MODEL_FAULTS[name]
    config = tiny_config(write_scene(tmp_path / "scene"), tmp_path)
    vars(config.pipeline.model).update(changes)
    assert_clear(said_when_started(config), expected)


@pytest.mark.parametrize(
    "changes",
    [
        {"near_plane": 0.0}, {"near_plane": float("nan")}, {"near_plane": 2.0, "far_plane": 1.0},
        {"proposals": ()}, {"proposals": (ProposalConfig(num_samples=1),)},
        {"proposals": (ProposalConfig(blur_halfwidth=0.0),)}, {"num_samples": 1},
        {"hidden_dim": 0}, {"bottleneck_dim": -1}, {"color_layers": 0}, {"color_dim": 0}, {"anneal_slope": 0.0},
        {"eval_num_rays_per_chunk": 0}, {"interlevel_loss_mult": -0.1}, {"distortion_loss_mult": -1.0},
        {"hash_decay_mult": float("nan")},
    ],
    ids=lambda changes: "-".join(changes),
)  # fmt: skip
def test_settings_out_of_range(changes):
    with pytest.raises(InputError) as caught:
        ZipNerfModelConfig(**changes)
    assert_clear(str(caught.value), (next(reversed(changes)) if "far_plane" not in changes else "near_plane",))


def test_no_rays_to_train_on(tmp_path):
    config = tiny_config(write_scene(tmp_path / "scene"), tmp_path)
    config.pipeline.datamanager.train_num_rays_per_batch = 0
    assert_clear(said_when_started(config), ("train", "rays", "0"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> ZipNerfTrainerConfig:
    """A finished run of two steps."""
    folder = tmp_path_factory.mktemp("trained")
    config = tiny_config(write_scene(folder / "scene"), folder, steps=2)
    start(config).train()
    return config


def resume(trained: ZipNerfTrainerConfig, output: Path, **changes: Any) -> ZipNerfTrainerConfig:
    """A config of another run on the same data."""
    return tiny_config(trained.pipeline.datamanager.data, output, **changes)


@pytest.mark.parametrize(
    "changes,expected",
    [
        ({"hidden_dim": 20}, ("hidden_layer.weight", "shape")),
        ({"grid": HashGridConfig(5, 2, 8, 64, 10)}, ("zipnerf.field.encoding.hash_table", "shape")),
        (
            {"proposals": (ProposalConfig(8, HashGridConfig(3, 1, 8, 32, 10), 8),) * 2},
            ("lacks zipnerf.proposal_networks.1",),
        ),
        ({"use_appearance": True}, ("lacks the optimizer state of appearance",)),
    ],
    ids=lambda changes: next(iter(changes)) if isinstance(changes, dict) else "",
)
def test_checkpoint_of_another_configuration(trained, tmp_path, changes, expected):
    config = resume(trained, tmp_path, load_checkpoint=checkpoint(trained, 1))
    vars(config.pipeline.model).update(changes)
    assert_clear(said_when_started(config), ("another configuration", "config.yml", *expected))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.9999])
def test_checkpoint_cut_short(trained, tmp_path, share):
    whole = checkpoint(trained, 1).read_bytes()
    part = tmp_path / "step-000000001.ckpt"
    part.write_bytes(whole[: int(share * len(whole))])
    config = resume(trained, tmp_path, load_checkpoint=part)
    assert_clear(said_when_started(config), (str(part), "cut short", "earlier one"))


def test_checkpoint_that_is_not_there(trained, tmp_path):
    run = checkpoint(trained, 1).parent
    nowhere = tmp_path / "nowhere"
    for changes, expected in (
        ({"load_checkpoint": nowhere / "step-000000001.ckpt"}, (str(nowhere), "does not exist", "nerfstudio_models")),
        ({"load_dir": nowhere}, (str(nowhere), "no checkpoint", "nerfstudio_models")),
        ({"load_dir": run.parent}, (str(run.parent), "no checkpoint", "nerfstudio_models")),
        ({"load_dir": run, "load_step": 77}, ("step-000000077.ckpt", "does not exist")),
    ):
        assert_clear(said_when_started(resume(trained, tmp_path, **changes)), expected)


def test_checkpoint_that_is_something_else(trained, tmp_path):
    path = tmp_path / "other.ckpt"
    for content, words in (({"weights": 1}, ("step", "pipeline", "optimizers")), ([1, 2], ("step", "pipeline"))):
        torch.save(content, path)
        assert_clear(said_when_started(resume(trained, tmp_path, load_checkpoint=path)), (str(path), *words))


@pytest.mark.parametrize("part", ["optimizer", "version"])
def test_checkpoint_that_is_incomplete_or_of_another_format(trained, tmp_path, part):
    state, path = load(checkpoint(trained, 1)), tmp_path / "changed.ckpt"
    if part == "optimizer":
        del state["optimizers"]["networks"]
    else:
        state["pipeline"]["_model.format_version"] += 1
    torch.save(state, path)
    expected = ("networks",) if part == "optimizer" else ("format 4", "reads 3", "zipnerf-ns")
    assert_clear(said_when_started(resume(trained, tmp_path, load_checkpoint=path)), expected)


def test_an_earlier_run_is_refused_before_anything_is_written(trained):
    before = folder_bytes(trained.get_base_dir())
    again = resume(trained, trained.output_dir)
    with CONSOLE.capture() as said, pytest.raises(SystemExit):
        again.save_config()
    assert folder_bytes(trained.get_base_dir()) == before
    assert "earlier run" in said.get() and "--load-dir" in said.get() and "--timestamp" in said.get()


def test_tables_that_fit_pass_and_the_largest_is_named():
    device, huge = torch.device("cpu"), HashGridConfig(64, 256, 16, 8192, 26)
    tiny = HashGridConfig(2, 1, 4, 8, 8)
    config = ZipNerfModelConfig(grid=tiny, proposals=(ProposalConfig(grid=tiny), ProposalConfig(grid=tiny)))
    check_table_memory(config, device)
    config.proposals[1].grid = huge
    with pytest.raises(InputError, match=r"--pipeline.model.proposals.1.grid.log2-hashmap-size"):
        check_table_memory(config, device)


def test_checkpoints_are_told_from_what_else_lies_among_them(tmp_path):
    steps = (900, 10_000, 2000)
    others = ("notes.txt", ".DS_Store", "._step-000010001.ckpt", "step-000010002.ckpt.part", "step-copy.ckpt")
    for name in (*(f"step-{step:09d}.ckpt" for step in steps), *others):
        (tmp_path / name).touch()
    assert checkpoints_in(tmp_path) == {step: tmp_path / f"step-{step:09d}.ckpt" for step in steps}
    assert checkpoints_in(tmp_path / "nowhere") == {}
