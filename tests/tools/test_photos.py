"""From photographs to a scene, by the command: its poses are right, it goes on where it ended, and it says no early."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from _photos import FOCAL, HEIGHT, WIDTH, camera_poses, write_photos
from PIL import Image

from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

from zipnerf_ns.functional.similarity import align_cameras, move_cameras, pose_errors
from zipnerf_ns.tools import photos
from zipnerf_ns.tools.reconstruction import writing
from zipnerf_ns.tools.reconstruction.pictures import Picture
from zipnerf_ns.tools.reconstruction.sources import Photo, Sources

COUNT = 8


@pytest.fixture(scope="module")
def pycolmap():
    return pytest.importorskip("pycolmap", reason="the package pycolmap is not installed")


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs: the third lies turned in its file, the fifth has a mask, the last shows something else."""
    folder = tmp_path_factory.mktemp("photos") / "taken"
    write_photos(folder, COUNT)
    exif = Image.Exif()
    exif[0x0112] = 8
    with Image.open(folder / "photo_2.jpg") as image:
        turned = image.rotate(-90, expand=True)
    turned.save(folder / "photo_2.jpg", exif=exif, quality=95)
    (folder / "masks").mkdir()
    mask = np.full((HEIGHT, WIDTH), 255, dtype=np.uint8)
    mask[:40] = 0
    Image.fromarray(mask).save(folder / "masks/photo_4.png")
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "photo_9.png")
    return folder


@pytest.fixture(scope="module")
def scene(taken: Path, pycolmap) -> Path:
    out = taken.with_name("scene")
    assert photos.main([str(taken), str(out)]) == 0
    return out


def test_poses_and_lenses_are_right(scene: Path):
    meta = json.loads((scene / "transforms.json").read_text())
    found = {frame["file_path"]: torch.tensor(frame["transform_matrix"]) for frame in meta["frames"]}
    assert sorted(found) == [f"images/photo_{index}.jpg" for index in range(COUNT)]
    poses = torch.stack([found[name] for name in sorted(found)])[:, :3].double()
    truth = torch.from_numpy(camera_poses(COUNT))
    degrees, shift = pose_errors(move_cameras(align_cameras(poses, truth), poses), truth)
    assert degrees.max() < 1.0 and shift.max() < 0.02 * (truth[:, :, 3] - truth[:, :, 3].mean(dim=0)).norm(dim=-1).max()
    for frame in meta["frames"]:
        # The turned one counts as a camera of its own.
        assert (frame["w"], frame["h"]) == (WIDTH, HEIGHT) and frame["fl_x"] == pytest.approx(FOCAL, rel=0.03)


def test_nerfstudio_reads_the_scene_with_its_points_and_masks(scene: Path):
    config = NerfstudioDataParserConfig(data=scene, eval_mode="all", load_3D_points=True, downscale_factor=None)
    outputs = config.setup().get_dataparser_outputs("train")
    assert len(outputs.image_filenames) == len(outputs.mask_filenames) == COUNT
    used = [np.asarray(Image.open(path)) > 0 for path in sorted(outputs.mask_filenames)]
    assert [float(mask.mean()) for mask in used] == [1.0] * 4 + [pytest.approx(1.0 - 40 / HEIGHT)] + [1.0] * 3
    assert len(outputs.metadata["points3D_xyz"]) > 200
    with Image.open(scene / "cameras.png") as drawing:
        assert drawing.size == (1200, 600) and np.asarray(drawing.convert("L")).std() > 5.0


