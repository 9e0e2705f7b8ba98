"""Photographs to poses, a training and pictures, by the programs that a user runs."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from _photos import FOCAL, HEIGHT, WIDTH, write_photos
from _programs import train_command
from _scenes import read_meta
from PIL import Image

from zipnerf_ns.tools.system_check import COLMAP_TOOL, check_colmap, find_program

COUNT = 8
STEPS = 30
OPTIONS = {"colmap": ("--no-gpu",), "pycolmap": ("--colmap-cmd", f"python -m {COLMAP_TOOL}")}
"""Of ns-process-data, for each tool that finds poses."""


def why_untried(tool: str) -> str | None:
    """Why a tool cannot be tried here, or None."""
    if find_program("ffmpeg") is None:
        return "ns-process-data and ns-render need ffmpeg, which is not installed"
    if tool == "pycolmap":
        return None if importlib.util.find_spec("pycolmap") else "the package pycolmap is not installed"
    finding = check_colmap()
    return None if finding.detail == find_program("colmap") else f"no COLMAP that nerfstudio can run: {finding.detail}"


class Photographs(NamedTuple):
    """A folder of photographs whose poses are known."""

    folder: Path
    centers: np.ndarray


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Photographs:
    folder = tmp_path_factory.mktemp("own") / "photos"
    return Photographs(folder, write_photos(folder, COUNT))


@pytest.fixture(scope="module")
def processed(photographs: Photographs, run_program) -> Callable[[str], Path]:
    """The scene that ns-process-data makes of the photographs by a tool, made once."""

    @functools.lru_cache
    def process(tool: str) -> Path:
        # Nerfstudio quotes no path, which ours puts together again.
        scene = photographs.folder.with_name(tool if tool == "colmap" else f"by {tool}")
        names = ("--data", photographs.folder, "--output-dir", scene, "--num-downscales", "0")
        options = ("--matching-method", "exhaustive", *OPTIONS[tool])
        done = run_program("ns-process-data", "images", *names, *options, timeout=300)
        assert done.returncode == 0 and "COLMAP found poses for all images" in done.stdout, done.stdout[-3000:]
        return scene

    return process


def misfit(found: np.ndarray, truth: np.ndarray) -> float:
    """The root mean square distance of points ``[points, 3]`` after the similarity that fits them best (Umeyama 1991),
    in shares of the true points' own."""
    first, second = found - found.mean(axis=0), truth - truth.mean(axis=0)
    left, singular, right = np.linalg.svd(second.T @ first)
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(left @ right))])
    scale = (singular * signs).sum() / np.square(first).sum()
    fitted = scale * first @ (left @ np.diag(signs) @ right).T
    return float(np.sqrt(np.square(fitted - second).sum() / np.square(second).sum()))


@pytest.mark.parametrize("tool", OPTIONS)
def test_poses_of_photographs_are_found(photographs: Photographs, processed, tool: str):
    """To within a hundredth of the cameras' spread, and the focal length to two."""
    if (reason := why_untried(tool)) is not None:
        pytest.skip(reason)
    meta = read_meta(processed(tool))
    # Copies are numbered in the order of the originals' names.
    poses = {frame["file_path"]: np.array(frame["transform_matrix"]) for frame in meta["frames"]}
    assert sorted(poses) == [f"images/frame_{index + 1:05d}.jpg" for index in range(COUNT)]
    assert misfit(np.array([poses[name][:3, 3] for name in sorted(poses)]), photographs.centers) < 0.01
    assert (meta["w"], meta["h"]) == (WIDTH, HEIGHT)
    assert meta["fl_x"] == pytest.approx(FOCAL, rel=0.02) and meta["fl_y"] == pytest.approx(FOCAL, rel=0.02)


def test_photographs_become_rendered_views(processed, run_program, tmp_path: Path):
    """Through ns-train and ns-render, from what the first tool that can be tried makes of them."""
    reasons = {tool: why_untried(tool) for tool in OPTIONS}
    usable = [tool for tool, reason in reasons.items() if reason is None]
    if not usable:
        pytest.skip("; ".join(reason for reason in reasons.values() if reason))
    options = ("--max-num-iterations", STEPS, "--vis", "tensorboard")
    done = run_program(*train_command(processed(usable[0]), tmp_path / "out", *options), timeout=300)
    assert done.returncode == 0 and f"step {STEPS}/{STEPS} (100%)" in done.stdout, done.stdout[-3000:]
    config = tmp_path / "out/e2e/zipnerf-lite/run/config.yml"
    # Of so few photographs Nerfstudio holds out none: the path leads from one training view to the next.
    path = ("--pose-source", "train", "--interpolation-steps", 1, "--downscale-factor", 4)
    output = ("--output-path", tmp_path / "views", "--output-format", "images", "--image-format", "png")
    done = run_program("ns-render", "interpolate", "--load-config", config, *path, *output, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:]
    pictures = [np.asarray(Image.open(path)) / 255.0 for path in (tmp_path / "views").rglob("*.png")]
    assert len(pictures) == COUNT - 1
    # Nerfstudio makes a path's pictures twice as wide as the principal point that COLMAP found.
    sizes = np.array([picture.shape for picture in pictures])
    assert np.abs(sizes - [HEIGHT // 4, WIDTH // 4, 3]).max() <= 2
    assert all(picture.std() > 0.02 for picture in pictures)
