"""The scripts about dependencies: what their oldest are, and which licenses they are under."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from email.message import Message
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]


def script(name: str) -> ModuleType:
    loader = SourceFileLoader(name, str(ROOT / ".ci" / name))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
    loader.exec_module(module)
    return module


def test_the_oldest_are_the_lower_ends_of_the_ranges():
    ranges = script("ranges")
    inner = '"one==1.1.5",\n  # why\n  "two-x>=0.2.34,<0.4",\n  "three<82",'
    text = f'a = 1\ndependencies = [\n  {inner}\n]\nb = ["four>=1"]\n'
    assert ranges.declared(text) == ["one==1.1.5", "two-x>=0.2.34,<0.4", "three<82"]
    assert ranges.oldest(ranges.declared(text)) == ["one==1.1.5", "two-x==0.2.34"]
    assert len(ranges.oldest(ranges.declared_here())) == len(ranges.declared_here()) - 1 >= 14


def test_what_fails_is_said_with_its_end(tmp_path: Path):
    ranges = script("ranges")
    assert ranges.run([sys.executable, "-c", "print('fine')"], tmp_path) == "fine\n"
    with pytest.raises(RuntimeError, match="(?s)ended with 3.*broken"):
        ranges.run([sys.executable, "-c", "print('broken'); raise SystemExit(3)"], tmp_path)


@pytest.mark.parametrize(("stated", "expected"), [
    ({"License-Expression": "MIT", "License": "BSD"}, "MIT"), ({"License": "BSD"}, "BSD"),
    ({"License": "Copyright\nall of it", "Classifier": "License :: OSI Approved :: MIT License"}, "MIT License"),
    ({"License": "UNKNOWN", "Classifier": "License :: OSI Approved"}, "not stated"),
])  # fmt: skip
def test_a_license_is_what_the_metadata_say(stated: dict[str, str], expected: str):
    about = Message()
    for name, value in stated.items():
        about[name] = value
    assert script("licenses").license_of(SimpleNamespace(metadata=about, files=None)) == expected


def test_the_page_lists_what_is_needed(tmp_path: Path):
    """Everything that is declared, and Nerfstudio's own dependencies, each with a license."""
    licenses, page = script("licenses"), (ROOT / "docs/licenses.md").read_text()
    rows = licenses.rows_of(page)
    ranges = script("ranges")
    declared = {licenses.normalized(text.split("=")[0].split("<")[0].split(">")[0]) for text in ranges.declared_here()}
    assert declared <= rows.keys() and {"viser", "tensorboard", "open3d", "gsplat"} <= rows.keys() and len(rows) > 200
    assert [name for name, stated in rows.items() if stated == "not stated"] == ["cuda-toolkit"]
    mine = tmp_path / "licenses.md"
    mine.write_text("|---|---|\n| of-another-day | MIT |\n")
    command = [sys.executable, str(ROOT / ".ci/licenses")]
    result = subprocess.run([*command, "--check", str(mine)], capture_output=True, text=True)
    assert result.returncode == 1 and "| nerfstudio | Apache 2.0 |" in result.stdout
    subprocess.run([*command, str(mine)], check=True)
    assert licenses.rows_of(mine.read_text()).keys() >= declared | {"of-another-day"}
    assert subprocess.run([*command, "--check", str(mine)]).returncode == 0
