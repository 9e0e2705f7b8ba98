"""The window of pixels from a disk: what is drawn, what it is replaced by, and that nothing depends on when."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from _disk import SIZES, mask_some
from _scenes import assert_clear, checkpoint, load, make_datamanager, start, tiny_config, train, write_scene

from nerfstudio.utils.rich_utils import CONSOLE

from zipnerf_ns.data.datamanager import ZipNerfDataManager
from zipnerf_ns.data.disk import window
from zipnerf_ns.data.disk.window import PixelsConfig, Window
from zipnerf_ns.data.pixels import PixelStore
from zipnerf_ns.errors import InputError

pytestmark = pytest.mark.usefixtures("fresh_writers")

SMALL = 1e-9
"""GiB: as few pieces as there may be, 8 of 45, or of 11 with masks."""


def make_window(tmp_path: Path, is_masked: bool = False, **options: Any) -> ZipNerfDataManager:
    scene = write_scene(tmp_path / "scene", 6, SIZES)
    if is_masked:
        mask_some(scene)
    manager = make_datamanager(scene, pixels=PixelsConfig("disk", buffer=SMALL), **options)
    assert isinstance(manager.pixels, Window) and manager.pixels.num_pieces == 8
    return manager


@pytest.mark.parametrize("is_masked", [False, True], ids=["all", "masked"])
def test_batches_are_of_their_pixels_all_the_way(tmp_path, is_masked):
    """Through the whole store and once more around: colors are of their places, and every pixel comes."""
    manager = make_window(tmp_path, is_masked)
    pixels, names = manager.pixels, [int(path.stem) for path in manager.train_dataset.image_filenames]
    addresses = pixels.colors.data_ptr(), pixels.allowed.data_ptr()
    seen, total = set(), pixels.store.order.num_pixels
    for count in range(0, 2 * total, 67):
        pixels.advance(count)
        assert pixels._held == range(count // pixels.store.order.length, count // pixels.store.order.length + 8)
        batch = pixels.sample(100)
        image, y, x = batch["indices"].unbind(-1)
        expected = torch.stack([torch.tensor(names)[image], y, x], dim=-1)
        assert torch.equal((batch["image"] * 255.0).round().long(), expected)
        assert not is_masked or ((y % 3 == 1) & (torch.tensor(names)[image] != 2)).all()
        seen.update(pixels.allowed.tolist())
    assert len(seen) == total and (pixels.colors.data_ptr(), pixels.allowed.data_ptr()) == addresses


@pytest.fixture
def even(tmp_path: Path) -> Window:
    """8 pieces of 144 pixels, of 256, which six photos fill."""
    scene = write_scene(tmp_path / "scene", sizes=[(96, 64)] * 8)
    return make_datamanager(scene, pixels=PixelsConfig("disk", buffer=SMALL)).pixels


def test_every_pixel_is_drawn_once_before_any_is_again(even):
    """From when the first pieces are there on, as far as steps end where pieces' stays do."""
    rays, total = 32, even.store.order.num_pixels
    counts = torch.zeros(total)
    for step in range(36, 36 + total // rays):
        even.advance(step * rays)
        counts += torch.bincount(even.allowed[even.draw(rays)], minlength=total)
    assert (counts == 1).all()


def test_rays_of_a_step_are_spread_over_photos_and_within_them(even):
    """Each photo and each part of it has its share, but for a ray of each piece at the most."""
    for step in (0, 7, 100):
        even.advance(step * 960)
        pixels = even.allowed[even.draw(960)].long()
        for parts in (6, 64):
            counts = torch.bincount(pixels // (even.store.order.num_pixels // parts), minlength=parts)
            assert len(counts) == parts and (counts - 960 / parts).abs().max() <= 8


def test_draws_go_on_by_themselves(tmp_path):
    """As a graph's replays do, and exports, which take no steps."""
    pixels = make_window(tmp_path).pixels
    at_once = pixels.draw(90)
    pixels.advance(0)
    parts = [pixels.draw(40), pixels.draw(50)]
    assert torch.equal(torch.cat(parts), at_once) and len(at_once.unique()) == 90


def test_where_the_window_is_follows_from_the_step_alone(tmp_path):
    """Forwards, backwards, or at once."""
    first, second = make_window(tmp_path).pixels, make_window(tmp_path / "other").pixels
    for count in (0, 40, 500, 30, 3_000, 3_020):
        for step in range(0, count, 64):
            first.advance(step)
        first.advance(count)
        second.advance(count)
        assert torch.equal(first.colors, second.colors) and torch.equal(first.allowed, second.allowed)


def test_processes_read_pieces_of_their_own(tmp_path, monkeypatch):
    pixels = make_window(tmp_path).pixels
    monkeypatch.setattr(window, "get_world_size", lambda: 3)
    found = []
    for rank in range(3):
        monkeypatch.setattr(window, "get_rank", lambda rank=rank: rank)
        pixels._held = range(0)
        pixels.advance(0)
        first = set(pixels.allowed.tolist())
        pixels.advance(7 * pixels.store.order.length)
        found.append(first | set(pixels.allowed.tolist()))
    # Of 38 pieces each has read 15, from the first, the 13th and the 26th on.
    assert len(set.union(*found)) == pixels.store.order.num_pixels and pixels.store.order.num_pieces == 38
    assert [len(one & two) for one, two in zip(found, found[1:], strict=False)] == [3 * 50, 2 * 50]


def test_a_window_of_everything_stands_still(tmp_path):
    scene = write_scene(tmp_path / "scene", 6, SIZES)
    pixels = make_datamanager(scene, pixels=PixelsConfig("disk")).pixels
    for count in (0, 10_000):
        pixels.advance(count)
        assert pixels._held == range(pixels.store.order.num_pieces)
    memory = make_datamanager(scene).pixels
    assert torch.equal(pixels.allowed.unique().long(), torch.arange(len(memory)))


def test_what_fits_into_memory_is_kept_there(tmp_path, monkeypatch):
    """With room for what else is needed, and a tenth more; asked for, it is on disk in any case."""
    dataset = make_datamanager(write_scene(tmp_path / "scene"), test_mode="test").train_dataset
    data, needed = tmp_path / "scene", 6 * 24 * 16 * 3
    for room, kind in ((1.09 * needed + 50, Window), (1.11 * needed + 50, PixelStore)):
        monkeypatch.setattr(window, "room_on", lambda device, room=room: room)
        assert type(window.open_pixels(dataset, "cpu", PixelsConfig(), data, beside=50)) is kind
    found = window.open_pixels(dataset, "cpu", PixelsConfig("disk", folder=tmp_path / "there"), data)
    folder = found.store.folder
    assert folder.parent == tmp_path / "there" and len(list((data / ".zipnerf-pixels").rglob("pixels.bin"))) == 1
    found.remove()
    assert not folder.exists()


def test_a_buffer_of_nothing_is_refused():
    with pytest.raises(InputError, match=r"--pipeline\.datamanager\.pixels\.buffer is 0\.0"):
        PixelsConfig(buffer=0.0)


def test_reading_errors_end_the_training_in_one_line(tmp_path):
    manager = make_window(tmp_path)
    manager.pixels.store.remove()
    with pytest.raises(InputError, match=r"No such file or directory\. Choose another place"):
        manager.next_train(0)


def config_from_disk(scene: Path, output: Path, **changes: Any) -> Any:
    """Several pieces a step."""
    made = tiny_config(scene, output, 9, **{"steps_per_save": 4, **changes})
    made.pipeline.datamanager.pixels = PixelsConfig("disk", buffer=SMALL)
    made.pipeline.datamanager.train_num_rays_per_batch = 40
    return made


def assert_same_parameters(first: Any, second: Any) -> None:
    first, second = (load(checkpoint(config, 8))["pipeline"] for config in (first, second))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_training_from_disk_resumes_with_the_same_bits(tmp_path):
    """With a store that goes when the training is done."""
    scene = write_scene(tmp_path / "scene", sizes=[(36, 32)] * 8)
    whole = config_from_disk(scene, tmp_path / "whole")
    trainer, losses = train(whole)
    pixels = trainer.pipeline.datamanager.pixels
    assert pixels.store.order.length == 51 and pixels._held == range(8 * 40 // 51, 8 * 40 // 51 + 8)
    # Also where it is measured on other views, and pixels are read last.
    other = config_from_disk(scene, tmp_path / "other").setup()
    other.setup("test")
    other.train()
    assert other.pipeline.datamanager.pixels._held == pixels._held
    resumed = config_from_disk(scene, tmp_path / "resumed", load_checkpoint=checkpoint(whole, 4))
    resumed.pipeline.datamanager.pixels.keep = False
    trainer, continued = train(resumed, seed=99)
    assert continued == {step: losses[step] for step in range(5, 9)}
    assert_same_parameters(whole, resumed)
    assert not trainer.pipeline.datamanager.pixels.store.folder.exists()


def test_a_disk_that_is_gone_costs_no_step(tmp_path):
    """It ends the training, after a checkpoint of the step before and with how to go on: as if it had been there."""
    scene = write_scene(tmp_path / "scene", sizes=[(36, 32)] * 8)
    whole, broken = (config_from_disk(scene, tmp_path / name, steps_per_save=1000) for name in ("whole", "broken"))
    train(whole)
    trainer = start(broken)
    iterate, pixels = trainer.train_iteration, trainer.pipeline.datamanager.pixels
    folder = pixels.store.folder

    def iteration(step: int) -> Any:
        if step == 4:
            for piece in pixels._reading.values():
                piece.result()
            folder.rename(tmp_path / "gone")
        return iterate(step)

    trainer.train_iteration = iteration
    with CONSOLE.capture() as said, pytest.raises(SystemExit) as ended:
        trainer.train()
    (line,) = [line for line in said.get().splitlines() if line.startswith("Error:")]
    # The piece that came with step 6 had been read before.
    kept = checkpoint(broken, 6)
    assert ended.value.code == 1
    assert_clear(line, (str(folder), "pixels.folder FOLDER", str(kept), "--load-dir"))
    resumed = config_from_disk(scene, tmp_path / "resumed", load_checkpoint=kept)
    train(resumed, seed=99)
    assert_same_parameters(whole, resumed)


def test_the_disk_is_said_where_a_training_waits_for_it(tmp_path, monkeypatch, capfd):
    pixels = make_window(tmp_path).pixels
    monkeypatch.setattr(window, "LONG", -1.0)
    pixels.advance(0)
    assert "waits for" not in capfd.readouterr().out
    pixels.advance(100)
    assert "waits for" in capfd.readouterr().out

