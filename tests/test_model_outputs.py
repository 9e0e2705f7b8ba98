"""What the model renders: names and shapes that nerfstudio reads, odd bundles, whole pictures."""

from __future__ import annotations

import pytest
import torch
from _rays import assert_same_bundle, copy_bundle, make_bundle, make_model, missed_crop, tiny_config, uniform

from nerfstudio.cameras.rays import RayBundle
from nerfstudio.models.base_model import Model

from zipnerf_ns.metrics import ImageMetrics


def check_outputs(outputs: dict, rays: int) -> None:
    """The contract of nerfstudio's viewer, renderers and exporters."""
    tensors = {name: value for name, value in outputs.items() if isinstance(value, torch.Tensor)}
    assert list(tensors)[:3] == ["rgb", "accumulation", "depth"]
    for name, value in tensors.items():
        assert value.shape == (rays, 3 if name == "rgb" else 1), name
        assert torch.isfinite(value).all(), name
    assert (outputs["accumulation"] >= 0.0).all() and (outputs["accumulation"] <= 1.0 + 1e-5).all()
    assert (outputs["depth"] > 0.0).all()


def camera_bundle(height: int, width: int, **changes) -> RayBundle:
    """A picture's rays, ``[height, width]``."""
    flat = make_bundle(height * width, 3, **changes)
    return flat.reshape((height, width))


# --- names, shapes, odd bundles ---


@pytest.mark.parametrize("training", [False, True])
def test_outputs_are_what_nerfstudio_reads(training):
    model = make_model().train(training)
    outputs = model(make_bundle(11))
    check_outputs(outputs, 11)
    assert {"expected_depth", "prop_depth_0", "prop_depth_1"} <= set(outputs)
    lists = [name for name, value in outputs.items() if not isinstance(value, torch.Tensor)]
    assert bool(lists) == training, "lists are for the losses only"
    if training:
        assert [w.shape for w in outputs["weights_list"]] == [(11, 8, 1), (11, 8, 1), (11, 6, 1)]
    else:
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
    check_outputs(outputs, len(bundle))
    assert_same_bundle(bundle, before)
    if training:
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
    original = part.forward

    def forward(samples, num_active=None):
        middle = samples.frustums.get_positions().norm(dim=-1, keepdim=True)
        return original(samples, num_active)._replace(density=torch.where(middle > 2.0, 100.0, 1e-6))

    part.forward = forward


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
    model = make_model()
    bundle = camera_bundle(7, 9)
    whole = model.get_outputs_for_camera_ray_bundle(bundle)
    assert whole["rgb"].shape == (7, 9, 3) and whole["depth"].shape == (7, 9, 1)
    model.config.eval_num_rays_per_chunk = 10
    for name, value in model.get_outputs_for_camera_ray_bundle(bundle).items():
        torch.testing.assert_close(value, whole[name], msg=name)


def test_a_picture_that_does_not_fit_is_rendered_in_smaller_chunks(monkeypatch):
    model = make_model(tiny_config(eval_num_rays_per_chunk=4096))
    original, tried = Model.get_outputs_for_camera_ray_bundle, []

    def short_of_memory(self, camera_ray_bundle):
        tried.append(self.config.eval_num_rays_per_chunk)
        if tried[-1] > 1024:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return original(self, camera_ray_bundle)

    monkeypatch.setattr(Model, "get_outputs_for_camera_ray_bundle", short_of_memory)
    outputs = model.get_outputs_for_camera_ray_bundle(camera_bundle(4, 5))
    assert tried == [4096, 2048, 1024]
    check_outputs({name: value.reshape(20, -1) for name, value in outputs.items()}, 20)


def test_memory_that_never_suffices_is_an_error_in_the_end(monkeypatch):
    model = make_model(tiny_config(eval_num_rays_per_chunk=1024))
    tried = []

    def out_of_memory(self, camera_ray_bundle):
        tried.append(self.config.eval_num_rays_per_chunk)
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Model, "get_outputs_for_camera_ray_bundle", out_of_memory)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        model.get_outputs_for_camera_ray_bundle(camera_bundle(4, 5))
    assert tried == [1024, 512, 256]
