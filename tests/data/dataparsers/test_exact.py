"""Parsers with exact poses: any distance from the origin, any frame, and back to the data's own; for every format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _poses import Truth, assert_right, parse, scene_poses, write_poses
from _published import write_mipnerf360_scene
from _scenes import assert_clear, make_datamanager, read_meta, write_blender_scene, write_meta, write_scene

from nerfstudio.data.dataparsers.base_dataparser import DataParserConfig
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig
from nerfstudio.data.dataparsers.instant_ngp_dataparser import InstantNGPDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.data.utils import colmap_parsing_utils as colmap

from zipnerf_ns.data.dataparsers.exact import SAID, CenteringNerfstudioConfig
from zipnerf_ns.data.dataparsers.mipnerf360 import MipNerf360DataParserConfig
from zipnerf_ns.data.dataparsers.multiscale import MultiscaleDataParserConfig
from zipnerf_ns.errors import InputError

CASES = Path(__file__).parents[4] / "shared/cases"
SHIFT = np.array([412345.25, 5432109.75, -1e7])
OFFSET = np.pad(SHIFT[:, None], ((0, 1), (3, 0)))


def write_colmap(folder: Path, shift: Any = 0.0) -> Truth:
    """The published layout, its model moved."""
    truth = write_mipnerf360_scene(folder)
    model = folder / "sparse/0"
    cameras, images, points = colmap.read_model(str(model), ".bin")
    for number, image in images.items():
        turned = colmap.qvec2rotmat(image.qvec) @ np.broadcast_to(shift, 3)
        images[number] = image._replace(tvec=image.tvec - turned)
    for number, point in points.items():
        points[number] = point._replace(xyz=point.xyz + shift)
    colmap.write_model(cameras, images, points, str(model), ".bin")
    offset = np.zeros((4, 4))
    offset[:3, 3] = shift
    return {name: matrix + offset for name, matrix in truth.items()}


@pytest.fixture
def said(monkeypatch) -> list[str]:
    """What a person is told."""
    lines: list[str] = []
    monkeypatch.setattr("zipnerf_ns.data.dataparsers.exact.say", lines.append)
    return lines


def axes(*orientations: str, centers: tuple[str, ...] = ("poses", "focus")) -> list[tuple[str, str]]:
    return [(orientation, center) for orientation in orientations for center in centers]


@pytest.mark.parametrize("orientation,center", axes("up", "vertical", "pca", "none"))
def test_transforms_far_from_the_origin_are_as_at_it(tmp_path, orientation, center):
    config = NerfstudioDataParserConfig(
        data=write_scene(tmp_path / "scene"), orientation_method=orientation, center_method=center
    )
    # An oval, whose principal axes differ.
    oval = {name: matrix * [[1, 1, 1, 2], [1] * 4, [1] * 4, [1] * 4] for name, matrix in scene_poses().items()}
    write_poses(config.data, oval)
    near = parse(config)
    plain = config.setup().get_dataparser_outputs("train")
    torch.testing.assert_close(near.dataparser_transform.float(), plain.dataparser_transform, rtol=0, atol=1e-5)
    if orientation != "pca":
        # Nerfstudio's own mirrors two of the cameras where it finds them upside down.
        torch.testing.assert_close(near.cameras.camera_to_worlds, plain.cameras.camera_to_worlds, rtol=0, atol=1e-5)
    assert_right(near, oval)
    far = {name: matrix + OFFSET for name, matrix in oval.items()}
    write_poses(config.data, far)
    for split in ("train", "val"):
        assert_right(parse(config, split), far)
    elsewhere = parse(config)
    torch.testing.assert_close(elsewhere.cameras.camera_to_worlds, near.cameras.camera_to_worlds, rtol=0, atol=1e-5)
    assert elsewhere.dataparser_scale == pytest.approx(near.dataparser_scale, rel=1e-5)


@pytest.mark.parametrize(
    "kind,options",
    [
        (MipNerf360DataParserConfig, {}),
        (MipNerf360DataParserConfig, {"orientation_method": "up"}),
        (ColmapDataParserConfig, {"downscale_factor": 1}),
        (ColmapDataParserConfig, {"downscale_factor": 1, "assume_colmap_world_coordinate_convention": False}),
    ],
)
def test_colmap_far_from_the_origin_is_as_at_it(tmp_path, kind, options):
    found = []
    for name, shift in (("near", 0.0), ("far", SHIFT)):
        truth = write_colmap(tmp_path / name / "garden", shift)
        options = options | ({"colmap_path": Path("sparse/0")} if kind is ColmapDataParserConfig else {})
        config = kind(data=tmp_path / name / "garden", **options)
        found.append(parse(config))
        assert_right(found[-1], truth)
    near, far = (outputs.cameras.camera_to_worlds for outputs in found)
    torch.testing.assert_close(near, far, rtol=0, atol=1e-5)
    near = kind(data=tmp_path / "near/garden", load_3D_points=True, **options)
    points = parse(near).metadata
    for path, camera in zip(found[0].image_filenames, found[0].cameras.camera_to_worlds, strict=True):
        index = (int(path.stem[3:]) - 7956) // 3
        mine = points["points3D_xyz"][points["points3D_rgb"][:, 0] == index]
        torch.testing.assert_close(mine[0], camera[:, 3], rtol=0, atol=1e-5)


@pytest.mark.parametrize("factor", [1e-4, 2.0, 1e5])
def test_a_similarity_of_all_poses_changes_no_camera(tmp_path, factor, said):
    """Larger, elsewhere, and turned about the vertical axis: the last shows as just that turn."""
    config = NerfstudioDataParserConfig(data=write_scene(tmp_path / "scene"))
    before = parse(config).cameras.camera_to_worlds.double().numpy()
    similarity = np.diag([factor, factor, factor, 1.0])
    similarity[:3, 3] = [3.0, -2.0, 1e3]
    scaled = {name: similarity @ matrix for name, matrix in scene_poses().items()}
    write_poses(config.data, scaled)
    outputs = parse(config)
    assert len(said) == 1 and f"had a scale of {factor:.3g}, which was taken out." in said[0].replace(
        "100,000", "1e+05"
    )
    np.testing.assert_allclose(outputs.cameras.camera_to_worlds.double().numpy(), before, atol=1e-5)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    turn *= np.linalg.det(turn)
    write_poses(config.data, {name: np.pad(turn, (0, 1)) @ m + np.diag([0, 0, 0, 1.0]) for name, m in scaled.items()})
    after = parse(config).cameras.camera_to_worlds.double().numpy()
    for first in range(len(after)):
        for second in range(len(after)):
            seen = [(p[first, :, :3].T @ p[second, :, :3]) for p in (before, after)]
            np.testing.assert_allclose(*seen, atol=1e-5)
    lengths = [np.linalg.norm(p[:, None, :, 3] - p[None, :, :, 3], axis=-1) for p in (before, after)]
    np.testing.assert_allclose(lengths[1] / lengths[1].max(), lengths[0] / lengths[0].max(), atol=1e-5)


def test_nothing_applied_is_nothing(tmp_path):
    scene = write_scene(tmp_path / "scene", applied_transform=None, applied_scale=None)
    assert_right(parse(NerfstudioDataParserConfig(data=scene)), scene_poses())


@pytest.mark.parametrize("rows", [3, 4])
@pytest.mark.parametrize("scale", [None, 2.0, 0.01])
def test_what_was_applied_is_undone_by_exports(tmp_path, rows, scale):
    """The file's frame is the original one turned, moved and then scaled."""
    applied = np.array([[0.0, 1, 0, 5e6], [1, 0, 0, -3], [0, 0, -1, 1e5], [0, 0, 0, 1]])
    own = {name: np.linalg.inv(applied) @ matrix for name, matrix in scene_poses().items()}
    written = {}
    for name, matrix in own.items():
        written[name] = applied @ matrix
        written[name][:3, 3] *= scale or 1.0
    entries = {"applied_transform": applied[:rows].tolist()} | ({} if scale is None else {"applied_scale": scale})
    scene = write_scene(tmp_path / "scene")
    write_poses(scene, written, **entries)
    assert_right(parse(NerfstudioDataParserConfig(data=scene)), own)
    assert_right(parse(NerfstudioDataParserConfig(data=scene, center_method="none")), own)
    multiscale = MultiscaleDataParserConfig(data=scene, scales=(1,), cache_dir=tmp_path / "cache")
    assert_right(parse(multiscale), own)


