"""Writes the built-in scene: `python -m zipnerf_ns.tools.demo_scene OUT`.

A procedural scene in Nerfstudio's format at four resolutions. Every pixel is the mean of many stratified samples of
an analytic scene over the pixel's square, in the values that are stored, so each resolution is its own anti-aliased
truth. `transforms.json` describes the full-resolution pictures, `transforms_multiscale.json` all four scales as
separate frames (pass the file itself as `--data`). The scene is always the same; the seed moves cameras and samples.
With `--light changing` every training photo has an exposure and a white balance of its own, which its frame states as
`light_gains`; held-out photos are in the light that is their mean. With `--motion` things move, and every frame has its
`time`: one camera walks about them and takes a picture at each moment, or eight stand still and all of them do.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from PIL import Image

from zipnerf_ns.data.disk.files import write_json
from zipnerf_ns.tools.command import command, command_parser
from zipnerf_ns.tools.scene.cameras import (
    DOME,
    LOW_DOME,
    NUM_FIXED,
    beside_pose,
    between_pose,
    dome_pose,
    fixed_pose,
    scene_pinhole,
    walking_pose,
)
from zipnerf_ns.tools.scene.light import draw_gains, relight
from zipnerf_ns.tools.scene.render import Pinhole, render_view, straight_alpha

DOWNSCALES = (1, 2, 4, 8)
"""Pixel sizes that are written, in full-resolution pixels; image sizes must divide by the last."""

_SETTINGS_KEY = "demo_scene"
_VERSION = 1
_STOPS = 0.8

Light = Literal["even", "changing"]
"""Whether training photos are in one light, or each has its own exposure and white balance."""
Detail = Literal["near", "far"]
"""Whether fine structure is on the still life alone, or also far away."""
Motion = Literal["none", "one-camera", "eight-cameras"]
"""Whether things move, and how many cameras see them at a moment."""
NUM_VIEWS: dict[Motion, tuple[int, int]] = {"none": (48, 8), "one-camera": (96, 12), "eight-cameras": (256, 12)}
"""Views to train on and held out where no number is asked for."""


@dataclass(frozen=True)
class SceneSettings:
    """What a scene is made with; a folder with the same settings is reused.

    Raises:
        ValueError: if a size or count is out of range, or settings contradict each other.
    """

    width: int = 256
    """Width of the full-resolution pictures, pixels; divides by 8."""
    height: int = 192
    """Their height, likewise."""
    num_train: int | None = None
    """Views to train on; by default as many as suit the motion (NUM_VIEWS)."""
    num_test: int | None = None
    """Views held out, likewise."""
    samples_per_pixel: int = 64
    """Samples of a pixel at full resolution."""
    seed: int = 0
    """Moves the cameras and the samples in their pixels."""
    rgba: bool = False
    """The still life alone, on a transparent background."""
    light: Light = "even"
    """changing: every training photo has an exposure and a white balance of its own."""
    detail: Detail = "near"
    """far: also a skyline of fine structure, tens to hundreds of units away, and a finely textured sky; the cameras are
    lower, so that all see the horizon."""
    motion: Motion = "none"
    """Whether things move, seen by one camera that walks about them or by eight that stand still. Held-out views are
    from other places, at moments of the training."""
    version: int = _VERSION
    """Version of the scene's contents: raised when a change here changes the pictures."""

    def __post_init__(self) -> None:
        for name, number in zip(("num_train", "num_test"), NUM_VIEWS[self.motion], strict=True):
            if getattr(self, name) is None:
                object.__setattr__(self, name, number)
        for name in ("width", "height"):
            if getattr(self, name) < DOWNSCALES[-1] or getattr(self, name) % DOWNSCALES[-1]:
                raise ValueError(
                    f"{name} {getattr(self, name)} does not divide by {DOWNSCALES[-1]}, as the coarsest pictures need"
                )
        for name in ("num_train", "num_test", "samples_per_pixel"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, and must be at least 1")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}, and must not be negative")
        if self.rgba and self.detail == "far":
            raise ValueError("rgba leaves out all that is far: give one of the two")
        if self.motion != "none":
            if self.rgba or self.detail == "far":
                raise ValueError("things move in front of the near backdrop alone: give neither rgba nor detail far")
            if self.num_train % self.cameras or self.num_train < 2 * self.cameras:
                raise ValueError(f"num_train is {self.num_train}: give {self.cameras} for each of two moments or more")

    @property
    def cameras(self) -> int:
        """Training pictures that are taken at one moment of the moving scene."""
        return NUM_FIXED if self.motion == "eight-cameras" else 1


class _View(NamedTuple):
    split: str
    name: str
    camera_to_world: np.ndarray
    seed: int
    gains: np.ndarray | None = None
    """Gains of linear light, red, green and blue; none where light is even."""
    time: float | None = None
    """From 0 to 1; none where nothing moves."""


