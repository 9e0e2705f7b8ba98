"""The method zipnerf-splat and the command, with a pure-torch rasterizer in gsplat's place."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from _scenes import checkpoint, load, start, tiny_config, train, write_scene
from _torch_rasterizer import TorchRasterizer

from nerfstudio.data.dataparsers.nerfstudio_dataparser import Nerfstudio

from zipnerf_ns.config import zipnerf, zipnerf_splat
from zipnerf_ns.data.dataparsers.exact import CenteringNerfstudioConfig
from zipnerf_ns.splats import making, trainer
from zipnerf_ns.splats.distill import distill
from zipnerf_ns.splats.distill.fit import SplatConfig
from zipnerf_ns.splats.files import read_gaussians
from zipnerf_ns.splats.trainer import SplatTrainer, SplatTrainerConfig
from zipnerf_ns.tools import splat, splat_counts

SETTINGS = SplatConfig(steps=8, max_gaussians=30, sh_degree=0, field_views=1)
OPTIONS = "--steps 8 --max-gaussians 30 --sh-degree 0 --field-views 1".split()


@pytest.fixture
def without_gsplat(monkeypatch: pytest.MonkeyPatch) -> None:
    """What needs a GPU is not asked for."""
    for module in (making, distill):
        monkeypatch.setattr(module, "Gsplat", lambda *_, **__: TorchRasterizer())
    for module in (trainer, splat, splat_counts):
        monkeypatch.setattr(module, "prepare_gsplat", lambda device, say: None)
    monkeypatch.setattr(making, "frames_per_second", lambda *_: 123.0)


def splat_config(folder: Path) -> SplatTrainerConfig:
    """A tiny field's training that ends with splats."""
    scene, parser = write_scene(folder / "scene"), CenteringNerfstudioConfig()
    config = tiny_config(scene, folder / "out", steps=2, dataparser=parser, method_name="zipnerf-splat")
    config.viewer.quit_on_train_completion = True
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return SplatTrainerConfig(**{**fields, "_target": SplatTrainer, "splats": SETTINGS})


def test_a_training_ends_with_splats_and_the_command_makes_others(tmp_path, without_gsplat, fresh_writers, capsys):
    """In one run: the field's checkpoint, then the splats' run, then what can be done; again by the command."""
    config = splat_config(tmp_path)
    start(config).train()
    said = capsys.readouterr().out
    assert checkpoint(config, 1).is_file()
    (first,) = (tmp_path / "out" / "scene" / "splatfacto").glob("*/config.yml")
    assert "123 pictures of 1920x1080 a second" in said and "On 2 held-out photos" in said
    assert f"ns-export gaussian-splat --load-config {first}" in re.sub(r"\s+", " ", said)
    assert said.index("Training Finished") < said.index("first Gaussians") < said.index("To train longer")

    run = config.get_base_dir() / "config.yml"
    files = ["--export", str(tmp_path / "a.ply"), "--world-frame", "--web", str(tmp_path / "page")]
    assert splat.main(["--load-config", str(run), "--output-dir", str(tmp_path / "again"), *OPTIONS, *files]) == 0
    (again,) = (tmp_path / "again" / "scene" / "splatfacto").glob("*/config.yml")
    frame = json.loads((again.parent / "dataparser_transforms.json").read_text())
    state = load(next((again.parent / "nerfstudio_models").glob("*.ckpt")))["pipeline"]
    means = state["_model.gauss_params.means"].double().numpy()
    turned_and_shifted = np.array(frame["transform"])
    expected = np.linalg.solve(turned_and_shifted[:, :3], (means / frame["scale"] - turned_and_shifted[:, 3]).T).T
    np.testing.assert_allclose(read_gaussians(tmp_path / "a.ply").means.numpy(), expected, rtol=1e-4, atol=1e-4)
    assert (tmp_path / "page" / "index.html").is_file()
    for path in (first, again):
        assert list((path.parent / "nerfstudio_models").glob("step-*.ckpt"))
        # Nerfstudio's own parser, which chooses no center, gives the photos in the splats' frame.
        manager = yaml.load(path.read_text(), Loader=yaml.Loader).pipeline.datamanager
        parser = dataclasses.replace(manager.dataparser, data=manager.data).setup()
        assert type(parser) is Nerfstudio and parser.config.center_method == "focus"
        transform = parser.get_dataparser_outputs("train").dataparser_transform
        written = json.loads((path.parent / "dataparser_transforms.json").read_text())["transform"]
        np.testing.assert_allclose(transform.numpy(), written, atol=1e-6)


