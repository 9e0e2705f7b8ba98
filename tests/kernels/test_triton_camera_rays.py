"""The ray kernels against Nerfstudio's generator and float64 truth, on a GPU or under Triton's interpreter.

Without a GPU, one test runs all the others in a process of their own, as for the hash encoding.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from _interpreter import needs_interpreter, run_under_the_interpreter, runs_kernels
from _twins import DEVICE, HAS_GPU

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _cameras import (  # noqa: E402
    FISHEYE,
    HEIGHT,
    PERSPECTIVE,
    WIDTH,
    make_cameras,
    random_pixels,
    true_directions,
    true_pixel_area,
)

from nerfstudio.cameras.cameras import Cameras  # noqa: E402

from zipnerf_ns.cameras.rays import ImageRays, PixelRays, pack  # noqa: E402
from zipnerf_ns.data.pixels import PixelStore  # noqa: E402
from zipnerf_ns.kernels.camera import camera_rays as kernels

DIRECTION = 5e-7
"""Absolute, of unit vectors: a few roundings of 6e-8, and the two Newton's iterations stop at different ones."""
AREA = 5e-5
"""Relative: the area is a product of two differences of 1/50 between unit vectors that are rounded by 1e-7."""


@needs_interpreter
def test_under_the_interpreter():
    run_under_the_interpreter(__file__)


MIXTURES = {
    "perspective": ([PERSPECTIVE], None),
    "perspective, distorted": ([PERSPECTIVE] * 3, [True] * 3),
    "fisheye": ([FISHEYE] * 2, None),
    "fisheye, distorted": ([FISHEYE] * 2, [True] * 2),
    "all": ([PERSPECTIVE, FISHEYE, FISHEYE, PERSPECTIVE], [True, False, True, False]),
}


def assert_rays_equal(found, expected) -> None:
    """A bundle and Nerfstudio's."""
    assert found.origins.shape == expected.origins.shape
    assert torch.equal(found.origins, expected.origins)
    assert (found.directions - expected.directions).abs().max() <= DIRECTION
    torch.testing.assert_close(found.pixel_area, expected.pixel_area, rtol=AREA, atol=0.0)
    norms = (bundle.metadata["directions_norm"] for bundle in (found, expected))
    torch.testing.assert_close(*norms, rtol=1e-6, atol=0.0)
    assert torch.equal(found.camera_indices, expected.camera_indices)


@runs_kernels
@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("count", [1, 128, 300])
def test_rays_of_pixels_equal_nerfstudios_and_the_truth(name, count):
    cameras = make_cameras(*MIXTURES[name])
    indices = random_pixels(cameras, count)
    found = PixelRays(cameras, DEVICE, "triton")(indices)
    assert_rays_equal(found, PixelRays(cameras, DEVICE, "torch")(indices))
    truth = true_directions(cameras, indices)
    assert (found.directions.cpu() - truth).abs().max() <= DIRECTION
    torch.testing.assert_close(found.pixel_area.cpu().double(), true_pixel_area(cameras, indices), rtol=AREA, atol=0.0)
    torch.testing.assert_close(found.directions.norm(dim=-1), torch.ones(count, device=DEVICE), rtol=3e-7, atol=0.0)


@runs_kernels
def test_distortion_matters_in_these_tests():
    """The comparison above could not fail where lenses are as good as none."""
    cameras = make_cameras([PERSPECTIVE, FISHEYE], [True, True])
    indices = random_pixels(cameras, 200)
    straight = make_cameras([PERSPECTIVE, FISHEYE], camera_to_worlds=cameras.camera_to_worlds, fx=cameras.fx,
                            fy=cameras.fy, cx=cameras.cx, cy=cameras.cy)  # fmt: skip
    first, second = (PixelRays(each, DEVICE, "triton")(indices).directions for each in (cameras, straight))
    assert (first - second).abs().max() > 1e-3


@runs_kernels
def test_a_fisheyes_very_center_looks_along_its_axis():
    """Nerfstudio divides zero by zero for this pixel, and for the areas of its neighbors to the left and above."""
    cameras = make_cameras([FISHEYE], cx=torch.tensor([[20.5]]), cy=torch.tensor([[10.5]]))
    indices = torch.tensor([[0, 10, 20], [0, 10, 19], [0, 9, 20], [0, 11, 21]])
    found = PixelRays(cameras, DEVICE, "triton")(indices)
    axis = -cameras.camera_to_worlds[0, :, 2]
    torch.testing.assert_close(found.directions[0].cpu(), axis, rtol=0.0, atol=DIRECTION)
    torch.testing.assert_close(found.pixel_area.cpu().double(), true_pixel_area(cameras, indices), rtol=AREA, atol=0.0)


