"""What a run's dataparser gives of data that have changed: what belongs to a photo stays with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from _scenes import pose

from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataParserConfig, DataparserOutputs

from zipnerf_ns.data.dataparsers.run import RunParser
from zipnerf_ns.data.metadata import SceneHints
from zipnerf_ns.data.trained import TrainedData, Views

DATA = Path("/scene")
HINTS = SceneHints(bounded=False, background="black", longest_side=24)


def outputs(
    *numbers: int, data: Path = DATA, folder: str = "images", scale: float = 1.0, until: float | None = None
) -> DataparserOutputs:
    """Photos by their numbers, with masks, a list that says something of each, and a radius that is of all.

    Args:
        until: the number of the last moment, where numbers are moments.
    """
    poses = torch.tensor([pose(number, 12) for number in numbers]).reshape(-1, 4, 4)[:, :3]
    poses[:, :, 3] *= scale
    size = torch.full((len(numbers), 1), 24)
    return DataparserOutputs(
        [data / folder / f"{number}.png" for number in numbers],
        Cameras(
            poses, 20.0, 20.0, 12.0, 8.0, size, size - 8, metadata={"fisheye_crop_radius": 7.5},
            times=torch.tensor(numbers)[:, None] / until if until and numbers else None,
        ),
        mask_filenames=[data / f"masks/{number}.png" for number in numbers],
        metadata={"of_each": list(numbers), "of_all": "word"},
        dataparser_transform=torch.eye(4)[:3],
        dataparser_scale=scale,
    )


def described(tmp_path: Path, train: DataparserOutputs, held_out: DataparserOutputs, resumes: bool) -> TrainedData:
    """What a checkpoint's file gives back."""
    torch.save(TrainedData.of(DATA, train, held_out, HINTS).state(), tmp_path / "data.ckpt")
    return TrainedData.from_state(torch.load(tmp_path / "data.ckpt", weights_only=True), resumes)


class Fixed(DataParser):
    """Gives what it is told."""

    splits: dict[str, DataparserOutputs]

    def _generate_dataparser_outputs(self, split: str = "train", **kwargs: Any) -> DataparserOutputs:
        return self.splits[split]


def parser(run: TrainedData, train: DataparserOutputs, held_out: DataparserOutputs, data: Path = DATA) -> RunParser:
    source = Fixed(DataParserConfig(data=data))
    source.splits = {"train": train, "val": held_out, "test": held_out}
    return RunParser(source.config, source, run, "val" if run.resumes else "test")


def numbers_of(found: DataparserOutputs) -> list[int]:
    """The photos, after everything that is said of each has been compared."""
    numbers = [int(file.stem) for file in found.image_filenames]
    assert found.metadata == {"of_each": numbers, "of_all": "word"}
    assert [int(file.stem) for file in found.mask_filenames] == numbers
    truth = torch.tensor([pose(number, 12) for number in numbers])[:, :3]
    torch.testing.assert_close(found.cameras.camera_to_worlds, truth, atol=2e-6, rtol=0.0)
    assert found.cameras.metadata["fisheye_crop_radius"] == 7.5
    assert float(found.dataparser_scale) == 1.0
    return numbers


@pytest.mark.parametrize("resumes", [True, False])
@pytest.mark.parametrize("folder", ["images", "images_4"])
def test_the_runs_split_and_frame_are_taken_out_of_another_split(tmp_path, resumes, folder):
    run = described(tmp_path, outputs(0, 1, 2, 4), outputs(3, 5), resumes)
    found = parser(run, outputs(7, 5, 4, 2, 1, folder=folder, scale=0.6), outputs(3, 8, 0, folder=folder, scale=0.6))
    assert numbers_of(found.get_dataparser_outputs("train")) == [0, 1, 2, 4]
    assert numbers_of(found.get_dataparser_outputs("test")) == [3, 5]


def test_what_has_not_changed_is_passed_on(tmp_path):
    """Also where the data and the photos' folder have other names."""
    run = described(tmp_path, outputs(0, 1, 2), outputs(3), True)
    train, held_out = (outputs(*each, data=Path("/moved"), folder="photos") for each in ((0, 1, 2), (3, 9)))
    found = parser(run, train, held_out, Path("/moved"))
    assert found.get_dataparser_outputs("train") is train and found.get_dataparser_outputs("val") is held_out


def test_a_test_split_of_its_own_never_has_what_was_trained_on(tmp_path):
    run = described(tmp_path, outputs(0, 1, 2), outputs(3), False)
    found = parser(run, outputs(0, 1, 9), outputs(5, 2, 6))
    assert numbers_of(found.get_dataparser_outputs("train")) == [0, 1, 2]
    assert numbers_of(found.get_dataparser_outputs("test")) == [5, 6]


@pytest.mark.parametrize("held_out", [(3, 5), ()])
def test_photos_keep_the_times_that_the_run_knows(tmp_path, held_out):
    """Where later photos were taken away, timestamps end sooner: what was in the middle would be at the end."""
    run = described(tmp_path, outputs(0, 1, 2, 4, until=11.0), outputs(3, 5, until=11.0), False)
    for train in ((0, 1, 2, 4), (0, 2, 1, 4, 7)):
        found = parser(run, outputs(*train, until=7.0), outputs(*held_out, until=7.0))
        times = found.get_dataparser_outputs("train").cameras.times
        torch.testing.assert_close(times, torch.tensor([[0.0], [1.0], [2.0], [4.0]]) / 11.0)
        others = found.get_dataparser_outputs("test")
        assert len(others.image_filenames) == len(held_out)
        if held_out:
            assert others.cameras.times[:, 0].tolist() == pytest.approx([number / 11.0 for number in held_out])


def test_without_its_data_a_run_is_as_it_was(tmp_path):
    run = described(tmp_path, outputs(0, 1, 2), outputs(3), False)
    found = RunParser(DataParserConfig(data=Path("/moved/transforms.json")), None, run, "test")
    for split, truth in {"train": outputs(0, 1, 2), "test": outputs(3)}.items():
        given = found.get_dataparser_outputs(split)
        assert given.image_filenames == [Path("/moved/images") / file.name for file in truth.image_filenames]
        for name in ("camera_to_worlds", "fx", "cy", "width", "height", "camera_type"):
            assert torch.equal(getattr(given.cameras, name), getattr(truth.cameras, name))
        assert given.cameras.metadata == truth.cameras.metadata
    assert run.hints == HINTS and run.data == DATA


def test_views_of_one_file_are_told_apart():
    views = Views(["images/a.png", "images_2/b.png", "images/a.png"], outputs(0, 1, 2).cameras)
    assert views.keys() == [("images/a.png", 0), ("images/b.png", 0), ("images/a.png", 1)]
