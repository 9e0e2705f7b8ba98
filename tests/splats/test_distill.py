"""The way from a run to splats, with a pure-torch rasterizer in gsplat's place."""

from __future__ import annotations

import errno
import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from _scenes import tiny_config, train, write_scene
from _torch_rasterizer import TorchRasterizer

from nerfstudio.configs.method_configs import all_methods
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

from zipnerf_ns.engine.safety.configs import check_config_file
from zipnerf_ns.splats.distill import distill as distilling
from zipnerf_ns.splats.distill.distill import Stopped, distill, scene_of
from zipnerf_ns.splats.distill.fit import SplatConfig
from zipnerf_ns.splats.distill.quality import measure
from zipnerf_ns.splats.run_folder import splatfacto_config, write_run

TINY = {"max_gaussians": 40, "field_views": 3, "sh_degree": 1}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A field after a few steps."""
    folder = tmp_path_factory.mktemp("field")
    trainer, _ = train(tiny_config(write_scene(folder / "scene"), folder / "out"))
    return trainer.pipeline


def test_a_run_becomes_a_run_of_splatfacto(pipeline, tmp_path):
    """Fitted for some steps, measured, written, and read as Nerfstudio's programs read it."""
    said = []
    scene = scene_of(pipeline)
    assert len(scene.photos) == len(scene.cameras) == 6 and scene.is_open
    gaussians = distill(scene, SplatConfig(steps=12, **TINY), said.append, TorchRasterizer())
    assert 0 < len(gaussians) <= 40 and gaussians.degree == 1
    assert "20 first Gaussians" in said[0] and "3 views rendered" in said[1] and "100%" in said[-1]
    quality = measure(pipeline, gaussians, TorchRasterizer())
    assert quality.views == 2 and all(math.isfinite(each["psnr"]) for each in (quality.splats, quality.field))
    assert str(quality).startswith("On 2 held-out photos: splats ")

    path = write_run(splatfacto_config(pipeline, gaussians, tmp_path, "scene", "now"), pipeline, gaussians, 12)
    assert path == tmp_path / "scene" / "splatfacto" / "now" / "config.yml"
    check_config_file(path)
    config = yaml.load(path.read_text(), Loader=yaml.Loader)
    assert type(config) is type(all_methods["splatfacto"]) and config.method_name == "splatfacto"
    assert isinstance(config.pipeline.datamanager.dataparser, NerfstudioDataParserConfig)
    assert config.pipeline.model.rasterize_mode == "antialiased" and config.pipeline.model.sh_degree == 1
    state = torch.load(config.get_checkpoint_dir() / "step-000000012.ckpt", weights_only=True)
    model = splatfacto_model(config, pipeline, state)
    assert torch.equal(model.means, gaussians.means) and torch.equal(model.shs_rest, gaussians.sh[:, 1:])
    assert torch.equal(model.opacities[:, 0], gaussians.opacities) and torch.equal(model.shs_0, gaussians.sh[:, 0])


def splatfacto_model(config: Any, pipeline: Any, state: dict[str, Any]) -> Any:
    """Splatfacto's own model with what a checkpoint holds, but for its LPIPS, which loads weights from the network."""
    import torchmetrics.image.lpip

    kept = torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity
    torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity = lambda **_: torch.nn.Identity()
    try:
        box = pipeline.datamanager.train_dataset.scene_box
        model = config.pipeline.model.setup(scene_box=box, num_train_data=6, metadata={}, device="cpu")
    finally:
        torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity = kept
    model.load_state_dict({name.removeprefix("_model."): value for name, value in state["pipeline"].items()})
    return model


def test_what_was_stopped_goes_on_as_if_it_had_not_been(pipeline, tmp_path):
    """Stopped after seven of twelve steps and resumed: the same Gaussians as at a go, and no file is left."""
    scene, config, unfinished = scene_of(pipeline), SplatConfig(steps=12, **TINY), tmp_path / "unfinished.ckpt"
    whole = distill(scene, config, print, TorchRasterizer())
    asked = iter([False] * 7 + [True])
    with pytest.raises(Stopped):
        distill(scene, config, print, TorchRasterizer(), unfinished, stops=lambda: next(asked))
    assert unfinished.is_file()
    resumed = distill(scene, config, print, TorchRasterizer(), unfinished, resumes=True)
    for name in ("means", "quats", "scales", "opacities", "sh"):
        assert torch.equal(getattr(resumed, name), getattr(whole, name)), name
    assert not list(tmp_path.iterdir())


def test_a_full_disk_does_not_end_the_fit(pipeline, tmp_path, monkeypatch):
    """It is said once; what is stopped then cannot be kept, and says so."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(distilling, "write_whole", full)
    scene, config, said = scene_of(pipeline), SplatConfig(steps=12, **TINY), []
    assert len(distill(scene, config, said.append, TorchRasterizer(), tmp_path / "unfinished.ckpt"))
    assert [line for line in said if "Warning" in line] == [
        f"Warning: {tmp_path / 'unfinished.ckpt'} cannot be written (No space left on device): the fit goes on without."
    ]
    asked = iter([False] * 7 + [True])
    with pytest.raises(OSError, match="No space left"):
        distill(scene, config, print, TorchRasterizer(), tmp_path / "unfinished.ckpt", stops=lambda: next(asked))


def test_seconds_are_kept(pipeline):
    """A time that is over before anything is fitted still gives Gaussians; of the field, one view or none."""
    config = SplatConfig(seconds=0.01, max_gaussians=20, sh_degree=0)
    said: list[str] = []
    gaussians = distill(scene_of(pipeline)._replace(photos=[]), config, said.append, SlowRasterizer())
    assert 0 < len(gaussians) <= 20 and gaussians.sh.shape[1] == 1
    assert "100%" in said[-1] and "step 1 " in said[-1]


class SlowRasterizer(TorchRasterizer):
    """Whose first picture takes longer than there is time."""

    def draw(self, splats, pinhole, degree):
        time.sleep(1.0)
        return super().draw(splats, pinhole, degree)


def test_transparent_photos_make_transparent_splats(tmp_path):
    """Photos with alpha: the field's views have one, too, and what its rays miss makes no Gaussian."""
    trainer, _ = train(tiny_config(write_scene(tmp_path / "scene", channels=4), tmp_path / "out"))
    scene = scene_of(trainer.pipeline)
    assert not scene.is_open and scene.photos[0].colors.shape[-1] == 4
    config = SplatConfig(steps=2, field_views=1, max_gaussians=40, sh_degree=0)
    run = splatfacto_config(trainer.pipeline, distill(scene, config, print, TorchRasterizer()), tmp_path, "a", "b")
    assert run.pipeline.model.background_color == "white"


def test_resuming_nothing_is_said(pipeline, tmp_path):
    """One line, and what to do."""
    with pytest.raises(ValueError, match="nothing to resume. Leave --resume out"):
        distill(scene_of(pipeline), SplatConfig(steps=2), print, TorchRasterizer(), Path(tmp_path / "no"), True)
