"""Files that chance has written, and those of people who reported them, are read rightly or refused in one line."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _scenes import (
    HEIGHT,
    WIDTH,
    assert_clear,
    make_datamanager,
    read_meta,
)
from _statements import (
    OWN_FRAME,
    Meta,
    write_plain,
)
from PIL import Image

from nerfstudio.cameras.cameras import CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataParserConfig
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig
from nerfstudio.data.dataparsers.instant_ngp_dataparser import InstantNGPDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

from zipnerf_ns.data.checks import check_images
from zipnerf_ns.data.dataparsers.formats import format_of, with_reader
from zipnerf_ns.errors import InputError

CASES = Path(__file__).resolve().parents[2].parent / "shared/cases"


def test_a_panorama_of_200_megapixels_is_no_attack(tmp_path):
    Image.new("1", (20000, 10000)).save(tmp_path / "panorama.png")
    assert not check_images([tmp_path / "panorama.png"], [(20000, 10000)])


# What is made up: values of any kind, in any place, missing or doubled.
VALUES = (None, True, "x", "12", "", [], {}, [1.0], math.nan, math.inf, -math.inf, 0, -1, -7.5, 1e300, 10**400, 12, 0.3)
KEYS = (
    "fl_x", "fl_y", "cx", "cy", "w", "h", "k1", "k4", "p1", "k6", "distortion_params", "camera_model", "is_fisheye",
    "camera_angle_x", "fisheye_crop_radius", "transform_matrix", "file_path", "mask_path", "applied_transform",
    "applied_scale", "aabb_scale", "orientation_override", "train_filenames", "test_filenames", "ply_file_path",
    "time", "timestamp",
)  # fmt: skip


def is_4x4(matrix: Any) -> bool:
    """Whether it is four lists of four, of whatever."""
    return isinstance(matrix, list) and [len(row) for row in matrix if isinstance(row, list)] == [4] * 4


def disturbed(meta: Meta, chance: random.Random) -> str:
    """The text of a file in which up to three entries are missing, doubled, or of any value."""
    for _ in range(chance.randint(1, 3)):
        level = meta if chance.random() < 0.5 else chance.choice(meta["frames"])
        key = chance.choice(KEYS)
        if chance.random() < 0.25:
            level.pop(key, None)
        elif key == "transform_matrix" and is_4x4(level.get(key)) and chance.random() < 0.7:
            level[key][chance.randrange(4)][chance.randrange(4)] = chance.choice(VALUES)
        else:
            level[key] = chance.choice(VALUES)
    text = json.dumps(meta)
    if chance.random() < 0.1:
        text = text.replace('"cx": ', f'"cx": {chance.choice([12.0, 5.0])}, "cx": ', 1)
    return text


def stated(meta: Meta, frame: Meta, key: str, default: float) -> float:
    """What holds for a frame, in the plainest words."""
    said = [level[key] for level in (frame, meta) if level.get(key) is not None]
    return float(said[0]) if said else default


@pytest.mark.parametrize("parser", [NerfstudioDataParserConfig(**OWN_FRAME), InstantNGPDataParserConfig(), None])
def test_anything_is_read_rightly_or_refused_in_one_line(tmp_path, parser: DataParserConfig | None):
    """Sixty files that chance has written, for each reader (None: Blender's)."""
    scene = write_plain(tmp_path / "scene")
    plain, chance, accepted = (scene / "transforms.json").read_text(), random.Random(3), 0
    config = with_reader(BlenderDataParserConfig(data=scene) if parser is None else parser)
    config.data = scene
    for _ in range(60):
        text = disturbed(json.loads(plain), chance)
        for name in ("transforms.json", "transforms_train.json", "transforms_test.json"):
            (scene / name).write_text(text)
        try:
            format_of(config).check(config)
            found = [config.setup().get_dataparser_outputs(split) for split in ("train", "val", "test")]
        except InputError as error:
            assert str(scene) in str(error) and "\n" not in str(error), text
            continue
        accepted += 1
        meta = json.loads(text)
        frames = {Path(frame["file_path"]).stem: frame for frame in meta["frames"]}
        for outputs in found:
            for index, path in enumerate(outputs.image_filenames):
                frame = frames[path.stem]
                for key, default in (("cx", WIDTH / 2), ("cy", HEIGHT / 2)):
                    value = float(getattr(outputs.cameras, key)[index])
                    assert value == pytest.approx(stated(meta, frame, key, default)), text
                if "camera_angle_x" not in text:
                    focal = float(outputs.cameras.fx[index])
                    assert focal == pytest.approx(stated(meta, frame, "fl_x", math.nan)), text
                assert torch.isfinite(outputs.cameras.camera_to_worlds[index]).all(), text
                position = np.array(frame["transform_matrix"], dtype=float)[:3, 3] * outputs.dataparser_scale
                np.testing.assert_allclose(outputs.cameras.camera_to_worlds[index][:, 3], position, rtol=1e-5)
    assert 5 <= accepted <= 55


PARSERS = {"blender": BlenderDataParserConfig, "colmap": ColmapDataParserConfig, "instant": InstantNGPDataParserConfig}
RIGHT: dict[str, dict[str, Any] | tuple[str, ...]] = {
    "per_frame_over_global": {},
    "is_fisheye": {"type": CameraType.FISHEYE},
    "same_name_subfolders": {"fx": 35.2, "fy": 35.2, "cx": 16.0, "cy": 12.0, "factor": 2},
    "duplicate_frames": {},
    "norm_c": ("'cx' and 'cy' are 0.5 and 0.5",),
    "cx_nan": ("'cx' is nan",),
    **{name: {} for name in ("no_cx", "no_ext", "applied_4x4", "null_distortion", "angle_only", "backslash")},
    "train_no_val": {"held_out": 3},
    "train_val_no_test": {"held_out": 3},
    "split_unknown": ("'train_filenames' lists 000.png",),
    "instant_ngp_one_held_out": {},
    "blender_shift": {"fx": 57.6, "fy": 57.6, "cx": 30.0, "cy": 20.0, "held_out": 8},
    **{name: {"fx": 57.6, "fy": 57.6, "cx": 24.0, "cy": 24.0, "held_out": 8}
       for name in ("blender_no_val", "blender_ext", "blender_jpg")},
    "colmap_fish_pin": ("mixes lenses",),
    "colmap_full_opencv": ("FULL_OPENCV",),
    "colmap_sparse_flat": {"held_out": 2},
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_the_cases(name, tmp_path):
    """The folders of the table of reports, where they are."""
    folder, right = CASES / name, RIGHT[name]
    if not folder.is_dir():
        pytest.skip(f"no cases at {CASES}")
    kind = name.split("_")[0]
    parser = PARSERS.get(kind, NerfstudioDataParserConfig)()
    if isinstance(right, tuple):
        with pytest.raises(InputError) as caught:
            make_datamanager(folder, parser)
        assert_clear(str(caught.value), (str(folder), *right))
        return
    if "factor" in right:
        parser.downscale_factor = right["factor"]
    truth = {"fx": 70.4, "fy": 70.4, "cx": 32.0, "cy": 24.0, **right}
    if name == "per_frame_over_global":
        truth |= {key: {frame["file_path"]: frame[key.replace("f", "fl_")] for frame in read_meta(folder)["frames"]}
                  for key in ("fx", "fy")}  # fmt: skip
    for split in ("val", "test"):
        manager = make_datamanager(folder, parser, test_mode=split)
        cameras, files = manager.train_dataset.cameras, manager.train_dataset.image_filenames
        for key in ("fx", "fy", "cx", "cy"):
            expected = [truth[key][str(path.relative_to(folder))] if isinstance(truth[key], dict) else truth[key]
                        for path in files]  # fmt: skip
            torch.testing.assert_close(getattr(cameras, key)[:, 0], torch.tensor(expected), rtol=1e-5, atol=0.0)
        assert cameras.camera_type.unique().item() == truth.get("type", CameraType.PERSPECTIVE).value
        files = [*files, *manager.eval_dataset.image_filenames]
        assert len(set(files)) == len(files)
        assert len(manager.eval_dataset) == right.get("held_out", 1)
