"""The datamanager: what it reads, the pixels it draws, the rays that go with them."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

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
    write_blender_scene,
    write_colmap_scene,
    write_meta,
    write_scene,
)
from PIL import Image
from torch import Tensor

from nerfstudio.data.dataparsers import nerfstudio_dataparser
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

from zipnerf_ns.cameras.rays import PixelRays
from zipnerf_ns.data.datamanager import SCENE_HINTS, SceneHints, ZipNerfDataManager
from zipnerf_ns.data.dataparsers.multiscale import MultiscaleDataParserConfig
from zipnerf_ns.data.images import CheckedDataset
from zipnerf_ns.errors import InputError

SIZES = [(24, 16), (10, 30), (33, 7), (24, 16), (5, 5), (48, 20)]


def hints(manager: ZipNerfDataManager) -> SceneHints:
    return manager.train_dataset.metadata[SCENE_HINTS]


def assert_colors_are_of_their_pixels(manager: ZipNerfDataManager, batch: dict[str, Tensor]) -> None:
    """Every drawn color is exactly the pixel that its indices name: the pictures spell out (image, y, x)."""
    numbers = [int(path.stem.split("_")[-1]) for path in manager.train_dataset.image_filenames]
    image, y, x = batch["indices"].unbind(-1)
    expected = torch.stack([torch.tensor(numbers)[image], y, x], dim=-1)
    assert torch.equal((batch["image"][:, :3] * 255.0).round().long(), expected)


def assert_rays_are_of_their_pixels(manager: ZipNerfDataManager, steps: int = 2) -> None:
    """Rays equal those that Nerfstudio's cameras generate at the pixels' centers, one camera at a time."""
    cameras = manager.train_dataset.cameras
    for step in range(steps):
        bundle, batch = manager.next_train(step)
        assert_colors_are_of_their_pixels(manager, batch)
        for index in range(len(cameras)):
            mine = batch["indices"][:, 0] == index
            coords = batch["indices"][mine, 1:] + 0.5
            truth = cameras.generate_rays(torch.full((len(coords), 1), index), coords)
            for name in ("origins", "directions", "pixel_area"):
                torch.testing.assert_close(getattr(bundle, name)[mine], getattr(truth, name), rtol=1e-6, atol=1e-7)


def test_batch_and_ray_bundle(tmp_path):
    manager = make_datamanager(write_scene(tmp_path / "scene"), train_num_rays_per_batch=257)
    bundle, batch = manager.next_train(0)
    assert manager.get_train_rays_per_batch() == 257
    assert batch["image"].shape == (257, 3) and batch["image"].dtype == torch.float32
    assert batch["indices"].shape == (257, 3) and batch["indices"].dtype == torch.int64
    assert bundle.origins.shape == bundle.directions.shape == (257, 3)
    torch.testing.assert_close(bundle.directions.norm(dim=-1), torch.ones(257))
    assert (bundle.pixel_area > 0.0).all() and bundle.pixel_area.shape == (257, 1)
    assert torch.equal(bundle.camera_indices[:, 0], batch["indices"][:, 0])
    assert bundle.nears is None and bundle.fars is None
    centers = manager.train_dataset.cameras.camera_to_worlds[batch["indices"][:, 0], :, 3]
    torch.testing.assert_close(bundle.origins, centers)
    assert len(manager.train_dataset) == 6 and len(manager.eval_dataset) == 2
    assert hints(manager) == SceneHints(bounded=False, background="black", longest_side=WIDTH)


def test_same_seed_draws_the_same_batch_and_the_next_is_another(tmp_path):
    scene, drawn = write_scene(tmp_path / "scene"), []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        manager = make_datamanager(scene)
        drawn.append([manager.next_train(step)[1]["indices"] for step in range(2)])
    assert all(torch.equal(*pair) for pair in zip(drawn[0], drawn[1], strict=True))
    assert not torch.equal(*drawn[0]) and not torch.equal(drawn[0][0], drawn[2][0])


def test_images_of_mixed_sizes_are_drawn_uniformly_over_pixels(tmp_path):
    manager = make_datamanager(write_scene(tmp_path / "scene", count=6, sizes=SIZES))
    sizes = [size for index, size in enumerate(SIZES) if index % 4 != 3]
    pixels = sum(width * height for width, height in sizes)
    assert len(manager.pixels.colors) == pixels
    drawn = 200 * pixels
    batch = manager.pixels.sample(drawn)
    assert_colors_are_of_their_pixels(manager, batch)
    image, y, x = batch["indices"].unbind(-1)
    first, widths = torch.tensor([0, *np.cumsum([w * h for w, h in sizes])[:-1]]), torch.tensor([w for w, _ in sizes])
    assert (x < widths[image]).all() and (y < torch.tensor([h for _, h in sizes])[image]).all()
    counts = torch.bincount(first[image] + y * widths[image] + x, minlength=pixels)
    assert (counts - 200).abs().max() <= 1


def test_mixed_sizes_give_their_own_rays_and_pictures(tmp_path):
    manager = make_datamanager(write_scene(tmp_path / "scene", count=6, sizes=SIZES), train_num_rays_per_batch=200)
    assert_rays_are_of_their_pixels(manager)
    bundle, batch = manager.next_eval(0)
    assert batch["image"].shape[-1] == 3 and len(bundle) == len(batch["image"])
    camera, whole = manager.next_eval_image(0)
    assert whole["image"].shape == (int(camera.height), int(camera.width), 3)


@pytest.mark.parametrize("distortion", [{"k1": 0.1, "k2": -0.03, "p1": 0.01, "p2": -0.02}, {}], ids=["lens", "pinhole"])
def test_rays_of_distorted_cameras(tmp_path, distortion):
    scene = write_scene(tmp_path / "scene", **distortion)
    assert_rays_are_of_their_pixels(make_datamanager(scene, train_num_rays_per_batch=300))


def test_images_on_gpu_is_harmless_without_one(tmp_path):
    scene = write_scene(tmp_path / "scene")
    batches = []
    for images_on_gpu in (True, False):
        torch.manual_seed(0)
        manager = make_datamanager(scene, images_on_gpu=images_on_gpu)
        batches.append(manager.next_train(0)[1])
    assert all(torch.equal(batches[0][key], batches[1][key]) for key in ("image", "indices"))


def write_masks(scene: Path, allowed: np.ndarray) -> None:
    """The same mask for every image: true is used."""
    (scene / "masks").mkdir()
    meta = read_meta(scene)
    for index, frame in enumerate(meta["frames"]):
        frame["mask_path"] = f"masks/{index:03d}.png"
        Image.fromarray((allowed * 255).astype(np.uint8)).save(scene / frame["mask_path"])
    write_meta(scene, meta)


def test_masks_leave_only_their_pixels_and_all_of_them(tmp_path):
    allowed = np.zeros((HEIGHT, WIDTH), bool)
    allowed[3:9, 5:] = allowed[12, 0] = True
    write_masks(write_scene(tmp_path / "scene"), allowed)
    manager = make_datamanager(tmp_path / "scene", train_num_rays_per_batch=20_000)
    _, batch = manager.next_train(0)
    image, y, x = batch["indices"].unbind(-1)
    assert torch.from_numpy(allowed)[y, x].all()
    assert_colors_are_of_their_pixels(manager, batch)
    assert len(torch.unique(batch["indices"], dim=0)) == 6 * allowed.sum()


def test_masks_that_leave_nothing_are_an_error(tmp_path):
    write_masks(write_scene(tmp_path / "scene"), np.zeros((HEIGHT, WIDTH), bool))
    with pytest.raises(InputError, match="masks leave no pixel.*white"):
        make_datamanager(tmp_path / "scene")


@pytest.mark.parametrize("background", ["white", "black", None])
def test_blender_keeps_alpha_and_hints_at_its_box_and_background(tmp_path, background):
    scene = write_blender_scene(tmp_path / "scene")
    parser = BlenderDataParserConfig(alpha_color=background)
    for _ in range(2):  # The second time from the same config: reading must not have changed it.
        manager = make_datamanager(scene, parser)
        assert hints(manager) == SceneHints(bounded=True, background=background or "white", longest_side=16)
    _, batch = manager.next_train(0)
    assert batch["image"].shape == (64, 4)
    assert_colors_are_of_their_pixels(manager, batch)
    truth = torch.from_numpy(np.array(Image.open(scene / "train/r_0.png")))
    image, y, x = batch["indices"].unbind(-1)
    assert torch.equal((batch["image"][:, 3] * 255.0).round().long(), truth[y, x, 3].long())
    assert manager.next_eval_image(0)[1]["image"].shape == (16, 16, 4)
    assert_rays_are_of_their_pixels(manager)


def test_half_resolution_scales_images_and_cameras_alike(tmp_path):
    manager = make_datamanager(write_scene(tmp_path / "scene"), camera_res_scale_factor=0.5)
    cameras = manager.train_dataset.cameras
    assert (cameras.width == WIDTH // 2).all() and (cameras.height == HEIGHT // 2).all()
    store = manager.pixels
    assert len(store.colors) == 6 * (WIDTH // 2) * (HEIGHT // 2)
    # The mean of x and x + 1 is exact to half a step.
    first = store.colors[: WIDTH // 2].float()
    assert ((first[:, 2] - (2.0 * torch.arange(WIDTH // 2) + 0.5)).abs() <= 0.5).all()
    image, y, x = store.sample(5000)["indices"].unbind(-1)
    assert int(y.max()) == HEIGHT // 2 - 1 and int(x.max()) == WIDTH // 2 - 1


@pytest.mark.parametrize("extension", [".bin", ".txt"])
def test_colmap(tmp_path, extension):
    centers = write_colmap_scene(tmp_path / "scene", extension)
    parser = ColmapDataParserConfig(center_method="none", orientation_method="none", auto_scale_poses=False,
                                    assume_colmap_world_coordinate_convention=False)  # fmt: skip
    manager = make_datamanager(tmp_path / "scene", parser, train_num_rays_per_batch=300)
    assert len(manager.train_dataset) == 8 and len(manager.eval_dataset) == 2
    assert hints(manager) == SceneHints(bounded=False, background="black", longest_side=WIDTH)
    assert_rays_are_of_their_pixels(manager)
    bundle, batch = manager.next_train(0)
    numbers = (batch["image"][:, 0] * 255.0).round().long()
    torch.testing.assert_close(bundle.origins, torch.tensor(np.array(centers))[numbers].float())


def test_colmap_with_a_missing_image(tmp_path):
    write_colmap_scene(tmp_path / "scene", ".bin")
    (tmp_path / "scene/images/frame_4.png").unlink()
    with pytest.raises(InputError, match="frame_4.png is missing"):
        make_datamanager(tmp_path / "scene", ColmapDataParserConfig())


@pytest.mark.parametrize("parser", [None, ColmapDataParserConfig(downscale_factor=1)], ids=["nerfstudio", "colmap"])
def test_inference_needs_no_image_files(tmp_path, parser):
    """Rendering on another machine takes the transforms alone (COLMAP's parser wants to be told the factor)."""
    scene = tmp_path / "scene"
    write_scene(scene) if parser is None else write_colmap_scene(scene, ".bin")
    shutil.rmtree(scene / "images")
    manager = make_datamanager(scene, parser, test_mode="inference")
    assert manager.pixels is None and len(manager.train_dataset) > 1
    assert hints(manager).longest_side == WIDTH


@pytest.mark.parametrize("asked", [None, 2], ids=["automatic", "asked for"])
@pytest.mark.parametrize("several", [False, True], ids=["one scale", "multiscale-data"])
def test_the_longest_side_is_the_same_in_training_and_inference(tmp_path, monkeypatch, asked, several):
    """Also where reduced pictures are read: grids that are adapted to it must have a checkpoint's sizes."""
    monkeypatch.setattr(nerfstudio_dataparser, "MAX_AUTO_RESOLUTION", WIDTH)
    scene = write_scene(tmp_path / "scene", sizes=[(2 * WIDTH + 1, 2 * HEIGHT)] * 8)
    (scene / "images_2").mkdir()
    for index in range(8):
        Image.fromarray(named_pixels(index)).save(scene / f"images_2/{index:03d}.png")
    parser = NerfstudioDataParserConfig(downscale_factor=asked)
    if several:
        parser = MultiscaleDataParserConfig(scales=(1, 2), nerfstudio=parser)
    sides = [hints(make_datamanager(scene, parser, test_mode=mode)).longest_side for mode in ("val", "inference")]
    assert sides == [WIDTH, WIDTH]


@pytest.mark.parametrize(
    "changes", [{"patch_size": 8}, {"train_num_images_to_sample_from": 2}], ids=["patch", "subset"]
)
def test_nerfstudios_own_samplers_where_they_are_asked_for(tmp_path, changes):
    manager = make_datamanager(write_scene(tmp_path / "scene"), train_num_rays_per_batch=2048, **changes)
    assert manager.pixels is None
    bundle, batch = manager.next_train(0)
    assert_colors_are_of_their_pixels(manager, {key: batch[key].cpu() for key in ("image", "indices")})
    assert len(bundle) == manager.get_train_rays_per_batch() == 2048


def test_equirectangular_cameras_use_nerfstudios_sampler(tmp_path):
    scene = write_scene(tmp_path / "scene", sizes=[(30, 16)] * 8)
    write_meta(scene, {**read_meta(scene), "camera_model": "EQUIRECTANGULAR"})
    manager = make_datamanager(scene)
    assert manager.pixels is None
    bundle, _ = manager.next_train(0)
    assert torch.isfinite(bundle.directions).all()


def test_small_captures_train_though_nothing_is_held_out(tmp_path, fresh_writers):
    """Nerfstudio holds out one of ten images; evaluating without any is an error that says what to do."""
    scene = write_scene(tmp_path / "scene")
    meta = read_meta(scene)
    for split in ("train", "val", "test"):
        del meta[f"{split}_filenames"]
    write_meta(scene, meta)
    trainer, losses = train(tiny_config(scene, tmp_path / "out", 3, steps_per_eval_image=1, steps_per_eval_batch=1))
    assert len(losses) == 3 and len(trainer.pipeline.datamanager.eval_dataset) == 0
    with pytest.raises(InputError, match="no image is held out.*--eval-mode interval --eval-interval 8"):
        trainer.pipeline.get_average_eval_image_metrics()
    parser = NerfstudioDataParserConfig(eval_mode="interval", eval_interval=8)
    assert len(make_datamanager(scene, parser).eval_dataset) == 1


def test_batches_of_evaluation_are_all_of_the_held_out_pixels(tmp_path):
    """Of images of mixed sizes; they are read at the first call, and not again."""
    manager = make_datamanager(write_scene(tmp_path / "scene", count=8, sizes=[*SIZES, (9, 4), (6, 3)]),
                               eval_num_rays_per_batch=8001)  # fmt: skip
    assert manager.eval_pixels is None
    bundle, batch = manager.next_eval(0)
    store = manager.eval_pixels
    assert len(bundle) == manager.get_eval_rays_per_batch() == 8001
    # The fourth image, 24x16, and the eighth, 6x3.
    assert len(store) == 24 * 16 + 6 * 3 and len(torch.unique(batch["indices"], dim=0)) == len(store)
    numbers = torch.tensor([3, 7])
    expected = torch.stack([numbers[batch["indices"][:, 0]], *batch["indices"][:, 1:].unbind(-1)], dim=-1)
    assert torch.equal((batch["image"] * 255.0).round().long(), expected)
    for index in range(2):
        mine = batch["indices"][:, 0] == index
        coords = batch["indices"][mine, 1:] + 0.5
        truth = manager.eval_dataset.cameras.generate_rays(torch.full((len(coords), 1), index), coords)
        torch.testing.assert_close(bundle.directions[mine], truth.directions, rtol=1e-6, atol=1e-7)
    manager.next_eval(1)
    assert manager.eval_pixels is store and manager.eval_count == 2


def test_few_held_out_images_at_a_time_are_nerfstudios(tmp_path):
    manager = make_datamanager(write_scene(tmp_path / "scene"), eval_num_images_to_sample_from=1)
    _, batch = manager.next_eval(0)
    assert manager.eval_pixels is None and len(batch["indices"][:, 0].unique()) == 1
    assert isinstance(manager.eval_ray_generator, PixelRays)


def test_rays_are_generated_as_the_setting_says(tmp_path):
    """Nerfstudio's generator on request or without a GPU, the kernels only where they can run; also for evaluation."""
    scene = write_scene(tmp_path / "scene")
    for implementation in ("auto", "torch"):
        manager = make_datamanager(scene, ray_implementation=implementation)
        assert isinstance(manager.train_ray_generator, PixelRays) and isinstance(manager.eval_ray_generator, PixelRays)
    if os.environ.get("TRITON_INTERPRET") != "1":
        with pytest.raises(InputError, match="ray-implementation: implementation='triton' cannot run: .*CUDA"):
            make_datamanager(scene, ray_implementation="triton")
    with pytest.raises(InputError, match="ray-implementation: .*'cuda' is unknown"):
        make_datamanager(scene, ray_implementation="cuda")


def test_held_out_pictures_are_checked_side_by_side(tmp_path, monkeypatch):
    """Each of two waits for the other: one after the other would never end."""
    both, read = threading.Barrier(2, timeout=20), CheckedDataset.get_data

    def waiting(dataset, index, image_type="float32"):
        if [path.stem for path in dataset.image_filenames] == ["003", "007"]:
            both.wait()
        return read(dataset, index, image_type)

    monkeypatch.setattr(CheckedDataset, "get_data", waiting)
    assert len(make_datamanager(write_scene(tmp_path / "scene")).eval_dataset) == 2
