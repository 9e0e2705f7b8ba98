"""The ablation: what its variants change, how differences are told, and two variants through the whole of it."""

from __future__ import annotations

import copy
import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from _trials import SMALL, result

from zipnerf_ns.engine.optimizers import complete_schedules
from zipnerf_ns.tools import ablate
from zipnerf_ns.tools.ablate import (
    BASE,
    VARIANTS,
    changes_of,
    difference,
    main,
    parse,
    report,
    shows_scales,
    why_left_out,
)
from zipnerf_ns.tools.demo_scene import write_scene as write_built_in
from zipnerf_ns.tools.trials import trial as trials
from zipnerf_ns.tools.trials import worker as trial_worker
from zipnerf_ns.tools.trials.config import change, registered
from zipnerf_ns.tools.trials.trial import read_result

MODEL = "pipeline.model."


def test_variants_of_the_issue_are_all_there():
    """Prefilters, each loss on and off, levels, resolutions, intervals a ray, table sizes."""
    assert VARIANTS[BASE] == {}
    assert {VARIANTS[f"prefilter {kind}"][MODEL + "prefilter"] for kind in ("multisample", "ipe", "none")} == {
        "multisample", "ipe", "none",
    }  # fmt: skip
    for samples in (48, 96, 192, 384):
        changes = VARIANTS[f"{samples} intervals a ray"]
        assert sum(changes.values()) == samples and len(changes) == 3
    for name, field in (
        ("distillation", "distillation_loss_mult"), ("interlevel", "interlevel_loss_mult"),
        ("level consistency", "level_consistency_mult"), ("distortion", "distortion_loss_mult"),
        ("hash decay", "hash_decay_mult"),
    ):  # fmt: skip
        assert VARIANTS[f"no {name}"] == {MODEL + field: 0.0}
    assert len({tuple(sorted(changes.items())) for changes in VARIANTS.values()}) == len(VARIANTS)


@pytest.mark.parametrize("method", ["zipnerf", "zipnerf-lite"])
def test_each_setting_is_the_methods_own_in_one_variant_at_least(method):
    """Of on and off, one is the method as it is, and is not trained twice; of each pair, one is."""
    config = registered(method)
    reasons = {name: why_left_out(config, name, has_scales=True) for name in VARIANTS}
    assert reasons[BASE] is None
    own = {name for name, reason in reasons.items() if reason == f"as {BASE}"}
    trained = {name for name, reason in reasons.items() if reason is None}
    prefilters = {name for name in VARIANTS if name.startswith("prefilter")}
    assert len(prefilters & own) == 1 and len(prefilters & trained) == 2
    pairs = [("distortion", "no distortion"), ("hash decay", "no hash decay"), ("distillation", "no distillation"),
             ("progressive levels", "all levels at once"), ("appearance", "no appearance"),
             ("level consistency", "no level consistency"), ("gradient scaling", "no gradient scaling"),
             ("scales weighted by area", "scales weighted evenly"),
             ("center chosen", "centered among cameras")]  # fmt: skip
    for pair in pairs:
        assert len(set(pair) & own) == len(set(pair) & trained) == 1, pair


def test_settings_that_this_version_lacks_are_said(monkeypatch):
    monkeypatch.setitem(VARIANTS, "new idea", {MODEL + "use_new_idea": True})
    assert why_left_out(registered("zipnerf"), "new idea", False) == f"this version has no setting {MODEL}use_new_idea"
    assert why_left_out(registered("zipnerf"), "scales weighted by area", False) == "the scene has one scale"


@pytest.mark.parametrize("steps", [1000, 30_000])
@pytest.mark.parametrize(
    "name,share", [("last rates a tenth", 0.1), ("last rates a hundredth", 0.01), ("rates that fall late", 0.001)]
)
def test_last_rates_are_what_the_name_says_whatever_the_length(name, share, steps):
    config = copy.deepcopy(registered("zipnerf"))
    change(config, VARIANTS[name])
    for group in ("hash_tables", "networks"):
        first = config.optimizers[group]["optimizer"].lr
        optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=first)
        scheduler = complete_schedules(config.optimizers, steps)[group]["scheduler"].setup()
        factor = scheduler.get_scheduler(optimizer, first).lr_lambdas[0]
        assert factor(steps) == pytest.approx(share)


def test_settings_that_are_changed_together():
    """Rays, rates and losses of long trainings make one row."""
    name = "32,768 rays a step + last rates a tenth + distortion of 0.01"
    changes = changes_of(name)
    assert changes["pipeline.datamanager.train_num_rays_per_batch"] == 32_768 and len(changes) == 6
    assert changes[MODEL + "distortion_loss_mult"] == 0.01
    assert why_left_out(registered("zipnerf"), name, has_scales=False) is None
    scales = "no distortion + scales weighted by area"
    assert why_left_out(registered("zipnerf"), scales, has_scales=False) == "the scene has one scale"


