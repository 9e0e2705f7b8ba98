"""The commands of COLMAP that ``ns-process-data`` runs, by the package pycolmap: without root, and up to date.

``ns-process-data images --colmap-cmd "python -m zipnerf_ns.tools.colmap" ...`` finds poses after ``pip install
pycolmap``, where no COLMAP is installed, or one of 3.13 and newer, whose options have other names than those that
nerfstudio 1.1.5 passes. Where pycolmap was built with CUDA (pycolmap-cuda12) and there is a GPU, features are found
and matched on it. Of several models that do not hang together, the largest becomes number 0, which is the one that
nerfstudio reads.
"""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from PIL import Image

from zipnerf_ns.errors import InputError, shorten
from zipnerf_ns.tools.command import command, command_parser
from zipnerf_ns.tools.reconstruction.sources import PHOTOS

SEED = 0
"""Seed of COLMAP's random choices, so that the same photos give the same poses."""
PROGRAM = "ns-process-data"
TAKEN = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".cr2"})
"""Endings of the photographs that it takes, in lower case."""
MATCHERS = ("exhaustive_matcher", "sequential_matcher", "vocab_tree_matcher")


def extract_features(options: argparse.Namespace) -> None:
    """Finds the features of all images in a folder, which one camera took or many, and writes them to a database."""
    pycolmap = import_pycolmap()
    reader = pycolmap.ImageReaderOptions(camera_model=options.camera_model)
    if options.camera_mask_path is not None:
        reader.camera_mask_path = str(options.camera_mask_path)
    mode = pycolmap.CameraMode.SINGLE if options.single_camera else pycolmap.CameraMode.AUTO
    pycolmap.extract_features(
        options.database_path,
        options.image_path,
        camera_mode=mode,
        reader_options=reader,
        device=_device(pycolmap, options.use_gpu),
    )


def match_features(options: argparse.Namespace) -> None:
    """Matches features between all images, or those that follow one another.

    Raises:
        InputError: for a matcher that needs a vocabulary tree.
    """
    if options.command == "vocab_tree_matcher":
        raise InputError(
            "the vocabulary tree that nerfstudio downloads is in the format of COLMAP before 3.12. Give "
            "--matching-method exhaustive for photos, --matching-method sequential for a video."
        )
    pycolmap = import_pycolmap()
    match = pycolmap.match_exhaustive if options.command == "exhaustive_matcher" else pycolmap.match_sequential
    match(options.database_path, device=_device(pycolmap, options.use_gpu))


def map_incrementally(options: argparse.Namespace) -> None:
    """Finds poses and points, and writes models into folders 0, 1, ..., the largest first.

    Raises:
        InputError: if no two images could be related.
    """
    pycolmap = import_pycolmap()
    settings = pycolmap.IncrementalPipelineOptions(ba_global_function_tolerance=options.function_tolerance)
    models = pycolmap.incremental_mapping(
        options.database_path, options.image_path, options.output_path, options=settings
    )
    if not models:
        raise InputError(
            "no poses were found. Photographs must be sharp, show detail, and each much of what its neighbors show."
        )
    largest = max(models, key=lambda number: models[number].num_reg_images())
    if largest != 0:
        exchange(options.output_path / "0", options.output_path / str(largest))


def adjust_bundle(options: argparse.Namespace) -> None:
    """Refines a model's poses, points and intrinsics together."""
    pycolmap = import_pycolmap()
    model = pycolmap.Reconstruction(options.input_path)
    settings = pycolmap.BundleAdjustmentOptions(refine_principal_point=options.refine_principal_point)
    pycolmap.bundle_adjustment(model, settings)
    model.write(options.output_path)


def exchange(first: Path, second: Path) -> None:
    """Exchanges the names of two folders."""
    aside = first.with_name(f".{first.name}.aside")
    first.rename(aside)
    second.rename(first)
    aside.rename(second)


def import_pycolmap() -> Any:
    """The package, seeded.

    Raises:
        InputError: if it is not installed.
    """
    if importlib.util.find_spec("pycolmap") is None:
        raise InputError("pycolmap is not installed: pip install 'pycolmap>=4,<5'.")
    import pycolmap

    pycolmap.set_random_seed(SEED)
    return pycolmap


def _device(pycolmap: Any, use_gpu: bool) -> Any:
    # Nerfstudio asks for the GPU by default; the automatic choice is the CPU where there is none.
    return pycolmap.Device.auto if use_gpu else pycolmap.Device.cpu


def _flag(text: str) -> bool:
    return bool(int(text))


