"""The dataparser of a run that goes on, or is looked at: its own photos in its own frame, whatever has become of its
data meanwhile; and where no photo is needed, without them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataParserConfig, DataparserOutputs
from nerfstudio.data.scene_box import SceneBox

from zipnerf_ns.data.dataparsers.readers import tell
from zipnerf_ns.data.trained import CAMERA_FIELDS, Key, TrainedData, Views
from zipnerf_ns.errors import InputError, shorten
from zipnerf_ns.functional.similarity import align_cameras, move_cameras, pose_errors

SAME_POSE = 1e-5
"""What rounding may differ by on another machine, of the largest number in the poses or 1."""
MOST_PIXELS = 1.0
"""How far the pictures of cameras may move for their poses to be the same in another frame."""


def parser_of_run(config: DataParserConfig, run: TrainedData, held_out: str, is_read: bool) -> DataParserConfig:
    """The configuration of a :class:`RunParser`, which is still of the type of its source's.

    Args:
        config: of the parser that reads the data.
        run: the data as they were.
        held_out: split that is asked for beside the training's.
        is_read: whether the data are read at all.
    """
    target = config._target

    class ParserOfRun(RunParser):
        def __init__(self, config: DataParserConfig) -> None:
            super().__init__(config, target(config) if is_read else None, run, held_out)

    return dataclasses.replace(config, _target=ParserOfRun)


class Splits(NamedTuple):
    """A dataparser's outputs for one purpose."""

    train: DataparserOutputs
    held_out: DataparserOutputs


class RunParser(DataParser):
    """The dataparser of a run that goes on: gives the run's own photos in the run's own frame.

    Args:
        config: of the parser that reads the data.
        source: that parser; None to take all from the checkpoint.
        run: the data as they were.
        held_out: split that is asked for beside the training's.
    """

    def __init__(self, config: DataParserConfig, source: DataParser | None, run: TrainedData, held_out: str) -> None:
        super().__init__(config)
        self.source, self.run, self.held_out = source, run, held_out

    @property
    def downscale_factor(self) -> Any:
        """The source's."""
        return getattr(self.source, "downscale_factor", None)

    @downscale_factor.setter
    def downscale_factor(self, factor: Any) -> None:
        if self.source is not None:
            self.source.downscale_factor = factor

    def _generate_dataparser_outputs(self, split: str = "train", **kwargs: Any) -> DataparserOutputs:
        return self._splits.train if split == "train" else self._splits.held_out

    @cached_property
    def _splits(self) -> Splits:
        splits = self._found()
        for outputs in splits:
            self._set_times(outputs)
        return splits

    def _set_times(self, outputs: DataparserOutputs) -> None:
        """Gives photos the times that the run knows them by: timestamps may have another first or last one now."""
        views, times = (self.run.train, self.run.held_out), outputs.cameras.times
        if times is None or any(each.cameras.times is None for each in views):
            return
        known = {key: time for each in views for key, time in zip(each.keys(), each.cameras.times, strict=True)}
        keys = Views.of(outputs, Path(self.config.data)).keys()
        pairs = zip(keys, times, strict=True)
        outputs.cameras.times = torch.stack([known.get(key, time) for key, time in pairs]) if keys else times

    def _found(self) -> Splits:
        run, data = self.run, Path(self.config.data)
        if self.source is None:
            return Splits(run.outputs(run.train, data), run.outputs(run.held_out, data))
        try:
            now = Splits(*(self.source.get_dataparser_outputs(split) for split in ("train", self.held_out)))
        except OSError:
            if run.resumes:
                raise
            # Some parsers look into photos for their size: whoever needs those will say that they are not there.
            self.source = None
            return self._found()
        train = Views.of(now.train, data)
        if not _are_same(train, run.train):
            return self._kept(now, data)
        if (sizes := train.sizes()) != (then := run.train.sizes()):
            tell(f"Photos of {data} have {' and '.join(sizes)} pixels; the run was trained on {' and '.join(then)}.")
        return now

    def _kept(self, now: Splits, data: Path) -> Splits:
        """The run's own split and frame, from data that have changed."""
        run, both = self.run, _joined(now.train, now.held_out)
        at = {key: index for index, key in reversed(list(enumerate(_keys_of(now, data))))}
        known = dict(zip([*run.train.keys(), *run.held_out.keys()], _poses(run.train, run.held_out), strict=True))
        common = [key for key in known if key in at]
        gone = [key for key in run.train.keys() if key not in at]
        if not common:
            raise InputError(
                f"none of the photos that the run was trained on is in {data} ({_named(gone)}): it is another scene. "
                "Give the run's own data, or train anew."
            )
        if gone and run.resumes:
            raise InputError(
                f"{len(gone)} of the {len(run.train.names)} photos that the run was trained on are not in {data}: "
                f"{_named(gone)}. Restore them, or train anew."
            )
        found = both.cameras.camera_to_worlds[[at[key] for key in common]]
        truth = torch.stack([known[key] for key in common])
        similarity = align_cameras(found, truth)
        self._check_frame(move_cameras(similarity, found), truth, data)
        both.cameras.camera_to_worlds = move_cameras(similarity, both.cameras.camera_to_worlds)
        both.dataparser_transform, both.dataparser_scale = run.transform, run.scale
        both.scene_box = SceneBox(run.box)
        train = run.outputs(run.train, data) if gone else chosen(both, [at[key] for key in run.train.keys()])
        # As they were, to the bit.
        train.cameras.camera_to_worlds = run.train.cameras.camera_to_worlds
        # A split that is listed apart from the one that was held out in training has none of that one's photos.
        held_out = [at[key] for key in run.held_out.keys() if key in at]
        trained = set(run.train.keys())
        keys = Views.of(now.held_out, data).keys()
        held_out = held_out or [at[key] for key in keys if key not in trained]
        added = [key for key in at if key not in known]
        self._say_what_changed(data, gone, added, float(now.train.dataparser_scale))
        return Splits(train, chosen(both, held_out))

    def _check_frame(self, moved: Tensor, truth: Tensor, data: Path) -> None:
        degrees, shifts = pose_errors(moved, truth)
        positions = self.run.train.cameras.camera_to_worlds[:, :, 3]
        reach = (positions - positions.mean(dim=0)).norm(dim=-1).max().clamp_min(1e-9)
        focal = float(self.run.train.cameras.fx.max())
        pixels = focal * float((torch.deg2rad(degrees) + shifts / reach).max())
        if not pixels <= MOST_PIXELS:
            raise InputError(
                f"{data} has other camera poses than the run was trained on: brought together, pictures still differ "
                f"by up to {pixels:.1f} pixels. Give the poses that it was trained on, or train anew."
            )

    def _say_what_changed(self, data: Path, gone: Sequence[Key], added: Sequence[Key], scale: float) -> None:
        parts = []
        if gone:
            parts.append(f"lacks {len(gone)} photos that the run was trained on ({_named(gone)})")
        if added:
            parts.append(f"has {len(added)} photos that the run does not know ({_named(added)}), which are left out")
        what = " and ".join(parts) or "is split or placed otherwise than in the training"
        tell(
            f"{data} {what}. The run's own frame (scale {self.run.scale:.4g}; the data now give {scale:.4g}) and its "
            "held-out photos are kept."
        )


