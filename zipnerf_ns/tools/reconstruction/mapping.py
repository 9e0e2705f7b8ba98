"""From pictures to poses and points, by COLMAP's steps in the package pycolmap, each with its progress.

Everything found lies in one database file: a step that was interrupted goes on where it ended.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from rich.console import Console

from nerfstudio.utils.rich_utils import get_progress

from zipnerf_ns.errors import InputError, shorten
from zipnerf_ns.tools.colmap import SEED, import_pycolmap
from zipnerf_ns.tools.reconstruction import pairs
from zipnerf_ns.tools.reconstruction.pairs import Pair
from zipnerf_ns.tools.reconstruction.pictures import MAX_SIDE, Picture

MIN_MATCHES = 15
"""Matches that agree with one motion of the camera, below which two pictures are not taken for related; COLMAP's."""
MIN_POINTS = 15
"""A picture that shares fewer points with any other has not been placed, whatever pose it was given."""
FEW_FEATURES, MOST_FEATURES = 100, 4096
"""Features of a picture: fewer are why it has no pose, as is then said; more (COLMAP takes twice as many) cost time."""
ENOUGH_PLACED = 0.9
"""Share of the pictures that hang together, below which the next mapper is tried, too."""
MAPPERS = ("global", "incremental")
VIEWS_FOR_CENTER = 30
"""Pictures of one camera from which on its principal point is refined; fewer may bend it."""
OUTLIER, MIN_OUTLIER = 2.5, 1.0
"""Mean errors, and pixels, beyond which an observation is left out of the last adjustment. On fox (270x480, 50
photographs) this halves the cameras' errors: 0.048 for 0.101 degrees, 0.13 for 0.24% of their spread."""
MIN_ANGLE = 1.5
"""Degrees between the lines of sight to a point, COLMAP's."""
ADJUSTMENTS = 2
_CHUNK = 8
_PAIRS_AT_ONCE = 100
"""How much is done between two movements of a progress bar."""


class Placement(NamedTuple):
    """Where pictures stand."""

    model: Any
    """pycolmap's Reconstruction."""
    mapper: str
    """Which of COLMAP's mappers made it: global, incremental."""
    unplaced: dict[str, str]
    """Names of pictures without a pose, with the reason."""


