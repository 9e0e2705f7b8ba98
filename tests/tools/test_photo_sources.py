"""What is found among the files that a person gives, and what is refused before any work."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from zipnerf_ns.errors import InputError
from zipnerf_ns.tools.reconstruction import sources
from zipnerf_ns.tools.reconstruction.sources import find_sources


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"")
    return folder


def test_folders_are_sequences_in_natural_order(tmp_path: Path):
    first = touch(tmp_path / "a", "IMG_10.jpg", "IMG_2.JPG", "notes.txt", "IMG_1.png")
    second = touch(tmp_path / "b", "IMG_2.jpg", "Über 3.jpg", "img_2.webp")
    found = find_sources([first, second])
    assert [(photo.path.name, photo.stem, photo.sequence) for photo in found.photos] == [
        ("IMG_1.png", "IMG_1", 0),
        ("IMG_2.JPG", "IMG_2", 0),
        ("IMG_10.jpg", "IMG_10", 0),
        ("IMG_2.jpg", "IMG_2_2", 1),
        ("img_2.webp", "img_2_3", 1),
        ("Über 3.jpg", "_ber_3", 1),
    ]


def test_files_named_one_by_one_are_a_sequence_and_a_video_is_its_own(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(sources, "require_readers", lambda paths, has_videos: None)
    folder = touch(tmp_path / "a", *(f"{number}.jpg" for number in range(4)), "clip.MP4")
    found = find_sources([folder / "3.jpg", folder / "clip.MP4", folder / "1.jpg", folder / "1.jpg"])
    assert [(photo.path.name, photo.sequence) for photo in found.photos] == [("1.jpg", 0), ("3.jpg", 0)]
    assert found.videos == ((1, folder / "clip.MP4"),)


def test_a_raw_file_is_passed_over_where_it_lies_developed(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(sources, "require_readers", lambda paths, has_videos: None)
    folder = touch(tmp_path / "a", "1.jpg", "1.NEF", "2.NEF", "3.jpg")
    found = find_sources([folder])
    assert [photo.path.name for photo in found.photos] == ["1.jpg", "2.NEF", "3.jpg"]
    assert found.passed_over == (folder / "1.NEF",)


@pytest.mark.parametrize("place", ["photos/masks", "masks", "elsewhere"])
@pytest.mark.parametrize("name", ["2.png", "2.jpg.png", "2.JPG", "2_mask.png", "2.jpg_Mask.webp"])
def test_masks_are_found(tmp_path: Path, place: str, name: str):
    folder = touch(tmp_path / "photos", "1.jpg", "2.jpg", "3.jpg")
    mask = touch(tmp_path / place, name) / name
    found = find_sources([folder], tmp_path / place if place == "elsewhere" else None)
    assert [photo.mask for photo in found.photos] == [None, mask, None]


def test_what_a_mac_leaves_and_folders_are_no_photographs(tmp_path: Path):
    folder = touch(tmp_path / "a", "1.jpg", "2.jpg", "3.jpg", "._1.jpg", ".DS_Store")
    touch(folder / "4.jpg")
    assert [photo.path.name for photo in find_sources([folder]).photos] == ["1.jpg", "2.jpg", "3.jpg"]


def test_what_cannot_be_used_is_refused_in_a_line(tmp_path: Path):
    empty, two = touch(tmp_path / "empty", "notes.txt"), touch(tmp_path / "two", "1.jpg", "2.jpg")
    three = touch(tmp_path / "three", "1.jpg", "2.jpg", "3.jpg")
    masks = touch(tmp_path / "other", "7.png")
    unnamed = touch(tmp_path / "unnamed", "1.jpg", "2.jpg", "3.jpg")
    touch(unnamed / "masks", "mask_1.png")
    for given, folder, said in (
        ([tmp_path / "gone"], None, "gone does not exist"),
        ([empty], None, "no photographs or videos"),
        ([empty / "notes.txt"], None, "notes.txt is neither a photograph nor a video"),
        ([two], None, "2 photographs are too few"),
        ([three], three / "1.jpg", "is not a folder"),
        ([three], masks, "has no mask of any photograph: 1.png"),
        ([unnamed], None, "unnamed/masks has no mask of any photograph: 1.png.* Rename"),
    ):
        with pytest.raises(InputError, match=said):
            find_sources(given, folder)


def test_what_is_missing_to_read_files_is_named(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sources.features, "check", lambda name: False)
    folder = touch(tmp_path / "a", "1.heic", "2.AVIF", "3.dng", "4.mp4")
    with pytest.raises(InputError) as refused:
        find_sources([folder])
    assert str(refused.value) == (
        "HEIC and AVIF and RAW and video files cannot be read yet: "
        "pip install 'pillow-heif>=1,<2' 'Pillow>=11.3' 'rawpy>=0.21,<1' 'imageio-ffmpeg>=0.5,<1'."
    )


def test_every_ending_that_pillow_reads_is_known_to_it():
    """But AVIF, which older ones do not read."""
    Image.init()
    assert {".avif"} >= sources.PLAIN - Image.registered_extensions().keys()
