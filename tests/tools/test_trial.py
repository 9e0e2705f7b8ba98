"""Trials in processes of their own: results, failures, what is kept; and the views that are measured."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from _scenes import write_blender_scene
from PIL import Image

from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig

from zipnerf_ns.data.disk.files import write_json
from zipnerf_ns.render.metrics import in_8_bits
from zipnerf_ns.tools.trials import trial as trials
from zipnerf_ns.tools.trials import views as trial_views
from zipnerf_ns.tools.trials import worker as trial_worker
from zipnerf_ns.tools.trials.config import change, prepare, set_steps
from zipnerf_ns.tools.trials.training import release, set_up
from zipnerf_ns.tools.trials.trial import Planned, Trial, read_result, run_all, run_trial
from zipnerf_ns.tools.trials.views import View, measure, render_views

TRIAL = Trial(scene="scene", method="zipnerf", scales=(1, 2), changes={"pipeline.model.prefilter": "ipe"})

WORKERS = {
    "crash": "import sys\nprint('the last word')\nprint()\nsys.exit(3)",
    "kill": "import os, signal\nprint('x')\nos.kill(os.getpid(), signal.SIGKILL)",
    "hang": "import time\ntime.sleep(60)",
    "gpu": """
import json, os, sys, time
from pathlib import Path
begin, folder, gpu = time.time(), Path(sys.argv[1]), os.environ.get("CUDA_VISIBLE_DEVICES")
here = folder.parent
(here / f"begun.{gpu}.{folder.name}").touch()
# The n-th trial on one GPU waits for the n-th on each other one, if they are said to work at the same time.
gpus = (here / "gpus").read_text().split() if (here / "gpus").exists() else []
count = lambda gpu: len(list(here.glob(f"begun.{gpu}.*")))
number = count(gpu)
while any(count(other) < number for other in gpus) and time.time() < begin + 30.0:
    time.sleep(0.01)
result = {"status": "done", "trial": json.loads(sys.argv[2]), "gpu": gpu, "span": [begin, time.time()]}
result.update(metrics={}, steps=1, seconds=1.0)
(folder / "result.json").write_text(json.dumps(result))
""",
    "good": "import json, sys\nfrom pathlib import Path\nfolder = Path(sys.argv[1])\n"
    "result = {'status': 'done', 'steps': json.loads(sys.argv[2])['steps']}\n"
    "(folder / 'result.json').write_text(json.dumps(result))",
}


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """Puts another program in the worker's place."""

    def put(name: str) -> None:
        (tmp_path / f"worker_{name}.py").write_text(WORKERS[name])
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(trials.__file__).parents[2]}")
        monkeypatch.setattr(trials, "WORKER", f"worker_{name}")

    return put


@pytest.mark.parametrize(
    "name,reason",
    [("crash", "exit status 3: the last word"), ("kill", "ended by SIGKILL, often for lack of memory: x")],
)
def test_a_process_that_dies_is_a_result(tmp_path, worker, name, reason):
    worker(name)
    result = run_trial(TRIAL, tmp_path / "trial")
    assert (result["status"], result["reason"]) == ("failed", reason)
    assert json.loads((tmp_path / "trial/result.json").read_text()) == json.loads(json.dumps(result))
    assert read_result(tmp_path / "trial", TRIAL) is None


def test_a_process_that_hangs_is_ended(tmp_path, worker, monkeypatch):
    worker("hang")
    monkeypatch.setattr(trials, "SET_UP_LIMIT", 1.0)
    trial = dataclasses.replace(TRIAL, seconds=0.0)
    assert run_trial(trial, tmp_path / "trial")["reason"] == "ended after 1 s without a result"


def test_an_earlier_result_is_no_result_of_this_trial(tmp_path, worker):
    worker("good")
    steps = dataclasses.replace(TRIAL, seconds=None, steps=7)
    assert run_trial(steps, tmp_path / "trial") == {"status": "done", "steps": 7}
    worker("crash")
    assert run_trial(steps, tmp_path / "trial")["status"] == "failed"


def test_each_gpu_has_one_trial_at_a_time(tmp_path, worker):
    worker("gpu")
    (tmp_path / "gpus").write_text("3 5")
    planned = [Planned(dataclasses.replace(TRIAL, seed=seed), tmp_path / f"t{seed}", "") for seed in range(4)]
    *_, finished = run_all(planned, False, ["3", "5"])
    assert [each["trial"]["seed"] for each in finished] == list(range(4))
    spans = [sorted(each["span"] for each in finished if each["gpu"] == gpu) for gpu in ("3", "5")]
    assert [len(own) for own in spans] == [2, 2]
    for own in spans:
        assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(own))
    for (a, b), (c, d) in zip(*spans, strict=True):
        assert max(a, c) < min(b, d), "the GPUs did not work at the same time"


def test_kept_results_are_said_and_the_others_are_run(tmp_path, worker, monkeypatch, capsys):
    worker("gpu")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    planned = [Planned(dataclasses.replace(TRIAL, seed=seed), tmp_path / f"t{seed}", f"t{seed}") for seed in range(2)]
    kept = {"status": "done", "trial": dataclasses.asdict(planned[1].trial), "first_step_seconds": 2.0}
    write_json(planned[1].folder / "result.json", kept)
    *_, (run, again) = run_all(planned, True)
    assert run["gpu"] == "7" and again == json.loads(json.dumps(kept))
    assert capsys.readouterr().out.splitlines() == [
        "scene, t0: ; 1 steps in 1.0 s", "scene, t1: built: first step 2 s (kept)"
    ]  # fmt: skip