def test_differences_are_taken_seed_by_seed():
    """Seeds may differ by more than variants do: what counts is the difference under the same rays."""
    base = {0: 25.0, 1: 27.0, 2: 29.0}
    assert difference({0: 25.5, 1: 27.5, 2: 29.5}, base) == "+0.50 ± 0.00"
    assert difference({0: 24.0, 1: 27.9, 2: 29.1}, base) == "+0.00 ± 0.55 (not told apart)"
    gains = [1.0, 1.5, 2.0]
    error = np.std(gains, ddof=1) / math.sqrt(3)
    assert difference({seed: base[seed] + gain for seed, gain in enumerate(gains)}, base) == f"+1.50 ± {error:.2f}"
    assert difference({1: 26.0}, base) == "-1.00"
    assert difference({7: 26.0}, base) == "–"


def ablated(variant: str, seed: int, psnr: float, **changes):
    return {**result("zipnerf", metrics={"psnr": psnr, "ssim": 0.8}, **changes), "variant": variant, "seed": seed}


def test_report_shows_means_and_differences(tmp_path):
    options = parse([str(tmp_path), "--seeds", "0", "1"])
    by_scale = {"by_scale": {"1": {"psnr": 24.0}, "8": {"psnr": 30.0}}}
    results = [
        ablated(BASE, 0, 26.0, **by_scale), ablated("prefilter none", 0, 24.5, **by_scale),
        ablated("no distortion", 0, 0.0, status="failed", reason="out of memory"),
        ablated(BASE, 1, 28.0, **by_scale), ablated("prefilter none", 1, 26.5, **by_scale),
    ]  # fmt: skip
    text = report(options, results, {"hash decay": "as full"})
    rows = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if line.startswith("| ")}
    assert "PSNR at 1/1 | PSNR at 1/8" in rows["variant"]
    assert "| 27.00 ± 1.00 | 0.8000 ± 0.0000 | – |  | 24.00 | 30.00 | 9,000 | 120 | 13.3 | 1.50 | 3.0 |" in rows[BASE]
    assert "| 25.50 ± 1.00 | 0.8000 ± 0.0000 | – | -1.50 ± 0.00 | 24.00" in rows["prefilter none"]
    assert "failed: out of memory" in rows["no distortion"]
    assert "- hash decay: as full" in text and "seeds 0, 1" in text and "Device: One GPU." in text
    assert "Each variant: 120 s of training" in text


def test_scenes_of_several_scales_are_known(tmp_path):
    scene = write_built_in(tmp_path / "scene", width=16, height=16, num_train=2, num_test=1, samples_per_pixel=1)
    assert shows_scales(scene / "transforms_multiscale.json") and not shows_scales(scene)
    assert not shows_scales(tmp_path)


@pytest.mark.parametrize(
    "arguments,words",
    [
        (["--only", "everything"], "no variant everything"),
        (["--only", "no distortion + everything"], "no variant everything"),
        (["--seeds", "1", "1"], "must be different"),
        (["--steps", "0"], "--steps must be at least 2"),
    ],
)
def test_command_lines_that_cannot_work(capsys, tmp_path, arguments, words):
    with pytest.raises(SystemExit):
        parse([str(tmp_path), *arguments])
    assert words in capsys.readouterr().err


def test_methods_that_are_not_there(capsys, tmp_path):
    assert main([str(tmp_path), "--method", "in2n"]) == 1
    assert "no method in2n" in capsys.readouterr().err


def test_two_variants_through_the_whole_of_it(tiny_scene, tmp_path, monkeypatch):
    """The base and a variant, on the same rays; the base comes along by itself. (In this process: the comparison's test
    has each in its own.)"""

    def run_here(trial, folder, gpu):
        assert trial_worker.main([str(folder), json.dumps(dataclasses.asdict(trial))]) == 0
        return read_result(folder, trial)

    monkeypatch.setattr(trials, "run_trial", run_here)
    small = {f"pipeline.{path}": value for path, value in SMALL.items()}
    variants = {BASE: small, "prefilter none": {**small, MODEL + "prefilter": "none"}, "not asked for": {}}
    monkeypatch.setattr(ablate, "VARIANTS", variants)
    command = [str(tiny_scene), "--method", "zipnerf-lite", "--steps", "4", "--seeds", "3",
               "--only", "prefilter none", "--output", str(tmp_path / "out")]  # fmt: skip
    assert main(command) == 0
    rows = json.loads((tmp_path / "out/ablation.json").read_text())["results"]
    assert [(row["variant"], row["seed"], row["status"]) for row in rows] == [
        (BASE, 3, "done"), ("prefilter none", 3, "done"),
    ]  # fmt: skip
    assert all(row["trial"]["same_rays"] and row["steps"] == 4 for row in rows)
    assert rows[0]["metrics"]["psnr"] != rows[1]["metrics"]["psnr"]
    assert "| prefilter none |" in (tmp_path / "out/ablation.md").read_text()
