"""What the model renders: names and shapes that nerfstudio reads, odd bundles, whole pictures."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from _rays import assert_same_bundle, copy_bundle, make_bundle, make_model, missed_crop, tiny_config, uniform
from _viewer import in_viewer

from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import OrientedBox

from zipnerf_ns.render import metrics as metrics_module
from zipnerf_ns.render.metrics import ImageMetrics
from zipnerf_ns.render.outputs import EXTRA_OUTPUTS

OUTPUTS = ["rgb", "accumulation", "depth", "expected_depth", "prop_depth_0", "prop_depth_1"]
OUTPUTS += ["normals", "prefilter_weight"]


def check_outputs(outputs: dict, rays: int, training: bool = False) -> None:
    """The contract of nerfstudio's viewer, renderers and exporters; in training nobody asks for distances."""
    tensors = {name: value for name, value in outputs.items() if isinstance(value, torch.Tensor)}
    assert list(tensors)[:3] == ["rgb", "accumulation"] + ([] if training else ["depth"])
    # The deferred ones are tensors as soon as they are asked for.
    tensors.update({name: outputs[name] for name in EXTRA_OUTPUTS if name in outputs})
    for name, value in tensors.items():
        assert value.shape == (rays, 3 if name in ("rgb", "normals") else 1), name
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
        assert [drawn.weights.shape for drawn in outputs["rendering"].rounds] == [(11, 8), (11, 8), (11, 6)]
        assert [drawn.sdist.shape for drawn in outputs["rendering"].rounds] == [(11, 9), (11, 9), (11, 7)]
        assert [drawn.tdist.shape for drawn in outputs["rendering"].rounds] == [(11, 9), (11, 9), (11, 7)]
        return
    assert list(outputs) == OUTPUTS
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
    for name in [name for name in OUTPUTS if name != "normals"]:
        # Normalizing again rounds the last digit, which the finest cells see (and normals, which jump from cell to
        # cell, by more than can be said).
        torch.testing.assert_close(stretched[name], expected[name], rtol=1e-4, atol=1e-5, msg=name)


def test_a_bundle_of_any_shape_gives_one_row_a_ray():
    model = make_model()
    flat = make_bundle(12, 3)
    outputs = model(flat.reshape((3, 4)))
    expected = model(flat)
    for name in OUTPUTS:
        torch.testing.assert_close(outputs[name].reshape(12, -1), expected[name], msg=name)


def test_evaluation_repeats_itself_and_draws_no_random_numbers():
    model = make_model()
    bundle = make_bundle(6)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = model(bundle)
    assert torch.equal(state, torch.get_rng_state())
    again = model(bundle)
    assert all(torch.equal(again[name], first[name]) for name in OUTPUTS)
    model.train()
    assert not torch.equal(model(bundle)["rgb"], model(bundle)["rgb"])


def test_a_rays_own_photo_is_not_asked_at_evaluation():
    model = make_model(tiny_config(use_appearance=True))
    torch.nn.init.normal_(model.zipnerf.appearance.log_gains)
    expected = model(make_bundle(6))["rgb"]
    for indices in (None, torch.full((6, 1), 99)):
        assert torch.equal(model(make_bundle(6, camera_indices=indices))["rgb"], expected)
    training = model.train()(make_bundle(300, camera_indices=torch.zeros(300, 1, dtype=torch.long)))["rgb"].mean(0)
    other = model(make_bundle(300, camera_indices=torch.ones(300, 1, dtype=torch.long)))["rgb"].mean(0)
    assert (training - other).abs().max() > 1e-4


def test_depth_is_where_half_of_the_opacity_lies():
    model = make_model(tiny_config(far_plane=20.0))
    # One wall: everything beyond distance 2 of the origin is opaque, all before it clear.
    for part in model.zipnerf.fields:
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


# --- normals and prefilter weights ---


def test_normals_of_a_wall_point_at_the_camera(monkeypatch):
    """A density that falls with the distance from the origin, seen from outside and from all sides."""
    model = make_model(tiny_config(far_plane=20.0))
    solid_ball(model, monkeypatch)
    bundle = make_bundle(40)
    outputs = model(bundle)
    hits = outputs["accumulation"][:, 0] > 0.9
    assert hits.sum() > 30, "some rays pass beside the ball"
    seen = (bundle.origins + outputs["depth"] * bundle.directions)[hits]
    normals = 2.0 * outputs["normals"][hits] - 1.0
    torch.testing.assert_close(normals.norm(dim=-1), torch.ones(len(seen)))
    assert ((normals * seen / seen.norm(dim=-1, keepdim=True)).sum(dim=-1) > 0.95).all()


