"""Masks from their files to the pixels that are drawn, what is learnt, and what is measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _scenes import (
    HEIGHT,
    WIDTH,
    make_datamanager,
    named_pixels,
    read_meta,
    tiny_config,
    train,
    write_meta,
    write_scene,
)
from PIL import Image

from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.data.pixel_samplers import PixelSamplerConfig

from zipnerf_ns.data.datamanager import ZipNerfDataManager
from zipnerf_ns.errors import InputError
from zipnerf_ns.render.metrics import ImageMetrics

SIZES = [(24, 16), (10, 30), (33, 7), (24, 16), (15, 15), (48, 20), (24, 16), (17, 12)]
ALL = np.ones((HEIGHT, WIDTH), bool)
LEFT = ALL & (np.arange(WIDTH) < 9)


def grey(used: np.ndarray) -> Image.Image:
    return Image.fromarray((255 * used).astype(np.uint8))


def with_masks(scene: Path, picture_of: Callable[[int], Image.Image], extension: str = "png") -> Path:
    """Gives every frame the mask that a function makes of its number."""
    (scene / "masks").mkdir()
    meta = read_meta(scene)
    for index, frame in enumerate(meta["frames"]):
        frame["mask_path"] = f"masks/{index:03d}.{extension}"
        picture_of(index).save(scene / frame["mask_path"], **({"quality": 90} if extension == "jpg" else {}))
    write_meta(scene, meta)
    return scene


def drawn(manager: ZipNerfDataManager, held_out: bool = False) -> dict[str, list[tuple[int, int]]]:
    """Rows and columns of the pixels that a large batch draws, by their image's name."""
    batch = (manager.next_eval if held_out else manager.next_train)(0)[1]
    dataset = manager.eval_dataset if held_out else manager.train_dataset
    found: dict[str, list[tuple[int, int]]] = {}
    for image, row, column in batch["indices"].tolist():
        found.setdefault(dataset.image_filenames[image].stem, []).append((row, column))
    return found


