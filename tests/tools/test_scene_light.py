"""The built-in scene with light that changes: gains as stated, of training photos only, and their mean."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zipnerf_ns.data.transforms import read_transforms
from zipnerf_ns.tools.demo_scene import write_scene
from zipnerf_ns.tools.scene.light import draw_gains, relight

TINY = dict(width=32, height=24, num_train=5, num_test=2, samples_per_pixel=1, seed=3)


def test_gains_have_the_mean_one_and_stay_within_their_stops():
    gains = draw_gains(40, 0.8, [1, 2])
    np.testing.assert_allclose(np.log(gains).mean(axis=0), 0.0, atol=1e-12)
    # Exposures reach nearly as far as asked for, and red and blue go apart by white balance.
    stops = np.log2(gains)
    assert 0.6 < np.abs(stops[:, 1]).max() < 1.0 and 0.1 < np.abs(stops[:, 0] - stops[:, 1]).max() < 0.5
    np.testing.assert_allclose(stops[:, 0] - stops[:, 1], stops[:, 1] - stops[:, 2], atol=1e-12)
    assert np.array_equal(gains, draw_gains(40, 0.8, [1, 2])) and not np.allclose(gains, draw_gains(40, 0.8, [1, 3]))


def test_light_is_multiplied_where_it_is_linear():
    colors = np.linspace(0.0, 1.0, 21)[:, None].repeat(3, axis=1)
    np.testing.assert_allclose(relight(colors, np.ones(3)), colors, atol=1e-7)
    # sRGB 0.5 is 21.40% of white's light and 0.2 is 3.31%; twice that is 0.6858 and 0.2854. Near black it is a line.
    np.testing.assert_allclose(relight(np.array([0.5, 0.2, 0.01]), np.full(3, 2.0)), [0.6858, 0.2854, 0.02], atol=1e-4)
    np.testing.assert_allclose(relight(colors, np.full(3, 4.0))[-4:], 1.0)


@pytest.mark.parametrize("rgba", [False, True])
def test_training_photos_differ_from_even_light_by_their_stated_gains_alone(tmp_path: Path, rgba: bool):
    even, changing = (
        write_scene(tmp_path / light, **TINY, rgba=rgba, light=light) for light in ("even", "changing")
    )
    for name, per_scale in (("transforms.json", 1), ("transforms_multiscale.json", 4)):
        meta = json.loads((changing / name).read_text())
        assert read_transforms(changing / name).warnings == []
        lit = [frame for frame in meta["frames"] if "light_gains" in frame]
        assert sorted(frame["file_path"] for frame in lit) == sorted(meta["train_filenames"])
        assert len(lit) == 5 * per_scale
        for frame in meta["frames"]:
            before, after = (np.asarray(Image.open(folder / frame["file_path"])) / 255.0 for folder in (even, changing))
            expected = before.copy()
            if frame in lit:
                expected[..., :3] = relight(before[..., :3], np.array(frame["light_gains"]))
            # Both were rounded, and a gain makes the first rounding larger: in the toe by up to itself.
            np.testing.assert_allclose(after, expected, atol=2.0 / 255.0)
    assert np.abs(np.log([frame["light_gains"] for frame in lit])).max() > 0.1


def test_scenes_of_other_light_are_not_taken_for_each_other(tmp_path: Path):
    folder = write_scene(tmp_path / "scene", **TINY)
    with pytest.raises(FileExistsError, match="light even instead of changing"):
        write_scene(folder, **TINY, light="changing")
    path = folder / "transforms.json"
    meta = json.loads(path.read_text())
    del meta["demo_scene"]["light"]
    path.write_text(json.dumps(meta))
    # As earlier versions wrote it.
    assert write_scene(folder, **TINY) == folder