def solid_ball(model, monkeypatch) -> None:
    """Channels that are the positions of the cones' middles, and networks that make a ball of them."""

    def channels(count, cones, *_, **__):
        middles = 0.5 * (cones.tdist[:, 1:] + cones.tdist[:, :-1])[..., None]
        points = cones.origins[:, None] + middles * cones.directions[:, None]
        distance = points.norm(dim=-1, keepdim=True).flatten(0, 1)
        return torch.cat([distance, torch.zeros(len(distance), count - 1)], dim=-1)

    for part in model.zipnerf.fields:
        monkeypatch.setattr(part.encoding, "forward", partial(channels, part.encoding.get_out_dim()))
        for layer in (part.hidden_layer, part.density_layer):
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
        # raw = 40 (1 - distance) on both sides of the surface, with two hidden units of the rectifier.
        with torch.no_grad():
            part.hidden_layer.weight[:2, 0] = torch.tensor([1.0, -1.0])
            part.hidden_layer.bias[:2] = torch.tensor([-1.0, 1.0])
            part.density_layer.weight[0, :2] = torch.tensor([-40.0, 40.0])


def test_nothing_seen_has_no_normal():
    outputs = make_model()(missed_crop())
    assert torch.equal(outputs["normals"], torch.full((4, 3), 0.5))
    assert torch.equal(outputs["prefilter_weight"], torch.zeros(4, 1))


def test_prefilter_weights_fall_with_the_cones_width_and_are_one_without_a_filter():
    widths = [model_weight(pixel_area) for pixel_area in (1e-10, 1e-3, 1e-2, 0.5)]
    assert widths[0] == pytest.approx(1.0) and widths[1] > widths[2] > widths[3] > 0.1, widths
    assert model_weight(0.5, prefilter="none") == pytest.approx(1.0, abs=1e-5)


def model_weight(pixel_area: float, **changes) -> float:
    model = make_model(tiny_config(**changes))
    return float(model(make_bundle(20, pixel_area=torch.full((20, 1), pixel_area)))["prefilter_weight"].mean())


def test_dear_outputs_are_computed_when_asked_for_in_evaluation_mode(monkeypatch):
    model, asked = make_model(), []
    original = model.field.normals
    monkeypatch.setattr(
        model.field, "normals", lambda *args: asked.append(model.field.training) or original(*args)
    )
    bundle = camera_bundle(3, 4)
    outputs = model.get_outputs_for_camera_ray_bundle(bundle)
    assert list(outputs) == OUTPUTS and asked == []
    model.train()
    late = outputs["normals"]
    assert asked == [False] and model.training and not late.requires_grad
    torch.testing.assert_close(late, model.eval().get_outputs_for_camera_ray_bundle(bundle)["normals"])
    assert outputs["normals"] is late and len(asked) == 2


# --- the viewer ---


def test_in_the_viewer_dear_outputs_are_rendered_at_once_or_not_at_all():
    model, bundle = make_model(), camera_bundle(3, 4)

    def render():
        return model.get_outputs_for_camera_ray_bundle(bundle)

    expected = render()
    assert list(in_viewer(render)) == OUTPUTS[:6]
    model.view.extra_outputs.value = True
    found = in_viewer(render)
    assert list(found) == OUTPUTS and all(isinstance(value, torch.Tensor) for value in found.values())
    for name in OUTPUTS:
        torch.testing.assert_close(found[name], expected[name], msg=name)


@pytest.mark.parametrize("training", [False, True])
def test_a_render_interrupted_halfway_leaves_nothing_broken(training, monkeypatch):
    """The viewer interrupts a render by an exception at any line when the camera moves."""

    class Moved(Exception):
        pass

    model, bundle = make_model(tiny_config(eval_num_rays_per_chunk=10)), camera_bundle(5, 6)
    expected, rendered = model.get_outputs_for_camera_ray_bundle(bundle)["rgb"], []
    original = model.field.forward

    def interrupted(*args, **kwargs):
        rendered.append(len(rendered))
        if len(rendered) == 2:
            raise Moved
        return original(*args, **kwargs)

    model.train(training)
    with monkeypatch.context() as patch:
        patch.setattr(model.field, "forward", interrupted)
        with pytest.raises(Moved):
            in_viewer(lambda: model.get_outputs_for_camera_ray_bundle(bundle))
    assert len(rendered) == 2 and model.training == model.field.training == training and torch.is_grad_enabled()
    assert torch.equal(model.get_outputs_for_camera_ray_bundle(bundle)["rgb"], expected)


def test_the_viewer_changes_the_prefilter_of_its_own_pictures():
    """To that of a model with the same parameters and another configuration."""
    model, bundle = make_model(), camera_bundle(5, 4, pixel_area=torch.full((20, 1), 0.05))
    for network in model.zipnerf.fields:
        # Its initial values are too small to show.
        torch.nn.init.normal_(network.encoding.hash_table, std=0.1)

    def rgb(of=model):
        return of.get_outputs_for_camera_ray_bundle(bundle)["rgb"]

    for mode in ("ipe", "none"):
        other = make_model(tiny_config(prefilter=mode, proposal_prefilter=mode))
        other.load_state_dict(model.state_dict())
        model.view.antialiasing.value = mode
        changed = in_viewer(rgb)
        torch.testing.assert_close(changed, rgb(other))
        assert (changed - rgb()).abs().max() > 1e-5


def test_the_viewer_shows_the_appearance_of_a_photo():
    model, bundle = make_model(tiny_config(use_appearance=True)), camera_bundle(5, 4)
    torch.nn.init.normal_(model.zipnerf.appearance.log_gains)
    model.view.appearance.value = "of one photo"
    pictures = []
    for photo in range(2):
        model.view.appearance_photo.value = photo
        pictures.append(in_viewer(lambda: model.get_outputs_for_camera_ray_bundle(bundle)["rgb"]))
    assert (pictures[0] - pictures[1]).abs().max() > 1e-4
    mean = model.get_outputs_for_camera_ray_bundle(bundle)["rgb"]
    assert all((picture - mean).abs().max() > 1e-4 for picture in pictures)
    model.zipnerf.appearance.log_gains.data[:] = model.zipnerf.appearance.log_gains.data[1]
    found = in_viewer(lambda: model.get_outputs_for_camera_ray_bundle(bundle)["rgb"])
    torch.testing.assert_close(found, mean, msg="photos that are all in one light are in their mean")


# --- whole pictures ---


