"""A model counts only as far as its pictures share points, and false matches do not bend it."""

from __future__ import annotations

import numpy as np
import pytest

from zipnerf_ns.tools.reconstruction.mapping import adjust, keep_whole


@pytest.mark.parametrize("is_parted", [False, True])
def test_parts_that_share_no_points_are_not_one_model(is_parted: bool):
    pycolmap = pytest.importorskip("pycolmap", reason="the package pycolmap is not installed")
    options = pycolmap.SyntheticDatasetOptions(
        num_rigs=1, num_cameras_per_rig=1, num_frames_per_rig=7, num_points3D=150
    )
    model = pycolmap.synthesize_dataset(options)
    images = sorted(model.reg_image_ids())
    first = set(images[:4])
    if is_parted:
        for number, point in list(model.points3D.items()):
            # Every other point is seen by the first four alone, the others by the last three.
            # Copied, for elements are views of what is being changed.
            for image, index in [(element.image_id, element.point2D_idx) for element in point.track.elements]:
                if (image in first) != (number % 2 == 0):
                    model.delete_observation(image, index)
    keep_whole(model)
    assert set(model.reg_image_ids()) == (first if is_parted else set(images))


def test_false_matches_do_not_bend_the_cameras():
    pycolmap = pytest.importorskip("pycolmap", reason="the package pycolmap is not installed")
    pycolmap.set_random_seed(0)
    options = pycolmap.SyntheticDatasetOptions(
        num_rigs=1, num_cameras_per_rig=1, num_frames_per_rig=8, num_points3D=200
    )
    model = pycolmap.synthesize_dataset(options)
    truth = {number: model.image(number).cam_from_world() for number in model.reg_image_ids()}
    generator = np.random.default_rng(0)
    for image in model.images.values():
        for point in image.points2D:
            false = generator.random() < 0.05
            point.xy = point.xy + (generator.choice([-3.9, 3.9], 2) if false else generator.normal(0.0, 0.2, 2))
    model.update_point_3d_errors()
    adjust(pycolmap, model)
    turns = [truth[number].rotation.angle_to(model.image(number).cam_from_world().rotation) for number in truth]
    # 0.013 degrees; with the false matches kept 0.079.
    assert np.rad2deg(max(turns)) < 0.03
