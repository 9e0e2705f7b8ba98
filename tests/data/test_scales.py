"""Scales of images: where they are found, what pixels weigh, and the means that ns-eval reports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from _scenes import make_datamanager, read_meta, start, tiny_config, write_meta, write_scene

from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

from zipnerf_ns.data.dataparsers.multiscale import MultiscaleDataParserConfig
from zipnerf_ns.data.metadata import SCALES, area_weights, find_scales, mean_metrics, means_by_scale
from zipnerf_ns.engine.pipeline import PER_IMAGE
from zipnerf_ns.errors import InputError
from zipnerf_ns.tools.demo_scene import write_scene as write_built_in


@pytest.fixture(scope="module")
def built_in(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("built_in") / "scene"
    return write_built_in(folder, width=48, height=40, num_train=3, num_test=2, samples_per_pixel=4)


def scales_of(data: Path, split: str, **changes):
    outputs = NerfstudioDataParserConfig(data=data, **changes).setup().get_dataparser_outputs(split)
    return outputs, find_scales(outputs.image_filenames, outputs.metadata, data)


def test_scales_of_the_built_in_scene(built_in):
    """From the frames' own key: the pictures' sizes say the same."""
    for split, count in (("train", 12), ("test", 8)):
        outputs, scales = scales_of(built_in / "transforms_multiscale.json", split)
        assert len(scales) == count
        assert [48 // scale for scale in scales] == outputs.cameras.width.flatten().tolist()


def test_scales_of_the_shared_scene(shared_scenes):
    """lego_ms keeps its sizes in folders of their own names."""
    for split, count in (("train", 348), ("val", 52)):
        outputs, scales = scales_of(shared_scenes / "lego_ms", split, downscale_factor=1)
        assert len(scales) == count and {scales.count(scale) for scale in (1, 2, 4, 8)} == {count // 4}
        assert [int(path.parent.name) for path in outputs.image_filenames] == [400 // scale for scale in scales]


def test_data_with_one_scale_have_none(built_in, tmp_path):
    assert scales_of(built_in, "train")[1] is None
    assert find_scales([Path("a.png")], {}, tmp_path) is None


def test_a_dataparsers_own_word_comes_first(built_in):
    assert find_scales([Path("a"), Path("b")], {SCALES: [1, 4]}, built_in / "transforms_multiscale.json") == (1, 4)


def test_other_pictures_than_those_listed_are_an_error(built_in):
    """With a downscale factor nerfstudio reads images_2/..., whose scales the file does not say."""
    with pytest.raises(InputError, match="not among them.*--downscale-factor 1"):
        find_scales([built_in / "elsewhere/a.png"], None, built_in / "transforms_multiscale.json")


@pytest.mark.parametrize(
    "scales,pixels", [((1, 2, 4, 8), (6400, 1600, 400, 100)), ((2, 2), (30, 50)), ((1, 8), (7, 1))]
)
def test_area_weights(scales, pixels):
    """In proportion to the pixel's area, and of mean 1 over all pixels."""
    weights = area_weights(scales, pixels).double()
    areas = torch.tensor(scales).double() ** 2
    torch.testing.assert_close(weights / weights[0], areas / areas[0], rtol=1e-6, atol=0.0)
    total = torch.tensor(pixels).double()
    torch.testing.assert_close((weights * total).sum() / total.sum(), torch.tensor(1.0).double(), rtol=1e-6, atol=0.0)


def test_every_scale_counts_the_same_under_area_weights():
    weights, pixels = area_weights((1, 2, 4, 8), (6400, 1600, 400, 100)), torch.tensor([6400, 1600, 400, 100])
    torch.testing.assert_close(weights * pixels, torch.full((4,), float(pixels.sum()) / 4))


def test_means():
    per_image = [{"psnr": 10.0, "ssim": 0.5}, {"psnr": 20.0, "ssim": 0.7}, {"psnr": 40.0}]
    assert mean_metrics(per_image) == {"psnr": pytest.approx(70.0 / 3), "ssim": pytest.approx(0.6)}
    by_scale = means_by_scale(per_image, (4, 1, 4))
    assert list(by_scale) == [1, 4]
    assert by_scale == {1: {"psnr": 20.0, "ssim": 0.7}, 4: {"psnr": 25.0, "ssim": 0.5}}
    assert means_by_scale(per_image, None) == means_by_scale(per_image, (2, 2, 2)) == {}


@pytest.mark.parametrize("own", [True, False], ids=["data of several scales", "multiscale-data"])
def test_loss_weights_in_the_batch(built_in, own):
    """By area: each ray's weight is its image's; evenly, or with one scale: none."""
    data = built_in / "transforms_multiscale.json" if own else built_in
    parser = None if own else MultiscaleDataParserConfig()
    manager = make_datamanager(data, parser, scale_weighting="area", train_num_rays_per_batch=4000)
    _, batch = manager.next_train(0)
    width = manager.train_dataset.cameras.width[batch["indices"][:, 0]]
    assert batch["loss_weight"].shape == (4000, 1) and batch["loss_weight"].dtype == torch.float32
    full = batch["loss_weight"][width == 48][0]
    torch.testing.assert_close(batch["loss_weight"], full * (48 / width) ** 2)
    # The mean of 4000 draws whose standard deviation is below 3.
    assert float(batch["loss_weight"].mean()) == pytest.approx(1.0, abs=0.2)
    assert "loss_weight" not in make_datamanager(data, parser).next_train(0)[1]


