"""Pictures in chunks: they equal the whole, shrink where memory does not suffice, and remember it."""

from __future__ import annotations

import weakref

import pytest
import torch
from _rays import make_bundle
from torch import Tensor, nn

from zipnerf_ns.errors import say_once
from zipnerf_ns.render import chunks as rendering
from zipnerf_ns.render.chunks import MIN_CHUNK, ChunkLimit, rays_that_fit, render_in_chunks

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class StubModel(nn.Module):
    """Renders each ray's own origin, and runs out of memory beyond ``fits`` rays at once."""

    device = CPU
    uses_kernels = False

    def __init__(self, fits: int = 2**30) -> None:
        super().__init__()
        self.fits = fits
        self.tried: list[int] = []
        self.held: list[weakref.ref] = []

    def forward(self, bundle) -> dict:
        self.tried.append(len(bundle))
        features = torch.ones(len(bundle), 4)
        if len(bundle) > self.fits:
            self.held.append(weakref.ref(features))
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return {"rgb": bundle.origins, "depth": bundle.origins.norm(dim=-1, keepdim=True), "rounds": [features]}


class Picture:
    """A picture's rays, and the ranges of them that were asked for."""

    def __init__(self, num_rays: int) -> None:
        self.whole, self.asked = make_bundle(num_rays), []

    def __call__(self, start: int, end: int):
        self.asked.append((start, end))
        return self.whole[start:end]


def render(model: StubModel, num_rays: int, most: int = 2**20, limit: ChunkLimit | None = None):
    picture = Picture(num_rays)
    limit = ChunkLimit() if limit is None else limit
    outputs = render_in_chunks(model, CPU, model.uses_kernels, picture, num_rays, most, limit)
    return outputs, picture


def assert_whole(outputs: dict, picture: Picture) -> None:
    """Every ray's output stands in its place; what is no tensor is left out."""
    assert set(outputs) == {"rgb", "depth"}
    assert torch.equal(outputs["rgb"], picture.whole.origins)
    assert torch.equal(outputs["depth"], picture.whole.origins.norm(dim=-1, keepdim=True))


# --- chunks ---


@pytest.mark.parametrize("num_rays, most, sizes", [
    (1000, 2000, [1000]), (1000, 1000, [1000]), (1000, 300, [300, 300, 300, 100]), (5, 1, [1] * 5), (1, 64, [1])
])  # fmt: skip
def test_chunks_equal_the_whole(num_rays, most, sizes):
    model = StubModel()
    outputs, picture = render(model, num_rays, most)
    assert model.tried == sizes
    assert_whole(outputs, picture)


def test_every_ray_is_asked_for_once_and_in_order():
    _, picture = render(StubModel(), 1000, 300)
    assert picture.asked == [(0, 300), (300, 600), (600, 900), (900, 1000)]


# --- memory ---


def test_what_does_not_fit_is_tried_again_in_halves():
    model = StubModel(fits=500)
    outputs, picture = render(model, 3000, 1800)
    assert model.tried == [1800, 900, 450, 450, 450, 450, 450, 450, 300]
    assert_whole(outputs, picture)


def test_a_picture_smaller_than_a_chunk_is_halved_itself():
    model = StubModel(fits=500)
    outputs, picture = render(model, 900, 100_000)
    assert model.tried == [900, 450, 450], "the same rays would not fit a second time"
    assert_whole(outputs, picture)


def test_memory_that_runs_out_halfway_costs_only_the_rays_of_that_chunk():
    model = StubModel()

    def shrinking(start: int, end: int):
        model.fits = 2**30 if start < 1000 else 400
        return picture(start, end)

    picture = Picture(2000)
    outputs = render_in_chunks(model, CPU, False, shrinking, 2000, 500, ChunkLimit())
    assert model.tried == [500, 500, 500, 256, 256, 256, 232]
    assert_whole(outputs, picture)


def test_that_it_did_not_fit_is_said_once(capsys):
    say_once.cache_clear()
    for _ in range(2):
        render(StubModel(fits=300), 3000, 1800)
    said = capsys.readouterr().out
    assert said.count("memory ran out") == 1 and "smaller chunks" in said


def test_what_did_not_fit_is_remembered_for_the_next_picture():
    limit, first, second = ChunkLimit(), StubModel(fits=500), StubModel(fits=500)
    render(first, 3000, 1800, limit)
    outputs, picture = render(second, 1000, 1800, limit)
    assert limit.rays == 450 and second.tried == [450, 450, 100]
    assert_whole(outputs, picture)


def test_memory_that_never_suffices_is_an_error_in_the_end():
    model = StubModel(fits=0)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        render(model, 3000, 1024)
    assert model.tried == [1024, 512, 256]


def test_a_limit_never_falls_below_the_smallest_chunk():
    limit = ChunkLimit()
    for rays, expected in ((3000, 1500), (600, 300), (300, MIN_CHUNK), (1, MIN_CHUNK)):
        limit.halve(rays)
        assert limit.rays == expected


def test_the_cache_is_emptied_when_the_failed_chunks_tensors_are_gone(monkeypatch):
    model, alive = StubModel(fits=500), []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: alive.append([held() is not None for held in model.held]))
    render(model, 900, 900)
    # An exception that is being handled keeps its frames, and they what they hold.
    assert alive == [[False]]


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    model = StubModel()
    model.forward = lambda bundle: (_ for _ in ()).throw(RuntimeError("no"))
    with pytest.raises(RuntimeError, match="no"):
        render(model, 10)


# --- limits from what is free ---

GIB = 2**30


@pytest.mark.parametrize(("room", "by_kernels", "by_torch"), [(8 * GIB, 2**18, 2**14), (0, MIN_CHUNK, MIN_CHUNK)])
def test_a_gpu_takes_as_many_rays_as_it_has_room_for(room, by_kernels, by_torch, monkeypatch):
    """32 KiB a ray with the kernels, 512 KiB without; a full one is still tried with the smallest chunk."""
    monkeypatch.setattr(rendering, "room_on", lambda device: room)
    assert (rays_that_fit(CUDA, True), rays_that_fit(CUDA, False)) == (by_kernels, by_torch)


def test_a_cpu_takes_two_gibibytes():
    assert rays_that_fit(CPU, False) == 2 * GIB // 2**19


@pytest.mark.parametrize("uses_kernels", [False, True])
def test_a_picture_takes_no_more_rays_at_once_than_fit(uses_kernels, monkeypatch):
    asked = []
    monkeypatch.setattr(rendering, "rays_that_fit", lambda *args: asked.append(args) or 700)
    model = StubModel()
    model.uses_kernels = uses_kernels
    outputs, picture = render(model, 1500)
    assert model.tried == [700, 700, 100] and asked == [(CPU, uses_kernels)]
    assert_whole(outputs, picture)


def test_outputs_of_one_chunk_are_not_copied():
    made: list[Tensor] = []
    model = StubModel()
    original = model.forward
    model.forward = lambda bundle: made.append(original(bundle)) or made[-1]
    outputs, _ = render(model, 100)
    assert outputs["depth"].data_ptr() == made[0]["depth"].data_ptr()
