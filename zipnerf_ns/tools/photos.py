"""From photographs or videos to a scene with poses: ``python -m zipnerf_ns.tools.photos SOURCE... OUT``.

With what pip installs alone (``pip install 'zipnerf-ns[photos,ffmpeg]'``). Photographs are turned upright and those of
each camera share its intrinsics; of videos the sharpest frames are taken. COLMAP finds the poses, by its global
mapper or, where that leaves out many, by its incremental one. OUT is then a data set for ``ns-train``; begun again
after an interruption, the command goes on where it ended.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from nerfstudio.utils.rich_utils import get_progress

from zipnerf_ns.data.disk.files import write_json
from zipnerf_ns.errors import InputError
from zipnerf_ns.tools.colmap import import_pycolmap
from zipnerf_ns.tools.command import command, command_parser
from zipnerf_ns.tools.reconstruction import pictures as copies
from zipnerf_ns.tools.reconstruction.mapping import Placement, Workshop
from zipnerf_ns.tools.reconstruction.pictures import Picture
from zipnerf_ns.tools.reconstruction.sources import MASKS, MIN_PHOTOS, Photo, Sources, find_sources, unique_stem
from zipnerf_ns.tools.reconstruction.videos import take_frames
from zipnerf_ns.tools.reconstruction.writing import DRAWING, draw, write_scene

WORK = "work"
"""Folder within OUT for what a later run goes on from; a scene is complete without it."""
ORDER = "order.json"
"""File in it that says what OUT was begun with; a folder without it is not ours."""
LENSES = {"perspective": "OPENCV", "fisheye": "OPENCV_FISHEYE"}
"""COLMAP's camera models, which are Nerfstudio's too."""
FRAMES = 200
MOST_THREADS = 4
"""Each holds a photograph in floats while it reduces it: of 48 megapixels, one gigabyte."""
FEW_PLACED = 0.9
LARGE_ERROR = 1.5
"""Share of placed photographs, and mean reprojection error in pixels, at which a warning is due."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def make_scene(sources: Sequence[Path], out: Path, masks: Path | None, frames: int, lens: str) -> str:
    """Finds the poses of photographs and frames of videos, writes them as a scene, and returns what to know of it.

    Args:
        sources: photographs, videos and folders of them.
        out: the scene's folder: new, empty, or begun by an earlier run with the same sources.
        masks: folder of masks, or None for folders named "masks" beside the photographs.
        frames: how many are taken of each video, at most.
        lens: a key of LENSES.

    Raises:
        InputError: if pycolmap is missing, sources cannot be read, OUT is another's, or the photographs do not belong
            together.
    """
    if frames < MIN_PHOTOS:
        raise InputError(f"--frames must be at least {MIN_PHOTOS}.")
    import_pycolmap()
    found = find_sources(sources, masks)
    each("Looked at    ", lambda photo: copies.identify(photo.path), found.photos)
    enter(out, {"photos": [_dated(each.path, each.mask) for each in found.photos], "lens": lens, "frames": frames,
                "videos": [_dated(path) for _, path in found.videos]})  # fmt: skip
    pictures, mask_folder = gather(found, out, frames)
    workshop = Workshop(pictures, out / "images", mask_folder, out / WORK, LENSES[lens])
    workshop.enter_pictures()
    features = workshop.find_features()
    placement = workshop.place(features, workshop.match())
    meta = write_scene(placement.model, out, mask_folder is not None, timestamps(found, pictures))
    draw(meta, placement.model, out / DRAWING)
    reduce(pictures, out, mask_folder)
    return report(found, pictures, placement, out)


def enter(out: Path, order: dict[str, Any]) -> None:
    """Makes the folder, or finds in it the same order.

    Raises:
        InputError: if the folder holds anything else.
    """
    record = out / WORK / ORDER
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not record.is_file():
            raise InputError(f"{out} exists and was not made by this command. Give a new folder.")
        if json.loads(record.read_text()) != order:
            raise InputError(f"{out} was begun with other photographs or options. Remove it, or give a new folder.")
    write_json(record, order)


def gather(found: Sources, out: Path, frames: int) -> tuple[list[Picture], Path | None]:
    """Copies of all photographs and of the videos' frames in OUT/images, and the folder of masks if there are any."""
    photos: list[Photo] = list(found.photos)
    taken = {photo.stem.lower() for photo in photos}
    if found.videos:
        with get_progress("Sharp frames ") as progress:
            task = progress.add_task("", total=len(found.videos))
            for number, (sequence, path) in enumerate(found.videos):
                stem, folder = unique_stem(path.stem, taken), out / WORK / "frames"
                photos += take_frames(path, stem, sequence, frames, folder, lambda share: progress.advance(task, share))
                progress.update(task, completed=number + 1)
    if len(photos) < MIN_PHOTOS:
        raise InputError(f"{len(photos)} photographs are too few: {MIN_PHOTOS} at least, 50 to 200 for a good scene.")
    masks = out / MASKS if any(photo.mask for photo in photos) else None
    copied = each("Copies       ", lambda photo: copies.copy_upright(photo, out / "images", masks), photos)
    cameras = {photo.stem: str(photo.video) for photo in photos if photo.video is not None}
    # Frames tell nothing of their camera: a video has one.
    return [picture._replace(camera=cameras.get(Path(picture.name).stem, picture.camera)) for picture in copied], masks


