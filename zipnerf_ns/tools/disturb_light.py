"""Copies a scene with changed light: `python -m zipnerf_ns.tools.disturb_light SCENE OUTPUT`.

For measuring what appearance mends: every training photo gets an exposure and a white balance of its own, as those of
the built-in scene do with `--light changing`. Held-out photos stay as they are, in the mean of that light.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import numpy as np
from PIL import Image
from tyro.conf import Positional, arg

from zipnerf_ns.data.disk.files import write_json
from zipnerf_ns.errors import InputError
from zipnerf_ns.tools.command import command
from zipnerf_ns.tools.disturb_poses import link_files, open_as_written, write_scene
from zipnerf_ns.tools.scene.light import draw_gains, relight

RELIT = Path("relit")
"""Folder of the photos that were changed."""
MOST_STOPS = 4.0


def disturb_light(
    scene: Annotated[Path, Positional, arg(metavar="SCENE")],
    output: Annotated[Path, Positional, arg(metavar="OUTPUT")],
    stops: float = 0.8,
    seed: int = 0,
) -> Path:
    """Copies a scene with training photos of changed exposure and white balance, to measure appearance with.

    Args:
        scene: folder with a transforms.json of Nerfstudio's that lists train_filenames, and the files that it names.
        output: folder to write; must not exist.
        stops: exposures go so far up and down; in white balance, red and blue go a third as far, one up, one down.
        seed: of the draws.

    Returns:
        The new folder.
    Raises:
        InputError: the scene cannot be read or has no such list, a number is out of range, or ``output`` exists.
    """
    if not 0.0 <= stops <= MOST_STOPS:
        raise InputError(f"--stops is {stops}: it must be between 0 and {MOST_STOPS:g}.")
    scene, output, meta = open_as_written(scene, output, seed)
    if "train_filenames" not in meta:
        raise InputError("transforms.json has no train_filenames: add the list of the photos whose light is to change.")
    training = set(meta["train_filenames"])
    frames = [frame for frame in meta["frames"] if frame["file_path"] in training]
    link_files(scene, output)
    (output / RELIT).mkdir()
    renamed: dict[str, str] = {}
    for index, (frame, gains) in enumerate(zip(frames, draw_gains(len(frames), stops, [seed]), strict=True)):
        source = Path(frame["file_path"])
        target = RELIT / f"{index:04d}_{source.stem}.png"
        _relight_file(scene / source, output / target, gains)
        renamed[frame["file_path"]] = target.as_posix()
        frame |= {"file_path": target.as_posix(), "light_gains": gains.tolist()}
    for split in ("train_filenames", "val_filenames", "test_filenames"):
        if split in meta:
            meta[split] = [renamed.get(name, name) for name in meta[split]]
    # Last, for then an interrupted run leaves nothing like a scene.
    write_json(output / "transforms.json", meta)
    return output


def _relight_file(source: Path, target: Path, gains: np.ndarray) -> None:
    with Image.open(source) as image:
        picture = np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB")) / 255.0
    picture[..., :3] = relight(picture[..., :3], gains)
    Image.fromarray(np.rint(255.0 * picture).astype(np.uint8)).save(target)


@command(OSError)
def main(arguments: list[str] | None = None) -> None:
    """The command."""
    write_scene(disturb_light, "disturb_light", "Scene in changed light", arguments)


if __name__ == "__main__":
    sys.exit(main())