def _named(keys: Sequence[Key]) -> str:
    return shorten(name for name, _ in keys)


def _poses(*views: Views) -> Iterator[Tensor]:
    for each in views:
        yield from each.cameras.camera_to_worlds


def _keys_of(splits: Splits, data: Path) -> list[Key]:
    return [key for outputs in splits for key in Views.of(outputs, data).keys()]


def _are_same(now: Views, then: Views) -> bool:
    """Whether views are the same photos (their folder may have another name) with the same poses."""
    if [Path(name).name for name in now.names] != [Path(name).name for name in then.names]:
        return False
    first, second = now.cameras.camera_to_worlds, then.cameras.camera_to_worlds
    return bool((first - second).abs().max() <= SAME_POSE * max(1.0, float(second.abs().max())))


def chosen(outputs: DataparserOutputs, indices: list[int]) -> DataparserOutputs:
    """Some views of a dataparser's outputs, with what its lists say of each."""
    count = len(outputs.image_filenames)

    def of_each(value: Any) -> Any:
        is_of_each = isinstance(value, list) and len(value) == count
        return [value[index] for index in indices] if is_of_each else value

    return dataclasses.replace(
        outputs,
        image_filenames=of_each(outputs.image_filenames),
        mask_filenames=of_each(outputs.mask_filenames),
        cameras=outputs.cameras[torch.tensor(indices, dtype=torch.long)],
        metadata={name: of_each(value) for name, value in outputs.metadata.items()},
    )


def _joined(first: DataparserOutputs, second: DataparserOutputs) -> DataparserOutputs:
    """The views of two outputs of one dataparser, one after the other."""
    counts = len(first.image_filenames), len(second.image_filenames)

    def joined(a: Any, b: Any) -> Any:
        are_of_each = isinstance(a, list) and isinstance(b, list) and (len(a), len(b)) == counts
        return a + b if are_of_each else a

    fields = {}
    for name in CAMERA_FIELDS:
        parts = [value for outputs in (first, second) if (value := getattr(outputs.cameras, name)) is not None]
        # Of no views nothing may be said, and of some of them is of no use.
        whole = torch.cat(parts) if parts else ()
        fields[name] = whole if len(whole) == sum(counts) else None
    return dataclasses.replace(
        first,
        image_filenames=joined(first.image_filenames, second.image_filenames),
        mask_filenames=joined(first.mask_filenames, second.mask_filenames),
        cameras=Cameras(**fields, metadata=first.cameras.metadata),
        metadata={name: joined(value, second.metadata.get(name)) for name, value in first.metadata.items()},
    )
