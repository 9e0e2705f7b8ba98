"""The system check finds what it should, on distributions and machines made up for the purpose."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from pathlib import Path

import pytest
import torch

from zipnerf_ns.tools import system_check
from zipnerf_ns.tools.system_check import Finding, check_name_clash, format_table


def install(site: Path, name: str, files: list[str], entry_points: str = "") -> importlib.metadata.Distribution:
    """A distribution as pip leaves it: its metadata folder, with a list of files and perhaps entry points."""
    folder = site / f"{name.replace('-', '_')}-1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (folder / "RECORD").write_text("".join(f"{file},,\n" for file in files))
    (folder / "entry_points.txt").write_text(entry_points)
    return importlib.metadata.Distribution.at(folder)


METHOD = "[nerfstudio.method_configs]\nzipnerf = zipnerf_ns.config:zipnerf\n"


def test_name_clash_is_found(tmp_path: Path):
    """The other project's distribution is named, with the commands that mend it."""
    ours = install(tmp_path, "zipnerf-ns", ["zipnerf_ns/config.py"], METHOD)
    other = install(tmp_path, "zipnerf", ["zipnerf_ns/zipnerf_config.py", "internal/models.py"])
    unrelated = install(tmp_path, "numpy", ["numpy/__init__.py"])
    finding = check_name_clash([unrelated, other, ours])
    assert finding.state == "wrong" and "pip uninstall -y zipnerf zipnerf-ns" in finding.detail


def test_no_clash_with_an_editable_install(tmp_path: Path):
    """An editable install lists no file of the package, only the method; spelling of the name does not matter."""
    ours = install(tmp_path, "ZipNeRF_ns", ["__editable__.zipnerf_ns.pth"], METHOD)
    finding = check_name_clash([ours])
    assert system_check.normalized("Zip_NeRF.ns") == "zip-nerf-ns"
    assert system_check.owners([ours]) == {"zipnerf-ns"}
    assert finding.state == "ok"


def test_absent_installation_is_found(tmp_path: Path):
    """A source folder on the path alone registers no method."""
    finding = check_name_clash([install(tmp_path, "numpy", ["numpy/__init__.py"])])
    assert finding.state == "wrong" and "pip install" in finding.detail


def test_this_environment_is_in_order():
    """What runs the tests can train."""
    assert [finding for finding in system_check.check_all() if finding.state == "wrong"] == []


@pytest.fixture
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An interpreter's folder with nothing beside the interpreter, and no other program on the path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    return folder


def test_missing_programs_name_package_and_command(bare_machine: Path, monkeypatch: pytest.MonkeyPatch):
    """Without ffmpeg and COLMAP, the table says what to install and what does not work until then."""
    monkeypatch.setattr(system_check, "installed_version", lambda _: None)
    ffmpeg, colmap = system_check.check_ffmpeg(), system_check.check_colmap()
    assert (ffmpeg.state, colmap.state) == ("missing", "missing")
    assert "apt-get install ffmpeg" in ffmpeg.detail and "ns-render" in ffmpeg.needed_by
    assert "apt-get install colmap" in colmap.detail and "ns-process-data" in colmap.needed_by


def program(path: Path, *lines: str) -> Path:
    """A program that prints some lines."""
    path.parent.mkdir(exist_ok=True)
    path.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines))
    path.chmod(0o755)
    return path


def test_an_ffmpeg_without_the_option_that_nerfstudio_passes(bare_machine: Path):
    """It renders; for videos of one's own the table gives the command that replaces nerfstudio's."""
    path = program(bare_machine / "ffmpeg", "-fps_mode  set framerate mode")
    finding = system_check.check_ffmpeg()
    assert finding.state == "ok" and str(path) in finding.detail and "first ffmpeg -i clip.mp4 -vf" in finding.detail
    program(path, "-vsync    set video sync method globally; deprecated, use -fps_mode")
    needed_by = "ns-render (all but dataset), ns-process-data"
    assert system_check.check_ffmpeg() == Finding("ffmpeg", "ok", str(path), needed_by)


COLMAPS = {
    "none": (None, None, "missing", "apt-get install colmap (without root: pip install 'pycolmap>=4,<5', then"),
    "known": ("COLMAP 3.12.6 -- Structure-from-Motion", None, "ok", "/colmap"),
    "known, and the package": ("COLMAP 3.8 -- Structure-from-Motion", "4.2.1", "ok", "/colmap"),
    "too new": ("COLMAP 3.13.0 -- Structure-from-Motion", None, "missing", "newer than what nerfstudio knows: pip"),
    "too new by far": (
        "COLMAP 4.1.0 -- Structure-from-Motion",
        "4.2.1",
        "ok",
        "pycolmap 4.2.1: ns-process-data --colm",
    ),
    "of unknown version": ("COLMAP (built from source)", None, "ok", "/colmap"),
    "the package alone": (None, "4.2.1", "ok", 'ns-process-data --colmap-cmd "python -m zipnerf_ns.tools.colmap"'),
}


