"""Estimates of memory beside what was taken: every setting is a training that exists, and what is wrong is said."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from zipnerf_ns.data.memory import GIB
from zipnerf_ns.engine.safety.room import TrainingMemory
from zipnerf_ns.tools import memory
from zipnerf_ns.tools.memory import SETTINGS, Measured, Setting, config_of


def test_six_different_trainings_are_measured(tmp_path: Path):
    configs = [config_of(setting, tmp_path, tmp_path, 3) for setting in SETTINGS]
    assert len({str((config.pipeline.model, config.pipeline.datamanager)) for config in configs}) == len(SETTINGS) == 6
    assert len({setting.name for setting in SETTINGS}) == 6
    for setting, config in zip(SETTINGS, configs, strict=True):
        assert config.pipeline.datamanager.train_num_rays_per_batch == setting.rays
        assert all(getattr(config.pipeline.model, name) == value for name, value in setting.model.items())


@pytest.mark.parametrize(("gib", "error", "status"), [(2.0, "+0%", 0), (1.75, "+14%", 0), (1.7, "+18%", 1),
                                                      (2.4, "-17%", 1)])  # fmt: skip
def test_estimates_that_are_off_are_named(gib: float, error: str, status: int, tmp_path: Path, monkeypatch, capsys):
    def measure(setting: Setting, data: Path, steps: int) -> Measured:
        reserved = gib if setting is SETTINGS[1] else 2.0
        return Measured(setting.name, TrainingMemory(GIB, GIB // 2, GIB // 2), GIB, int(reserved * GIB))

    monkeypatch.setattr(memory, "measure", measure)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert memory.main(["--data", str(tmp_path)]) == status
    said = capsys.readouterr().out
    assert said.count(f"| {SETTINGS[1].name} | 2.00 | {gib:.2f} | {error} | 1.00 |") == 2
    assert said.splitlines()[-1] == (f"FAILED: more than 15% off: {SETTINGS[1].name}." if status else "All within 15%.")
    assert memory.main(["--data", str(tmp_path), "--only", "1", "3"]) == 0
    assert SETTINGS[2].name in (said := capsys.readouterr().out) and SETTINGS[1].name not in said


def test_a_training_is_measured_by_what_it_takes(tiny_scene: Path, monkeypatch, fresh_writers):
    """On a CPU, on which nothing is counted, with a peak that is said; the steps are taken."""
    taken: list[int] = []

    def train(trainer):
        taken.append(trainer.config.max_num_iterations)
        return SimpleNamespace(peak_gpu_bytes=5 * GIB)

    monkeypatch.setattr(memory, "train", train)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 6 * GIB)
    found = memory.measure(SETTINGS[0], tiny_scene, 2)
    assert taken == [2] and found.allocated == 5 * GIB and found.reserved == 6 * GIB and found.estimate.tables > 0


def test_without_a_gpu_one_line_says_so(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert memory.main(["--data", str(tmp_path)]) == 1 and "no CUDA device" in capsys.readouterr().err