def timestamps(found: Sources, pictures: Sequence[Picture]) -> dict[str, int]:
    """Numbers of the frames of a video; of several, or beside photographs, nothing says when one began."""
    if found.photos or len(found.videos) != 1:
        return {}
    return {picture.name: int(Path(picture.name).stem.rpartition("_")[2]) for picture in pictures}


def reduce(pictures: Sequence[Picture], out: Path, masks: Path | None) -> None:
    """Writes images_2, images_4, ... and the same of masks, as far as large photographs need them."""
    jobs = [
        (folder, name, scale, folder is masks)
        for scale in copies.scales(list(pictures))
        for picture in pictures
        for folder, name in ((out / "images", picture.name), (masks, f"{picture.name}.png"))
        if folder is not None
    ]
    if jobs:
        each("Reduced ones ", lambda job: copies.reduce_picture(*job), jobs)


def each(description: str, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """The function of every item, by several threads, with a progress bar; the first error ends it."""
    items = list(items)
    with ThreadPoolExecutor(MOST_THREADS) as pool, get_progress(description) as progress:
        pending = [pool.submit(function, item) for item in items]
        try:
            return [future.result() for future in progress.track(pending)]
        finally:
            pool.shutdown(cancel_futures=True)


def report(found: Sources, pictures: Sequence[Picture], placement: Placement, out: Path) -> str:
    """What a person must know of a new scene."""
    model, unplaced = placement.model, placement.unplaced
    placed, error = len(pictures) - len(unplaced), model.compute_mean_reprojection_error()
    lines = [
        f"{placed} of {len(pictures)} photographs placed by COLMAP's {placement.mapper} mapper, "
        f"reprojection error {error:.2f} px, {len(model.points3D)} points"
    ]
    lines += [f"  not placed: {name} {reason}" for name, reason in unplaced.items()]
    if placed < FEW_PLACED * len(pictures):
        lines.append("  Few were placed: photographs with more overlap between those and the others would help.")
    if error > LARGE_ERROR:
        lines.append("  The error is large: something moved, the lens is a fisheye's (--lens fisheye), or it zoomed.")
    lines += [f"  passed over: {path}, which lies there developed" for path in found.passed_over]
    counts = Counter(model.image(number).camera_id for number in model.reg_image_ids())
    for number, count in sorted(counts.items()):
        camera = model.cameras[number]
        lines.append(
            f"  camera {number}: {count} photographs of {camera.width}x{camera.height}, "
            f"focal length {camera.mean_focal_length():.0f} px"
        )
    if with_masks := sum(picture.has_mask for picture in pictures):
        lines.append(f"  {with_masks} masks kept")
    lines += [f"  cameras and points: {out / DRAWING}", "", f"ns-train zipnerf --data {out}"]
    if timestamps(found, pictures):
        lines.append(f"or, if things move in it: ns-train zipnerf-dynamic --data {out}")
    return "\n".join(lines)


def _dated(*paths: Path | None) -> list[str]:
    return [f"{path.resolve()} {path.stat().st_mtime_ns}" for path in paths if path is not None]


def make_parser() -> argparse.ArgumentParser:
    """A parser of the command's arguments."""
    parser = command_parser("photos", __doc__.splitlines()[0])
    parser.add_argument("sources", type=Path, nargs="+", metavar="SOURCE", help="photographs, videos, folders of them")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the scene, new or to go on with")
    parser.add_argument("--masks", type=Path, help="folder of masks, named like the photographs: black is ignored")
    parser.add_argument("--frames", type=int, default=FRAMES, help="frames taken of each video")
    parser.add_argument("--lens", choices=LENSES, default="perspective", help="kind of lens")
    parser.add_argument("--remove-work", action="store_true", help=f"remove OUT/{WORK} when the scene is complete")
    return parser


@command(OSError)
def main(arguments: Sequence[str] | None = None) -> int | None:
    """The command."""
    options = make_parser().parse_args(arguments)
    try:
        print(make_scene(options.sources, options.out, options.masks, options.frames, options.lens))
    except KeyboardInterrupt:
        print("\nInterrupted: the same command goes on from here.", file=sys.stderr)
        return 130
    if options.remove_work:
        shutil.rmtree(options.out / WORK)
    return None


if __name__ == "__main__":
    sys.exit(main())
