"""Nerfstudio's programs start sooner, and still tell who makes the configuration of a method that is not installed."""

from __future__ import annotations

import inspect
import tarfile
from concurrent.futures import Future
from threading import Lock, Timer

import pytest
import torch
from _scenes import start, tiny_config, train, write_scene
from viser import _icons

from nerfstudio.configs import external_methods

import zipnerf_ns.config  # noqa: F401
from zipnerf_ns.engine import startup
from zipnerf_ns.engine.trainer import ZipNerfTrainer


def test_functions_are_those_that_inspect_finds():
    def names() -> tuple:
        return [each.function for each in external_methods.inspect.stack()], [each.function for each in inspect.stack()]

    found, expected = names()
    assert external_methods.inspect is not inspect
    assert found == expected and found[:2] == ["names", "test_functions_are_those_that_inspect_finds"]


def test_methods_of_others_are_listed_and_explained_as_before(monkeypatch, capsys):
    """Listing them prints nothing; choosing one says how to install it, and ends."""
    listed, descriptions = external_methods.get_external_methods()
    assert len(listed) > 20 and listed.keys() == descriptions.keys()
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(external_methods.Confirm, "ask", lambda *_, **__: False)
    name, chosen = next(iter(listed.items()))
    with pytest.raises(SystemExit):
        external_methods.ExternalMethodDummyTrainerConfig(method_name=name, method=chosen.method)
    assert "pip install" in capsys.readouterr().out


def test_icons_are_those_of_the_archive_which_is_opened_once():
    with tarfile.open(_icons.ICONS_DIR / "tabler-icons.tar") as archive:
        expected = archive.extractfile("home.svg").read().decode()
    opened = startup.open_once(_icons.ICONS_DIR / "tabler-icons.tar")
    assert [_icons.svg_from_icon("home"), _icons.svg_from_icon("home")] == [expected] * 2
    assert _icons.svg_from_icon("camera") != expected
    assert startup.open_once(_icons.ICONS_DIR / "tabler-icons.tar") is opened
    assert _icons.tarfile.open is startup.open_once


def test_a_rehearsal_leaves_no_trace(tmp_path, fresh_writers):
    """Whoever rehearsed trains as if he had not: the same random numbers, values, gradients and tables' summaries."""
    scene = write_scene(tmp_path / "scene")
    _, expected = train(tiny_config(scene, tmp_path / "plain", steps=4))
    trainer = start(tiny_config(scene, tmp_path / "rehearsed", steps=4))
    values = {name: value.clone() for name, value in trainer.pipeline.model.state_dict().items()}
    random_state = torch.get_rng_state()
    startup.rehearse(trainer)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, values[name]) for name, value in trainer.pipeline.model.state_dict().items())
    assert not any(table.is_current() for table in trainer.pipeline.model.zipnerf.tables())
    assert all(parameter.grad is None for parameter in trainer.pipeline.model.parameters())
    losses = []
    iterate = trainer.train_iteration
    trainer.train_iteration = lambda step: (result := iterate(step), losses.append(float(result[0])))[0]
    trainer.train()
    assert losses == list(expected.values())


def compiled(monkeypatch, pending: list[Future], rank: int = 0) -> None:
    monkeypatch.setattr(startup, "compile_ahead", lambda rehearse, device: pending)
    trainer = object.__new__(ZipNerfTrainer)
    trainer.device, trainer.local_rank, trainer.train_lock = "cpu", rank, Lock()
    startup.compile_kernels(trainer)


@pytest.mark.parametrize(("rank", "seconds"), [(0, 0.0), (0, 0.3), (1, 0.3)])
def test_what_is_compiled_is_told_if_it_takes_long(monkeypatch, capsys, rank, seconds):
    monkeypatch.setattr(startup, "QUICK", 0.05)
    monkeypatch.setenv("TRITON_CACHE_DIR", "/kept/here")
    pending: list[Future] = [Future(), Future()]
    for each in pending:
        Timer(seconds, each.set_result, [None]).start() if seconds else each.set_result(None)
    compiled(monkeypatch, pending, rank)
    assert all(each.done() for each in pending)
    said = capsys.readouterr().out
    assert ("/kept/here" in said and "Compiling 2 kernels" in said) == (rank == 0 and seconds > 0.0)


def test_an_error_of_the_compiler_is_left_to_the_launch(monkeypatch):
    failed = Future()
    failed.set_exception(RuntimeError("out of shared memory"))
    compiled(monkeypatch, [failed])


def test_ctrl_c_ends_what_has_not_begun(monkeypatch):
    begun, waiting = Future(), Future()
    begun.set_running_or_notify_cancel()

    def interrupted(pending, timeout=None):
        raise KeyboardInterrupt

    monkeypatch.setattr(startup, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compiled(monkeypatch, [begun, waiting])
    assert waiting.cancelled() and not begun.cancelled()
