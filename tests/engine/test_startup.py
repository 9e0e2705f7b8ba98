"""Nerfstudio's programs start sooner, and still tell who makes the configuration of a method that is not installed."""

from __future__ import annotations

import inspect
import tarfile

import pytest
from viser import _icons

from nerfstudio.configs import external_methods

import zipnerf_ns.config  # noqa: F401
from zipnerf_ns.engine import startup


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
