"""What a checkpoint knows of the data that it was trained on: frame, cameras, and which photos were held out."""

from __future__ import annotations

import dataclasses
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.scene_box import SceneBox

from zipnerf_ns.data.dataparsers.names import scene_folder
from zipnerf_ns.data.metadata import CENTER, SceneHints

DATA_VARIABLE = "ZIPNERF_DATA"
"""Environment variable that says where a trained run's data are now."""
GIVE_DATA = f"Say where they are now: {DATA_VARIABLE}=FOLDER before the command, or --data where it has that option."
Key = tuple[str, int]
"""What tells a view from others: its file, and which of the views of that file it is."""
CAMERA_FIELDS = (
    "camera_to_worlds", "fx", "fy", "cx", "cy", "width", "height", "distortion_params", "camera_type", "times"
)  # fmt: skip


class Views(NamedTuple):
    """Photos of a split, as a dataparser gave them."""

    names: list[str]
    """Files, as seen from the data's folder."""
    cameras: Cameras

    @classmethod
    def of(cls, outputs: DataparserOutputs, data: Path) -> Views:
        """The views of a dataparser's outputs."""
        return cls([_name(filename, scene_folder(data)) for filename in outputs.image_filenames], outputs.cameras)

    def sizes(self) -> list[str]:
        """The least and the greatest size of an image, or the only one."""
        cameras = self.cameras
        sizes = sorted(set(zip(cameras.width.flatten().tolist(), cameras.height.flatten().tolist(), strict=True)))
        return [f"{width}x{height}" for width, height in dict.fromkeys((sizes[0], sizes[-1]))]

    def keys(self) -> list[Key]:
        """The key of each view; of a file the same at any reduction."""
        seen: dict[str, int] = {}
        keys = []
        for name in self.names:
            name = re.sub(r"^images_\d+/", "images/", name)
            seen[name] = seen.get(name, -1) + 1
            keys.append((name, seen[name]))
        return keys


@dataclass(frozen=True)
class TrainedData:
    """The data of a run."""

    data: Path
    """Folder, or transforms file, where the run was trained; absolute."""
    transform: Float[Tensor, "3 4"]
    """What the dataparser did to poses, first."""
    scale: float
    """Factor by which it then multiplied positions."""
    box: Float[Tensor, "2 3"]
    """The scene box."""
    hints: SceneHints
    """What the data said about the scene."""
    train: Views
    held_out: Views
    center: str = "poses"
    """How the dataparser centered the scene, where its configuration left that open."""
    resumes: bool = False
    """Whether the training goes on: then every photo of it is needed."""

    @classmethod
    def of(cls, data: Path, train: DataparserOutputs, held_out: DataparserOutputs, hints: SceneHints) -> TrainedData:
        """The description of what a dataparser gave.

        Args:
            data: that it read.
            train, held_out: its outputs.
            hints: at the scene.
        """
        views = (Views.of(outputs, data) for outputs in (train, held_out))
        transform, scale = train.dataparser_transform, float(train.dataparser_scale)
        box, center = train.scene_box.aabb.float(), train.metadata.get(CENTER, cls.center)
        return cls(Path(os.path.abspath(data)), transform[:3], scale, box, hints, *views, center)

    def state(self) -> dict[str, Any]:
        """Tensors and plain values, for a checkpoint."""

        def of_views(views: Views) -> dict[str, Any]:
            cameras = {name: getattr(views.cameras, name) for name in CAMERA_FIELDS}
            metadata = (views.cameras.metadata or {}).items()
            numbers = {name: float(value) for name, value in metadata if isinstance(value, (int, float))}
            return {"names": list(views.names), **cameras, "metadata": numbers}

        fields = {name: getattr(self, name) for name in ("transform", "scale", "box", "center")}
        views = {"train": of_views(self.train), "held_out": of_views(self.held_out)}
        return {"data": str(self.data), **fields, "hints": dataclasses.asdict(self.hints), **views}

    @classmethod
    def from_state(cls, state: dict[str, Any], resumes: bool = False) -> TrainedData:
        """What :meth:`state` gave; its tensors are copied.

        Args:
            state: from a checkpoint.
            resumes: whether the training goes on.
        """

        def views(part: dict[str, Any]) -> Views:
            # Older checkpoints know no times.
            tensors = {name: part.get(name) for name in CAMERA_FIELDS}
            fields = {name: None if value is None else value.clone() for name, value in tensors.items()}
            return Views(list(part["names"]), Cameras(**fields, metadata=dict(part["metadata"]) or None))

        return cls(
            Path(state["data"]), state["transform"].clone(), state["scale"], state["box"].clone(),
            SceneHints(**state["hints"]), views(state["train"]), views(state["held_out"]),
            # Nothing else was chosen before checkpoints said what was.
            state.get("center", cls.center), resumes,
        )  # fmt: skip

    def outputs(self, views: Views, data: Path) -> DataparserOutputs:
        """What a dataparser would give, from this alone.

        Args:
            views: of one split.
            data: where the photos are, or would be.
        """
        folder = scene_folder(data)
        return DataparserOutputs(
            [folder / name for name in views.names], views.cameras, scene_box=SceneBox(self.box), metadata={},
            dataparser_transform=self.transform, dataparser_scale=self.scale,
        )  # fmt: skip


def _name(filename: Path, folder: Path) -> str:
    try:
        return Path(os.path.relpath(filename, folder)).as_posix()
    except ValueError:
        # On another drive of Windows.
        return Path(filename).as_posix()
