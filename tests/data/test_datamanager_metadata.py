"""What capture apps write beside pictures and poses is ignored, whatever it holds; wide and odd pictures are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from _scenes import HEIGHT, WIDTH, assert_clear, make_datamanager, named_pixels, read_meta, write_meta, write_scene
from PIL import Image

from zipnerf_ns.data import checks
from zipnerf_ns.data.datamanager import ZipNerfDataManager

EXTRA_TOP = {
    "camera_label": "phone",
    "exposure": 0.01,
    "iso": 100,
    "applied_scale": 2.0,
    "orientation_override": "none",
    "aabb_scale": 16,
    "integer_depth_scale": 0.001,
}
EXTRA_FRAME = {"exposure_time": 1 / 60, "iso": 100, "sharpness": 3.2, "colmap_im_id": 4, "time": 0.5, "exposure": None}


def edited(folder: Path, edit: Callable[[dict[str, Any]], object], **arguments: Any) -> ZipNerfDataManager:
    scene = write_scene(folder / "scene", **arguments)
    meta = read_meta(scene)
    edit(meta)
    write_meta(scene, meta)
    return make_datamanager(scene, train_num_rays_per_batch=200)


def with_depth(scene: Path, written: bool) -> Callable[[dict[str, Any]], None]:
    def edit(meta: dict[str, Any]) -> None:
        (scene / "depth").mkdir()
        for index, frame in enumerate(meta["frames"]):
            frame["depth_file_path"] = f"depth/{index:03d}.png"
            if written:
                Image.fromarray(np.full((5, 7), 1000, np.uint16)).save(scene / frame["depth_file_path"])

    return edit


def assert_reads_pictures_alone(manager: ZipNerfDataManager) -> None:
    """Batches of training and evaluation hold colors and their places, of whole pictures."""
    assert set(manager.next_train(0)[1]) == {"image", "indices"}
    camera, batch = manager.next_eval_image(0)
    number = int(manager.eval_dataset.image_filenames[batch["image_idx"]].stem)
    truth = torch.from_numpy(named_pixels(number, int(camera.width), int(camera.height)))
    assert torch.equal((batch["image"] * 255.0).round().to(torch.uint8), truth)
    assert len(manager.pixels.colors) == int((manager.train_dataset.cameras.width * HEIGHT).sum())


@pytest.mark.parametrize("written", [True, False], ids=["files there", "files not there"])
def test_depth_is_ignored(tmp_path, written):
    """As files of another size than the pictures' even, or as names of files that stayed on the phone."""
    assert_reads_pictures_alone(edited(tmp_path, with_depth(tmp_path / "scene", written)))


def test_exposure_and_other_notes_are_ignored(tmp_path):
    def edit(meta: dict[str, Any]) -> None:
        meta.update(EXTRA_TOP)
        for frame in meta["frames"]:
            frame.update(EXTRA_FRAME)

    assert_reads_pictures_alone(edited(tmp_path, edit))


def test_a_sparse_cloud_that_is_not_there_is_not_missed(tmp_path):
    """Only splatting needs it; its name alone must not be read."""
    assert_reads_pictures_alone(edited(tmp_path, lambda meta: meta.update(ply_file_path="sparse_pc.ply")))


@pytest.mark.parametrize("channels", [3, 4])
def test_colors_of_16_bits(tmp_path, channels):
    """The upper eight bits of each."""
    scene = write_scene(tmp_path / "scene")
    wide = np.random.default_rng(0).integers(0, 65536, (HEIGHT, WIDTH, channels)).astype(np.uint16)
    # OpenCV writes blue first.
    cv2.imwrite(str(scene / "images/001.png"), wide[..., [2, 1, 0, 3][:channels]])
    store = make_datamanager(scene).pixels
    stored = store.colors[WIDTH * HEIGHT : 2 * WIDTH * HEIGHT].reshape(HEIGHT, WIDTH, -1).numpy().astype(int)
    assert stored.shape[-1] == channels and np.abs(stored - wide / 257.0).max() <= 1.0


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr"])
def test_color_spaces_of_jpeg(tmp_path, mode):
    scene = write_scene(tmp_path / "scene")
    meta = read_meta(scene)
    Image.new("RGB", (WIDTH, HEIGHT), (200, 90, 30)).convert(mode).save(scene / "images/001.jpg", quality=95)
    meta["frames"][1]["file_path"] = "images/001.jpg"
    meta["train_filenames"] = [name.replace("001.png", "001.jpg") for name in meta["train_filenames"]]
    write_meta(scene, meta)
    stored = make_datamanager(scene).pixels.colors[WIDTH * HEIGHT : 2 * WIDTH * HEIGHT].float().mean(dim=0)
    torch.testing.assert_close(stored, torch.tensor([200.0, 90.0, 30.0]), rtol=0.0, atol=4.0)


@pytest.mark.parametrize(("orientation", "size", "is_said"), [(3, (24, 16), 1), (6, (16, 16), 1), (1, (16, 16), 0)])
def test_a_note_of_orientation_that_no_size_tells_is_said(tmp_path, monkeypatch, orientation, size, is_said):
    """Upside down, or square: poses may be of the picture as it is shown, or as it is stored."""
    said: list[str] = []
    monkeypatch.setattr(checks, "say", said.append)
    notes = Image.Exif()
    notes[0x0112] = orientation
    Image.new("RGB", size).save(tmp_path / "a.jpg", exif=notes)
    Image.new("RGB", size).save(tmp_path / "b.jpg")
    checks.check_images([tmp_path / "a.jpg", tmp_path / "b.jpg"], [size] * 2)
    assert len(said) == is_said
    if said:
        assert_clear(said[0], ("EXIF data turn", "a.jpg", "as they are stored"))
        assert "b.jpg" not in said[0]


def test_a_note_of_orientation_turns_nothing(tmp_path):
    """Poses and sizes are of the stored pixels, as COLMAP and Nerfstudio read them."""
    scene = write_scene(tmp_path / "scene")
    picture = Image.fromarray(named_pixels(1))
    notes = picture.getexif()
    notes[0x0112] = 6
    picture.save(scene / "images/001.png", exif=notes)
    assert_reads_pictures_alone(make_datamanager(scene))