def test_the_same_command_goes_on_where_it_ended(scene: Path, taken: Path, pycolmap, monkeypatch, capsys):
    """Features are not found anew, what is said at the end names what was left out, and large pictures are reduced."""
    before = json.loads((scene / "transforms.json").read_text())
    monkeypatch.setattr(photos.copies, "MAX_SIDE", WIDTH // 2)
    monkeypatch.setattr(pycolmap, "extract_features", lambda *_, **__: pytest.fail("features were found anew"))
    assert photos.main([str(taken), str(scene), "--remove-work"]) == 0
    said = capsys.readouterr().out
    assert f"{COUNT} of {COUNT + 1} photographs placed by COLMAP's" in said and "px" in said
    assert "not placed: photo_9.png shows nothing that another one shows" in said
    assert "1 masks kept" in said and said.rstrip().endswith(f"ns-train zipnerf --data {scene}")
    after = json.loads((scene / "transforms.json").read_text())
    assert [frame["file_path"] for frame in after["frames"]] == [frame["file_path"] for frame in before["frames"]]
    config = NerfstudioDataParserConfig(data=scene, eval_mode="all", downscale_factor=2)
    outputs = config.setup().get_dataparser_outputs("train")
    for path in [*outputs.image_filenames, *outputs.mask_filenames]:
        with Image.open(path) as reduced:
            assert reduced.size == (WIDTH // 2, HEIGHT // 2)
    # Without its work the folder is a scene like any other, which is not written over.
    assert photos.main([str(taken), str(scene)]) == 1
    assert "exists and was not made by this command" in capsys.readouterr().err


def test_unrelated_photographs_are_told(tmp_path: Path, pycolmap, capsys):
    random = np.random.default_rng(5)
    for index in range(4):
        small = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        small.resize((160, 120), Image.Resampling.BICUBIC).save(tmp_path / f"{index}.jpg")
    assert photos.main([str(tmp_path), str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert "these 4 photographs do not belong together: of 6 pairs compared, 0 show the same things" in said


def test_bad_input_ends_before_any_work(tmp_path: Path, pycolmap, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(3):
        Image.new("RGB", (40, 30)).save(folder / f"{index}.jpg")
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").write_text("of somebody")
    begun = tmp_path / "begun"
    (begun / photos.WORK).mkdir(parents=True)
    (begun / photos.WORK / photos.ORDER).write_text(json.dumps({"photos": []}))
    for arguments, expected in (
        ([folder, other], "other exists and was not made by this command"),
        ([folder, begun], "begun was begun with other photographs or options"),
        ([folder, tmp_path / "new", "--frames", "2"], "--frames must be at least 3"),
        ([tmp_path / "gone", tmp_path / "new"], "gone does not exist"),
        ([folder, other / "file/new"], "Error: [Errno 20] Not a directory"),
    ):
        assert photos.main([str(argument) for argument in arguments]) == 1
        assert expected in capsys.readouterr().err
    (folder / "3.jpg").write_text("no photograph")
    assert photos.main([str(folder), str(tmp_path / "new")]) == 1
    assert "3.jpg cannot be read as a photograph" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_pose_looks_where_the_camera_looked():
    """COLMAP's camera at (1, 2, 3), which looks along the world's x axis with y down, in OpenGL's axes."""
    rotation = np.array([[0.0, 0.0, -1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    pose = writing.camera_to_world(np.column_stack([rotation, -rotation @ [1.0, 2.0, 3.0]]))
    np.testing.assert_allclose(pose[:3, 3], [1.0, 2.0, 3.0])
    np.testing.assert_allclose(-pose[:3, 2], [1.0, 0.0, 0.0])
    np.testing.assert_allclose(pose[:3, 1], [0.0, -1.0, 0.0])
    np.testing.assert_allclose(pose[:3, 0], [0.0, 0.0, -1.0])


def test_intrinsics_stand_once_where_all_share_them_and_the_largest_comes_first():
    small, large = (
        SimpleNamespace(model_name="OPENCV", params=[5.0, 6, 7, 8, 0.1, 0.2, 0.3, 0.4], width=width, height=9)
        for width in (12, 30)
    )
    pose = SimpleNamespace(matrix=lambda: np.eye(4)[:3])

    def model(*cameras: SimpleNamespace) -> SimpleNamespace:
        images = {
            number: SimpleNamespace(
                name=f"{number}.jpg", camera=camera, camera_id=camera.width, cam_from_world=lambda: pose
            )
            for number, camera in enumerate(cameras)
        }
        return SimpleNamespace(
            cameras={12: small, 30: large}, image=images.__getitem__, reg_image_ids=lambda: list(images)
        )

    lens = {"fl_x": 5.0, "fl_y": 6, "cx": 7, "cy": 8, "k1": 0.1, "k2": 0.2, "p1": 0.3, "p2": 0.4}
    one = writing.describe(model(small, small), has_masks=False, timestamps={})
    assert one.items() >= {**lens, "w": 12, "h": 9, "camera_model": "OPENCV"}.items()
    assert all(frame.keys() == {"file_path", "transform_matrix"} for frame in one["frames"])
    two = writing.describe(model(small, large), has_masks=True, timestamps={"0.jpg": 31, "1.jpg": 4})
    assert "fl_x" not in two and [frame["file_path"] for frame in two["frames"]] == ["images/1.jpg", "images/0.jpg"]
    assert [frame["w"] for frame in two["frames"]] == [30, 12] and two["frames"][0].items() >= lens.items()
    assert two["frames"][0]["mask_path"] == "masks/1.jpg.png"
    assert [frame["timestamp"] for frame in two["frames"]] == [4, 31]
    fisheye = writing.intrinsics(SimpleNamespace(**{**vars(small), "model_name": "OPENCV_FISHEYE"}))
    assert [fisheye[name] for name in ("k1", "k2", "k3", "k4")] == [0.1, 0.2, 0.3, 0.4] and "p1" not in fisheye


def test_frames_of_one_video_have_times_and_nothing_else_has():
    pictures = [Picture(f"walk_2_{number:05d}.jpg", (8, 6), "walk_2.mp4", 0) for number in (3, 40)]
    video, photo = (0, Path("walk_2.mp4")), Photo(Path("a.jpg"), "a", 1)
    times = {"walk_2_00003.jpg": 3, "walk_2_00040.jpg": 40}
    assert photos.timestamps(Sources((), (video,), ()), pictures) == times
    for others in (Sources((photo,), (video,), ()), Sources((), (video, video), ()), Sources((photo,), (), ())):
        assert photos.timestamps(others, pictures) == {}