def write_scene(output: Path | str, workers: int = 1, **settings: Any) -> Path:
    """Writes the scene into the folder `output` and returns it; a folder with the same settings is left as it is.

    Args:
        workers: processes; above 1 the calling script needs the usual `if __name__ == "__main__"`.
        settings: fields of :class:`SceneSettings`.

    Raises:
        ValueError: for settings that cannot be.
        FileExistsError: the folder holds something else.
        FileNotFoundError: the folder holds this scene, but not all of it.
    """
    settings = SceneSettings(**settings)
    output = Path(output).expanduser().resolve()
    if _already_there(output, settings):
        print(f"{output} already holds this scene; using it as it is.", flush=True)
        return output
    output.parent.mkdir(parents=True, exist_ok=True)
    # Drawn beside its place and moved there whole: an interrupted run leaves nothing that looks like a scene.
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as scratch:
        folder = Path(scratch) / "scene"
        views, pinhole = _views(settings), scene_pinhole(settings.width, settings.height)
        for downscale in DOWNSCALES:
            _pictures(folder, downscale).mkdir(parents=True)
        _draw(functools.partial(_write_view, folder, pinhole, settings), views, workers)
        write_json(folder / "transforms.json", _transforms(settings, pinhole, views))
        write_json(folder / "transforms_multiscale.json", _transforms_multiscale(settings, pinhole, views))
        if output.exists():
            output.rmdir()
        folder.rename(output)
    return output


def _views(settings: SceneSettings) -> list[_View]:
    views = []
    for number, (split, count) in enumerate((("test", settings.num_test), ("train", settings.num_train))):
        streams = np.random.SeedSequence([settings.seed, number]).spawn(count + 1)
        shift = np.random.default_rng(streams[0]).random(3)
        gains = [None] * count
        if settings.light == "changing" and split == "train":
            gains = draw_gains(count, _STOPS, [settings.seed, 2])
        for index in range(count):
            random = np.random.default_rng(streams[index + 1])
            if settings.motion == "none":
                time, pose = None, dome_pose(index, shift, random, LOW_DOME if settings.detail == "far" else DOME)
            else:
                time, pose = _moment(settings, split, index, random)
            name, seed = f"{split}_{index:04d}.png", int(random.integers(2**31))
            views.append(_View(split, name, pose, seed, gains[index], time))
    return views


def _moment(settings: SceneSettings, split: str, index: int, random: np.random.Generator) -> tuple[float, np.ndarray]:
    """Time and pose of a view of the moving scene; training pictures come camera by camera."""
    moments, is_fixed = settings.num_train // settings.cameras, settings.cameras > 1
    if split == "train":
        camera, moment = divmod(index, moments)
        time = moment / (moments - 1)
        return time, fixed_pose(camera) if is_fixed else walking_pose(time)
    # Over all of the time.
    time = round((index + random.random()) / settings.num_test * (moments - 1)) / (moments - 1)
    return time, between_pose(random) if is_fixed else beside_pose(time, random)


def _already_there(output: Path, settings: SceneSettings) -> bool:
    """Whether the folder holds exactly this scene; anything else in it is an error, never overwritten."""
    if not output.exists():
        return False
    if not output.is_dir():
        raise FileExistsError(f"{output} is a file; name a new folder for the scene")
    if not any(output.iterdir()):
        return False
    try:
        meta = json.loads((output / "transforms.json").read_text(encoding="utf-8"))
        # Scenes that were written before there was a choice do not say which they are.
        found = {"light": "even", "detail": "near", "motion": "none"} | meta[_SETTINGS_KEY]
    except (OSError, ValueError, KeyError, TypeError):
        raise FileExistsError(
            f"{output} is not empty and does not hold a scene of this tool; name a new folder, or empty this one"
        ) from None
    wanted = asdict(settings)
    differences = [f"{k} {found.get(k)} instead of {v}" for k, v in wanted.items() if found.get(k) != v]
    if differences:
        raise FileExistsError(
            f"{output} holds a scene with {', '.join(differences)}; name a new folder, or remove this one"
        )
    names = [Path(frame["file_path"]).name for frame in meta["frames"]]
    files = [_pictures(output, downscale) / name for downscale in DOWNSCALES for name in names]
    for file in [*files, output / "transforms_multiscale.json"]:
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing; remove {output} and write the scene again")
    return True


def _draw(task, views: list[_View], workers: int) -> None:
    start = time.monotonic()
    if workers == 1:
        _report(map(task, views), len(views), start)
        return
    # Spawned, not forked: the caller may hold threads.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            done = as_completed([pool.submit(task, view) for view in views])
            _report((future.result() for future in done), len(views), start)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _report(finished: Iterable[None], total: int, start: float) -> None:
    said = start
    for count, _ in enumerate(finished, 1):
        now = time.monotonic()
        if count in (1, total) or now - said > 3:
            left = (now - start) / count * (total - count)
            print(f"view {count} of {total}, {now - start:.0f} s so far, about {left:.0f} s left", flush=True)
            said = now