class Workshop:
    """A folder of pictures, and the folder in which their scene is found.

    Args:
        pictures: all pictures.
        images: their folder.
        masks: folder of masks named ``NAME.png`` for a picture's whole name, or None.
        folder: of the database and of models.
        lens: COLMAP's camera model.
        known: intrinsics of cameras to begin with, numbers in COLMAP's order between commas; others are guessed.
    """

    def __init__(
        self,
        pictures: Sequence[Picture],
        images: Path,
        masks: Path | None,
        folder: Path,
        lens: str,
        known: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.pycolmap = import_pycolmap()
        self.pycolmap.logging.minloglevel = self.pycolmap.logging.Level.ERROR.value
        self.pictures, self.images, self.folder, self.known = pictures, images, folder, known
        self.names = [picture.name for picture in pictures]
        self.database = folder / "database.db"
        self.reader = self.pycolmap.ImageReaderOptions(camera_model=lens)
        if masks is not None:
            self.reader.mask_path = str(masks)

    def enter_pictures(self) -> None:
        """Writes cameras and pictures into a new database, unless all are there: one camera for each of its kind."""
        if self.database.is_file() and set(self._read(_numbers)) == set(self.names):
            return
        self.database.unlink(missing_ok=True)
        self.pycolmap.Database.open(self.database).close()
        by_camera: dict[str, list[str]] = {}
        for picture in self.pictures:
            by_camera.setdefault(picture.camera, []).append(picture.name)
        with get_progress("Cameras      ") as progress:
            for camera, names in progress.track(list(by_camera.items())):
                self.reader.camera_params = self.known.get(camera, "")
                self.pycolmap.import_images(
                    self.database,
                    self.images,
                    camera_mode=self.pycolmap.CameraMode.SINGLE,
                    image_names=names,
                    options=self.reader,
                )

    def find_features(self) -> dict[str, int]:
        """Finds features in every picture that has none yet; how many each has."""
        known = self._read(_feature_counts)
        missing = [name for name in self.names if not known[name]]
        options = self.pycolmap.FeatureExtractionOptions(max_image_size=MAX_SIDE)
        options.sift.max_num_features = MOST_FEATURES
        with get_progress("Features     ") as progress:
            task = progress.add_task("", total=len(self.names), completed=len(self.names) - len(missing))
            for chunk in _chunks(missing, _CHUNK):
                self.pycolmap.extract_features(
                    self.database,
                    self.images,
                    image_names=chunk,
                    reader_options=self.reader,
                    extraction_options=options,
                )
                progress.advance(task, len(chunk))
        return self._read(_feature_counts)

    def match(self) -> dict[Pair, int]:
        """Compares the pairs of both rounds; the pairs that belong together, with how many matches agree."""
        tried = pairs.first_pairs([picture.sequence for picture in self.pictures])
        self._compare(tried, "Matches      ")
        found = self.matching()
        if more := pairs.second_pairs(len(self.names), found, tried):
            self._compare(more, "More matches ")
            found = self.matching()
        return found

    def matching(self) -> dict[Pair, int]:
        """The compared pairs that belong together, with how many matches agree."""
        index = {number: self.names.index(name) for name, number in self._read(_numbers).items()}
        found = {}
        for pair, inliers in zip(*self._read(lambda each: each.read_two_view_geometry_num_inliers()), strict=True):
            first, second = (index[number] for number in self.pycolmap.pair_id_to_image_pair(pair))
            if inliers >= MIN_MATCHES:
                found[min(first, second), max(first, second)] = inliers
        return found

    def place(self, features: dict[str, int], matching: dict[Pair, int]) -> Placement:
        """Finds poses and points by the global mapper, and by the incremental one if that leaves out many.

        Raises:
            InputError: if the pictures do not belong together.
        """
        together = pairs.groups(len(self.names), matching)
        model, mapper = None, ""
        for name in MAPPERS if len(together[0]) >= pairs.MIN_GROUP else ():
            if _placed(model) >= ENOUGH_PLACED * len(together[0]):
                break
            with Console().status(f"Poses by the {name} mapper"):
                found = self._map(name)
            if _placed(found) > _placed(model):
                model, mapper = found, name
        if _placed(model) < pairs.MIN_GROUP:
            raise InputError(
                f"these {len(self.names)} photographs do not belong together: of {self._read(_compared)} pairs "
                f"compared, {len(matching)} show the same things. Each must show, sharply, much of what its "
                "neighbors show."
            )
        adjust(self.pycolmap, model)
        # About the cameras' middle, and ten units wide: numbers that a person and float32 can hold.
        model.normalize()
        return Placement(model, mapper, self._reasons(model, features, together))

    def _map(self, name: str) -> Any | None:
        """The largest model that a mapper makes, of what hangs together in it."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        if name == "global":
            # Without a focal length from the photographs' files, it needs one from their pairs.
            if not all(camera.has_prior_focal_length for camera in self._read(lambda each: each.read_all_cameras())):
                calibration = self.pycolmap.ViewGraphCalibrationOptions(random_seed=SEED)
                self.pycolmap.calibrate_view_graph(self.database, calibration)
            mapping, options = self.pycolmap.global_mapping, self.pycolmap.GlobalPipelineOptions()
        else:
            mapping, options = self.pycolmap.incremental_mapping, self.pycolmap.IncrementalPipelineOptions()
        options.random_seed, options.min_num_matches = SEED, MIN_MATCHES
        models = mapping(self.database, self.images, folder, options=options).values()
        for model in models:
            keep_whole(model)
        return max(models, key=_placed, default=None)

    def _reasons(self, model: Any, features: dict[str, int], together: list[list[int]]) -> dict[str, str]:
        placed = {model.image(number).name for number in model.reg_image_ids()}
        group_of = {index: group for group in together for index in group}
        reasons = {}
        for index, name in enumerate(self.names):
            if name in placed:
                continue
            others = [self.names[other] for other in group_of[index] if other != index]
            if features[name] < FEW_FEATURES:
                reasons[name] = f"shows too little detail ({features[name]} features): blurred, dark or blank"
            elif not others:
                reasons[name] = "shows nothing that another one shows"
            elif not placed & set(others):
                reasons[name] = f"hangs together only with {shorten(others)}"
            else:
                reasons[name] = "shares too little with the others to be placed with certainty"
        return reasons

    def _compare(self, chosen: Sequence[Pair], description: str) -> None:
        listed = self.folder / "pairs.txt"
        with get_progress(description) as progress:
            task = progress.add_task("", total=len(chosen))
            for chunk in _chunks(chosen, _PAIRS_AT_ONCE):
                lines = "".join(f"{self.names[first]} {self.names[second]}\n" for first, second in chunk)
                listed.write_text(lines, encoding="utf-8")
                options = self.pycolmap.ImportedPairingOptions(match_list_path=str(listed))
                self.pycolmap.match_image_pairs(self.database, pairing_options=options)
                progress.advance(task, len(chunk))

    def _read(self, reading: Callable[[Any], Any]) -> Any:
        database = self.pycolmap.Database.open(self.database)
        try:
            return reading(database)
        finally:
            database.close()


def adjust(pycolmap: Any, model: Any) -> None:
    """Adjusts all cameras and points at once, without what a mapper let pass: it takes matches four pixels off.

    Args:
        pycolmap: the package.
        model: its Reconstruction, changed in place; observations far from what the rest says are taken out.
    """
    images = model.reg_image_ids()
    views = Counter(model.image(number).camera_id for number in images)
    # By its parts, for pycolmap.bundle_adjustment cannot be kept from printing.
    options = pycolmap.BundleAdjustmentOptions(
        refine_principal_point=min(views.values()) >= VIEWS_FOR_CENTER, print_summary=False
    )
    config = pycolmap.BundleAdjustmentConfig()
    for number in images:
        config.add_image(number)
    config.fix_gauge(pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
    for _ in range(ADJUSTMENTS):
        limit = max(OUTLIER * model.compute_mean_reprojection_error(), MIN_OUTLIER)
        pycolmap.ObservationManager(model).filter_all_points3D(limit, MIN_ANGLE)
        pycolmap.create_default_bundle_adjuster(options, config, model).solve()
        model.update_point_3d_errors()


def keep_whole(model: Any) -> None:
    """Takes out of a model all pictures that do not hang together with most of the others through its points.

    The global mapper gives every picture a pose: where two parts of the photographs share no points, each part fits
    itself, the error is small, and they stand anyhow towards each other.
    """
    images = [model.image(number) for number in sorted(model.reg_image_ids())]
    row = {image.image_id: index for index, image in enumerate(images)}
    common: Counter[Pair] = Counter()
    for point in model.points3D.values():
        seen = sorted({row[element.image_id] for element in point.track.elements if element.image_id in row})
        common.update(itertools.combinations(seen, 2))
    related = [pair for pair, points in common.items() if points >= MIN_POINTS]
    whole = set(pairs.groups(len(images), related)[0]) if images else set()
    for index, image in enumerate(images):
        if index not in whole:
            model.deregister_frame(image.frame_id)


def _numbers(database: Any) -> dict[str, int]:
    return {image.name: image.image_id for image in database.read_all_images()}


def _feature_counts(database: Any) -> dict[str, int]:
    return {image.name: database.num_keypoints_for_image(image.image_id) for image in database.read_all_images()}


def _compared(database: Any) -> int:
    return database.num_matched_image_pairs()


def _placed(model: Any | None) -> int:
    return 0 if model is None else model.num_reg_images()


def _chunks(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk
