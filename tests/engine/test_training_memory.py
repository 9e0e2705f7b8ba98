"""What a training needs of memory is known from its sizes, and refused with what would fit."""

from __future__ import annotations

import copy
import dataclasses
import functools
import re
from collections.abc import Iterable

import pytest
import torch
from _scenes import said_when_started, tiny_config, write_scene

from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig

from zipnerf_ns.config import zipnerf, zipnerf_big, zipnerf_dynamic, zipnerf_lite
from zipnerf_ns.data.datamanager import ZipNerfDataManager
from zipnerf_ns.encoding.moving import MotionConfig
from zipnerf_ns.engine import checks
from zipnerf_ns.engine.checks import check_run
from zipnerf_ns.engine.safety import room as reckoned
from zipnerf_ns.engine.safety.room import check_memory, training_memory
from zipnerf_ns.engine.trainer import ZipNerfTrainer, ZipNerfTrainerConfig
from zipnerf_ns.errors import InputError
from zipnerf_ns.kernels.encode.tuning import reads_half
from zipnerf_ns.kernels.mlp.tuning import RadianceTuning
from zipnerf_ns.model_config import check_table_memory, table_values
from zipnerf_ns.ops import TORCH_OPS

GIB = 2**30
CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU that multiplies in the format that is asked for, and without kernels."""
    monkeypatch.setattr(reckoned, "resolve_ops", lambda *_: TORCH_OPS)
    monkeypatch.setattr(reckoned, "resolve_precision", lambda asked, device: "float32" if device == CPU else asked)


@pytest.fixture
def kernels(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where the kernels compute the model."""
    ops = TORCH_OPS._replace(name="triton", reads_half=reads_half)
    monkeypatch.setattr(reckoned, "resolve_ops", lambda *_: ops)


@pytest.mark.parametrize(("method", "num_rays", "changes", "taken"), [
    (zipnerf, 16_384, {}, 2.26), (zipnerf_big, 65_536, {}, 4.30), (zipnerf_lite, 1024, {}, 0.41),
    (zipnerf, 8192, {"camera_optimizer": CameraOptimizerConfig(mode="SO3xR3")}, 2.09),
    (zipnerf, 8192, {"precision": "float32"}, 2.26),
])  # fmt: skip
def test_a_training_needs_what_was_measured(kernels, method, num_rays, changes, taken):
    """docs/measurements.md has GiB that torch has taken from an H200, 0.02 of them for pixels."""
    model = dataclasses.replace(method.config.pipeline.model, **changes)
    assert sum(training_memory(model, num_rays, int(0.016 * GIB), CUDA)) / GIB == pytest.approx(taken, rel=0.06)


def test_a_training_by_torch_needs_what_was_measured():
    """Of pieces that find no place in others' more is taken than is in use: the estimate lies in between."""
    needed = sum(training_memory(zipnerf.config.pipeline.model, 4096, int(0.016 * GIB), CUDA)) / GIB
    assert 1.90 < needed < 2.26 < 1.15 * needed


@pytest.mark.parametrize(("num_rays", "measured"), [(16_384, 4.3), (65_536, 13.3)])
def test_the_torch_form_needs_what_was_in_use(num_rays, measured):
    """It was measured when proposals had six look-ups an interval, and each interval its color; GiB in use."""
    model = dataclasses.replace(zipnerf.config.pipeline.model, proposal_prefilter="multisample", color_group=1)
    needed = sum(training_memory(model, num_rays, 0, CUDA))
    assert measured - 0.05 <= needed / GIB <= 1.1 * measured + 0.05


def test_the_kernels_hold_as_many_cotangents_as_is_counted():
    assert RadianceTuning().rows == reckoned.COTANGENT_ROWS


def test_zipnerf_at_its_defaults_fits_a_small_card(kernels, monkeypatch):
    """6 GB, half a GiB of it the driver's and the screen's, with 1.5 GiB of pixels; more would lie on disk."""
    monkeypatch.setattr(reckoned, "room_on", lambda device: 5 * GIB)
    check_memory(zipnerf.config, CUDA, pixels=3 * GIB // 2)
    needed = check_memory(zipnerf_lite.config, CUDA, pixels=3 * GIB // 2)
    counted = sum(training_memory(zipnerf_lite.config.pipeline.model, 1024, 3 * GIB // 2, CUDA))
    assert needed == counted + reckoned.OUTSIDE_BYTES
    with pytest.raises(InputError):
        check_memory(zipnerf_big.config, CUDA, pixels=3 * GIB // 2)


def with_options(config: ZipNerfTrainerConfig, options: Iterable[tuple[str, str]]) -> ZipNerfTrainerConfig:
    """A copy of a configuration in which some options have other values."""
    changed = copy.deepcopy(config)
    for option, value in options:
        *parents, last = option.replace("-", "_").split(".")
        setattr(functools.reduce(getattr, parents, changed.pipeline), last, int(value))
    return changed


OPTION = r"--pipeline\.([a-z0-9.-]+) (\d+)"


@pytest.mark.parametrize(("room", "pixels", "proposed"), [
    (3.0, 0.0, "rays"), (4.2, 0.0, "rays table"), (5.2, 1.0, "rays table pixels"), (1.9, 0.0, "rays"),
    (4.0, 9.0, "all"), (1.0, 0.0, "all"),
])  # fmt: skip
def test_what_is_proposed_fits(kernels, monkeypatch, room, pixels, proposed):
    """Any of what is proposed fits by itself, and no smaller change would; or all fit together where none does."""
    monkeypatch.setattr(reckoned, "room_on", lambda device: int(room * GIB) + reckoned.OUTSIDE_BYTES)
    config, on_gpu = zipnerf_big.config, int(pixels * GIB)
    with pytest.raises(InputError, match=rf"needs \d+\.\d GiB.*cuda:0.*{room} GiB.*zipnerf-lite") as error:
        check_memory(config, CUDA, pixels=on_gpu)
    text = str(error.value)
    assert ("images-on-gpu False" in text) is (pixels > 0)
    found = re.findall(OPTION, text)
    if proposed == "all":
        assert len(found) == 2 and " with " in text
        check_memory(with_options(config, found), CUDA)
        return
    names = {"rays": "datamanager.train-num-rays-per-batch", "table": "model.grid.log2-hashmap-size"}
    assert [option for option, _ in found] == [names[word] for word in proposed.split() if word in names]
    for option, value in found:
        check_memory(with_options(config, [(option, value)]), CUDA, pixels=on_gpu)
        less = int(value) * 2 if "rays" in option else int(value) + 1
        with pytest.raises(InputError):
            check_memory(with_options(config, [(option, str(less))]), CUDA, pixels=on_gpu)
    if pixels:
        check_memory(config, CUDA)


def test_where_nothing_would_fit_no_number_is_proposed(monkeypatch):
    monkeypatch.setattr(reckoned, "room_on", lambda device: 2**20)
    with pytest.raises(InputError, match="Choose a device with more memory") as error:
        check_memory(zipnerf_lite.config, CUDA)
    assert re.findall(OPTION, str(error.value)) == []


def test_what_lies_on_the_device_already_counts_as_had(monkeypatch):
    needed = sum(training_memory(zipnerf_lite.config.pipeline.model, 1024, 0, CPU))
    monkeypatch.setattr(reckoned, "room_on", lambda device: needed - 1000)
    check_memory(zipnerf_lite.config, CPU, held=1000)
    with pytest.raises(InputError):
        check_memory(zipnerf_lite.config, CPU, held=999)


@pytest.mark.parametrize("change", ["camera", "ipe", "float32"])
def test_settings_change_what_a_step_needs(change):
    model = copy.deepcopy(zipnerf.config.pipeline.model)
    before = training_memory(model, 4096, 0, CUDA)
    if change == "camera":
        model.camera_optimizer.mode = "SO3xR3"
    elif change == "ipe":
        model.prefilter = "ipe"
    else:
        model.precision = "float32"
    after = training_memory(model, 4096, 0, CUDA)
    assert after.tables == before.tables and (after.step < before.step) is (change == "ipe")


def test_memory_of_a_training_is_asked_of_trainings_alone(tmp_path, monkeypatch):
    """Tables that fit, but not with their gradients and moments, are rendered and not trained."""
    config = tiny_config(tmp_path, tmp_path)
    room = 8 * sum(table_values(config.pipeline.model).values())
    monkeypatch.setattr(reckoned, "room_on", lambda device: room)
    monkeypatch.setattr("zipnerf_ns.data.memory.room_on", lambda device: room)
    check_table_memory(config.pipeline.model, CPU)
    with pytest.raises(InputError, match="the training needs"):
        check_run(config)


def test_the_trainer_asks_again_when_it_knows_its_pixels(tmp_path, monkeypatch):
    """What is held by then, pixels and parameters, is not asked for twice."""
    asked = []
    monkeypatch.setattr(reckoned, "room_on", lambda device: GIB)
    ask = lambda config, device, held=0, pixels=0, motion=None: asked.append((held, pixels, motion)) or 0  # noqa: E731
    for module in (checks, reckoned):
        monkeypatch.setattr(module, "check_memory", ask)
    trainer = tiny_config(write_scene(tmp_path / "scene"), tmp_path).setup()
    trainer.setup()
    store = trainer.pipeline.datamanager.pixels
    parameters = sum(parameter.nbytes for parameter in trainer.pipeline.parameters())
    motion = trainer.pipeline.model.config.motion
    assert asked == [(0, 0, None), (store.num_bytes + parameters, store.num_bytes, motion)] and store.num_bytes > 0


def test_every_program_keeps_to_its_share(tmp_path, monkeypatch):
    """Before anything of the data lies on the device: ns-eval and ns-render make a pipeline as the trainer does."""
    limits = []
    monkeypatch.setattr("zipnerf_ns.engine.pipeline.limit_memory", lambda *limit: limits.append(limit))
    monkeypatch.setattr(ZipNerfDataManager, "setup_train", lambda self: limits.append("data"))
    config = tiny_config(write_scene(tmp_path / "scene"), tmp_path)
    config.pipeline.gpu_memory = 6.0
    config.pipeline.setup(device=CPU, test_mode="test")
    assert limits == [(CPU, 6.0), "data"]
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(InputError, match="gpu_memory"):
            dataclasses.replace(config.pipeline, gpu_memory=wrong)


def test_the_trainer_counts_within_its_share(monkeypatch):
    config, limits = copy.deepcopy(zipnerf.config), []
    config.machine.device_type, config.pipeline.gpu_memory = "cuda", 1.0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(checks, "explain_implementation", lambda *_: None)
    monkeypatch.setattr(checks, "limit_memory", lambda device, gib: limits.append(gib))
    monkeypatch.setattr(reckoned, "room_on", lambda device: int(limits[-1] * GIB) + reckoned.OUTSIDE_BYTES)
    with pytest.raises(InputError, match=r"of cuda it may take 1\.0 GiB"):
        check_run(config)


def test_a_training_that_does_not_fit_ends_before_its_first_step(tmp_path, monkeypatch):
    rooms = iter([GIB, 1000])
    monkeypatch.setattr(reckoned, "room_on", lambda device: next(rooms))
    monkeypatch.setattr(ZipNerfTrainer, "train_iteration", lambda *_: pytest.fail("a step was made"))
    said = said_when_started(tiny_config(write_scene(tmp_path / "scene"), tmp_path))
    assert "the training needs" in said and "Choose" in said


@pytest.mark.parametrize("kind", ["blend", "deform", "both"])
def test_what_moves_takes_tables_and_a_step_of_its_own(kernels, kind):
    """By its tables' values and, of each interval, by its channels, four times, or by its shift."""
    still, moving = zipnerf_dynamic.config.pipeline.model, copy.deepcopy(zipnerf_dynamic.config.pipeline.model)
    still = dataclasses.replace(still, motion=MotionConfig("none"))
    moving.motion.kind = kind
    without, needed = (training_memory(model, 8192, 0, CUDA) for model in (still, moving))
    more = sum(table_values(moving).values()) - sum(table_values(still).values())
    assert 16 * more <= needed.tables - without.tables <= 18 * more
    per_interval = {"blend": 4 * 40 * 2, "deform": 4 * 240, "both": 4 * 40 * 2 + 4 * 240}[kind]
    assert needed.step - without.step > 8192 * 32 * per_interval


def test_motion_that_photos_decide_on_is_refused_by_its_least_and_reckoned_by_its_most(kernels, monkeypatch):
    monkeypatch.setattr(reckoned, "OUTSIDE_BYTES", 0)
    monkeypatch.setattr(reckoned, "room_on", lambda device: 100 * GIB)
    config, motion = copy.deepcopy(zipnerf_dynamic.config), zipnerf_dynamic.config.pipeline.model.motion
    assert motion.kind == "auto"
    needs = {}
    for cameras, kind in ((1, "blend"), (2, "both")):
        config.pipeline.model.motion = motion.settled(cameras, None)
        assert config.pipeline.model.motion.kind == kind
        needs[kind] = check_memory(config, CUDA)
    assert needs["blend"] < needs["both"]
    config.pipeline.model.motion = motion
    monkeypatch.setattr(reckoned, "room_on", lambda device: needs["blend"])
    assert check_memory(config, CUDA) == needs["both"]
    check_memory(config, CUDA, motion=motion.settled(1, None))
    with pytest.raises(InputError, match="the training needs"):
        check_memory(config, CUDA, motion=motion.settled(2, None))
    monkeypatch.setattr(reckoned, "room_on", lambda device: needs["blend"] - 1)
    with pytest.raises(InputError, match="the training needs"):
        check_memory(config, CUDA)