def _pictures(folder: Path, downscale: int) -> Path:
    return folder / ("images" if downscale == 1 else f"images_{downscale}")


def _write_view(folder: Path, pinhole: Pinhole, settings: SceneSettings, view: _View) -> None:
    kind = {"rgba": settings.rgba, "far": settings.detail == "far", "time": view.time}
    full = render_view(view.camera_to_world, pinhole, settings.samples_per_pixel, view.seed, **kind)
    for downscale in DOWNSCALES:
        rows, columns = settings.height // downscale, settings.width // downscale
        # Averaged before rounding to 8 bits, and with colors still multiplied by alpha.
        picture = full.reshape(rows, downscale, columns, downscale, -1).mean(axis=(1, 3))
        picture = straight_alpha(picture) if settings.rgba else picture
        if view.gains is not None:
            picture[..., :3] = relight(picture[..., :3], view.gains)
        stored = np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)
        Image.fromarray(stored).save(_pictures(folder, downscale) / view.name)


def _frame(downscale: int, view: _View) -> dict:
    """A frame of Nerfstudio's, and what draws its picture again: `render_view`'s seed, and the gains of its light."""
    pose = np.vstack([view.camera_to_world, [0.0, 0.0, 0.0, 1.0]]).tolist()
    file_path = f"{_pictures(Path(), downscale).as_posix()}/{view.name}"
    light = {} if view.gains is None else {"light_gains": view.gains.tolist()}
    moment = {} if view.time is None else {"time": view.time}
    return {"file_path": file_path, "transform_matrix": pose, "sample_seed": view.seed} | light | moment


def _intrinsics(pinhole: Pinhole) -> dict:
    return dict(zip(("fl_x", "fl_y", "cx", "cy", "w", "h"), pinhole, strict=True))


def _meta(settings: SceneSettings, frames: list[tuple[str, dict]]) -> dict:
    """What the two files share: settings, camera model, and explicit splits, of which test and val are the same."""
    lists = {split: [frame["file_path"] for own, frame in frames if own == split] for split in ("train", "test")}
    return {
        _SETTINGS_KEY: asdict(settings),
        "camera_model": "OPENCV",
        **dict.fromkeys(("k1", "k2", "p1", "p2"), 0.0),
        "train_filenames": lists["train"],
        "val_filenames": lists["test"],
        "test_filenames": lists["test"],
        "frames": [frame for _, frame in frames],
    }


def _transforms(settings: SceneSettings, pinhole: Pinhole, views: list[_View]) -> dict:
    return _intrinsics(pinhole) | _meta(settings, [(view.split, _frame(1, view)) for view in views])


def _transforms_multiscale(settings: SceneSettings, pinhole: Pinhole, views: list[_View]) -> dict:
    # Coarsest first: Nerfstudio decides by the first frame's size whether to read other, reduced pictures instead.
    frames = [
        (view.split, _frame(downscale, view) | _intrinsics(pinhole.reduced(downscale)) | {"downscale": downscale})
        for downscale in reversed(DOWNSCALES)
        for view in views
    ]
    return _meta(settings, frames)


@command(ValueError, OSError)
def main(arguments: list[str] | None = None) -> None:
    """Reads the command line and writes the scene."""
    parser = command_parser(
        "demo_scene", "Writes a procedural scene with exact anti-aliased pictures, in Nerfstudio's format."
    )
    parser.add_argument("output", type=Path, help="folder to write; new, empty, or holding this same scene")
    usual = {field.name: field.default for field in fields(SceneSettings)}
    counts = ", ".join(f"{motion} {train} and {test}" for motion, (train, test) in NUM_VIEWS.items())
    for name, told in (
        ("width", "of the full-resolution pictures; divides by 8"),
        ("height", "likewise"),
        ("num_train", f"views to train on; these and held-out ones by motion: {counts}"),
        ("num_test", "views held out"),
        ("samples_per_pixel", "at full resolution"),
        ("seed", "moves the cameras and the samples in their pixels"),
    ):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=usual[name], help=told)
    parser.add_argument("--rgba", action="store_true", help="the still life alone, on a transparent background")
    for name, kinds, told in (
        ("light", Light, "of the training photos"),
        ("detail", Detail, "far: also a skyline and clouds of fine structure, seen from lower"),
        ("motion", Motion, "things move: one camera that walks, or eight that stand still, see them"),
    ):
        parser.add_argument(f"--{name}", choices=get_args(kinds), default=usual[name], help=told)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that draw")
    options = vars(parser.parse_args(arguments))
    folder = write_scene(options.pop("output"), **options)
    print(f"Scene in {folder}: give it to Nerfstudio with --data {folder}")


if __name__ == "__main__":
    sys.exit(main())