def test_weights_of_lpips_are_read_where_the_setting_says(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(metrics_module, "load_all", lambda folder: asked.append(folder) or {})
    model = make_model(tiny_config(lpips_weights=tmp_path))
    outputs = model.get_outputs_for_camera_ray_bundle(camera_bundle(12, 15))
    assert set(model.get_image_metrics_and_images(outputs, {"image": uniform((12, 15, 3), 5)})[0]) == {"psnr", "ssim"}
    assert asked == [tmp_path]


@pytest.mark.parametrize("channels, background", [(3, "black"), (4, "white"), (4, "black"), (4, "last_sample")])
def test_image_metrics_and_pictures(channels, background, monkeypatch):
    monkeypatch.setattr(ImageMetrics, "lpips", {})
    model = make_model(tiny_config(background_color=background))
    outputs = model.get_outputs_for_camera_ray_bundle(camera_bundle(12, 15))
    image = uniform((12, 15, channels), 5)
    metrics, pictures = model.get_image_metrics_and_images(outputs, {"image": image})
    truth = image[..., :3]
    if channels == 4:
        truth = truth * image[..., 3:] + float(background == "white") * (1.0 - image[..., 3:])
    assert set(metrics) == {"psnr", "ssim"} and all(type(value) is float for value in metrics.values())
    # Of the pictures as files of 8 bits hold them.
    shown, true = ((picture * 255.0).round() / 255.0 for picture in (outputs["rgb"], truth))
    mse = float((shown - true).square().mean())
    assert 10.0 ** (-metrics["psnr"] / 10.0) == pytest.approx(mse, rel=1e-5)
    assert list(pictures)[0] == "img"
    torch.testing.assert_close(pictures["img"], torch.cat([truth, outputs["rgb"]], dim=1))
    assert {"error", "accumulation", "depth", "prop_depth_0", "prop_depth_1"} <= set(pictures)
    for name, picture in pictures.items():
        assert picture.shape == (12, 30 if name == "img" else 15, 3), name
        assert torch.isfinite(picture).all() and 0.0 <= picture.min() and picture.max() <= 1.0, name


def test_a_picture_in_chunks_is_the_picture_at_once(monkeypatch):
    model, sizes = make_model(), []
    bundle = camera_bundle(7, 9)
    whole = model.get_outputs_for_camera_ray_bundle(bundle)
    assert whole["rgb"].shape == (7, 9, 3) and whole["depth"].shape == (7, 9, 1)
    expected = {name: whole[name] for name in OUTPUTS}
    model.config.eval_num_rays_per_chunk = 24
    original = model._render
    monkeypatch.setattr(model, "_render", lambda rays, *looks: sizes.append(len(rays)) or original(rays, *looks))
    outputs = model.get_outputs_for_camera_ray_bundle(bundle)
    assert sizes == [24, 24, 15]
    for name, value in expected.items():
        torch.testing.assert_close(outputs[name], value, msg=name)
    assert sizes[3:] == 2 * ([6] * 10 + [3]), "what costs more, in smaller chunks"


def small_camera() -> Cameras:
    pose = torch.tensor([[1.0, 0.0, 0.0, 0.1], [0.0, 1.0, 0.0, -0.2], [0.0, 0.0, 1.0, 1.5]])
    return Cameras(pose[None], fx=9.0, fy=9.0, cx=4.5, cy=3.5, width=9, height=7)


@pytest.mark.parametrize("crop", [None, OrientedBox(torch.eye(3), torch.zeros(3), torch.full((3,), 0.8))])
@pytest.mark.parametrize("chunk", [24, 4096])
def test_a_cameras_picture_is_that_of_its_rays(crop, chunk):
    model = make_model(tiny_config(eval_num_rays_per_chunk=chunk, picture_square=1))
    found = model.get_outputs_for_camera(small_camera(), obb_box=crop)
    bundle = small_camera().generate_rays(camera_indices=0, keep_shape=True, obb_box=crop)
    expected = model.get_outputs_for_camera_ray_bundle(bundle)
    assert list(found) == list(expected) == OUTPUTS
    for name in OUTPUTS:
        torch.testing.assert_close(found[name], expected[name], msg=name)
    assert found["rgb"].shape == (7, 9, 3) and not found["rgb"].requires_grad
    empty = float((found["accumulation"] == 0.0).float().mean())
    assert empty == 0.0 if crop is None else 0.2 < empty < 0.9, "some rays miss the crop"


@pytest.mark.parametrize("crop", [None, OrientedBox(torch.eye(3), torch.zeros(3), torch.full((3,), 0.8))])
def test_squares_of_pixels_change_pictures_little_and_chunks_do_not(crop):
    config = tiny_config(picture_square=2)
    model = make_model(config)
    found = model.get_outputs_for_camera(small_camera(), obb_box=crop)
    found = {name: found[name] for name in OUTPUTS}
    model.config.eval_num_rays_per_chunk = 23
    in_chunks = model.get_outputs_for_camera(small_camera(), obb_box=crop)
    model.config.picture_square = 1
    alone = model.get_outputs_for_camera(small_camera(), obb_box=crop)
    for name in OUTPUTS:
        torch.testing.assert_close(in_chunks[name], found[name], msg=name)
        assert found[name].shape == alone[name].shape, name
    assert 0.0 < (found["rgb"] - alone["rgb"]).abs().max() < 0.05
    assert torch.equal(found["accumulation"] == 0.0, alone["accumulation"] == 0.0), "what misses the crop still does"


def test_a_picture_that_does_not_fit_is_rendered_in_smaller_chunks_from_then_on(monkeypatch):
    model, tried = make_model(tiny_config(eval_num_rays_per_chunk=4096)), []
    original = model._render
    bundle = camera_bundle(40, 41)
    whole = model.get_outputs_for_camera_ray_bundle(bundle)

    def short_of_memory(ray_bundle, *asked):
        tried.append(len(ray_bundle))
        if tried[-1] > 900:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return original(ray_bundle, *asked)

    monkeypatch.setattr(model, "_render", short_of_memory)
    outputs = model.get_outputs_for_camera_ray_bundle(bundle)
    assert tried == [1640, 820, 820]
    for name in OUTPUTS[:6]:
        torch.testing.assert_close(outputs[name], whole[name], msg=name)
    tried.clear()
    model.get_outputs_for_camera_ray_bundle(bundle)
    assert tried == [820, 820]


def test_kernels_are_not_used_on_a_cpu():
    assert not make_model().uses_kernels


def test_a_model_that_diverged_is_seen_in_its_pictures():
    """Colors that are no numbers stay so: a black picture would look like a dark scene."""
    model = make_model().eval()
    with torch.no_grad():
        model.field.color_network.layers[-1].bias.fill_(float("nan"))
    assert model(make_bundle(5))["rgb"].isnan().all()
