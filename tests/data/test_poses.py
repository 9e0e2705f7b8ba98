"""Poses judged one by one and as a set: what is refused, what is taken out, what is said, and where the limits lie."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from _scenes import assert_clear, pose

from zipnerf_ns.data import poses as module
from zipnerf_ns.data.poses import check_axes, check_poses, read_similarity, rounds_too_much
from zipnerf_ns.errors import InputError

COUNT = 12
NAMES = [f"images/{index:03d}.png" for index in range(COUNT)]
UTM = np.array([412345.25, 5432109.75, 312.5])


def ring() -> np.ndarray:
    """Twelve cameras around the origin, 2.5 units away."""
    return np.array([pose(index, COUNT) for index in range(COUNT)])


def check(matrices: Any, **options: Any) -> module.PoseSet:
    return check_poses(list(matrices), NAMES[: len(matrices)], "transforms.json", **options)


def at(positions: np.ndarray) -> np.ndarray:
    """Cameras with the ring's rotations at positions."""
    matrices = np.resize(ring(), (len(positions), 4, 4))
    matrices[:, :3, 3] = positions
    return matrices


def named(matrices: np.ndarray) -> module.PoseSet:
    return check_poses(list(matrices), [str(index) for index in range(len(matrices))], "file")


def test_right_poses_are_left_bit_for_bit_and_nothing_is_said():
    found = check(ring())
    assert np.array_equal(found.matrices, ring()) and found.notes == () and not found.center.any()
    three_rows = check(ring()[:, :3])
    assert np.array_equal(three_rows.matrices, ring())


def bend(index: int, **entries: Any) -> list[Any]:
    """The ring with entries of one matrix changed: ``row_column=value``, with r and c."""
    matrices = ring()
    for where, value in entries.items():
        matrices[index, int(where[1]), int(where[3])] = value
    return list(matrices)


def changed(index: int, matrix: Any) -> list[Any]:
    matrices = list(ring())
    matrices[index] = matrix
    return matrices


