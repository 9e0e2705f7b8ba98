"""The store of training pixels: what it keeps, and what is drawn from it. (Uniformity: see test_datamanager.)"""

from __future__ import annotations

import struct
import threading
import weakref
import zlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
from _scenes import HEIGHT, WIDTH, make_datamanager, read_meta, tiny_config, write_meta, write_scene
from PIL import Image

from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.exporter import exporter_utils

from zipnerf_ns.data import checks, datamanager, images, pixels
from zipnerf_ns.data.checks import check_images
from zipnerf_ns.data.datamanager import ZipNerfDataManager
from zipnerf_ns.data.images import CheckedDataset, read_all
from zipnerf_ns.data.pixels import PixelStore, Thumbnails
from zipnerf_ns.errors import InputError


def two_images(allowed: torch.Tensor | None = None) -> PixelStore:
    """Pictures of 2x2 and 1x2 pixels (columns x rows), whose colors are their pixels' numbers."""
    colors = torch.arange(6, dtype=torch.uint8)[:, None].expand(6, 3).contiguous()
    return PixelStore(colors, torch.tensor([0, 4]), torch.tensor([2, 1]), allowed)


PIXELS = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1), (1, 0, 0), (1, 1, 0)]


@pytest.mark.parametrize("kept", [None, [0], [5], [1, 4]])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_pixels_are_drawn_with_their_colors_and_places(kept, dtype):
    store = two_images(None if kept is None else torch.tensor(kept, dtype=dtype))
    batch = store.sample(60)
    assert batch["indices"].dtype == torch.int64 and batch["image"].dtype == torch.float32
    numbers = (batch["image"][:, 0] * 255.0).round().long().tolist()
    assert [PIXELS[number] for number in numbers] == [tuple(pixel) for pixel in batch["indices"].tolist()]
    assert set(numbers) == set(range(6) if kept is None else kept)


def test_draws_are_what_sample_is_made_of():
    """A kernel that takes the same draws makes the same batch."""
    store = two_images()
    store.advance(40)
    drawn = store.draw(40)
    store.advance(40)
    assert torch.equal((store.sample(40)["image"][:, 0] * 255.0).round().long(), drawn)
    assert drawn.dtype == torch.int64 and int(drawn.min()) >= 0 and int(drawn.max()) <= 5


def counted(count: int) -> PixelStore:
    """So many pixels of one image, without memory of their own."""
    return PixelStore(torch.zeros(1, 3, dtype=torch.uint8).expand(count, 3), torch.tensor([0]), torch.tensor([1]), None)