@runs_kernels
def test_fisheyes_that_look_behind_themselves():
    """Beyond half a turn Nerfstudio stops the angle there; its rays are no directions of the lens, but ours equal."""
    cameras = make_cameras([FISHEYE], fx=torch.tensor([[12.0]]), fy=torch.tensor([[6.0]]))
    indices = random_pixels(cameras, 300)
    found, expected = (PixelRays(cameras, DEVICE, how)(indices).directions for how in ("triton", "torch"))
    assert (found - expected).abs().max() <= DIRECTION


@runs_kernels
def test_a_lens_that_folds_there_is_left_alone():
    """With k1 = -1/3 the distortion's slope vanishes at distance 1: no Newton step, as Nerfstudio decides."""
    lens = torch.tensor([[-1.0 / 3.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    eight, half = torch.tensor([[8.0]]), torch.tensor([[0.5]])
    cameras = make_cameras([PERSPECTIVE], fx=eight, fy=eight, cx=half, cy=half, distortion_params=lens)
    indices = torch.tensor([[0, 0, 8]])
    found, expected = (PixelRays(cameras, DEVICE, how)(indices).directions for how in ("triton", "torch"))
    assert (found - expected).abs().max() <= DIRECTION
    local = torch.tensor([1.0, 0.0, -1.0]) / 2.0**0.5
    torch.testing.assert_close(found[0].cpu(), cameras.camera_to_worlds[0, :, :3] @ local, rtol=0.0, atol=DIRECTION)


@runs_kernels
def test_newtons_steps_are_nerfstudios_where_they_lead_nowhere():
    """On lenses that fold no step is corrected by later ones: most rays go astray alike, the rest by chance.

    A coefficient of the slopes that is wrong by a sixth, which no lens that unfolds would show, moves four of ten.
    """
    lens = torch.tensor([[-0.6, -0.5, -2.0, -3.0, 0.15, -0.15]])
    cameras = make_cameras([PERSPECTIVE], distortion_params=lens)
    indices = random_pixels(cameras, 1000)
    found, expected = (PixelRays(cameras, DEVICE, how)(indices).directions for how in ("triton", "torch"))
    assert ((found - expected).abs().amax(dim=-1) > 1e-4).float().mean() < 0.2


@runs_kernels
def test_no_rays():
    cameras = make_cameras([PERSPECTIVE])
    found = PixelRays(cameras, DEVICE, "triton")(torch.zeros(0, 3, dtype=torch.int64))
    assert found.origins.shape == (0, 3) and found.pixel_area.shape == (0, 1)
    assert len(ImageRays(cameras, DEVICE, implementation="triton").bundle(7, 7)) == 0


@runs_kernels
@pytest.mark.parametrize("kind", [PERSPECTIVE, FISHEYE], ids=["perspective", "fisheye"])
@pytest.mark.parametrize("shape", ["one", "none"])
def test_pictures_equal_nerfstudios_whole_and_by_ranges(kind, shape):
    """Rows in order, for cameras of shape [1] and [], of another size than the training's."""
    cameras = make_cameras([kind], [True], width=37, height=11)
    camera = cameras if shape == "one" else cameras[0]
    assert camera.shape == ((1,) if shape == "one" else ())
    expected = camera.to(DEVICE).generate_rays(camera_indices=0, keep_shape=True)
    assert expected.shape == (11, 37)
    image = ImageRays(camera, DEVICE, implementation="triton")
    assert (image.height, image.width, len(image)) == (11, 37, 11 * 37)
    whole = image.bundle()
    assert_rays_equal(whole, expected.flatten())
    cuts = [0, 1, 37, 200, 10_000]
    for start, end in zip(cuts[:-1], cuts[1:], strict=True):
        rays = image.bundle(start, end)
        assert torch.equal(rays.directions, whole.directions[start:end])
        assert torch.equal(rays.pixel_area, whole.pixel_area[start:end])


def make_store(sizes: list[tuple[int, int]], channels: int) -> PixelStore:
    """Pictures of widths and heights, of random colors."""
    counts = torch.tensor([0] + [width * height for width, height in sizes]).cumsum(0)
    colors = torch.randint(256, (int(counts[-1]), channels), dtype=torch.uint8)
    widths = torch.tensor([width for width, _ in sizes])
    # What lies in memory behind the last image's start would be taken for another image's.
    counts[-1] = 0
    return PixelStore(colors.to(DEVICE), counts.to(DEVICE)[:-1], widths.to(DEVICE), None)


@runs_kernels
@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize(
    "sizes",
    [[(6, 4)], [(6, 4), (5, 9)], [(24, 16), (10, 30), (33, 7), (1, 1), (5, 5)], [(3, 2)] * 17],
    ids=lambda sizes: f"{len(sizes)} images",
)
@pytest.mark.parametrize(
    ("mask", "is_gathered"),
    [(None, False), (torch.int32, False), (torch.int64, False), (torch.int32, True), (torch.int64, True)],
    ids=["all", "mask", "wide mask", "gathered", "wide gathered"],
)
def test_drawn_pixels_equal_the_stores_own_sample(sizes, channels, mask, is_gathered):
    cameras = make_cameras([PERSPECTIVE, FISHEYE] * len(sizes))[: len(sizes)]
    store = make_store(sizes, channels)
    if mask is not None:
        kept = torch.arange(0, len(store.colors), 3, device=DEVICE)
        colors = store.colors[kept] if is_gathered else store.colors
        store = PixelStore(colors, store.offsets, store.widths, kept.to(mask), is_gathered)
    generator = PixelRays(cameras, DEVICE, "triton")
    store.advance(200)
    bundle, batch = generator.sample(store, 200)
    store.advance(200)
    expected = store.sample(200)
    assert torch.equal(batch["indices"], expected["indices"])
    # On the GPU torch multiplies by 1/255 instead of dividing.
    torch.testing.assert_close(batch["image"], expected["image"], rtol=2e-7, atol=0.0)
    assert_rays_equal(bundle, PixelRays(cameras, DEVICE, "torch")(expected["indices"]))


@runs_kernels
def test_every_pixel_is_found_where_it_lies():
    """All of a store's pixels, counted through: the first and the last of each image among them."""
    sizes = [(2, 3), (1, 1), (7, 1), (1, 5), (4, 4)]
    store = make_store(sizes, 3)
    cameras = pack(make_cameras([PERSPECTIVE] * len(sizes))).to(DEVICE)
    drawn = torch.arange(len(store.colors), device=DEVICE)
    indices, image, _ = kernels.drawn_rays(cameras, drawn, store.colors, store.offsets, store.widths, None)
    expected = [(n, y, x) for n, (width, height) in enumerate(sizes) for y in range(height) for x in range(width)]
    assert indices.tolist() == [list(pixel) for pixel in expected]
    assert torch.equal((image * 255.0).round().to(torch.uint8), store.colors)


@runs_kernels
def test_times_and_metadata_go_with_the_rays():
    plain = make_cameras([PERSPECTIVE] * 3)
    cameras = Cameras(
        plain.camera_to_worlds, plain.fx, plain.fy, plain.cx, plain.cy, WIDTH, HEIGHT,
        times=torch.rand(3), metadata={"shutter": torch.rand(3, 2), "name": 7},
    )  # fmt: skip
    indices = random_pixels(cameras, 20)
    found, expected = (PixelRays(cameras, DEVICE, how)(indices) for how in ("triton", "torch"))
    assert_rays_equal(found, expected)
    assert torch.equal(found.times, expected.times) and found.times.shape == (20, 1)
    assert torch.equal(found.metadata["shutter"], expected.metadata["shutter"])
    assert found.metadata["name"] == expected.metadata["name"] == 7


@pytest.mark.skipif(not HAS_GPU, reason="pinned memory needs a GPU")
def test_a_store_in_main_memory_feeds_a_generator_on_the_gpu():
    cameras = make_cameras([PERSPECTIVE, FISHEYE])
    store = make_store([(6, 4), (5, 9)], 3)
    store = PixelStore(store.colors.cpu(), store.offsets.cpu(), store.widths.cpu(), None)
    store.advance(200)
    bundle, batch = PixelRays(cameras, DEVICE, "triton").sample(store, 200)
    store.advance(200)
    expected = store.sample(200)
    assert all(batch[key].device.type == "cuda" and torch.equal(batch[key].cpu(), expected[key]) for key in expected)
    assert_rays_equal(bundle, PixelRays(cameras, DEVICE, "torch")(expected["indices"]))


@runs_kernels
def test_where_a_lens_bends_light_as_none_does_there_are_rays():
    """Where Newton's steps leave float32 they are those without distortion."""
    packed = torch.zeros(2, 24)
    packed[:, [0, 5, 10]] = 1.0
    packed[:, 12:16] = torch.tensor([5e-3, 5e-3, 50.0, 50.0])
    packed[0, 16:20] = 0.1
    indices = torch.cartesian_prod(torch.arange(2), torch.arange(0, 40, 9), torch.arange(0, 40, 9))
    rays = kernels.camera_rays(packed.to(DEVICE), indices.to(DEVICE))
    assert all(torch.isfinite(part).all() for part in rays)
    assert torch.equal(*rays.directions.chunk(2))