KINDS: dict[str, tuple[Callable[[np.ndarray], Image.Image], str]] = {
    "grey": (grey, "png"),
    "1 bit": (lambda used: grey(used).convert("1"), "png"),
    "palette": (lambda used: grey(used).convert("P"), "png"),
    "color": (lambda used: grey(used).convert("RGB"), "png"),
    "alpha": (lambda used: Image.merge("LA", [Image.new("L", (WIDTH, HEIGHT), 255), grey(used)]), "png"),
    "labels 0 and 1": (lambda used: Image.fromarray(used.astype(np.uint8)), "png"),
    "16 bits": (lambda used: Image.fromarray(used * np.uint16(65535)), "png"),
    "lossy": (grey, "jpg"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_masks_of_every_kind_leave_their_pixels_and_all_of_them(tmp_path, kind):
    """In batches of training and of evaluation; each image has a mask of its own."""
    make, extension = KINDS[kind]
    # Edges where blocks of lossy compression end.
    used = [ALL & (np.arange(WIDTH) // 8 == index % 3) & (np.arange(HEIGHT)[:, None] < 8) for index in range(8)]
    scene = with_masks(write_scene(tmp_path / "scene"), lambda index: make(used[index]), extension)
    manager = make_datamanager(scene, train_num_rays_per_batch=8000, eval_num_rays_per_batch=4000)
    for held_out, names in ((False, "000 001 002 004 005 006"), (True, "003 007")):
        found = drawn(manager, held_out)
        assert sorted(found) == names.split()
        for name, pixels in found.items():
            assert set(pixels) == set(map(tuple, np.argwhere(used[int(name)]).tolist())), name


def test_masks_of_images_of_mixed_sizes(tmp_path):
    """Nerfstudio's own sampler stops at such data."""
    used = [np.random.default_rng(index).random((height, width)) < 0.3 for index, (width, height) in enumerate(SIZES)]
    scene = with_masks(write_scene(tmp_path / "scene", sizes=SIZES), lambda index: grey(used[index]))
    manager = make_datamanager(scene, train_num_rays_per_batch=20000, eval_num_rays_per_batch=8001)
    for held_out in (False, True):
        for name, pixels in drawn(manager, held_out).items():
            assert set(pixels) == set(map(tuple, np.argwhere(used[int(name)]).tolist()))


def test_masks_are_reduced_with_their_images(tmp_path):
    scene = with_masks(
        write_scene(tmp_path / "scene"), lambda _: grey(np.kron(ALL[::2, ::2] & LEFT[::2, ::2], [[1, 1], [1, 1]]))
    )
    manager = make_datamanager(scene, camera_res_scale_factor=0.5, train_num_rays_per_batch=4000)
    for pixels in drawn(manager).values():
        assert set(pixels) == set(map(tuple, np.argwhere(LEFT[::2, ::2]).tolist()))


def test_panoramas_with_masks(tmp_path):
    used = np.random.default_rng(0).random((HEIGHT, WIDTH)) < 0.3
    scene = with_masks(write_scene(tmp_path / "scene"), lambda _: grey(used))
    write_meta(scene, {**read_meta(scene), "camera_model": "EQUIRECTANGULAR"})
    manager = make_datamanager(scene, train_num_rays_per_batch=8000)
    for held_out in (False, True):
        assert all(used[pixel] for pixels in drawn(manager, held_out).values() for pixel in pixels)


@pytest.mark.parametrize("with_mask", [False, True], ids=["alone", "and masks"])
@pytest.mark.parametrize("reduction", [1, 2])
def test_a_fisheyes_circle(tmp_path, with_mask, reduction):
    """Given in pixels of the full size; outside of it nothing is drawn, trained on or counted."""
    scene = write_scene(tmp_path / "scene")
    write_meta(scene, {**read_meta(scene), "camera_model": "OPENCV_FISHEYE", "fisheye_crop_radius": 6.0})
    if with_mask:
        with_masks(scene, lambda _: grey(ALL & (np.arange(HEIGHT)[:, None] < 8)))
    for folder in ("images", "masks") if reduction == 2 else ():
        if (scene / folder).is_dir():
            (scene / f"{folder}_2").mkdir()
            for path in (scene / folder).iterdir():
                Image.open(path).resize((WIDTH // 2, HEIGHT // 2), Image.Resampling.NEAREST).save(
                    scene / f"{folder}_2" / path.name
                )
    height, width = HEIGHT // reduction, WIDTH // reduction
    y, x = np.mgrid[:height, :width] + 0.5
    inside = np.hypot(y - height / 2, x - width / 2) <= 6.0 / reduction
    inside &= (y < height / 2) | (not with_mask)
    manager = make_datamanager(
        scene, NerfstudioDataParserConfig(downscale_factor=reduction), train_num_rays_per_batch=6000
    )
    for held_out in (False, True):
        for pixels in drawn(manager, held_out).values():
            assert {pixel for pixel in pixels if not inside[pixel]} == set()
    assert len(manager.pixels) == 6 * inside.sum()
    assert torch.equal(manager.next_eval_image(0)[1]["mask"][..., 0], torch.from_numpy(inside))


def test_ignored_masks_and_their_color(tmp_path):
    """Nerfstudio's settings to train on a painted background instead of leaving it out."""
    scene = with_masks(write_scene(tmp_path / "scene"), lambda _: grey(LEFT))
    parser = NerfstudioDataParserConfig(mask_color=(1.0, 0.0, 0.2))
    manager = make_datamanager(scene, parser, pixel_sampler=PixelSamplerConfig(ignore_mask=True))
    assert manager.pixels.allowed is None
    expected = torch.from_numpy(named_pixels(0))
    expected[~torch.from_numpy(LEFT)] = torch.tensor([255, 0, 51], dtype=torch.uint8)
    assert torch.equal(manager.pixels.colors[: WIDTH * HEIGHT].reshape(HEIGHT, WIDTH, 3), expected)
    batch = manager.next_eval_image(0)[1]
    assert "mask" not in batch
    torch.testing.assert_close(batch["image"][~torch.from_numpy(LEFT)].unique(dim=0), torch.tensor([[1.0, 0.0, 0.2]]))


def test_the_color_of_masks_over_alpha_is_opaque(tmp_path):
    scene = with_masks(write_scene(tmp_path / "scene", channels=4), lambda _: grey(LEFT))
    manager = make_datamanager(scene, NerfstudioDataParserConfig(mask_color=(0.0, 0.0, 1.0)))
    painted = manager.pixels.colors[: WIDTH * HEIGHT].reshape(HEIGHT, WIDTH, 4)[~torch.from_numpy(LEFT)]
    assert painted.unique(dim=0).tolist() == [[0, 0, 255, 255]]


# --- what cannot be used ---


@pytest.mark.parametrize("broken", [2, 3], ids=["training", "held out"])
def test_broken_masks_are_named_before_anything_is_loaded(tmp_path, broken):
    scene = with_masks(write_scene(tmp_path / "scene"), lambda _: grey(ALL))
    mask = scene / f"masks/{broken:03d}.png"
    grey(ALL[:4]).save(mask)
    with pytest.raises(InputError, match=f"{mask.name} has 24x4 pixels, its image 24x16"):
        make_datamanager(scene)
    mask.unlink()
    with pytest.raises(InputError, match=f"{mask.name} is missing"):
        make_datamanager(scene)
    mask.write_bytes(b"GIF89a")
    with pytest.raises(InputError, match=f"{mask.name} cannot be read"):
        make_datamanager(scene)


def test_some_frames_without_a_mask_are_named(tmp_path):
    scene = with_masks(write_scene(tmp_path / "scene"), lambda _: grey(ALL))
    meta = read_meta(scene)
    del meta["frames"][2]["mask_path"]
    write_meta(scene, meta)
    with pytest.raises(InputError, match="'mask_path' is missing for images/002.png. Give every image a mask"):
        make_datamanager(scene)


@pytest.mark.parametrize("held_out", [False, True], ids=["training", "held out"])
@pytest.mark.parametrize("model", ["OPENCV", "EQUIRECTANGULAR"])
def test_masks_that_leave_nothing_are_an_error(tmp_path, held_out, model):
    used = [ALL & ((index % 4 == 3) != held_out) for index in range(8)]
    scene = with_masks(write_scene(tmp_path / "scene"), lambda index: grey(used[index]))
    write_meta(scene, {**read_meta(scene), "camera_model": model})
    with pytest.raises(InputError, match="masks leave no pixel.*white"):
        make_datamanager(scene)


def test_an_image_of_which_nothing_is_used_is_left_out_alone(tmp_path, fresh_writers):
    """Of batches, and of the means of metrics, where it has none."""
    scene = with_masks(write_scene(tmp_path / "scene"), lambda index: grey(ALL & (index not in (1, 7))))
    trainer, _ = train(tiny_config(scene, tmp_path / "out", 3, steps_per_eval_image=1, steps_per_eval_batch=1))
    manager = trainer.pipeline.datamanager
    assert sorted(drawn(manager)) == ["000", "002", "004", "005", "006"] and sorted(drawn(manager, True)) == ["003"]
    averages = trainer.pipeline.get_average_eval_image_metrics()
    assert np.isfinite(averages["psnr"]) and np.isfinite(averages["ssim"])


# --- what is learnt and measured ---


def masked_training(folder: Path, used: np.ndarray, spoil: bool) -> tuple[dict[int, float], float, dict[str, Any]]:
    """Losses, mean PSNR and weights of a training whose pictures are spoilt outside of LEFT."""
    scene = with_masks(write_scene(folder / "scene"), lambda _: grey(used))
    for path in (scene / "images").iterdir() if spoil else ():
        picture = np.array(Image.open(path))
        picture[~LEFT] = np.random.default_rng(int(path.stem)).integers(0, 256, (int((~LEFT).sum()), 3))
        Image.fromarray(picture).save(path)
    config = tiny_config(scene, folder / "out", 8, steps_per_eval_image=3, steps_per_eval_batch=4)
    trainer, losses = train(config)
    quality = trainer.pipeline.get_average_eval_image_metrics()["psnr"]
    return losses, quality, trainer.pipeline.model.state_dict()


def test_what_is_masked_is_neither_learnt_nor_measured(tmp_path, fresh_writers, monkeypatch):
    """Whatever is there, the training is the same to the last bit; without the masks it is another."""
    monkeypatch.setattr(ImageMetrics, "lpips", {})
    clean = masked_training(tmp_path / "clean", LEFT, spoil=False)
    spoilt = masked_training(tmp_path / "spoilt", LEFT, spoil=True)
    assert clean[0] == spoilt[0] and clean[1] == spoilt[1]
    assert all(torch.equal(value, spoilt[2][name]) for name, value in clean[2].items())
    unmasked = [masked_training(tmp_path / f"all {spoil}", ALL, spoil) for spoil in (False, True)]
    assert all(unmasked[0][0][step] != unmasked[1][0][step] for step in range(8))
    assert unmasked[0][1] != unmasked[1][1]


def test_metrics_are_of_the_used_pixels(tmp_path, fresh_writers, monkeypatch):
    monkeypatch.setattr(ImageMetrics, "lpips", {})
    scene = with_masks(write_scene(tmp_path / "scene"), lambda _: grey(LEFT))
    trainer, _ = train(tiny_config(scene, tmp_path / "out", 2))
    pipeline = trainer.pipeline.eval()
    camera, batch = pipeline.datamanager.next_eval_image(0)
    outputs = pipeline.model.get_outputs_for_camera(camera)
    metrics, pictures = pipeline.model.get_image_metrics_and_images(outputs, batch)
    # Of the rendering as a file of 8 bits holds it; the photo is one.
    left = ((outputs["rgb"] * 255.0).round() / 255.0 - batch["image"])[:, :9]
    assert 10.0 ** (-metrics["psnr"] / 10.0) == pytest.approx(float(left.square().mean()), rel=1e-5)
    # The picture of errors is that of no error there; the truth and the rendering are shown whole.
    black = pictures["error"][:, 9:].reshape(-1, 3).unique(dim=0)
    assert len(black) == 1 and float(black.max()) < 0.05 and pictures["error"][:, :9].std() > 0.0
    torch.testing.assert_close(pictures["img"][:, :WIDTH], batch["image"])