def test_one_scale_has_no_loss_weights(built_in):
    assert "loss_weight" not in make_datamanager(built_in, scale_weighting="area").next_train(0)[1]


def trained(data: Path, folder: Path, parser=None):
    trainer = start(tiny_config(data, folder, steps=1, dataparser=parser))
    trainer.train()
    return trainer


@pytest.mark.parametrize("own", [True, False], ids=["data of several scales", "multiscale-data"])
def test_evaluation_by_scale(built_in, tmp_path, own):
    """The pipeline's averages, overall and by scale, from every image's own metrics, which it writes down."""
    data = built_in / "transforms_multiscale.json" if own else built_in
    pipeline = trained(data, tmp_path / "out", None if own else MultiscaleDataParserConfig()).pipeline
    averages = pipeline.get_average_eval_image_metrics(output_path=tmp_path / "eval", get_std=True)
    rows = json.loads((tmp_path / "eval" / PER_IMAGE).read_text())
    assert len(rows) == 8 and len(list((tmp_path / "eval").glob("eval_img_*.png"))) == 8
    psnr = np.array([row["psnr"] for row in rows])
    assert averages["psnr"] == pytest.approx(psnr.mean())
    assert averages["psnr_std"] == pytest.approx(psnr.std(ddof=1), rel=1e-5)
    for scale in (1, 2, 4, 8):
        members = [row for row in rows if row["scale"] == scale]
        assert len(members) == 2
        assert averages[f"psnr_scale_{scale}"] == pytest.approx(np.mean([row["psnr"] for row in members]))
    # 6 x 5 pixels are too few for the window of SSIM.
    assert "ssim_scale_4" not in averages and "ssim_scale_8" not in averages
    assert averages["ssim"] == pytest.approx(np.mean([row["ssim"] for row in rows if "ssim" in row]))
    assert {"fps", "num_rays_per_sec", "fps_std"} <= set(averages)


def test_evaluation_of_one_scale_is_nerfstudios(built_in, tmp_path):
    """The same keys and values as its own pipeline gives."""
    from nerfstudio.pipelines.base_pipeline import VanillaPipeline

    pipeline = trained(built_in, tmp_path / "out").pipeline
    ours = pipeline.get_average_eval_image_metrics(get_std=True)
    theirs = VanillaPipeline.get_average_eval_image_metrics(pipeline, get_std=True)
    assert set(ours) == set(theirs)
    for name in ("psnr", "ssim", "psnr_std", "ssim_std"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-5)
    assert pipeline.training


def test_ns_eval_reports_scales(built_in, tmp_path, run_program):
    """The program itself, on a scene that multiscale-data expands."""
    trainer = trained(built_in, tmp_path / "out", MultiscaleDataParserConfig(scales=(1, 2)))
    config = trainer.config.get_base_dir() / "config.yml"
    done = run_program("ns-eval", "--load-config", config, "--output-path", tmp_path / "eval.json", timeout=300)
    assert done.returncode == 0, done.stdout[-3000:]
    results = json.loads((tmp_path / "eval.json").read_text())["results"]
    assert results["psnr"] == pytest.approx((results["psnr_scale_1"] + results["psnr_scale_2"]) / 2)


EACH_FIRST = """
# What neither nerfstudio nor zipnerf_ns is may be there already, and takes longest to import.
import importlib, os, sys
import torch, torchmetrics.image, torchvision
assert not [name for name in sys.modules if name.split(".")[0] in ("nerfstudio", "zipnerf_ns")]
for module in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        importlib.import_module(module)
        from nerfstudio.configs.dataparser_configs import all_dataparsers as known
        assert {"multiscale-data", "mipnerf360-data"} <= set(known)
        print(module, flush=True)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(f"{module} cannot be imported first")
"""
"""Imports each module that it is given in a copy of itself."""


def test_registered_dataparsers_load_first(tmp_path):
    """Nerfstudio loads them while its own modules are half loaded: whoever comes first must not go in a circle."""
    modules = ("zipnerf_ns.data.dataparsers.multiscale", "zipnerf_ns.data.dataparsers.mipnerf360",
               "zipnerf_ns.engine.pipeline", "nerfstudio.configs.dataparser_configs")  # fmt: skip
    command = [sys.executable, "-W", "ignore", "-c", EACH_FIRST, *modules]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=240)
    assert done.returncode == 0 and done.stdout.split() == list(modules), done.stdout + done.stderr[-3000:]


def test_frames_without_the_key_are_full_size(tmp_path):
    scene = write_scene(tmp_path / "scene")
    meta = read_meta(scene)
    meta["frames"][2]["downscale"] = 2
    write_meta(scene, meta)
    outputs, scales = scales_of(scene, "train")
    assert [scale for path, scale in zip(outputs.image_filenames, scales, strict=True) if path.stem == "002"] == [2]
    assert sorted(scales) == [1, 1, 1, 1, 1, 2]


@pytest.mark.parametrize("value", [1.5, 0, -2, "half", None, float("nan"), float("inf")])
def test_a_scale_that_is_no_whole_number_is_refused(tmp_path, value):
    scene = write_scene(tmp_path / "scene")
    meta = read_meta(scene)
    meta["frames"][2]["downscale"] = value
    write_meta(scene, meta)
    with pytest.raises(InputError, match="transforms.json: frame 2: 'downscale' is .*whole number"):
        scales_of(scene, "train")
