"""The comparison: its command line, its reports, and two methods through the whole of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from _trials import SMALL, result
from PIL import Image

from zipnerf_ns.tools import compare
from zipnerf_ns.tools.compare import main, parse, parse_changes, plan
from zipnerf_ns.tools.trials import trial as trials
from zipnerf_ns.tools.trials.figures import CROP_SIDE, crops_of_view, save_crops, save_curves, worst_square
from zipnerf_ns.tools.trials.report import comparison
from zipnerf_ns.tools.trials.views import View, save_view


def small_settings(method: str) -> list[str]:
    return [f"{method}:pipeline.{path}={value}" for path, value in SMALL.items()]


FAILED = {"trial": result("splatfacto")["trial"], "status": "failed", "reason": "RuntimeError: no | compiler"}


def test_command_line_becomes_trials(tmp_path):
    options = parse([
        str(tmp_path), "--methods", "zipnerf", "nerfacto", "--seconds", "25", "--scales", "1", "2",
        "--set", "*:machine.seed=3", "nerfacto:pipeline.model.near_plane=0.2",
    ])  # fmt: skip
    (first, folder, name), (second, _, _) = plan(options)
    assert (first.method, second.method) == ("zipnerf", "nerfacto")
    assert first.scene == str(tmp_path.resolve()) and (first.seconds, first.steps, first.scales) == (25.0, None, (1, 2))
    assert first.changes == {"machine.seed": 3} and second.changes == {
        "machine.seed": 3,
        "pipeline.model.near_plane": 0.2,
    }
    assert (folder, name) == (Path("outputs/compare") / tmp_path.name / "zipnerf", "zipnerf")


def test_every_seed_is_a_trial_in_a_folder_of_its_own(tmp_path):
    """A whole table stands after the first seed."""
    planned = plan(parse([str(tmp_path), "--methods", "zipnerf", "nerfacto", "--seeds", "0", "7"]))
    assert [(each.trial.method, each.trial.seed) for each in planned] == [
        ("zipnerf", 0), ("nerfacto", 0), ("zipnerf", 7), ("nerfacto", 7)
    ]  # fmt: skip
    assert len({each.folder for each in planned}) == len({each.name for each in planned}) == 4
    assert plan(parse([str(tmp_path)]))[0].trial.seed == 42


def test_defaults_are_what_the_issue_of_a_comparison_is(tmp_path):
    options = parse([str(tmp_path)])
    assert [each.trial.method for each in plan(options)] == list(compare.METHODS)
    assert all((each.trial.seconds, each.trial.steps) == (compare.DEFAULT_SECONDS, None) for each in plan(options))
    assert plan(parse([str(tmp_path), "--steps", "9"]))[0].trial.seconds is None


@pytest.mark.parametrize(
    "arguments,words",
    [
        (["nowhere"], "nowhere does not exist"),
        ([".", "--seeds", "1", "1"], "--seeds must be different"),
        ([".", "--seconds", "0"], "--seconds must be positive"),
        ([".", "--steps", "1"], "--steps must be at least 2"),
        ([".", "--seconds", "5", "--steps", "5"], "not allowed with"),
        ([".", "--set", "near_plane=1"], "is not METHOD:FIELD=VALUE"),
        ([".", "."], "must have different names"),
        ([".", "--gpus", "1", "1"], "--gpus must be different"),
    ],
)
def test_command_lines_that_cannot_work(capsys, arguments, words):
    with pytest.raises(SystemExit) as caught:
        parse(arguments)
    assert caught.value.code == 2 and words in capsys.readouterr().err


def test_gpus_that_are_not_there(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        parse([".", "--gpus", "0"])
    assert "no GPU is seen here" in capsys.readouterr().err


def test_values_of_settings():
    changes = parse_changes(["a:b.c=1", "a:d=0.5", "a:e=true", "a:f=none", "b:g=1e-2"])
    assert changes == {"a": {"b.c": 1, "d": 0.5, "e": True, "f": "none"}, "b": {"g": "1e-2"}}


def test_report_says_what_was_measured_and_how():
    text = comparison([result("zipnerf"), FAILED, result("nerfacto", "/data/lego", planned_steps=9000)])
    fox, lego = text.split("## lego")
    row = next(line for line in fox.splitlines() if line.startswith("| `zipnerf`"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == ["`zipnerf`", "26.12", "0.8123", "–", "9,000", "73.7", "120", "3.2", "61.2", "8.0", "1.50", "3.0",
                     "One GPU"]  # fmt: skip
    assert "120 s of training; seed 42" in fox and "a note" in fox and "stopped by the clock at 90%" in fox
    # A bar in a reason would be another column.
    failed = next(line for line in fox.splitlines() if line.startswith("| `splatfacto`"))
    assert "failed: RuntimeError: no / compiler" in failed and failed.count("|") == row.count("|")
    assert "stopped by the clock" not in lego and "`nerfacto`" in lego


def of_seed(seed: int, psnr: float = 26.0, **changes):
    made = result("zipnerf", metrics={"psnr": psnr, "ssim": 0.9}, **changes)
    return {**made, "trial": {**made["trial"], "seed": seed}}


def test_report_of_several_seeds():
    """A method has one row: means, and their standard errors over the seeds that did not fail."""
    values, scales = [26.0, 27.0, 29.0], [{"1": {"psnr": 30.0}}, {"1": {"psnr": 32.0}}, {}]
    results = [
        of_seed(seed, value, by_scale=scales[seed], steps=3000 * (seed + 1)) for seed, value in enumerate(values)
    ]
    failed = {**of_seed(3), "status": "failed", "reason": "out of memory"}
    text = comparison([*results[:2], result("nerfacto"), results[2], failed])
    error = np.std(values, ddof=1) / np.sqrt(3)
    assert f"| `zipnerf` | 27.33 ± {error:.2f} | 0.9000 ± 0.0000 | – | 6,000 |" in text
    assert text.count("| `zipnerf` |") == 2 and text.count("- `zipnerf`:") == 1
    assert "| `zipnerf` | 31.00 ± 1.00 / – |" in text
    assert "stopped by the clock at 30% of its schedule; stopped by the clock at 60%" in text
    assert "seed 3 failed: out of memory" in text
    assert "seeds 0, 1, 42, 2, 3, of which means stand here; ± is their standard error" in text


def test_report_of_several_scales():
    by_scale = {"1": {"psnr": 30.0, "ssim": 0.9}, "8": {"psnr": 33.0}}
    text = comparison([result("zipnerf", by_scale=by_scale), FAILED])
    assert "| method | 1/1 | 1/8 |" in text
    assert "| `zipnerf` | 30.00 / 0.9000 | 33.00 / – |" in text and "| `splatfacto` | – | – |" in text


@pytest.mark.parametrize("side", [1, 5, 12])
def test_worst_square_by_brute_force(side):
    errors = np.random.default_rng(side).random((12, 20)).astype(np.float32) ** 8
    sums = {
        (top, left): float(errors[top : top + side, left : left + side].astype(np.float64).sum())
        for top in range(13 - side)
        for left in range(21 - side)
    }
    assert worst_square(errors, side) == max(sums, key=sums.get)


def test_crops_show_where_it_is_worst(tmp_path):
    """One bright error in the dark: it is within the crop, and the picture shows it in white."""
    truth = torch.zeros(120, 160, 3)
    wrong = truth.clone()
    wrong[100:104, 140:144] = 1.0
    for name, rendering in (("good", truth), ("bad", wrong)):
        for index in (0, 2):
            save_view(tmp_path / name / "views", index, View(truth, rendering, 0.1))
    good, bad = (result(name, per_image=[{"psnr": 20.0, "scale": 4}] * 3) for name in ("good", "bad"))
    crops = crops_of_view(2, [good, bad], [tmp_path / "good/views", tmp_path / "bad/views"])
    assert [title for title, _, _ in crops] == ["fox, view 2, at 1/4\ntruth", "good  20.00 dB", "bad  20.00 dB"]
    assert all(picture.shape == (CROP_SIDE, CROP_SIDE, 3) for _, picture, _ in crops)
    assert crops[0][2] is None and crops[0][1].max() == crops[1][1].max() == crops[1][2].max() == 0.0
    assert crops[2][2].sum() == crops[2][1][..., 0].sum() == 16.0
    drawn = []
    for results in ([FAILED], [good, FAILED], [bad, FAILED]):
        folders = [tmp_path / each["trial"]["method"] for each in results]
        save_crops(tmp_path / "crops.png", results, folders)
        if results == [FAILED]:
            assert not (tmp_path / "crops.png").exists()
        else:
            drawn.append(np.asarray(Image.open(tmp_path / "crops.png").convert("RGB")).astype(int))
    # White on black, in two views, each as picture and as error.
    assert drawn[0].shape == drawn[1].shape and (drawn[1] - drawn[0]).sum() > 4 * 16 * 3 * 200


def test_curves_are_drawn(tmp_path):
    save_curves(tmp_path / "none.png", [FAILED])
    assert not (tmp_path / "none.png").exists()
    save_curves(tmp_path / "curves.png", [result("zipnerf"), result("nerfacto", "/data/lego"), FAILED])
    picture = np.asarray(Image.open(tmp_path / "curves.png").convert("RGB"))
    assert picture.shape[1] > 2 * picture.shape[0] and picture.std() > 5.0


def test_seeds_share_a_color_and_crops_show_the_first(tmp_path):
    lower = [{"step": 9, "seconds": 15.0, "psnr": 12.0}, {"step": 9000, "seconds": 120.0, "psnr": 14.0}]
    pictures = []
    for group in ([of_seed(0)], [of_seed(0), of_seed(1, curve=lower)], [of_seed(0), result("nerfacto", curve=lower)]):
        save_curves(tmp_path / "curves.png", group)
        pixels = np.asarray(Image.open(tmp_path / "curves.png").convert("RGB")).astype(int)
        pictures.append(pixels[np.ptp(pixels, axis=-1) > 100])
    # Orange is not among the colors of one method.
    one, two, others = ((colors[:, 0] > colors[:, 2]).sum() for colors in pictures)
    assert one == two == 0 < others and len(pictures[1]) > 1.5 * len(pictures[0])
    for seed, value in ((0, 0.0), (1, 1.0)):
        for index in (0, 2):
            view = View(torch.zeros(50, 50, 3), torch.full((50, 50, 3), value), 0.1)
            save_view(tmp_path / f"{seed}/views", index, view)
    for results in ([of_seed(0)], [of_seed(0), of_seed(1)]):
        save_crops(tmp_path / f"crops{len(results)}.png", results, [tmp_path / "0", tmp_path / "1"][: len(results)])
    assert (tmp_path / "crops1.png").read_bytes() == (tmp_path / "crops2.png").read_bytes()


def test_two_methods_through_the_whole_of_it(tiny_scene, tmp_path, monkeypatch):
    """One trains, one is not there: both are rows; what is asked for again is not done again."""
    command = [str(tiny_scene), "--methods", "zipnerf-lite", "in2n", "--steps", "4", "--scales", "1", "2", "--output",
               str(tmp_path / "out"), "--resume", "--set", *small_settings("zipnerf-lite")]  # fmt: skip
    assert main(command) == 0
    content = json.loads((tmp_path / "out/results.json").read_text())
    done, failed = content["results"]
    assert "--scales 1 2" in content["command"]
    assert (done["steps"], done["rays"], failed["status"]) == (4, 256, "failed")
    assert "in2n is not installed" in failed["reason"] or "no method in2n" in failed["reason"]
    assert set(done["by_scale"]) == {"1", "2"} and len(done["per_image"]) == 4
    means = [done["by_scale"][scale]["psnr"] for scale in ("1", "2")]
    assert done["metrics"]["psnr"] == pytest.approx(np.mean(means))
    assert [point["step"] for point in done["curve"]] == [1, 2, 4] and done["curve"][-1]["psnr"] > 5.0
    report = (tmp_path / "out/results.md").read_text()
    assert "| `zipnerf-lite` |" in report and "| `in2n` | failed" in report
    folder = tmp_path / "out/tiny/zipnerf-lite"
    for index in done["kept_views"]:
        pictures = [np.asarray(Image.open(folder / f"views/{index:04d}_{name}.png")) for name in ("truth", "rendering")]
        error = np.square(pictures[0] / 255.0 - pictures[1] / 255.0).mean()
        # What was measured is what the kept 8-bit pictures show.
        assert done["per_image"][index]["psnr"] == pytest.approx(-10.0 * np.log10(error), abs=1e-3)
    assert Image.open(tmp_path / "out/crops.png").size[0] > 0 and Image.open(tmp_path / "out/curves.png").size[0] > 0
    assert not list(folder.rglob("*.ckpt"))

    asked = []

    def run_again(trial, folder, gpu):
        asked.append(trial.method)
        return failed

    monkeypatch.setattr(trials, "run_trial", run_again)
    assert main(command) == 0 and asked == ["in2n"]
    assert json.loads((tmp_path / "out/results.json").read_text())["results"][0] == done
    assert main([word for word in command if word != "--resume"]) == 1 and asked == ["in2n", "zipnerf-lite", "in2n"]