def test_numbers_of_gaussians_are_compared(tmp_path, without_gsplat, capsys):
    """Splats of one field at two numbers: a row each, files whose sizes it says, a plot, and the field beside."""
    config = tiny_config(write_scene(tmp_path / "scene"), tmp_path / "out", steps=2)
    train(config)
    folder = tmp_path / "counts"
    options = ["--load-config", str(config.get_base_dir() / "config.yml"), "--output", str(folder), "--steps", "4"]
    assert splat_counts.main([*options, "--gaussians", "30", "60"]) == 0
    text = (folder / "counts.md").read_text()
    assert text in capsys.readouterr().out
    rows = [re.split(r" *\| *", line)[1:-1] for line in text.splitlines() if line.startswith(("| 30", "| 60"))]
    assert [row[0] for row in rows] == ["30", "60"] and "The field has" in text
    for most, left, psnr, _, size, frames in rows:
        file = folder / f"{most}.spz"
        assert len(read_gaussians(file)) == int(left) <= int(most)
        assert size == f"{file.stat().st_size / 1e6:.1f}" and frames == "123" and float(psnr) > 0.0
    assert (folder / "counts.png").stat().st_size > 1000
    with pytest.raises(SystemExit):
        splat_counts.main([*options, "--gaussians", "30", "30"])


def test_a_stopped_training_says_how_its_splats_go_on(tmp_path, without_gsplat, fresh_writers, capsys, monkeypatch):
    """A signal while the splats are made: their state is kept beside the field, and a command goes on with it."""
    config = splat_config(tmp_path)
    begun = start(config)
    original = trainer.make_splats

    def stopped(*arguments, **options):
        begun.stops.received = 15
        return original(*arguments, **options)

    monkeypatch.setattr(trainer, "make_splats", stopped)
    with pytest.raises(SystemExit) as ended:
        begun.train()
    assert ended.value.code == 128 + 15
    run = config.get_base_dir()
    assert (run / making.UNFINISHED).is_file()
    command = f"python -m zipnerf_ns.tools.splat --load-config {run / 'config.yml'} --resume"
    assert command in re.sub(r"\s+", " ", capsys.readouterr().out)
    arguments = ["--load-config", str(run / "config.yml"), "--resume", "--output-dir", str(tmp_path / "out"), *OPTIONS]
    assert splat.main(arguments) == 0
    assert not (run / making.UNFINISHED).exists()


def test_the_command_says_what_is_wrong(tmp_path, without_gsplat, capsys):
    """Each one line, and status 1."""
    for arguments, message in (
        (["--load-config", str(tmp_path / "none.yml")], "does not exist"),
        (["--load-config", str(tmp_path), "--prune-below", "2"], "prune_below is 2.0"),
    ):
        assert splat.main(arguments) == 1
        assert message in capsys.readouterr().err


def test_the_method_is_zipnerf_with_an_end():
    """Every setting of zipnerf's, and those of the splats."""
    config = zipnerf_splat.config
    assert isinstance(config, SplatTrainerConfig) and config.method_name == "zipnerf-splat"
    for field in dataclasses.fields(zipnerf.config):
        if field.name not in ("_target", "method_name"):
            assert getattr(config, field.name) == getattr(zipnerf.config, field.name), field.name
    assert config.pipeline is not zipnerf.config.pipeline