def test_scenes_of_an_old_program_keep_its_transform(tmp_path):
    """Without an entry, a COLMAP model beside the file tells what was applied; the file stays as it is."""
    scene = write_scene(tmp_path / "scene")
    (scene / "colmap/sparse/0").mkdir(parents=True)
    before = (scene / "transforms.json").read_bytes()
    applied = np.array([[0.0, 1, 0, 0], [1, 0, 0, 0], [0, 0, -1, 0], [0, 0, 0, 1]])
    own = {name: np.linalg.inv(applied) @ matrix for name, matrix in scene_poses().items()}
    assert_right(parse(NerfstudioDataParserConfig(data=scene)), own)
    assert_right(parse(NerfstudioDataParserConfig(data=scene, center_method="focus")), own)
    assert (scene / "transforms.json").read_bytes() == before


@pytest.mark.parametrize("key,places,turn,is_centered", [
    ("time", 2, True, True),
    ("timestamp", 2, True, True),
    # One camera that moves, nothing that moves, and axes that never meet.
    ("time", 8, True, False),
    ("note", 2, True, False),
    ("time", 2, False, False),
])  # fmt: skip
def test_cameras_that_stand_still_before_what_moves_are_centered_on_what_they_look_at(
    tmp_path, said, key, places, turn, is_centered
):
    # Neighbors on a circle of 40, 9 degrees apart: none of them goes around anything.
    poses = [pose for _, pose in sorted(scene_poses(40).items())]
    truth = {name: np.array(poses[index % places]) for index, name in enumerate(sorted(scene_poses()))}
    if not turn:
        for matrix in truth.values():
            matrix[:3, :3] = poses[0][:3, :3]
    scene = write_scene(tmp_path / "scene")
    write_poses(scene, truth)
    meta = read_meta(scene)
    for index, frame in enumerate(meta["frames"]):
        frame[key] = index // places / 8
    write_meta(scene, meta)
    outputs = parse(CenteringNerfstudioConfig(data=scene, orientation_method="none"))
    assert_right(outputs, truth)
    assert said[-1] == SAID["focus" if is_centered else "poses"]
    positions = np.array([matrix[:3, 3] for matrix in truth.values()])
    origin = -outputs.dataparser_transform[:, 3].numpy()
    if is_centered:
        focused = parse(NerfstudioDataParserConfig(data=scene, orientation_method="none", center_method="focus"))
        torch.testing.assert_close(outputs.cameras.camera_to_worlds, focused.cameras.camera_to_worlds)
        assert np.abs(origin - positions.mean(axis=0)).max() > 0.3
    else:
        np.testing.assert_allclose(origin, positions.mean(axis=0), atol=1e-6)


