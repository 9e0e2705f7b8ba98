"""A model counts only as far as its pictures share points."""

from __future__ import annotations

import pytest

from zipnerf_ns.tools.reconstruction.mapping import keep_whole


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
