"""From a trained field to Gaussians, within a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from zipnerf_ns.data.memory import check_room, room_on
from zipnerf_ns.engine.checkpoints import seed_all
from zipnerf_ns.engine.safety.files import is_whole, write_whole
from zipnerf_ns.errors import InputError
from zipnerf_ns.splats.distill.fit import FIRST_SHARE, SECONDS_BETWEEN_LINES, Fit, SplatConfig
from zipnerf_ns.splats.distill.points import extent, first_gaussians
from zipnerf_ns.splats.distill.views import (
    Pinhole,
    Target,
    between,
    field_picture,
    photos,
    training_cameras,
)
from zipnerf_ns.splats.gaussians import Gaussians
from zipnerf_ns.splats.rasterizer import Gsplat, Rasterizer

FIELD_SHARE = 0.1
"""Share of the time that the field's pictures take."""
MEMORY_SHARE = 0.25
"""Share of a GPU's free memory that pictures to fit to may take there; else they stay in main memory."""
STEPS_PER_VIEW = 20
"""Where steps are counted: one view of the field for so many."""


class Stopped(Exception):
    """It was asked to stop, and its state is saved."""


class Scene(NamedTuple):
    """What a run offers to Gaussians."""

    model: Any
    cameras: list[Pinhole]
    """Training cameras, in the order of the photos."""
    photos: list[Target]
    """Empty where they are not there."""
    is_open: bool
    """Whether photos show all there is behind things; else they are transparent."""
    background: Tensor
    """Color behind transparent photos."""
    begun: float
    """When it was asked for, by :func:`time.monotonic`: from then on the seconds count."""


def scene_of(pipeline: Any) -> Scene:
    """The scene of a run's pipeline.

    Raises:
        InputError: for cameras that no pinhole can stand for, or photos that cannot be decoded.
    """
    begun, model, manager = time.monotonic(), pipeline.model.eval(), pipeline.datamanager
    cameras, dataset, device = training_cameras(pipeline), manager.train_dataset, pipeline.model.device
    appearance = model.zipnerf.appearance
    gains = None if appearance is None else appearance.gains().detach()
    found = []
    if not manager.lacks_photos():
        pixels = sum(camera.width * camera.height for camera in cameras)
        mend = "Train on fewer, or on reduced ones: --downscale-factor 2 (or 4, ...) at the end of the command."
        what = f"{len(cameras)} photos, and as many pictures of the field, need"
        check_room(what, 2 * pixels * dataset.channels, torch.device("cpu"), mend)
        found = list(photos(dataset, cameras, gains, device, "images"))
    is_open = found[0].colors.shape[-1] == 3 if found else not bool(dataset.has_alpha)
    return Scene(model, cameras, found, is_open, model.background.detach(), begun)


