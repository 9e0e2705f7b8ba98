"""The store on disk: every pixel is in it once, however its writing was interrupted, and what is read is checked."""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _disk import SIZES, mask_some
from _scenes import make_datamanager, write_scene

from zipnerf_ns.data.disk import store as stores
from zipnerf_ns.data.disk.store import CHECKS, MANIFEST, PIXELS, DiskStore
from zipnerf_ns.data.images import CheckedDataset
from zipnerf_ns.data.pixels import PixelStore
from zipnerf_ns.errors import InputError


def make_dataset(scene: Path, **options: Any) -> CheckedDataset:
    return make_datamanager(scene, test_mode="test", **options).train_dataset


def read_all_pieces(store: DiskStore) -> tuple[torch.Tensor, torch.Tensor]:
    """Colors and numbers of all pieces."""
    pieces, length = store.order.num_pieces, store.order.length
    colors = np.empty((pieces, length, store.channels), np.uint8)
    numbers = np.empty((pieces, length), np.int32)
    for piece in range(pieces):
        store.read(piece, colors[piece], numbers[piece])
    return torch.from_numpy(colors).flatten(0, 1), torch.from_numpy(numbers).flatten().long()


def assert_holds_all(store: DiskStore, dataset: CheckedDataset) -> None:
    """Every pixel that may be drawn is in it once, but for those that fill the last run, and has its color."""
    memory = PixelStore.load(dataset, "cpu")
    colors, numbers = read_all_pieces(store)
    assert torch.equal(colors, memory.colors[numbers])
    expected = torch.arange(len(memory.colors)) if memory.allowed is None else memory.allowed.long()
    assert torch.equal(numbers.unique(), expected)
    assert len(numbers) - len(expected) < store.order.num_pieces


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The images that are written, as it goes."""
    images: list[int] = []
    write = DiskStore._write_image

    def note(store: DiskStore, index: int) -> None:
        write(store, index)
        images.append(index)

    monkeypatch.setattr(DiskStore, "_write_image", note)
    return images


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("is_masked", [False, True], ids=["all", "masked"])
def test_every_pixel_is_in_the_store_once(tmp_path, written, channels, is_masked):
    scene = write_scene(tmp_path / "scene", 6, SIZES, channels)
    if is_masked:
        mask_some(scene)
    dataset = make_dataset(scene)
    assert_holds_all(store := DiskStore(dataset, tmp_path), dataset)
    assert sorted(written) == list(range(len(dataset)))
    memory = PixelStore.load(dataset, "cpu")
    again = DiskStore(dataset, tmp_path)
    assert len(written) == len(dataset) and again.folder == store.folder
    for index in range(len(dataset)):
        assert torch.equal(again.thumbnail(index), memory.thumbnail(index))


def test_a_fisheyes_circle_is_kept_to(tmp_path):
    dataset = make_dataset(write_scene(tmp_path / "scene", 6, SIZES))
    dataset.crop_radius = 6.0
    assert_holds_all(DiskStore(dataset, tmp_path), dataset)


def test_an_interrupted_writing_goes_on(tmp_path, monkeypatch, written):
    """After an image that cannot be read, and after a kill: what is there is not written again."""
    scene = write_scene(tmp_path / "scene", 8)
    dataset, get_data = make_dataset(scene), CheckedDataset.get_data
    monkeypatch.setattr(stores.os, "cpu_count", lambda: -3)

    def fail(self: CheckedDataset, index: int, image_type: str) -> dict[str, Any]:
        if index == 3:
            raise InputError("image 3 cannot be decoded")
        return get_data(self, index, image_type)

    monkeypatch.setattr(CheckedDataset, "get_data", fail)
    with pytest.raises(InputError, match="image 3"):
        DiskStore(dataset, tmp_path)
    assert {0, 1, 2} <= set(written) <= {0, 1, 2, 4, 5}
    monkeypatch.setattr(CheckedDataset, "get_data", get_data)
    store = DiskStore(dataset, tmp_path)
    assert sorted(written) == [0, 1, 2, 3, 4, 5]
    # As if killed while the fifth row of checksums was written.
    os.truncate(store.folder / CHECKS, 4 * (store.order.num_pieces + 1) * 4 + 100)
    assert_holds_all(DiskStore(dataset, tmp_path), dataset)
    assert written[6:] == [4, 5]


@pytest.mark.parametrize("is_masked", [False, True], ids=["all", "masked"])
def test_what_was_altered_is_written_anew(tmp_path, written, capfd, is_masked):
    scene = write_scene(tmp_path / "scene", 8)
    if is_masked:
        mask_some(scene)
    dataset = make_dataset(scene)
    store = DiskStore(dataset, tmp_path)
    written.clear()
    for place in (5, (store._number_place if is_masked else store._color_place)(store.order.num_pieces - 1) + 1):
        with open(store.folder / PIXELS, "r+b") as file:
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ 4]))
    assert_holds_all(store, dataset)
    assert written and "Pixels of 1 images in" in capfd.readouterr().out
    # Cut off while it is open, and before.
    written.clear()
    os.truncate(store.folder / PIXELS, store._color_place(store.order.num_pieces // 2))
    assert_holds_all(store, dataset)
    assert len(written) >= len([index for index in range(6) if not is_masked or index != 2])
    os.truncate(store.folder / PIXELS, 1000)
    assert_holds_all(DiskStore(dataset, tmp_path), dataset)
    # Beside a line that is broken stands what has logged it.
    told = re.sub(r"errors\.py:\d+", "", capfd.readouterr().out)
    assert "was cut short: it is written anew" in " ".join(told.split())


def test_a_disk_that_forgets_is_given_up(tmp_path, monkeypatch):
    store = DiskStore(make_dataset(write_scene(tmp_path / "scene")), tmp_path)
    monkeypatch.setattr(stores, "write_fully", lambda file, values: None)
    os.truncate(store.folder / PIXELS, 100)
    with pytest.raises(InputError, match=r"does not keep what is written.*--pipeline\.datamanager\.pixels\.folder"):
        read_all_pieces(store)


def test_other_photos_and_another_treatment_have_another_folder(tmp_path):
    dataset = make_dataset(write_scene(tmp_path / "scene"))
    folders = [DiskStore(dataset, tmp_path).folder]
    os.utime(dataset.image_filenames[1], (1, 1))
    folders.append(DiskStore(dataset, tmp_path).folder)
    dataset.has_alpha = True
    folders.append(DiskStore(dataset, tmp_path).folder)
    assert len(set(folders)) == 3


def test_a_store_moves_with_its_data(tmp_path, written):
    write_scene(tmp_path / "scene")
    DiskStore(make_dataset(tmp_path / "scene"), tmp_path / "scene/stores")
    shutil.move(tmp_path / "scene", tmp_path / "moved")
    DiskStore(make_dataset(tmp_path / "moved"), tmp_path / "moved/stores")
    assert sorted(written) == list(range(6))


def test_others_files_are_left_alone(tmp_path):
    dataset = make_dataset(write_scene(tmp_path / "scene"))
    store = DiskStore(dataset, tmp_path)
    (store.folder / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"thesis\.txt, which is not of a store"):
        DiskStore(dataset, tmp_path)
    (store.folder / "thesis.txt").unlink()
    (store.folder / MANIFEST).write_text("{")
    assert_holds_all(DiskStore(dataset, tmp_path), dataset)
    store.remove()
    assert not store.folder.exists()


def test_a_full_disk_is_told_before_anything_is_written(tmp_path, monkeypatch, written):
    dataset = make_dataset(write_scene(tmp_path / "scene"))
    with monkeypatch.context() as patch:
        patch.setattr(stores.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 5, 5))
        with pytest.raises(InputError, match=r"pixels of 6 images need .* are free\. Choose another place"):
            DiskStore(dataset, tmp_path)

    def refuse(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(stores.os, "posix_fallocate", refuse, raising=False)
    with pytest.raises(InputError, match=r"No space left on device\. Choose another place"):
        DiskStore(dataset, tmp_path)
    assert written == [] and not list(tmp_path.rglob(PIXELS))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"Not a directory\. Choose another place"):
        DiskStore(dataset, tmp_path / "file")