def make_parser() -> argparse.ArgumentParser:
    """A parser of COLMAP's commands and options, as nerfstudio 1.1.5 spells them."""
    parser = command_parser("colmap", _version_line())
    commands = parser.add_subparsers(dest="command", required=True)

    def of_colmap(name: str, function: Callable[[argparse.Namespace], None], *paths: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name)
        added.set_defaults(function=function)
        for path in paths:
            added.add_argument(f"--{path}", type=Path, required=True)
        return added

    extractor = of_colmap("feature_extractor", extract_features, "database_path", "image_path")
    extractor.add_argument("--ImageReader.single_camera", dest="single_camera", type=_flag, default=False)
    extractor.add_argument("--ImageReader.camera_model", dest="camera_model", default="SIMPLE_RADIAL")
    extractor.add_argument("--ImageReader.camera_mask_path", dest="camera_mask_path", type=Path)
    extractor.add_argument("--SiftExtraction.use_gpu", dest="use_gpu", type=_flag, default=True)
    for name in MATCHERS:
        matcher = of_colmap(name, match_features, "database_path")
        matcher.add_argument("--SiftMatching.use_gpu", dest="use_gpu", type=_flag, default=True)
        matcher.add_argument("--VocabTreeMatching.vocab_tree_path", dest="vocab_tree_path", type=Path)
    mapper = of_colmap("mapper", map_incrementally, "database_path", "image_path", "output_path")
    mapper.add_argument("--Mapper.ba_global_function_tolerance", dest="function_tolerance", type=float, default=0.0)
    adjuster = of_colmap("bundle_adjuster", adjust_bundle, "input_path", "output_path")
    adjuster.add_argument(
        "--BundleAdjustment.refine_principal_point", dest="refine_principal_point", type=_flag, default=False
    )
    return parser


def _version_line() -> str:
    """Nerfstudio reads the version from what ``-h`` prints. Without pycolmap the help must not fail: nerfstudio would
    say that COLMAP is missing, where the first command says what to install."""
    if importlib.util.find_spec("pycolmap") is None:
        return "pycolmap is not installed."
    return f"COLMAP {import_pycolmap().__version__} (the package pycolmap)"


def rejoin(arguments: Sequence[str]) -> list[str]:
    """Arguments of which each value is one: nerfstudio quotes none, and the shell cuts paths at their spaces."""
    joined: list[str] = []
    for argument in arguments:
        # After a command's name and an option comes a value; what follows it without an option is the rest of it.
        if len(joined) > 1 and not argument.startswith("-") and not joined[-1].startswith("--"):
            joined[-1] += f" {argument}"
        else:
            joined.append(argument)
    return joined


def check_paths(options: argparse.Namespace) -> None:
    """Refuses folders that are not there, which is what is left of paths that a shell takes for something else.

    Raises:
        InputError: naming the option and the mend.
    """
    for name in ("image_path", "camera_mask_path", "input_path", "output_path", "database_path"):
        path = getattr(options, name, None)
        if path is None:
            continue
        wanted = path.parent if name == "database_path" else path
        if not wanted.exists():
            raise InputError(
                f"--{name}: {wanted} is not there. Where its name holds two spaces in a row, quotes or other signs of "
                "the shell, nerfstudio's command loses them: give --output-dir another name."
            )


def check_originals(command: Sequence[str]) -> None:
    """Refuses photographs of which nerfstudio has made others before it asks for features.

    Args:
        command: of ``ns-process-data``.
    Raises:
        InputError: naming those that it passes over, or two whose sizes differ.
    """
    words = [part for word in command for part in (word.split("=", 1) if word.startswith("--") else [word])]
    options = zip(words, words[1:], strict=False)
    given = [Path(value) for option, value in options if option in ("--data", "--eval-data")]
    photos = [path for folder in given for path in sorted(folder.rglob("[!.]*")) if path.suffix.lower() in PHOTOS]
    use = f"Use python -m zipnerf_ns.tools.photos {shlex.join(map(str, given))} OUT, which takes each as it is."
    if passed_over := [path.name for path in photos if path.suffix.lower() not in TAKEN]:
        raise InputError(f"{PROGRAM} passes over {shorten(passed_over)}, whose kind it does not read. {use}")
    sizes: dict[tuple[int, int], str] = {}
    for path in photos:
        # What cannot be opened is for others to tell.
        with suppress(OSError), Image.open(path) as image:
            sizes.setdefault(image.size, f"{path.name} has {image.width}x{image.height}")
    if len(sizes) > 1:
        told = shorten(sizes.values())
        raise InputError(f"{PROGRAM} gives all photographs one size and one camera, but {told} pixels. {use}")


def calling_command() -> list[str]:
    """The command of ``ns-process-data`` that calls this one; empty if another does."""
    with suppress(psutil.Error):
        for process in psutil.Process().parents():
            words = process.cmdline()
            if any(Path(word).stem == PROGRAM for word in words[:2]):
                return words
    return []


@command()
def main(arguments: Sequence[str] | None = None) -> None:
    """Carries out one command."""
    options = make_parser().parse_args(rejoin(sys.argv[1:] if arguments is None else arguments))
    # First of all, for without it there is nothing else to mend.
    import_pycolmap()
    if options.command == "feature_extractor":
        check_originals(calling_command())
    check_paths(options)
    options.function(options)


if __name__ == "__main__":
    sys.exit(main())