def distill(
    scene: Scene,
    config: SplatConfig,
    say: Callable[[str], object],
    rasterizer: Rasterizer | None = None,
    unfinished: Path | None = None,
    resumes: bool = False,
    stops: Callable[[], bool] = lambda: False,
) -> Gaussians:
    """Gaussians that look like a trained field, on its device.

    Args:
        scene: of the field.
        config: the settings.
        say: takes lines of progress.
        rasterizer: draws Gaussians; gsplat's if not given, which must be ready.
        unfinished: file that the state is written to at every tenth of the way, and removed at its end.
        resumes: whether to go on from that file.
        stops: whether to stop.
    Raises:
        InputError: if the field shows nothing, or there is nothing to go on from.
        Stopped: if it was asked to.
    """
    device = scene.model.device
    state = _load_unfinished(unfinished) if resumes else None
    seed_all(config.seed)
    rasterizer = rasterizer or Gsplat(config.antialiased)
    new = between(scene.cameras, 2 * len(scene.cameras), np.random.default_rng(config.seed))
    # Numbers of the state take these ones' place.
    first = _empty(config, device) if state is not None else _first(scene, new, config, say)
    fields = field_views(scene, new, config, say, None if state is None else state["field_views"])
    held = [target._replace(pinhole=target.pinhole.on(device)) for target in (*scene.photos, *fields)]
    if sum(target.colors.nbytes for target in held) < MEMORY_SHARE * room_on(device):
        held = [target.on(device) for target in held]
    seconds = config.seconds if state is None else state["seconds"]
    if state is None and seconds is not None:
        seconds = max(seconds - (time.monotonic() - scene.begun), 1.0)
    background = scene.background if scene.is_open else None
    own, shown = held[: len(scene.photos)], held[len(scene.photos) :]
    fit = Fit(first, own, shown, config, rasterizer, extent(scene.cameras), seconds, background)
    if state is not None:
        fit.load_state_dict(state)

    def save() -> None:
        if unfinished is not None:
            kept = {**fit.state_dict(), "field_views": len(fields), "seconds": seconds}
            unfinished.parent.mkdir(parents=True, exist_ok=True)
            write_whole(kept, unfinished, unfinished.with_suffix(".tmp"))

    is_told = False

    def save_if_possible() -> None:
        nonlocal is_told
        try:
            save()
        except OSError as error:
            if is_told:
                return
            is_told = True
            say(f"Warning: {unfinished} cannot be written ({error.strerror}): the fit goes on without.")

    if not fit.run(say, save_if_possible, stops):
        save()
        raise Stopped
    if unfinished is not None:
        unfinished.unlink(missing_ok=True)
    return fit.gaussians()


def _load_unfinished(path: Path | None) -> dict[str, Any]:
    if path is None or not path.is_file() or not is_whole(path):
        raise InputError(f"{path} is absent or cut short: there is nothing to resume. Leave --resume out.")
    return torch.load(path, map_location="cpu", weights_only=True)


def _first(scene: Scene, new: list[Pinhole], config: SplatConfig, say: Callable[[str], object]) -> Gaussians:
    count, degree = max(round(FIRST_SHARE * config.max_gaussians), 2), config.sh_degree
    draws = torch.Generator().manual_seed(config.seed)
    first = first_gaussians(scene.model, [*scene.cameras, *new], count, degree, scene.is_open, draws)
    seconds = time.monotonic() - scene.begun
    say(f"{len(first):,} first Gaussians, where the field has surfaces, after {seconds:.0f} s.")
    return first


def _empty(config: SplatConfig, device: torch.device) -> Gaussians:
    shapes = ((0, 3), (0, 4), (0, 3), (0,), (0, (config.sh_degree + 1) ** 2, 3))
    return Gaussians(*(torch.zeros(shape, device=device) for shape in shapes), config.antialiased)


def field_views(
    scene: Scene, new: list[Pinhole], config: SplatConfig, say: Callable[[str], object], count: int | None = None
) -> list[Target]:
    """What the field shows of new views and of the training's, alternately; in main memory.

    Args:
        scene, config: as for :func:`distill`.
        new: cameras between the training's.
        say: takes a line at the end.
        count: of views; by default what the settings say, or what a share of the time suffices for.
    """
    order = np.random.default_rng(config.seed).permutation(len(scene.cameras))
    own = [scene.cameras[index] for index in order]
    most = [each for pair in zip(new, own, strict=False) for each in pair] + new[len(own) :] or own
    limit = None if config.seconds is None else FIELD_SHARE * config.seconds
    if count is None:
        count = config.field_views
    if count is None and config.steps is not None:
        count = config.steps // STEPS_PER_VIEW
    if count is not None:
        limit, most = None, most[:count]
    begun, said, found = time.monotonic(), time.monotonic(), []
    for pinhole in most:
        now = time.monotonic()
        if limit is not None and now - begun > limit:
            break
        if now - said > SECONDS_BETWEEN_LINES:
            said = now
            share = len(found) / len(most) if limit is None else (now - begun) / limit
            say(f"{len(found)} views rendered by the field, {share:.0%} of them.")
        found.append(Target(pinhole, field_picture(scene.model, pinhole, not scene.is_open).cpu(), None))
    say(f"{len(found)} views rendered by the field, in {time.monotonic() - begun:.0f} s.")
    return found
