"""Which generator makes a camera's rays, and Nerfstudio's behind the same interface; tests/kernels has the kernels."""

from __future__ import annotations

import pytest
import torch
from _cameras import FISHEYE, HEIGHT, PERSPECTIVE, WIDTH, make_cameras, random_pixels, random_poses

from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import OrientedBox

from zipnerf_ns import ops
from zipnerf_ns.cameras.rays import ImageRays, PixelRays, pack, uses_kernel
from zipnerf_ns.errors import say_once
from zipnerf_ns.kernels import support

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
FIELDS = ("origins", "directions", "pixel_area", "camera_indices")


def assert_bundles_equal(found: RayBundle, expected: RayBundle) -> None:
    """In every number, for both are Nerfstudio's."""
    for name in FIELDS:
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert torch.equal(found.metadata["directions_norm"], expected.metadata["directions_norm"])


def test_pixels_without_a_kernel_are_nerfstudios():
    cameras = make_cameras([PERSPECTIVE, FISHEYE], [True, True])
    indices = random_pixels(cameras, 50)
    expected = cameras.generate_rays(indices[:, :1], indices[:, 1:] + 0.5)
    assert_bundles_equal(PixelRays(cameras, "cpu")(indices), expected)


@pytest.mark.parametrize("kind", list(CameraType)[:5] + [CameraType.ORTHOPHOTO], ids=lambda kind: kind.name)
@pytest.mark.parametrize("shape", ["one", "none"])
def test_ranges_of_pictures_without_a_kernel_are_nerfstudios(kind, shape):
    """Of every type of camera, also of those whose rays Nerfstudio generates for whole pictures only."""
    cameras = make_cameras([kind.value], camera_to_worlds=random_poses(1), width=13, height=9)
    camera = cameras if shape == "one" else cameras[0]
    # Some of Nerfstudio's generators write into the poses.
    expected = make_cameras([kind.value], camera_to_worlds=camera.camera_to_worlds.reshape(1, 3, 4).clone(),
                            fx=camera.fx, fy=camera.fy, cx=camera.cx, cy=camera.cy, width=13, height=9,
                            ).generate_rays(camera_indices=0, keep_shape=True).flatten()  # fmt: skip
    image = ImageRays(camera)
    assert len(image) == 13 * 9
    for start, end in [(0, None), (0, 13), (5, 60), (100, 117)]:
        assert_bundles_equal(image.bundle(start, end), expected[start:end])
        rays = image.bundle(start, end)
        assert torch.equal(rays.directions, expected.directions[start:end])
        assert torch.equal(rays.metadata["directions_norm"], expected.metadata["directions_norm"][start:end])


def test_ranges_end_with_the_picture():
    image = ImageRays(make_cameras([PERSPECTIVE], width=5, height=3))
    assert len(image.bundle(10, 99)) == 5 and len(image.bundle(99, 120)) == 0 and len(image.bundle(7, 7)) == 0


def test_a_crop_sets_nears_and_fars_as_nerfstudio_does():
    cameras = make_cameras([PERSPECTIVE], camera_to_worlds=torch.eye(3, 4)[None] + torch.tensor([0.0, 0, 0, 1.0]))
    box = OrientedBox(torch.eye(3), torch.tensor([0.2, 0.9, -1.5]), torch.tensor([1.0, 1.5, 2.0]))
    expected = cameras.generate_rays(camera_indices=0, keep_shape=True, obb_box=box).flatten()
    found = ImageRays(cameras, obb_box=box).bundle(100, 1900)
    missed = expected.fars == 1e10
    assert 0.1 < missed.float().mean() < 0.9, "the box should be hit by some rays only"
    assert torch.equal(found.nears, expected.nears[100:1900]) and torch.equal(found.fars, expected.fars[100:1900])


@pytest.mark.parametrize("whole", [False, True], ids=["pixels", "picture"])
def test_a_fisheyes_axis_through_a_pixels_center(whole):
    """Nerfstudio divides 0 by 0 there, and for the pixels before it in its row and its column."""
    middle = torch.tensor([[6.5]]), torch.tensor([[4.5]])
    cameras = make_cameras([FISHEYE], [True], cx=middle[0], cy=middle[1], width=13, height=9)
    aside = make_cameras([FISHEYE], camera_to_worlds=cameras.camera_to_worlds, fx=cameras.fx, fy=cameras.fy,
                         cx=middle[0] + 0.01, cy=middle[1], width=13, height=9,
                         distortion_params=cameras.distortion_params)  # fmt: skip
    y, x = torch.meshgrid(torch.arange(9), torch.arange(13), indexing="ij")
    pixels = torch.stack([torch.zeros_like(y), y, x], dim=-1).reshape(-1, 3)
    found, near = (ImageRays(c).bundle() if whole else PixelRays(c, "cpu")(pixels) for c in (cameras, aside))
    assert cameras.cx.item() == 6.5
    assert torch.isfinite(found.directions).all()
    assert (found.pixel_area > 0.0).all() and torch.isfinite(found.pixel_area).all()
    # A hundredth of a pixel is 2e-4 here.
    torch.testing.assert_close(found.directions, near.directions, rtol=0.0, atol=3e-4)
    torch.testing.assert_close(found.directions[4 * 13 + 6], -cameras.camera_to_worlds[0, :, 2], rtol=0.0, atol=3e-5)