def instant_ngp(folder: Path) -> DataParserConfig:
    scene = write_scene(folder, w=24, h=16, fl_x=26.4, cx=12.0, cy=8.0)
    return InstantNGPDataParserConfig(data=scene, scene_scale=0.4)


def blender(folder: Path) -> DataParserConfig:
    return BlenderDataParserConfig(data=write_blender_scene(folder), scale_factor=0.5)


@pytest.mark.parametrize("make,name", [(instant_ngp, "transforms.json"), (blender, "transforms_train.json")])
def test_formats_that_keep_the_datas_frame(tmp_path, make, name):
    """As Nerfstudio reads them; a scale in the rotations goes, what was applied is known, and far poses are refused."""
    config = make(tmp_path / "scene")
    plain, outputs = config.setup().get_dataparser_outputs("train"), parse(config)
    assert torch.equal(outputs.cameras.camera_to_worlds, plain.cameras.camera_to_worlds)
    meta = read_meta(config.data, name)
    truth = {Path(each["file_path"]).stem + ".png": np.array(each["transform_matrix"]) for each in meta["frames"]}
    assert_right(outputs, truth)
    for each in meta["frames"]:
        each["transform_matrix"] = np.array(each["transform_matrix"])
        each["transform_matrix"][:3, :3] *= 3.0
        each["transform_matrix"] = each["transform_matrix"].tolist()
    write_meta(config.data, meta, name)
    torch.testing.assert_close(parse(config).cameras.camera_to_worlds, plain.cameras.camera_to_worlds)
    for each in meta["frames"]:
        each["transform_matrix"][0][3] += 5e6
    write_meta(config.data, meta, name)
    with pytest.raises(InputError) as caught:
        parse(config)
    assert_clear(str(caught.value), (name, "from the origin", "Subtract one place"))