@pytest.mark.parametrize("count", [1, 7, 64, 1000])
def test_every_pixel_is_drawn_once_before_any_comes_again(count):
    store = counted(count)
    for _ in range(3):
        rays = max(1, count // 3)
        drawn = torch.cat([store.draw(rays) for _ in range(count // rays)] + [store.draw(count % rays)])
        # One comes twice where another time around begins.
        assert len(drawn) == count and len(drawn.unique()) >= count - 1


def test_a_step_is_spread_over_all_pixels():
    store = counted(100_003)
    for _ in range(40):
        places = store.draw(256).sort().values
        gaps = torch.cat([places, places[:1] + 100_003]).diff()
        assert gaps.max() < 3.0 * 100_003 / 256 and gaps.min() > 0.2 * 100_003 / 256


def test_rays_of_some_number_are_not_always_of_the_same_pixels():
    """Of a step some rays see less than others, by their number."""
    store, seen = counted(64), set()
    for _ in range(8):
        seen |= set(store.draw(64)[::8].tolist())
    # All but where another time around begins.
    assert len(seen) >= 60


def test_draws_go_on_where_a_training_does_and_follow_its_seed(monkeypatch):
    torch.manual_seed(3)
    first, second = counted(1000), counted(1000)
    first.advance(0)
    expected = [first.draw(70) for _ in range(4)][-1]
    second.advance(3 * 70)
    assert torch.equal(second.draw(70), expected)
    torch.manual_seed(4)
    second.advance(3 * 70)
    assert not torch.equal(second.draw(70), expected)
    # Another process draws others.
    torch.manual_seed(3)
    monkeypatch.setattr(pixels, "get_rank", lambda: 1)
    monkeypatch.setattr(pixels, "get_world_size", lambda: 2)
    second.advance(3 * 70)
    assert not set(second.draw(70).tolist()) & set(expected.tolist())


def test_more_pixels_than_numbers_of_32_bits_have_are_drawn_from():
    store = counted(20_000_000_000)
    torch.manual_seed(2**63)
    store.advance(10**12)
    drawn = store.draw(1000)
    assert 0 <= int(drawn.min()) and int(drawn.max()) < len(store) and len(drawn.unique()) == 1000
    assert int(drawn.max() - drawn.min()) > 0.9 * len(store)


def test_thumbnails_are_the_images_made_small(tmp_path):
    """Of any size and shape, with the cameras that belong to them; smaller ones as they are."""
    sizes = [(24, 16), (330, 250), (100, 301), (640, 400)]
    manager = make_datamanager(write_scene(tmp_path / "scene", 4, sizes))
    thumbnails = Thumbnails(manager.train_dataset, manager.pixels)
    shapes = [thumbnails[index]["image"].shape for index in range(len(thumbnails))]
    assert shapes == [(16, 24, 3), (100, 132, 3), (301, 100, 3)]
    assert torch.equal(thumbnails[0]["image"], manager.train_dataset[0]["image"])
    # Green says which row of the image a pixel is, and goes from 0 to 249.
    rows = thumbnails[1]["image"][:, :, 1] * 255.0
    assert rows.std(dim=1).max() == 0.0
    assert torch.allclose(rows[:, 0], (torch.arange(100) + 0.5) * 2.5 - 0.5, atol=1.0)
    assert thumbnails.cameras is manager.train_dataset.cameras


def test_images_are_read_in_order_whoever_decodes_first(tmp_path, monkeypatch):
    """The first decodes last; one that cannot be decoded ends the reading with its error."""
    dataset = make_datamanager(write_scene(tmp_path / "scene")).train_dataset
    last, get_data = threading.Event(), dataset.get_data

    def data(index: int, image_type: str) -> dict:
        if index == 0:
            assert last.wait(30.0)
        elif index == len(dataset) - 1:
            last.set()
        return get_data(index, image_type=image_type)

    monkeypatch.setattr(dataset, "get_data", data)
    assert [each["image_idx"] for each in read_all(dataset, "Reading")] == list(range(len(dataset)))
    dataset.image_filenames[2].write_bytes(b"no picture")
    with pytest.raises(InputError, match=dataset.image_filenames[2].name):
        list(read_all(dataset, "Reading"))


def test_store_is_compact(tmp_path):
    """A byte a channel, four a pixel that a mask leaves: 300 images of 12 megapixels must fit beside the model."""
    scene = write_scene(tmp_path / "scene")
    (scene / "masks").mkdir()
    meta = read_meta(scene)
    Image.fromarray(np.full((HEIGHT, WIDTH), 255, np.uint8)).save(scene / "masks/all.png")
    for frame in meta["frames"]:
        frame["mask_path"] = "masks/all.png"
    write_meta(scene, meta)
    store = make_datamanager(scene).pixels
    assert store.colors.shape == (6 * WIDTH * HEIGHT, 3) and store.colors.dtype == torch.uint8
    assert store.allowed.dtype == torch.int32 and len(store.allowed) == len(store.colors)


@pytest.mark.parametrize("threads", [1, 3])
def test_no_more_images_are_held_than_are_decoded_at_a_time(tmp_path, monkeypatch, threads):
    """Beside the store that they are copied into: they are as large as it together."""
    dataset = make_datamanager(write_scene(tmp_path / "scene", 20), test_mode="test").train_dataset
    monkeypatch.setattr(images, "decoding_threads", lambda sizes, channels: threads)
    decoded, alive, get_data = [], [], dataset.get_data

    def data(index: int, image_type: str) -> dict:
        alive.append(sum(reference() is not None for reference in decoded))
        found = get_data(index, image_type=image_type)
        decoded.append(weakref.ref(found["image"]))
        return found

    monkeypatch.setattr(dataset, "get_data", data)
    store = PixelStore.load(dataset, "cpu")
    assert len(decoded) == len(dataset) > 10 and max(alive) <= threads + 1
    assert torch.equal(store.colors[-WIDTH * HEIGHT :].reshape(HEIGHT, WIDTH, 3), get_data(-1, "uint8")["image"])


@pytest.mark.parametrize(
    ("count", "pixels", "cores", "threads"),
    [
        (300, 24_000_000, 8, 11),
        (40, 24_000_000, 8, 1),
        (3, 200_000_000, 8, 1),
        (20, 2_000_000, 8, 4),
        (1000, 480_000, 8, 12),
        (0, 1, 2, 6),
    ],
)
def test_what_is_decoded_at_a_time_takes_a_tenth_of_all(monkeypatch, count, pixels, cores, threads):
    """Or 64 MiB, or one image."""
    monkeypatch.setattr(images.os, "cpu_count", lambda: cores)
    assert images.decoding_threads([(pixels, 1)] * count, 3) == threads


def test_a_picture_of_200_megapixels_is_no_attack(tmp_path):
    """A panorama; its header is enough."""
    header = struct.pack(">IIBBBBB", 20_000, 10_000, 8, 2, 0, 0, 0)
    chunks = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    )
    (tmp_path / "panorama.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    assert check_images([tmp_path / "panorama.png"], [(20_000, 10_000)]) is False


@pytest.mark.parametrize("test_mode", ["val", "test"])
def test_only_a_training_reads_its_images_at_once(tmp_path, test_mode):
    manager = make_datamanager(write_scene(tmp_path / "scene"), test_mode=test_mode)
    assert (manager.pixels is not None) == (test_mode == "val")
    bundle, batch = manager.next_train(0)
    assert len(bundle) == len(batch["image"]) == 64 and manager.pixels.colors.device.type == "cpu"


def test_what_other_programs_read_stays_in_main_memory(tmp_path, monkeypatch):
    manager = make_datamanager(write_scene(tmp_path / "scene"), test_mode="test")
    asked = []

    def load(dataset: CheckedDataset, device: str, *_: object) -> PixelStore:
        asked.append(device)
        return two_images()

    monkeypatch.setattr(datamanager, "open_pixels", load)
    manager.device = "cuda"
    for manager.test_mode in ("test", "val"):
        manager._load_pixels(manager.train_dataset)
    assert asked == ["cpu", "cuda"]
    # A training's own do not, whichever views it is measured on.
    manager.test_mode = "test"
    manager.hold_pixels()
    manager.hold_pixels()
    assert asked == ["cpu", "cuda", "cuda"]


def generate_point_cloud(manager: ZipNerfDataManager, found: Callable[[int], int]) -> int:
    """As Nerfstudio's of that name draws rays until 100 of them end in a box; returns how many batches it takes."""
    points: list[torch.Tensor] = []
    while sum(map(len, points)) < 100:
        manager.next_train(0)
        points.append(torch.zeros(found(len(points)), 3))
    return len(points)


def test_an_export_that_finds_little_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "FRUITLESS_RAYS", 10 * 64)
    manager = make_datamanager(write_scene(tmp_path / "scene"), test_mode="test")
    assert generate_point_cloud(manager, lambda batch: 5 if batch % 10 == 9 else 0) == 200


def test_an_export_that_finds_nothing_ends(tmp_path, monkeypatch):
    """Nerfstudio's own, of a box far away."""
    monkeypatch.setattr(checks, "FRUITLESS_RAYS", 4 * 64)
    pipeline = tiny_config(write_scene(tmp_path / "scene"), tmp_path).pipeline.setup(device="cpu", test_mode="test")
    pipeline.eval()
    box = OrientedBox.from_params((100.0, 0.0, 0.0), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    with pytest.raises(InputError, match=r"of 256 rays none.*--obb-center"):
        exporter_utils.generate_point_cloud(pipeline, num_points=100, crop_obb=box)
