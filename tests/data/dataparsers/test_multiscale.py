"""Any scene at several scales: reduced pictures, their cameras, their masks, and what is kept of them."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from _published import write_mipnerf360_scene
from _scenes import make_datamanager, named_pixels, read_meta, start, tiny_config, write_blender_scene, write_meta
from _scenes import write_scene as write_named_scene
from PIL import Image

from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

from zipnerf_ns.data.dataparsers.exact import CenteringNerfstudioConfig
from zipnerf_ns.data.dataparsers.mipnerf360 import MipNerf360DataParserConfig
from zipnerf_ns.data.dataparsers.multiscale import MultiscaleDataParserConfig
from zipnerf_ns.data.dataparsers.reduction import reduce_image, reduce_mask
from zipnerf_ns.data.metadata import SCALES
from zipnerf_ns.errors import InputError
from zipnerf_ns.tools.demo_scene import write_scene as write_built_in

ODD = (37, 29)
"""A size that no scale divides."""


def parse(folder: Path, split: str = "train", **changes):
    return MultiscaleDataParserConfig(data=folder, **changes).setup().get_dataparser_outputs(split)


def averaged_by_hand(picture: np.ndarray, scale: int) -> np.ndarray:
    """The definition, pixel by pixel in float64: mean of color times alpha over mean alpha."""
    rows, columns = picture.shape[0] // scale, picture.shape[1] // scale
    result = np.zeros((rows, columns, picture.shape[2]))
    for row in range(rows):
        for column in range(columns):
            square = picture[row * scale : (row + 1) * scale, column * scale : (column + 1) * scale].astype(np.float64)
            square = square.reshape(-1, picture.shape[2])
            if picture.shape[2] == 3:
                result[row, column] = square.mean(axis=0)
                continue
            weight = square[:, 3].sum()
            if weight > 0:
                result[row, column, :3] = (square[:, :3] * square[:, 3:]).sum(axis=0) / weight
            result[row, column, 3] = square[:, 3].mean()
    return result


@pytest.mark.parametrize("scale", [1, 2, 3, 8])
@pytest.mark.parametrize("channels", [3, 4])
def test_reduced_pixels_are_means_of_their_squares(scale, channels):
    picture = np.random.default_rng(0).integers(0, 256, (*ODD[::-1], channels), dtype=np.uint8)
    if channels == 4:
        picture[:, :12, 3] = 0
    reduced = reduce_image(Image.fromarray(picture), scale)
    truth = averaged_by_hand(picture, scale)
    assert reduced.shape == truth.shape and reduced.dtype == np.uint8
    # Half a step of rounding, and float32's error where a mean lies on the edge between two.
    assert np.abs(reduced - truth).max() <= 0.5 + 1e-3


def test_a_color_next_to_transparency_is_not_darkened():
    picture = np.zeros((2, 2, 4), dtype=np.uint8)
    picture[0, 0] = (200, 100, 50, 255)
    np.testing.assert_array_equal(reduce_image(Image.fromarray(picture), 2), [[[200, 100, 50, 64]]])


@pytest.mark.parametrize("mode", ["L", "1", "RGB", "RGBA", "P", "labels", "nearly black"])
def test_reduced_masks_keep_only_whole_pixels(mode):
    """Of every kind of mask."""
    mask = np.full((4, 6), 255, dtype=np.uint8)
    mask[1, 3] = 0
    values = {"labels": mask // 255, "nearly black": np.maximum(mask, 20)}.get(mode, mask)
    picture = Image.fromarray(values) if values is not mask else Image.fromarray(mask).convert(mode)
    np.testing.assert_array_equal(reduce_mask(picture, 2), [[255, 0, 255], [255, 255, 255]])


def test_views_are_repeated_with_their_cameras(tmp_path):
    """Every scale shows all views; a reduced pixel's ray is the full picture's at the middle of its square."""
    sizes = [(37, 29), (24, 16), (40, 50), (37, 29), (16, 16), (24, 16)]
    scene = write_named_scene(tmp_path / "scene", count=6, sizes=sizes)
    outputs, full = parse(scene), CenteringNerfstudioConfig(data=scene).setup().get_dataparser_outputs("train")
    count = len(full.image_filenames)
    assert outputs.metadata[SCALES] == [scale for scale in (1, 2, 4, 8) for _ in range(count)]
    assert outputs.image_filenames[:count] == full.image_filenames
    for index, (scale, path) in enumerate(zip(outputs.metadata[SCALES], outputs.image_filenames, strict=True)):
        with Image.open(path) as picture:
            width, height = picture.size
            original = Image.open(full.image_filenames[index % count])
            np.testing.assert_array_equal(np.asarray(picture), reduce_image(original, scale))
        assert (width, height) == (int(outputs.cameras.width[index]), int(outputs.cameras.height[index]))
        middle = torch.tensor([[0.5, 0.5], [height - 0.5, width - 0.5]])
        reduced = outputs.cameras.generate_rays(torch.full((2, 1), index), middle)
        truth = full.cameras.generate_rays(torch.full((2, 1), index % count), middle * scale)
        torch.testing.assert_close(reduced.directions, truth.directions, rtol=0.0, atol=1e-6)
        torch.testing.assert_close(reduced.origins, truth.origins)
        # Nerfstudio takes finite differences over a pixel, which is half of the smallest picture.
        torch.testing.assert_close(reduced.pixel_area, truth.pixel_area * scale**2, rtol=0.3, atol=0.0)


def test_pixels_of_the_datamanager_are_those_of_the_files(tmp_path):
    """Drawn colors come from the reduced pictures, each with the ray of its own camera; alpha is kept."""
    scene = write_named_scene(tmp_path / "scene", sizes=[ODD] * 8, channels=4)
    manager = make_datamanager(scene, MultiscaleDataParserConfig(scales=(1, 4)), train_num_rays_per_batch=500)
    outputs = manager.train_dataparser_outputs
    bundle, batch = manager.next_train(0)
    image, y, x = batch["indices"].unbind(-1)
    assert set(image.tolist()) == set(range(12)) and "loss_weight" not in batch
    files = [np.asarray(Image.open(path)) for path in outputs.image_filenames]
    expected = np.stack([files[i][j, k] for i, j, k in batch["indices"].tolist()])
    np.testing.assert_array_equal((batch["image"] * 255.0).round().numpy(), expected)
    truth = outputs.cameras.generate_rays(image[:, None], torch.stack([y, x], dim=-1) + 0.5)
    torch.testing.assert_close(bundle.directions, truth.directions)


def test_existing_pictures_are_kept_and_changed_originals_reduced_again(tmp_path):
    scene = write_named_scene(tmp_path / "scene")
    reduced = parse(scene).image_filenames[6:]
    before = {path: path.stat().st_ino for path in reduced}
    parse(scene)
    assert {path: path.stat().st_ino for path in reduced} == before
    original = scene / "images/001.png"
    Image.fromarray(255 - named_pixels(1)).save(original)
    # Older than the reduced picture's original was: not a newer file, but another one.
    os.utime(original, ns=(10**18, 10**18))
    outputs = parse(scene)
    changed = [path for path in reduced if path.stat().st_ino != before[path]]
    assert len(changed) == 3 and all("001.png" in path.name for path in changed)
    expected = reduce_image(Image.open(original), 2)
    np.testing.assert_array_equal(np.asarray(Image.open(outputs.image_filenames[7])), expected)
    assert not [path for path in (scene / "multiscale").rglob("*") if path.name.startswith(".")]


def test_masks_follow_their_pictures(tmp_path):
    scene = write_named_scene(tmp_path / "scene")
    meta, mask = read_meta(scene), np.zeros((16, 24), dtype=np.uint8)
    mask[:8, :8] = 255
    (scene / "masks").mkdir()
    for frame in meta["frames"]:
        frame["mask_path"] = frame["file_path"].replace("images", "masks")
        Image.fromarray(mask).save(scene / frame["mask_path"])
    write_meta(scene, meta)
    manager = make_datamanager(scene, MultiscaleDataParserConfig(scales=(2, 1, 8)), train_num_rays_per_batch=2000)
    _, batch = manager.next_train(0)
    scales = torch.tensor(manager.train_dataset.metadata[SCALES])[batch["indices"][:, 0]]
    assert set(scales.tolist()) == {1, 2, 8}
    assert (batch["indices"][:, 1:] < (8 // scales)[:, None]).all()


def blender_scene(folder: Path) -> tuple[Path, type]:
    return write_blender_scene(folder), BlenderDataParserConfig


def transforms_file(folder: Path) -> tuple[Path, type]:
    write_named_scene(folder, sizes=[(24, 16)] * 8)
    return folder / "transforms.json", NerfstudioDataParserConfig


def published_scene(folder: Path) -> tuple[Path, type]:
    write_mipnerf360_scene(folder / "garden")
    return folder / "garden", MipNerf360DataParserConfig


@pytest.mark.parametrize("make", [blender_scene, transforms_file, published_scene])
@pytest.mark.parametrize("split", ["train", "test"])
def test_the_folder_decides_who_reads_it(tmp_path, make, split):
    data, kind = make(tmp_path / "scene")
    config = MultiscaleDataParserConfig(data=data, scales=(1, 2))
    assert isinstance(config.source(), kind) and config.source().data == data
    outputs, full = (each.setup().get_dataparser_outputs(split) for each in (config, config.source()))
    assert len(outputs.image_filenames) == 2 * len(full.image_filenames)
    folder = data.parent if data.suffix else data
    assert all(
        path.is_relative_to(folder / "multiscale") for path in outputs.image_filenames[-len(full.image_filenames) :]
    )
    assert torch.equal(outputs.scene_box.aabb, full.scene_box.aabb)
    torch.testing.assert_close(
        outputs.dataparser_transform, full.dataparser_transform, check_dtype=False, rtol=1e-6, atol=1e-6
    )


def test_blender_scenes_stay_bounded_and_transparent(tmp_path):
    """The scene box and the white background that NeRF-synthetic scenes get without several scales."""
    scene = write_blender_scene(tmp_path / "scene")
    config = tiny_config(scene, tmp_path / "out", steps=1, dataparser=MultiscaleDataParserConfig(scales=(1, 2)))
    pipeline = start(config).pipeline
    assert pipeline.datamanager.pixels.colors.shape[-1] == 4
    assert torch.equal(pipeline.model.zipnerf.aabb, torch.tensor([[-1.5] * 3, [1.5] * 3]))
    assert pipeline.model.background.tolist() == [1.0] * 3


def test_alpha_can_be_painted_over_for_other_methods(tmp_path):
    scene = write_blender_scene(tmp_path / "scene")
    assert parse(scene).alpha_color is None
    assert parse(scene, alpha_color="white").alpha_color.tolist() == [1.0] * 3
    painted = dataclasses.replace(MultiscaleDataParserConfig(data=scene), blender=BlenderDataParserConfig())
    assert painted.setup().get_dataparser_outputs("train").alpha_color.tolist() == [1.0] * 3


def test_rendering_elsewhere_needs_no_pictures(tmp_path):
    """As nerfstudio reads a scene for ns-render and ns-viewer: cameras of all scales, and nothing is written."""
    scene = write_named_scene(tmp_path / "scene")
    for path in (scene / "images").iterdir():
        path.unlink()
    manager = make_datamanager(scene, MultiscaleDataParserConfig(), test_mode="inference")
    assert len(manager.train_dataset) == 24 and not (scene / "multiscale").exists()


def several_scales(folder: Path) -> Path:
    write_built_in(folder, width=16, height=16, num_train=2, num_test=1, samples_per_pixel=1)
    return folder / "transforms_multiscale.json"


def sixteen_bits(folder: Path) -> Path:
    write_named_scene(folder)
    Image.fromarray(np.full((16, 24), 9999, dtype=np.uint16)).save(folder / "images/000.png")
    return folder


def not_a_picture(folder: Path) -> Path:
    write_named_scene(folder)
    whole = (folder / "images/000.png").read_bytes()
    (folder / "images/000.png").write_bytes(whole[: len(whole) // 2])
    return folder


def cache_is_a_file(folder: Path) -> Path:
    write_named_scene(folder)
    (folder / "multiscale").touch()
    return folder


@pytest.mark.parametrize(
    "make,changes,words",
    [
        (several_scales, {}, "several scales already"),
        (sixteen_bits, {}, "000.png has more than 8 bits"),
        (not_a_picture, {}, "000.png cannot be reduced"),
        (cache_is_a_file, {}, "cannot be written.*--cache-dir"),
        (write_named_scene, {"scales": (1, 32)}, "smallest image is 16 pixels"),
        (write_named_scene, {"scales": (1, 2, 2)}, "different whole numbers"),
        (write_named_scene, {"scales": (0,)}, "different whole numbers"),
        (write_named_scene, {"scales": ()}, "different whole numbers"),
    ],
)
def test_what_cannot_be_done_is_said(tmp_path, make, changes, words):
    data = make(tmp_path / "scene")
    with pytest.raises(InputError, match=words):
        parse(data, **changes)
