"""What the model renders: names and shapes that nerfstudio reads, odd bundles, whole pictures."""

from __future__ import annotations

import pytest
import torch
from _rays import assert_same_bundle, copy_bundle, make_bundle, make_model, missed_crop, tiny_config, uniform

from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import OrientedBox

from zipnerf_ns.metrics import ImageMetrics


def check_outputs(outputs: dict, rays: int, training: bool = False) -> None:
    """The contract of nerfstudio's viewer, renderers and exporters; in training nobody asks for distances."""
    tensors = {name: value for name, value in outputs.items() if isinstance(value, torch.Tensor)}
    assert list(tensors)[:3] == ["rgb", "accumulation"] + ([] if training else ["depth"])
    for name, value in tensors.items():
        assert value.shape == (rays, 3 if name == "rgb" else 1), name
        assert torch.isfinite(value).all(), name
    assert (outputs["accumulation"] >= 0.0).all() and (outputs["accumulation"] <= 1.0 + 1e-5).all()
    assert training or (outputs["depth"] > 0.0).all()


def camera_bundle(height: int, width: int, **changes) -> RayBundle:
    """A picture's rays, ``[height, width]``."""
    flat = make_bundle(height * width, 3, **changes)
    return flat.reshape((height, width))


# --- names, shapes, odd bundles ---


@pytest.mark.parametrize("training", [False, True])
def test_outputs_are_what_nerfstudio_reads(training):
    model = make_model().train(training)
    outputs = model(make_bundle(11))
    check_outputs(outputs, 11, training)
    if training:
        assert [drawn.weights.shape for drawn in outputs["rounds"]] == [(11, 8), (11, 8), (11, 6)]
        assert [drawn.sdist.shape for drawn in outputs["rounds"]] == [(11, 9), (11, 9), (11, 7)]
        assert [drawn.tdist.shape for drawn in outputs["rounds"]] == [(11, 9), (11, 9), (11, 7)]
        return
    assert list(outputs) == ["rgb", "accumulation", "depth", "expected_depth", "prop_depth_0", "prop_depth_1"]
    assert outputs["rgb"].min() >= 0.0 and outputs["rgb"].max() <= 1.0


def odd_bundles() -> dict:
    ones = torch.ones(4, 1)
    return {
        "pipeline validation": RayBundle(
            origins=torch.zeros(1, 3), directions=torch.ones(1, 3), pixel_area=torch.ones(1, 1)
        ),
        "texture export": make_bundle(4, pixel_area=ones, nears=0.0 * ones, fars=0.02 * ones),
        "crop miss": missed_crop(),
        "no cameras": make_bundle(4, camera_indices=None),
        "one ray": make_bundle(1),
        "far away": make_bundle(4, origins=torch.full((4, 3), 1e5)),
        "no footprint": make_bundle(4, pixel_area=0.0 * ones),
        "no extent": make_bundle(4, nears=ones, fars=ones),
        "no direction": make_bundle(4, directions=torch.zeros(4, 3)),
        "no rays": make_bundle(4)[:0],
    }