MIRROR = np.diag([-1.0, 1.0, 1.0, 1.0])
SHEAR = np.eye(4) + 0.1 * np.eye(4)[[1, 0, 2, 3]] * [[1], [0], [0], [0]]
REFUSED: dict[str, tuple[Any, tuple[str, ...]]] = {
    "none": (changed(2, None), ("frame images/002.png", "not a 4x4 matrix")),
    "flat": (changed(2, [1.0] * 16), ("images/002.png", "not a 4x4 matrix")),
    "ragged": (changed(2, [[1.0], [1.0, 2.0]]), ("images/002.png", "not a 4x4 matrix")),
    "text": (changed(2, [["a"] * 4] * 4), ("images/002.png", "not a 4x4 matrix")),
    "huge integer": (changed(2, [[10**400] * 4] * 4), ("images/002.png", "not a 4x4 matrix")),
    "NaN": (bend(2, r0c3=np.nan), ("images/002.png", "NaN, infinity")),
    "infinity": (bend(2, r0c3=np.inf), ("images/002.png", "NaN, infinity")),
    "huge": (bend(2, r0c3=1e300), ("images/002.png", "beyond all use")),
    "last row": (bend(2, r3c3=2.0), ("images/002.png", "last row is 0 0 0 2 instead of 0 0 0 1", "rows first")),
    "transposed": (ring().transpose(0, 2, 1), ("images/000.png", "last row is 2.5 0 0.4 1", "Transpose")),
    "singular": (bend(2, r0c0=0, r1c0=0, r2c0=0), ("singular: images/002.png (1 of 12 frames)",)),
    "zero": (ring() * [[0, 0, 0, 1]] + np.diag([0, 0, 0, 1]) * 0, ("singular", "(12 of 12 frames)")),
    "mirrored world": (MIRROR @ ring(), ("left-handed", "images/002.png and 9 more (12 of 12 frames)", "Unity")),
    "mirrored camera": (changed(3, ring()[3] @ MIRROR), ("left-handed", "images/003.png (1 of 12 frames)")),
    "sheared": (SHEAR @ ring(), ("sheared or stretched", "right angles")),
    "stretched": (np.diag([1.0, 1.0, 1.2, 1.0]) @ ring(), ("sheared or stretched", "(12 of 12 frames)")),
    "tripod": (at(np.zeros((COUNT, 3))), ("all 12 cameras stand at one place", "parallax")),
    "tripod elsewhere": (at(np.tile([1.0, 2.0, 3.1], (COUNT, 1))), ("all 12 cameras stand at one place",)),
    "tripod on a map": (at(UTM + 1e-4 * ring()[:, :3, 3]), ("all 12 cameras stand at one place",)),
    "a map's ring in float32": (at((UTM + 0.1 * ring()[:, :3, 3]).astype(np.float32)), ("one place", "more digits")),
    "not centered": (at(UTM + ring()[:, :3, 3]), ("within 2.5 of each other", "from the origin", "rounds", "Subtract")),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_right_is_refused_in_one_line(case):
    matrices, expected = REFUSED[case]
    with pytest.raises(InputError) as caught:
        check(matrices)
    assert_clear(str(caught.value), ("transforms.json", *expected))


def test_nothing_to_read_is_refused():
    with pytest.raises(InputError, match="no frames"):
        check([])


def test_a_scale_in_the_rotations_is_taken_out_and_said():
    """Positions stay: a similarity of the whole scene leaves its scale in the rotations alone."""
    for factors, said in ((np.full(COUNT, 2.0), "a scale of 2,"), (np.linspace(0.001, 3.0, COUNT), "0.001 to 3,")):
        scaled = ring()
        scaled[:, :3, :3] *= factors[:, None, None]
        found = check(scaled)
        np.testing.assert_allclose(found.matrices, ring(), atol=1e-14)
        assert len(found.notes) == 1 and said in found.notes[0] and "images/000.png" in found.notes[0]


@pytest.mark.parametrize(
    "given,is_said", [(np.round(ring(), 6), False), (np.round(ring(), 3), False), (ring() * [1, 1.005, 1, 1], True)]
)
def test_bent_rotations_become_the_nearest_ones(given, is_said):
    found = check(given)
    rotations = found.matrices[:, :3, :3]
    np.testing.assert_allclose(rotations @ rotations.transpose(0, 2, 1), np.tile(np.eye(3), (COUNT, 1, 1)), atol=2e-6)
    np.testing.assert_allclose(rotations, ring()[:, :3, :3], atol=2e-3)
    assert any("straightened" in note for note in found.notes) == is_said
    # No rotation is nearer: the polar factor against small turns of it.
    for axis, sign in itertools.product(range(3), (-1.0, 1.0)):
        other = np.cross(np.eye(3), sign * 1e-3 * np.eye(3)[axis])
        turned = rotations + rotations @ other
        distance, further = (np.square(each - given[:, :3, :3]).sum(axis=(1, 2)) for each in (rotations, turned))
        assert (distance <= further + 1e-12).all()


def test_centering_keeps_what_float32_would_lose():
    """Ten thousand kilometers away, rounded after centering, the ring is itself to a millionth."""
    shift = np.array([1e7, -1e7, 1e7])
    found = check(at(shift + ring()[:, :3, 3]), is_centered=True)
    assert found.notes == ()
    rounded = found.matrices[:, :3, 3].astype(np.float32).astype(np.float64)
    truth = ring()[:, :3, 3]
    np.testing.assert_allclose(rounded, truth - truth.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(found.center, shift + truth.mean(axis=0), rtol=1e-15)
    late = (shift + truth).astype(np.float32).astype(np.float64)
    assert np.abs(late - shift - truth).max() > 0.2


def test_positions_that_were_rounded_already_are_said():
    rounded = at((UTM + 100.0 * ring()[:, :3, 3]).astype(np.float32))
    (note,) = check(rounded, is_centered=True).notes
    assert_clear(note, ("were written in float32", "5,432,", "Export them in float64"))
    assert check(at(UTM + 100.0 * ring()[:, :3, 3]), is_centered=True).notes == ()


@pytest.mark.parametrize("ratio", [100.0, 1600.0, 1700.0, 1e5])
def test_the_limit_of_rounding_is_a_tenth_of_a_pixel(ratio):
    """Cameras of reach 1 at a distance: the limit lies where float32 moves them by 1e-4."""
    positions = np.array([[-1.0, 0.0, 0.1], [1.0, 0.0, 0.2], [0.0, 0.3, 0.0]]) + [ratio, 0.0, 0.0]
    assert rounds_too_much(positions) == (ratio * 2.0**-24 > 1e-4)
    assert not rounds_too_much(positions[:1])


def far(*offsets: Any) -> np.ndarray:
    """The ring with its last cameras moved away."""
    positions = ring()[:, :3, 3]
    for index, offset in enumerate(reversed(offsets)):
        positions[COUNT - 1 - index] += offset
    return at(positions)


@pytest.mark.parametrize("offsets", [[1e6], [1e6, 1e6], [1e6, -1e6], [1e6, 2e6, 1e9], [[0, 0, 7e4]], [1e4] * 6])
def test_far_cameras_are_named(offsets):
    with pytest.raises(InputError) as caught:
        check(far(*offsets))
    names = [NAMES[COUNT - len(offsets) + index] for index in range(min(len(offsets), 3))]
    if len(offsets) == 6:
        # Of two equal parts the one is as good as the other.
        names = []
    count = f"({len(offsets)} of 12 frames)"
    assert_clear(str(caught.value), (*names, count, "far from all other cameras", "Remove the frames, or"))


@pytest.mark.parametrize("distance,said", [(30.0, 0), (90.0, 1), (1000.0, 1)])
def test_somewhat_far_cameras_are_said(distance, said):
    notes = check(far(distance)).notes
    assert len(notes) == said
    for note in notes:
        assert_clear(note, (NAMES[-1], "(1 of 12 frames)", "if their poses are wrong"))


def test_the_said_shrinking_is_what_the_reader_would_do():
    """The reader scales the largest coordinate about the mean to one."""
    matrices = far(500.0)
    positions = matrices[:, :3, 3]
    reach = [np.abs(each - each.mean(axis=0)).max() for each in (positions, positions[:-1])]
    assert f"{reach[0] / reach[1]:.3g} times" in check(matrices).notes[0]


def test_ordinary_captures_have_no_outliers():
    """Rings, grids, long walks, ever larger distances, clouds, pairs: whatever is a capture without a gap."""
    generator = np.random.default_rng(0)
    steps = np.arange(200.0)
    captures = {
        "walk": np.stack([steps, np.sin(steps / 9), np.zeros(200)], axis=1),
        "zoom": 1.1 ** steps[:100, None] * generator.normal(size=(100, 3)),
        "cloud": generator.normal(size=(300, 3)),
        "heavy cloud": generator.standard_t(3, size=(300, 3)),
        "grid": np.stack(np.meshgrid(steps[:10], steps[:10], [0.0]), axis=-1).reshape(-1, 3),
        "stereo": np.repeat(50.0 * generator.normal(size=(40, 3)), 2, axis=0) + generator.normal(size=(80, 3)) * 0.01,
        "two floors": np.concatenate([generator.normal(size=(20, 3)), generator.normal(size=(20, 3)) + [0, 0, 12]]),
        "a pair and one": np.array([[0.0, 0, 0], [0.1, 0, 0], [5.0, 1, 1]]),
    }
    assert {name: named(at(positions)).notes for name, positions in captures.items()} == dict.fromkeys(captures, ())


def test_cameras_on_a_line_are_said():
    line = np.linspace(0, 1, COUNT)[:, None] * [[3.0, 1.0, -2.0]]
    (note,) = check(at(line)).notes
    assert_clear(note, ("all 12 cameras stand on one line", "pca", "rail"))
    assert check(at(line + 0.01 * ring()[:, :3, 3])).notes == ()
    assert check(at(line)[:2]).notes == ()


def test_copied_poses_are_said_unless_the_views_differ():
    matrices = ring()
    matrices[5], matrices[7] = matrices[2], matrices[2]
    (note,) = check(matrices).notes
    assert_clear(note, ("the same pose", "images/002.png = images/005.png = images/007.png"))
    assert check(matrices, views=list(range(COUNT))).notes == ()
    # The same file twice is another fault, and another's to say.
    assert check_poses(list(ring()[[0, 1, 2, 2]]), ["0", "1", "2", "2"], "file").notes == ()


def test_held_out_cameras_may_stand_anywhere():
    assert check(at(np.zeros((COUNT, 3))), is_whole=False).notes == ()
    assert check(far(1e6), is_whole=False).notes == ()
    assert check(ring()[:1]).notes == ()


def test_axes_that_nothing_determines_are_refused():
    down = np.tile(np.eye(4), (COUNT, 1, 1))
    angles = 2 * np.pi * np.arange(COUNT) / COUNT
    down[:, :2, 0] = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    down[:, :2, 1] = np.stack([-np.sin(angles), np.cos(angles)], axis=1)
    with pytest.raises(InputError, match="upward directions cancel out.*--orientation-method pca or none."):
        check_axes(down, "up", "poses", "file")
    with pytest.raises(InputError, match="look the same way.*--center-method poses."):
        check_axes(down, "pca", "focus", "file")
    check_axes(down, "pca", "poses", "file")
    check_axes(ring(), "vertical", "focus", "file")


@pytest.mark.parametrize("transform", ["x", [[1.0]], np.full((3, 4), np.nan), np.zeros((3, 4)), 2 * np.eye(4), {}])
def test_a_transform_that_is_none_is_refused(transform):
    with pytest.raises(InputError, match="file: 'applied_transform'.*Correct it, or remove it."):
        read_similarity(transform, None, "file")


@pytest.mark.parametrize("scale", ["x", 0, -1.0, np.nan, np.inf, [1, 2], 1e300])
def test_a_scale_that_is_none_is_refused(scale):
    with pytest.raises(InputError, match="file: 'applied_scale' is"):
        read_similarity(None, scale, "file")