@pytest.mark.parametrize("name", COLMAPS)
def test_colmap_of_every_age(bare_machine: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    """What works with nerfstudio's options is ok, of the program or of the package; else the mend is named."""
    said, package, state, detail = COLMAPS[name]
    if said is not None:
        program(bare_machine / "colmap", "", said)
    monkeypatch.setattr(system_check, "installed_version", lambda name: package if name == "pycolmap" else None)
    finding = system_check.check_colmap()
    assert finding.state == state and detail in finding.detail


def test_missing_libraries_name_their_packages(monkeypatch: pytest.MonkeyPatch):
    """Each library that open3d lacks here is one line with Debian's package."""

    def load(name: str) -> None:
        if name != "libX11.so.6":
            raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(system_check.ctypes, "CDLL", load)
    findings = {finding.name: finding for finding in system_check.check_open3d_libraries()}
    assert findings.pop("libX11.so.6").state == "ok"
    assert {name: finding.detail for name, finding in findings.items()} == {
        "libusb-1.0.so.0": "apt-get install libusb-1.0-0",
        "libGL.so.1": "apt-get install libgl1",
        "libEGL.so.1": "apt-get install libegl1",
    }
    assert all(finding.state == "missing" and "ns-export" in finding.needed_by for finding in findings.values())


def test_a_browser_without_its_driver_is_missing(bare_machine: Path):
    """Both are needed, under any of the browser's names."""
    for name, state in (("google-chrome", "missing"), ("chromedriver", "ok")):
        (bare_machine / name).write_text("#!/bin/sh\n")
        (bare_machine / name).chmod(0o755)
        finding = system_check.check_chromium()
        assert finding.state == state and "make test" in finding.needed_by
    assert finding.detail == str(bare_machine / "google-chrome")


@pytest.mark.parametrize("links", [True, False])
def test_ffmpeg_is_linked_once(bare_machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool):
    """The program that a package carries becomes ffmpeg, in place of a link that leads nowhere; then it is left.

    Where nobody may make links it is a copy.
    """
    program = tmp_path / "ffmpeg-linux-v9"
    program.write_text("#!/bin/sh\nexit 0\n")
    program.chmod(0o755)
    package = tmp_path / "imageio_ffmpeg.py"
    package.write_text(f"def get_ffmpeg_exe():\n    return {str(program)!r}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "imageio_ffmpeg", raising=False)
    (bare_machine / "ffmpeg").symlink_to(tmp_path / "gone")
    if not links:
        monkeypatch.setattr(Path, "symlink_to", lambda *_: (_ for _ in ()).throw(OSError("no right")))
    link = system_check.link_ffmpeg()
    assert link == bare_machine / "ffmpeg" and link.resolve() == (program if links else link)
    assert system_check.check_ffmpeg().state == "ok"
    assert system_check.link_ffmpeg() is None
    monkeypatch.delitem(sys.modules, "imageio_ffmpeg")


def test_ffmpeg_cannot_be_linked(bare_machine: Path, monkeypatch: pytest.MonkeyPatch):
    """Without the package there is one clear error."""
    monkeypatch.setattr(system_check.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(RuntimeError, match="apt-get install ffmpeg"):
        system_check.link_ffmpeg()
    assert not os.path.lexists(bare_machine / "ffmpeg")


def test_a_gpus_memory_is_told_with_what_is_free(monkeypatch: pytest.MonkeyPatch):
    """A GPU without room for a program is a reason why training would fail."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "RTX")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (3 * 2**30, 8 * 2**30))
    finding = system_check.check_torch()
    assert finding.state == "ok" and "RTX (8 GiB, 3 of them free)" in finding.detail
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (_ for _ in ()).throw(RuntimeError("out of memory")))
    finding = system_check.check_torch()
    assert finding.state == "wrong" and "out of memory" in finding.detail


def test_wrong_nerfstudio(monkeypatch: pytest.MonkeyPatch):
    """Another release of nerfstudio is wrong, and so is none."""
    for version in ("1.0.0", None):
        monkeypatch.setattr(system_check, "installed_version", lambda _, version=version: version)
        finding = system_check.check_nerfstudio()
        assert finding.state == "wrong" and "nerfstudio==1.1.5" in finding.detail


def test_table_is_aligned_and_ends_with_the_status(monkeypatch: pytest.MonkeyPatch, capsys):
    """Details start in one column, and something wrong becomes the exit status."""
    findings = [Finding("a", "ok", "fine"), Finding("longer", "wrong", "bad", "everything")]
    lines = format_table(findings).splitlines()
    assert lines[1].index("fine") == lines[2].index("bad") == lines[0].index("found")
    monkeypatch.setattr(sys, "argv", ["system_check"])
    for count, status in ((1, 0), (2, 1)):
        monkeypatch.setattr(system_check, "check_all", lambda count=count: findings[:count])
        assert system_check.main() == status
        assert "fine" in capsys.readouterr().out


def test_threads_of_programs_sleep_while_they_wait_unless_told_otherwise(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert system_check.script_environment()["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert system_check.script_environment()["OMP_WAIT_POLICY"] == "ACTIVE"
