"""Which pictures are compared, which hang together, and which frames of a video are taken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from zipnerf_ns.errors import InputError
from zipnerf_ns.tools.reconstruction import pairs, videos


def test_few_pictures_are_compared_with_all():
    assert pairs.first_pairs([0, 0, 1, 2]) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]


def test_many_are_compared_with_neighbors_and_with_some_all_over():
    sequences = [0] * 150 + [1] * 90
    chosen = pairs.first_pairs(sequences)
    count = len(sequences)
    assert chosen == sorted(set(chosen)) and all(0 <= first < second < count for first, second in chosen)
    known = set(chosen)
    for first in range(count - 1):
        following = range(first + 1, min(first + pairs.NEIGHBORS + 1, count))
        assert all((first, second) in known for second in following if sequences[first] == sequences[second])
    partners = [[] for _ in sequences]
    for first, second in chosen:
        partners[first].append(second)
        partners[second].append(first)
    for index, others in enumerate(partners):
        # On the circle of all, no stretch without a partner is longer than the spread makes it.
        around = np.sort([*others, index])
        gaps = np.diff([*around, around[0] + count])
        assert gaps.max() <= np.ceil(count / (pairs.SPREAD + 1)) + 1
    assert len(chosen) <= count * (pairs.NEIGHBORS + pairs.SPREAD / 2)


def test_the_second_round_compares_what_matches_the_same_others():
    star = [(0, 1), (0, 2), (1, 3), (2, 3), (4, 5)]
    assert pairs.second_pairs(6, star, star) == [(0, 3), (1, 2)]
    assert pairs.second_pairs(6, star, [*star, (0, 3)]) == [(1, 2)]
    assert pairs.second_pairs(3, [], []) == []


def test_groups_hang_together():
    assert pairs.groups(6, [(4, 5), (0, 3), (3, 4)]) == [[0, 3, 4, 5], [1], [2]]


@pytest.mark.parametrize(("count", "wanted"), [(10, 5), (7, 3), (3, 9), (4, 4)])
def test_of_each_piece_of_a_video_the_sharpest_frame_is_taken(count: int, wanted: int):
    values = np.random.default_rng(count).permutation(count)
    chosen = list(videos.sharpest(values, count, wanted, measure=float))
    pieces = np.array_split(np.arange(count), min(wanted, count))
    if count % min(wanted, count) == 0:
        assert [index for index, _ in chosen] == [int(piece[values[piece].argmax()]) for piece in pieces]
    assert len(chosen) == len(pieces) and all(values[index] == value for index, value in chosen)


def test_frames_beyond_the_announced_number_belong_to_the_last_piece():
    assert list(videos.sharpest([1.0, 0.0, 2.0, 3.0, 9.0, 4.0], 4, 2, measure=float)) == [(0, 1.0), (4, 9.0)]


def test_blur_is_less_sharp():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (41, 60, 3), dtype=np.uint8))
    values = [videos.sharpness(np.asarray(noise.filter(ImageFilter.GaussianBlur(radius)))) for radius in (0, 1, 3)]
    assert values == sorted(values, reverse=True) and values[0] > 2.0 * values[1]


def test_a_real_video_gives_its_sharp_frames_once(tmp_path: Path):
    ffmpeg = pytest.importorskip("imageio_ffmpeg", reason="imageio-ffmpeg, which reads videos, is not installed")
    base = np.random.default_rng(1).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    sharp = Image.fromarray(base).resize((128, 96), Image.Resampling.NEAREST)
    writer = ffmpeg.write_frames(str(tmp_path / "clip.mp4"), (128, 96), fps=10, quality=9)
    writer.send(None)
    for index in range(12):
        writer.send(np.asarray(sharp if index % 3 == 1 else sharp.filter(ImageFilter.GaussianBlur(4))).tobytes())
    writer.close()
    shares: list[float] = []
    arguments = (tmp_path / "clip.mp4", "clip", 5, 4, tmp_path / "frames", shares.append)
    taken = videos.take_frames(*arguments)
    assert [(photo.stem, photo.sequence) for photo in taken] == [(f"clip_{index:05d}", 5) for index in (1, 4, 7, 10)]
    with Image.open(taken[0].path) as frame:
        assert np.abs(np.asarray(frame, dtype=float) - np.asarray(sharp)).mean() < 16.0
    assert sum(shares) == pytest.approx(1.0)
    assert videos.take_frames(*arguments) == taken and sum(shares) == pytest.approx(1.0)


def test_what_is_no_video_is_refused(tmp_path: Path):
    pytest.importorskip("imageio_ffmpeg", reason="imageio-ffmpeg, which reads videos, is not installed")
    (tmp_path / "clip.mp4").write_text("no video")
    with pytest.raises(InputError, match="clip.mp4 cannot be read as a video"):
        videos.open_video(tmp_path / "clip.mp4")