def test_two_cameras_are_no_picture():
    with pytest.raises(ValueError, match="one camera, got 2"):
        ImageRays(make_cameras([PERSPECTIVE] * 2))


CAMERA_KERNELS = ops.CameraOps(None, None, None)
"""Stand for kernels that are never called."""


def can_run(monkeypatch: pytest.MonkeyPatch, reason: str | None = None) -> None:
    """Makes the kernels able to run anywhere, or unable for a reason."""
    monkeypatch.setattr(support, "why_unavailable", lambda device: reason)
    say_once.cache_clear()
    if reason is None:
        monkeypatch.setattr(ops, "triton_ops", lambda: ops.TORCH_OPS._replace(name="triton", cameras=CAMERA_KERNELS))


def chosen(cameras: Cameras, device: torch.device, implementation: str) -> bool:
    """Whether a kernel generates the rays of such cameras."""
    return uses_kernel(cameras, ops.resolve_ops(implementation, device))


KINDS = {"perspective": PERSPECTIVE, "fisheye": FISHEYE, "panorama": CameraType.EQUIRECTANGULAR.value}


@pytest.mark.parametrize("name", KINDS)
def test_kernels_are_chosen_on_cuda_for_the_cameras_that_they_know(monkeypatch, capsys, name):
    can_run(monkeypatch)
    cameras = make_cameras([PERSPECTIVE, KINDS[name]])
    is_known = name != "panorama"
    assert chosen(cameras, CUDA, "auto") is chosen(cameras, CUDA, "triton") is is_known
    # Whoever gets the slower generator is told so, once.
    assert capsys.readouterr().out.count("Nerfstudio generates the rays") == (0 if is_known else 1)
    assert not chosen(cameras, CUDA, "torch") and not chosen(cameras, CPU, "auto")


def test_without_triton_auto_takes_nerfstudios_and_says_why(monkeypatch, capsys):
    can_run(monkeypatch, "Triton is not here.")
    cameras = make_cameras([PERSPECTIVE])
    assert not chosen(cameras, CUDA, "auto") and not chosen(cameras, CUDA, "auto")
    assert capsys.readouterr().out.count("Triton is not here.") == 1
    with pytest.raises(RuntimeError, match="'triton' cannot run: Triton is not here."):
        chosen(cameras, CUDA, "triton")


def test_unknown_implementations_are_refused():
    with pytest.raises(ValueError, match="'cuda' is unknown: choose 'auto', 'torch' or 'triton'"):
        PixelRays(make_cameras([PERSPECTIVE]), CPU, "cuda")


def test_packed_cameras_hold_their_numbers_in_the_kernels_order():
    cameras = make_cameras([PERSPECTIVE, FISHEYE], [True, True])
    packed = pack(cameras)
    assert packed.shape == (2, 24) and packed.dtype == torch.float32
    assert torch.equal(packed[:, :12].reshape(2, 3, 4), cameras.camera_to_worlds)
    numbers = torch.cat([cameras.fx, cameras.fy, cameras.cx, cameras.cy, cameras.distortion_params], dim=-1)
    assert torch.equal(packed[:, 12:22], numbers)
    assert packed[:, 22].tolist() == [0.0, 1.0]
    assert not pack(make_cameras([PERSPECTIVE]))[:, 16:22].any()


def test_poses_may_be_float64():
    """Camera paths hand over what they have computed."""
    poses = random_poses(1).double()
    packed = pack(Cameras(poses, 50.0, 50.0, WIDTH / 2, HEIGHT / 2, WIDTH, HEIGHT))
    assert packed.dtype == torch.float32
    assert torch.equal(packed[0, :12].reshape(3, 4), poses[0].float())


@pytest.mark.parametrize("kind", [PERSPECTIVE, CameraType.EQUIRECTANGULAR.value])
def test_squares_are_the_same_pixels_in_another_order(kind):
    camera = make_cameras([kind], camera_to_worlds=random_poses(1), width=5, height=3)
    plain, squares = ImageRays(camera).bundle(), ImageRays(camera, side=2)
    assert len(squares) == 3 * 2 * 4
    directions = torch.cat([squares.bundle(0, 8).directions, squares.bundle(8).directions])
    assert torch.equal(squares.picture(directions), plain.directions.view(3, 5, 3))
    # The first square, and the last one, which has the nearest pixel where the picture ends.
    for square, numbers in ((0, [0, 1, 5, 6]), (5, [14, 14, 14, 14])):
        assert torch.equal(directions[4 * square : 4 * square + 4], plain.directions[numbers])
