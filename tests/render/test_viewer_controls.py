"""The viewer's controls: what they mean to a render, and that nothing else sees them."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from _viewer import in_viewer

from nerfstudio.viewer.utils import parse_object
from nerfstudio.viewer.viewer_elements import ViewerElement

from zipnerf_ns.render.viewer import (
    UNCHANGED,
    View,
    ViewerControls,
)


def full() -> ViewerControls:
    return ViewerControls(8, num_photos=5, prefilters=("multisample", "ipe", "none"))


def changed() -> ViewerControls:
    controls = full()
    controls.antialiasing.value = "none"
    controls.antialiasing_width.value = 2.5
    controls.appearance.value, controls.appearance_photo.value = "of one photo", 3
    controls.background.value = "white"
    controls.finest_level.value = 4
    controls.extra_outputs.value = True
    return controls


def test_untouched_controls_change_nothing():
    assert full().values() == ViewerControls(8).values() == View() == UNCHANGED


def test_values_reach_the_viewers_renders_only():
    """An evaluation in the main thread or in a pool's thread measures the model as it was trained."""
    controls = changed()
    expected = View("none", 2.5, 4, 3, (1.0, 1.0, 1.0), True)
    assert in_viewer(controls.read) == expected == controls.values()
    assert controls.read() is UNCHANGED
    seen = []
    other = threading.Thread(target=lambda: seen.append(controls.read()))
    other.start()
    other.join()
    assert seen[0] is UNCHANGED


@pytest.mark.parametrize(
    ("choice", "expected"),
    [("as trained", None), ("white", (1.0, 1.0, 1.0)), ("black", (0.0, 0.0, 0.0)), ("gray", (0.5, 0.5, 0.5))],
)
def test_backgrounds(choice, expected):
    controls = full()
    controls.background.value = choice
    assert controls.values().background == expected


def test_a_chosen_color_is_in_units_of_one():
    controls = full()
    controls.background.value, controls.background_color.value = "chosen color", (255, 0, 51)
    assert controls.values().background == (1.0, 0.0, 0.2)


@pytest.mark.parametrize(("choice", "expected"), [("mean of the photos", None), ("of one photo", 2)])
def test_appearances(choice, expected):
    controls = full()
    controls.appearance_photo.value = 2
    controls.appearance.value = choice
    assert controls.values().photo == expected


def test_a_photos_number_stays_within_the_photos():
    controls = ViewerControls(8, num_photos=1)
    controls.appearance.value, controls.appearance_photo.value = "of one photo", controls.appearance_photo.max
    assert controls.values().photo == 0


@pytest.mark.parametrize(("level", "expected"), [(1, 1), (7, 7), (8, None)])
def test_all_levels_are_no_limit(level, expected):
    controls = full()
    controls.finest_level.value = level
    assert controls.values().num_active == expected


def test_nerfstudio_finds_every_element_within_a_model():
    model = torch.nn.Module()
    model.view = full()
    found = parse_object(model, ViewerElement, "Custom Elements")
    paths = [path.removeprefix("Custom Elements/view/") for path, _ in found]
    assert paths == [
        "antialiasing",
        "antialiasing_width",
        "appearance",
        "appearance_photo",
        "background",
        "background_color",
        "extra_outputs",
        "finest_level",
    ]
    model.view = ViewerControls(8)
    without = [element.name for _, element in parse_object(model, ViewerElement, "Custom Elements")]
    assert without == ["Cone width", "Background", "Color", "Further outputs", "Finest level"]


def test_checkpoints_and_copies_know_nothing_of_it():
    controls = changed()
    assert len(controls.state_dict()) == 0 and list(controls.parameters()) == []
    assert copy.deepcopy(controls).values() == controls.values()


def test_reading_is_cheap():
    """A Python call a render and no tensors: microseconds, where a forward pass takes milliseconds."""
    import timeit

    controls = full()
    assert min(timeit.repeat(controls.values, number=1000, repeat=5)) / 1000 < 100e-6