def test_points_of_transforms_stay_with_the_cameras(tmp_path):
    """A cloud of one point at every camera, in the file's frame, which was moved and scaled."""
    scene, shift = write_scene(tmp_path / "scene"), np.array([100.0, -200.0, 50.0])
    poses = {name: matrix + np.pad(shift[:, None], ((0, 1), (3, 0))) for name, matrix in scene_poses().items()}
    write_poses(scene, poses, ply_file_path="cloud.ply", applied_scale=3.0)
    lines = [f"{' '.join(map(str, matrix[:3, 3]))} {index} 0 0" for index, matrix in enumerate(poses.values())]
    kinds = [*(f"property double {axis}" for axis in "xyz"), *(f"property uchar {c}" for c in ("red", "green", "blue"))]
    header = ["ply", "format ascii 1.0", f"element vertex {len(lines)}", *kinds, "end_header"]
    (scene / "cloud.ply").write_text("\n".join([*header, *lines, ""]))
    pytest.importorskip("open3d", exc_type=ImportError)
    outputs = parse(NerfstudioDataParserConfig(data=scene, load_3D_points=True))
    for path, camera in zip(outputs.image_filenames, outputs.cameras.camera_to_worlds, strict=True):
        point = outputs.metadata["points3D_xyz"][int(path.stem)]
        torch.testing.assert_close(point, camera[:, 3], rtol=0, atol=2e-5)


def test_notes_are_said_once_for_all_splits(tmp_path, said):
    scene, poses = write_scene(tmp_path / "scene"), scene_poses()
    poses["005.png"] = poses["001.png"]
    write_poses(scene, poses)
    manager = make_datamanager(scene)
    assert manager.eval_dataset is not None
    assert len(said) == 1 and "the same pose for different images: images/001.png = images/005.png" in said[0]


@pytest.mark.parametrize(
    "center,orientation,change,expected",
    [
        ("none", "up", lambda p: p + OFFSET, ("--center-method poses",)),
        ("focus", "up", lambda p: np.block([[np.eye(3), p[:3, 3:]], [0, 0, 0, 1]]), ("--center-method poses",)),
        ("poses", "up", lambda p: p @ np.diag([1, -1, 1, 1]), ("left-handed", "(8 of 8 frames)")),
    ],
)
def test_refused_before_anything_long(tmp_path, center, orientation, change, expected):
    scene = write_scene(tmp_path / "scene")
    write_poses(scene, {name: change(matrix) for name, matrix in scene_poses().items()})
    config = NerfstudioDataParserConfig(center_method=center, orientation_method=orientation)
    with pytest.raises(InputError) as caught:
        make_datamanager(scene, config)
    assert_clear(str(caught.value), ("transforms.json", *expected))


def test_broken_colmap_poses_are_named(tmp_path):
    write_colmap(tmp_path / "garden")
    model = tmp_path / "garden/sparse/0"
    images = colmap.read_images_binary(model / "images.bin")
    images[3] = images[3]._replace(tvec=np.array([np.nan, 0.0, 0.0]))
    colmap.write_images_binary(images, model / "images.bin")
    for kind in (MipNerf360DataParserConfig, ColmapDataParserConfig):
        with pytest.raises(InputError) as caught:
            parse(kind(data=tmp_path / "garden", downscale_factor=1, colmap_path=Path("sparse/0")))
        assert_clear(str(caught.value), ("sparse/0", images[3].name, "NaN"))


@pytest.mark.skipif(not CASES.is_dir(), reason="the cases are kept beside the repository")
def test_cases_that_people_had():
    """A map's coordinates, a scale that was applied, and those that have to be refused."""
    scaled, utm = (parse(NerfstudioDataParserConfig(data=CASES / name)) for name in ("applied_scale", "utm"))
    torch.testing.assert_close(scaled.cameras.camera_to_worlds, utm.cameras.camera_to_worlds, rtol=0, atol=1e-5)
    for name, outputs, scale in (("applied_scale", scaled, 2.0), ("utm", utm, 1.0)):
        frames = read_meta(CASES / name)["frames"]
        truth = {Path(frame["file_path"]).name: np.array(frame["transform_matrix"]) for frame in frames}
        assert_right(outputs, {name: matrix / [[1, 1, 1, scale]] for name, matrix in truth.items()})
    for name, expected in {
        "mirrored": ("left-handed", "(12 of 12 frames)"),
        "tripod": ("all 12 cameras stand at one place",),
        "two_clusters": ("images/010.png, images/011.png (2 of 12 frames)", "far from all other cameras"),
    }.items():
        with pytest.raises(InputError) as caught:
            parse(NerfstudioDataParserConfig(data=CASES / name))
        assert_clear(str(caught.value), (f"{name}/transforms.json", *expected))
