"""Trainings are compared bit by bit: the same again, stopped and resumed, and others, which are not the same."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch

from zipnerf_ns.engine.safety import determinism
from zipnerf_ns.engine.safety.determinism import prepare_to_repeat, repeatable
from zipnerf_ns.errors import InputError
from zipnerf_ns.ops import TORCH_OPS
from zipnerf_ns.tools import repeat
from zipnerf_ns.tools.benchmark.setup import TINY, bench_config


def test_the_same_training_repeats_and_another_does_not(tiny_scene: Path, tmp_path: Path, fresh_writers: None):
    config = bench_config(tiny_scene, tmp_path, TINY)
    config.max_num_iterations, config.machine.device_type = 6, "cpu"
    within: list[bool] = []
    backward = torch.Tensor.backward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "backward", lambda *loss: (
            within.append(torch.are_deterministic_algorithms_enabled()), backward(*loss)
        ))  # fmt: skip
        rows, is_same = repeat.compare(config, tmp_path, deterministic=True)
    assert within and all(within) and not torch.are_deterministic_algorithms_enabled()
    assert is_same and [ended for _, ended, _ in rows[1:]] == ["the same bits"] * 2
    assert len({digest for *_, digest in rows}) == 1
    config.machine.seed, config.deterministic = 7, True
    assert repeat.run(config).digest != rows[0][2]


def test_the_spread_of_trainings_is_told(tiny_scene: Path, capsys: pytest.CaptureFixture[str], fresh_writers: None):
    """On a CPU they are all the same; each is told when it ends."""
    options = ["--data", str(tiny_scene), "--tiny", "--steps", "0", "--runs", "2", "--run-steps", "3"]
    assert repeat.main(options) == 0
    said = capsys.readouterr().out
    first, second = re.findall(r"^Training [12] of 2: (\S+) dB$", said, re.MULTILINE)
    assert first == second and f"{first} dB, standard deviation 0.000: {first}, {first}." in said


def test_how_far_trainings_are_apart():
    first, second = (repeat.Ended(name, [torch.ones(2), torch.full((3,), value)], 1.0)
                     for name, value in (("a", 1.0), ("b", 1.1)))  # fmt: skip
    assert repeat.apart(first, first) == "the same bits"
    assert repeat.apart(first, second) == f"parameters differ by {(0.03 / 5) ** 0.5:.1e} of their norm"


def test_what_cannot_repeat_on_a_gpu_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = bench_config(tmp_path, tmp_path, TINY)
    config.machine.device_type, config.deterministic = "cuda", True
    monkeypatch.setattr(determinism, "resolve_ops", lambda *_: TORCH_OPS)
    monkeypatch.delenv(determinism.WORKSPACE, raising=False)
    with pytest.raises(InputError, match="--deterministic True: on a GPU"):
        prepare_to_repeat(config)
    monkeypatch.setattr(determinism, "resolve_ops", lambda *_: TORCH_OPS._replace(name="triton"))
    prepare_to_repeat(config)
    assert os.environ[determinism.WORKSPACE] == ":4096:8"
    monkeypatch.delenv(determinism.WORKSPACE)


def test_an_error_leaves_torch_as_it_was():
    with pytest.raises(KeyError), repeatable(True):
        raise KeyError
    assert not torch.are_deterministic_algorithms_enabled() and torch.utils.deterministic.fill_uninitialized_memory