def test_the_worker_performs_what_it_was_given(tmp_path, monkeypatch):
    performed = []
    monkeypatch.setattr(trial_worker, "perform", lambda trial, folder: performed.append(trial) or {"steps": 3})
    assert trial_worker.main([str(tmp_path), json.dumps(dataclasses.asdict(TRIAL))]) == 0
    assert performed == [TRIAL] and json.loads((tmp_path / "result.json").read_text())["steps"] == 3


def test_only_results_of_the_same_trial_are_kept(tmp_path):
    write_json(tmp_path / "result.json", {"status": "done", "trial": dataclasses.asdict(TRIAL)})
    assert read_result(tmp_path, TRIAL)["status"] == "done"
    for other in ({"seed": 1}, {"scales": ()}, {"changes": {}}, {"seconds": 60.0}):
        assert read_result(tmp_path, dataclasses.replace(TRIAL, **other)) is None
    assert read_result(tmp_path / "elsewhere", TRIAL) is None


@pytest.fixture
def other_methods_pipeline(tmp_path):
    """Nerfacto, made small, on transparent pictures, as a trial sets it up: without weights from the network."""
    scene = write_blender_scene(tmp_path / "scene", count=2, size=12)
    trial = Trial(scene=str(scene), method="nerfacto", seconds=None, steps=2, device="cpu")
    prepared = prepare(trial, tmp_path / "nerfacto")
    change(prepared.config, {
        "pipeline.datamanager.train_num_rays_per_batch": 16, "pipeline.model.num_nerf_samples_per_ray": 4,
        "pipeline.model.num_proposal_samples_per_ray": (8, 4), "pipeline.model.log2_hashmap_size": 10,
    })  # fmt: skip
    trainer, _ = set_up(set_steps(prepared, 2, stretch=True))
    yield trainer.pipeline, scene
    release(trainer)


def test_views_follow_what_optimized_cameras_have_drifted(other_methods_pipeline, monkeypatch):
    """Every training camera corrected by the same shift: held-out ones stand that much farther, too."""
    pipeline, _ = other_methods_pipeline
    given = []
    model, original = pipeline.model, pipeline.model.get_outputs_for_camera
    monkeypatch.setattr(
        model, "get_outputs_for_camera", lambda camera: given.append(camera.camera_to_worlds) or original(camera)
    )
    list(render_views(pipeline, over_white=True))
    cameras = pipeline.datamanager.train_dataset.cameras
    optimizer = CameraOptimizerConfig(mode="SO3xR3").setup(num_cameras=len(cameras), device="cpu")
    shift = torch.tensor([0.1, -0.2, 0.05])
    optimizer.pose_adjustment.data[:, :3] = shift
    monkeypatch.setattr(model, "camera_optimizer", optimizer)
    list(render_views(pipeline, over_white=True))
    half = len(given) // 2
    for before, after in zip(given[:half], given[half:], strict=True):
        torch.testing.assert_close(after[..., :3], before[..., :3], rtol=0.0, atol=1e-5)
        torch.testing.assert_close(after[..., 3], before[..., 3] + shift, rtol=0.0, atol=1e-5)


def test_another_method_is_measured_over_white(other_methods_pipeline, tmp_path):
    """Truth is the picture over white; where the untrained field is empty, white shows through the rendering too."""
    pipeline, scene = other_methods_pipeline
    # Not what its configuration says, so that the measurement itself must see to it.
    pipeline.model.renderer_rgb.background_color = "black"
    views = list(render_views(pipeline, over_white=True))
    assert len(views) == 2 and pipeline.training
    for index, view in enumerate(views):
        picture = np.asarray(Image.open(scene / f"test/r_{index}.png"), dtype=np.float64) / 255.0
        truth = picture[..., :3] * picture[..., 3:] + 1.0 - picture[..., 3:]
        # Rounding to 8 bits in float32: a value between two may go to either.
        np.testing.assert_allclose(view.truth.numpy(), truth, atol=0.51 / 255.0)
        assert torch.equal(view.rendering, in_8_bits(view.rendering)) and view.seconds > 0.0
    over_black = [view.rendering.mean() for view in render_views(pipeline, over_white=False)]
    assert all(view.rendering.mean() > black for view, black in zip(views, over_black, strict=True))
    per_image, kept, speed = measure(pipeline, True, tmp_path / "views")
    assert kept == [0, 1] and speed > 0.0
    for index, (metrics, view) in enumerate(zip(per_image, views, strict=True)):
        error = (view.rendering - view.truth).square().mean()
        assert metrics["psnr"] == pytest.approx(float(-10.0 * torch.log10(error)), abs=1e-4)
        assert 0.0 < metrics["ssim"] <= 1.0
        stored = np.asarray(Image.open(tmp_path / f"views/{index:04d}_rendering.png"))
        np.testing.assert_array_equal(stored, (view.rendering * 255).round().numpy())


def test_kept_views_are_evenly_spread(monkeypatch, tmp_path):
    picture = torch.rand(12, 12, 3)
    monkeypatch.setattr(trial_views, "render_views", lambda *_: [View(picture, picture, 0.1)] * 9)
    pipeline = SimpleNamespace(datamanager=SimpleNamespace(eval_dataset=range(9)))
    assert measure(pipeline, False, tmp_path)[1] == [1, 3, 5, 7]
    assert len(list(tmp_path.iterdir())) == 8