@pytest.mark.parametrize("prefilter", ["multisample", "ipe"])
@pytest.mark.parametrize("bounds", ["unbounded", "box"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", list(odd_bundles()))
def test_odd_bundles_are_rendered_and_left_as_they_are(kind, training, bounds, prefilter):
    model = make_model(tiny_config(scene_bounds=bounds, prefilter=prefilter)).train(training)
    bundle = odd_bundles()[kind]
    before = copy_bundle(bundle)
    outputs = model(bundle)
    check_outputs(outputs, len(bundle), training)
    assert_same_bundle(bundle, before)
    if training and len(bundle):
        loss_dict = model.get_loss_dict(outputs, {"image": uniform((len(bundle), 3), 0)})
        sum(loss_dict.values()).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("bounds", ["unbounded", "box"])
def test_a_missed_crop_is_empty(bounds):
    model = make_model(tiny_config(scene_bounds=bounds))
    outputs = model(missed_crop())
    assert (outputs["accumulation"] == 0.0).all() and (outputs["rgb"] == 0.0).all()


def test_the_length_of_directions_does_not_matter():
    model = make_model()
    bundle = make_bundle(6)
    expected = model(bundle)
    stretched = model(make_bundle(6, directions=bundle.directions * uniform((6, 1), 4, 0.1, 7.0)))
    for name, value in expected.items():
        # Normalising again rounds the last digit, which the finest cells see.
        torch.testing.assert_close(stretched[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_a_bundle_of_any_shape_gives_one_row_a_ray():
    model = make_model()
    flat = make_bundle(12, 3)
    outputs = model(flat.reshape((3, 4)))
    for name, value in model(flat).items():
        torch.testing.assert_close(outputs[name].reshape(12, -1), value, msg=name)


def test_evaluation_repeats_itself_and_draws_no_random_numbers():
    model = make_model()
    bundle = make_bundle(6)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = model(bundle)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, first[name]) for name, value in model(bundle).items())
    model.train()
    assert not torch.equal(model(bundle)["rgb"], model(bundle)["rgb"])


def test_appearance_is_not_asked_at_evaluation():
    model = make_model(tiny_config(use_appearance=True))
    torch.nn.init.normal_(model.field.appearance.codes.weight)
    expected = model(make_bundle(6))["rgb"]
    for indices in (None, torch.full((6, 1), 99)):
        assert torch.equal(model(make_bundle(6, camera_indices=indices))["rgb"], expected)
    training = model.train()(make_bundle(300, camera_indices=torch.zeros(300, 1, dtype=torch.long)))["rgb"].mean(0)
    other = model(make_bundle(300, camera_indices=torch.ones(300, 1, dtype=torch.long)))["rgb"].mean(0)
    assert (training - other).abs().max() > 1e-4


def test_depth_is_where_half_of_the_opacity_lies():
    model = make_model(tiny_config(far_plane=20.0))
    # One wall: everything beyond distance 2 of the origin is opaque, all before it clear.
    for part in [*model.proposal_networks, model.field]:
        wall(part)
    bundle = make_bundle(20, origins=torch.zeros(20, 3))
    outputs = model(bundle)
    assert (outputs["accumulation"] > 0.99).all()
    # The last round's intervals there are some tenths long.
    torch.testing.assert_close(outputs["depth"], torch.full((20, 1), 2.0), rtol=0.0, atol=0.3)
    torch.testing.assert_close(outputs["expected_depth"], torch.full((20, 1), 2.0), rtol=0.0, atol=0.4)


def wall(part) -> None:
    """Replaces a field's density by a wall about the origin."""
    forward = part.forward

    def density(rays, tdist, *_):
        middles = 0.5 * (tdist[:, 1:] + tdist[:, :-1])[..., None]
        distance = (rays.origins[:, None] + middles * rays.directions[:, None]).norm(dim=-1)
        return torch.where(distance > 2.0, 100.0, 1e-6)

    part.density = density
    part.forward = lambda rays, tdist, *rest: forward(rays, tdist, *rest)._replace(density=density(rays, tdist))


# --- whole pictures ---


@pytest.mark.parametrize("channels, background", [(3, "black"), (4, "white"), (4, "black"), (4, "last_sample")])
def test_image_metrics_and_pictures(channels, background, monkeypatch):
    monkeypatch.setattr(ImageMetrics, "_get_lpips", lambda self, device: None)
    model = make_model(tiny_config(background_color=background))
    outputs = model.get_outputs_for_camera_ray_bundle(camera_bundle(12, 15))
    image = uniform((12, 15, channels), 5)
    metrics, pictures = model.get_image_metrics_and_images(outputs, {"image": image})
    truth = image[..., :3]
    if channels == 4:
        truth = truth * image[..., 3:] + float(background == "white") * (1.0 - image[..., 3:])
    assert set(metrics) == {"psnr", "ssim"} and all(type(value) is float for value in metrics.values())
    mse = float((outputs["rgb"] - truth).square().mean())
    assert 10.0 ** (-metrics["psnr"] / 10.0) == pytest.approx(mse, rel=1e-5)
    assert list(pictures)[0] == "img"
    torch.testing.assert_close(pictures["img"], torch.cat([truth, outputs["rgb"]], dim=1))
    assert {"error", "accumulation", "depth", "prop_depth_0", "prop_depth_1"} <= set(pictures)
    for name, picture in pictures.items():
        assert picture.shape == (12, 30 if name == "img" else 15, 3), name
        assert torch.isfinite(picture).all() and 0.0 <= picture.min() and picture.max() <= 1.0, name


def test_a_picture_in_chunks_is_the_picture_at_once():
    model, sizes = make_model(), []
    bundle = camera_bundle(7, 9)
    whole = model.get_outputs_for_camera_ray_bundle(bundle)
    assert whole["rgb"].shape == (7, 9, 3) and whole["depth"].shape == (7, 9, 1)
    model.config.eval_num_rays_per_chunk = 10
    model.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    for name, value in model.get_outputs_for_camera_ray_bundle(bundle).items():
        torch.testing.assert_close(value, whole[name], msg=name)
    assert sizes == [10] * 6 + [3]


def small_camera() -> Cameras:
    pose = torch.tensor([[1.0, 0.0, 0.0, 0.1], [0.0, 1.0, 0.0, -0.2], [0.0, 0.0, 1.0, 1.5]])
    return Cameras(pose[None], fx=9.0, fy=9.0, cx=4.5, cy=3.5, width=9, height=7)


@pytest.mark.parametrize("crop", [None, OrientedBox(torch.eye(3), torch.zeros(3), torch.full((3,), 0.8))])
@pytest.mark.parametrize("chunk", [10, 4096])
def test_a_cameras_picture_is_that_of_its_rays(crop, chunk):
    model = make_model(tiny_config(eval_num_rays_per_chunk=chunk))
    found = model.get_outputs_for_camera(small_camera(), obb_box=crop)
    bundle = small_camera().generate_rays(camera_indices=0, keep_shape=True, obb_box=crop)
    expected = model.get_outputs_for_camera_ray_bundle(bundle)
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)
    assert found["rgb"].shape == (7, 9, 3) and not found["rgb"].requires_grad
    empty = float((found["accumulation"] == 0.0).float().mean())
    assert empty == 0.0 if crop is None else 0.2 < empty < 0.9, "some rays miss the crop"


def test_a_picture_that_does_not_fit_is_rendered_in_smaller_chunks_from_then_on(monkeypatch):
    model, tried = make_model(tiny_config(eval_num_rays_per_chunk=4096)), []
    original = model.get_outputs
    bundle = camera_bundle(40, 41)
    whole = model.get_outputs_for_camera_ray_bundle(bundle)

    def short_of_memory(ray_bundle):
        tried.append(len(ray_bundle))
        if tried[-1] > 900:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return original(ray_bundle)

    monkeypatch.setattr(model, "get_outputs", short_of_memory)
    outputs = model.get_outputs_for_camera_ray_bundle(bundle)
    assert tried == [1640, 820, 820]
    for name, value in whole.items():
        torch.testing.assert_close(outputs[name], value, msg=name)
    tried.clear()
    model.get_outputs_for_camera_ray_bundle(bundle)
    assert tried == [820, 820]


def test_kernels_are_not_used_on_a_cpu():
    assert not make_model().uses_kernels
