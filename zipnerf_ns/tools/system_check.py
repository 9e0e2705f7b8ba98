"""What this machine offers and what is missing: system packages, versions, clashes of names.

``python -m zipnerf_ns.tools.system_check`` prints one table and ends with status 1 when something that
training itself needs is wrong. Training needs no system package; Nerfstudio's programs stop by themselves where one
of theirs is missing, some without a word on what to install, and before any of our code runs: this table says it for
all of them beforehand. ``--link-ffmpeg`` puts the program inside the package imageio-ffmpeg beside
the Python interpreter under the name ``ffmpeg``, for machines where nobody may install system packages.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

NERFSTUDIO_VERSION = "1.1.5"
OUR_DISTRIBUTION, PACKAGE = "zipnerf-ns", "zipnerf_ns"
COLMAP_RENAMED = (3, 13)
"""First version of COLMAP that does not know the options any more that nerfstudio passes."""
COLMAP_TOOL = "zipnerf_ns.tools.colmap"

OPEN3D_LIBRARIES = {
    "libusb-1.0.so.0": "libusb-1.0-0",
    "libGL.so.1": "libgl1",
    "libEGL.so.1": "libegl1",
    "libX11.so.6": "libx11-6",
}
"""What open3d is linked against and does not carry, and Debian's packages with it."""

State = Literal["ok", "missing", "wrong"]


@dataclass(frozen=True)
class Finding:
    """One line of the table."""

    name: str
    """What was looked for."""
    state: State
    """``missing`` limits some commands only; ``wrong`` breaks training or every ``ns-*`` command."""
    detail: str
    """The version or place found, or what to do."""
    needed_by: str = ""
    """Commands that do not work without it; empty where it is information only."""


def script_environment() -> dict[str, str]:
    """The environment in which this interpreter's ``ns-*`` programs and linked ffmpeg are found by name.

    Threads that wait for others sleep: a training on a CPU that shares its cores would else be many times slower.
    """
    folder = str(Path(sys.executable).parent)
    path = folder + os.pathsep + os.environ.get("PATH", "")
    return {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "PATH": path}


def find_program(name: str) -> str | None:
    """The path of a program as a command started by this package would find it, or None."""
    return shutil.which(name, path=script_environment()["PATH"])


def check_ffmpeg() -> Finding:
    """``ns-render`` leaves without ffmpeg before it renders a path, even when asked for images."""
    needed_by = "ns-render (all but dataset), ns-process-data"
    path = find_program("ffmpeg")
    if path is None:
        mend = "apt-get install ffmpeg (without root: pip install imageio-ffmpeg, then this with --link-ffmpeg)"
        return Finding("ffmpeg", "missing", mend, needed_by)
    if "-vsync" not in _output_of(path, "-hide_banner", "-h", "long"):
        # Newer ones dropped the option, which nerfstudio passes when it cuts a video into frames.
        frames = "ffmpeg -i clip.mp4 -vf fps=4 -q:v 2 frames/%04d.jpg"
        return Finding("ffmpeg", "ok", f"{path}, too new for ns-process-data video: first {frames}", needed_by)
    return Finding("ffmpeg", "ok", path, needed_by)


def check_open3d_libraries() -> list[Finding]:
    """open3d, which these programs import, does not load without them; training does not import it."""
    findings = []
    if sys.platform != "linux":
        # What it carries for other systems is whole.
        return findings
    for library, package in OPEN3D_LIBRARIES.items():
        try:
            ctypes.CDLL(library)
            state, detail = "ok", "found"
        except OSError:
            state, detail = "missing", f"apt-get install {package}"
        findings.append(Finding(library, state, detail, "ns-export, ns-process-data, export_mesh --max-triangles"))
    return findings


def check_chromium() -> Finding:
    """A browser that a program can drive; people's own browsers need nothing of this machine."""
    needed_by = "make test (else the viewer's tests skip)"
    browsers = [path for name in ("chromium", "chromium-browser", "google-chrome") if (path := find_program(name))]
    if browsers and find_program("chromedriver"):
        return Finding("chromium", "ok", browsers[0], needed_by)
    return Finding("chromium", "missing", "apt-get install chromium chromium-driver", needed_by)


def check_colmap() -> Finding:
    """COLMAP finds the camera poses of photos: the program, or the package pycolmap by a tool of ours."""
    needed_by = "ns-process-data"
    path, package = find_program("colmap"), installed_version("pycolmap")
    version = None if path is None else _colmap_version(path)
    if path is not None and (version is None or version < COLMAP_RENAMED):
        return Finding("colmap", "ok", path, needed_by)
    option = f'ns-process-data --colmap-cmd "python -m {COLMAP_TOOL}"'
    if package is not None:
        return Finding("colmap", "ok", f"pycolmap {package}: {option}", needed_by)
    if path is None:
        mend = f"apt-get install colmap (without root: pip install 'pycolmap>=4,<5', then {option})"
    else:
        mend = f"{path} is newer than what nerfstudio knows: pip install 'pycolmap>=4,<5', then {option}"
    return Finding("colmap", "missing", mend, needed_by)


def _colmap_version(path: str) -> tuple[int, ...] | None:
    found = re.search(r"^COLMAP (\d+)\.(\d+)", _output_of(path, "-h"), re.MULTILINE)
    return None if found is None else tuple(int(part) for part in found.groups())


def _output_of(*command: str) -> str:
    """What a program prints, also if it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60, check=False)
    return done.stdout.decode(errors="replace")


def check_torch() -> Finding:
    """The version of torch and the device that training would run on."""
    try:
        # Here and not above: a torch that does not load is what this table has to report.
        import torch
    except (ImportError, OSError) as error:
        return Finding("torch", "wrong", f"does not load: {error}", "everything")
    if not torch.cuda.is_available():
        detail = f"{torch.__version__}, no CUDA device: trains on the CPU (zipnerf-lite)"
        return Finding("torch", "ok", detail, "everything")
    index = torch.cuda.current_device()
    try:
        free, total = (size / 2**30 for size in torch.cuda.mem_get_info(index))
    except RuntimeError as error:
        return Finding("torch", "wrong", f"{torch.__version__}, whose GPU cannot be used: {error}", "everything")
    detail = f"{torch.__version__}, {torch.cuda.get_device_name(index)} ({total:.0f} GiB, {free:.0f} of them free)"
    return Finding("torch", "ok", detail, "everything")


def installed_version(distribution: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_triton() -> Finding:
    """Triton, for implementations of the encoding that use it."""
    version = installed_version("triton")
    detail = "not installed: the plain torch encoding is used" if version is None else version
    return Finding("triton", "missing" if version is None else "ok", detail)


def check_nerfstudio() -> Finding:
    """The plugin is written against one release of nerfstudio."""
    version = installed_version("nerfstudio")
    if version == NERFSTUDIO_VERSION:
        return Finding("nerfstudio", "ok", version, "everything")
    found = "not installed" if version is None else f"found {version}"
    mend = f"{found}: pip install nerfstudio=={NERFSTUDIO_VERSION}"
    return Finding("nerfstudio", "wrong", mend, "everything")


def normalized(name: str) -> str:
    """A distribution's name as registries compare it: ``Zip_NeRF.ns`` and ``zip-nerf-ns`` are one name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def owners(distributions: Iterable[importlib.metadata.Distribution]) -> set[str]:
    """The normalized names of the distributions that install files of this package or register its methods."""
    found = set()
    for distribution in distributions:
        files = distribution.files or []
        in_files = any(path.parts[:1] == (PACKAGE,) for path in files)
        registered = any(
            entry.group == "nerfstudio.method_configs" and entry.value.split(":")[0].split(".")[0] == PACKAGE
            for entry in distribution.entry_points
        )
        name = distribution.metadata["Name"]
        if name and (in_files or registered):
            found.add(normalized(name))
    return found


def check_name_clash(distributions: Iterable[importlib.metadata.Distribution] | None = None) -> Finding:
    """Another project's distribution ``zipnerf`` installs a package of the same name, ``zipnerf_ns``.

    Args:
        distributions: what is installed; the interpreter's own when None.
    """
    found = owners(importlib.metadata.distributions() if distributions is None else distributions)
    others = sorted(found - {OUR_DISTRIBUTION})
    if others:
        mend = (
            f"{', '.join(others)} installs a package of this name too, and its files are mixed with ours: "
            f"pip uninstall -y {' '.join(others)} {OUR_DISTRIBUTION}, then install {OUR_DISTRIBUTION} again"
        )
        return Finding("package zipnerf_ns", "wrong", mend, "everything")
    if OUR_DISTRIBUTION not in found:
        mend = f"{OUR_DISTRIBUTION} is not installed, so ns-train does not know its methods: pip install -e ."
        return Finding("package zipnerf_ns", "wrong", mend, "everything")
    detail = f"{OUR_DISTRIBUTION} {installed_version(OUR_DISTRIBUTION)}"
    return Finding("package zipnerf_ns", "ok", detail, "everything")


def check_all() -> list[Finding]:
    """Every check, in the order of the table."""
    python = Finding("python", "ok", f"{sys.version.split()[0]} ({sys.executable})")
    mine = [python, check_name_clash(), check_nerfstudio(), check_torch(), check_triton()]
    return [*mine, check_ffmpeg(), *check_open3d_libraries(), check_colmap(), check_chromium()]


def link_ffmpeg() -> Path | None:
    """Link the program inside imageio-ffmpeg as ``ffmpeg`` beside the interpreter, if there is none yet.

    Returns:
        The new link; None when a working ffmpeg was already found.

    Raises:
        RuntimeError: imageio-ffmpeg is not installed, or what it carries does not run here.
    """
    if find_program("ffmpeg") is not None:
        return None
    if importlib.util.find_spec("imageio_ffmpeg") is None:
        raise RuntimeError("no ffmpeg on this machine: apt-get install ffmpeg, or pip install imageio-ffmpeg")
    import imageio_ffmpeg

    program = Path(imageio_ffmpeg.get_ffmpeg_exe())
    subprocess.run([program, "-version"], check=True, stdout=subprocess.DEVNULL)
    # Windows knows a program by its ending.
    link = Path(sys.executable).parent / f"ffmpeg{'.exe' if program.suffix == '.exe' else ''}"
    # A link whose target left with an older imageio-ffmpeg is not found as a program, yet is in the way.
    link.unlink(missing_ok=True)
    try:
        link.symlink_to(program)
    except OSError:
        # Windows asks for a right that few have.
        shutil.copy2(program, link)
    return link


def format_table(findings: list[Finding]) -> str:
    """Findings as lines of text, one each, aligned in columns under a heading."""
    rows = [("state", "what", "needed by", "found, or what to do")]
    rows += [(finding.state, finding.name, finding.needed_by, finding.detail) for finding in findings]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)) for row in rows
    )


def main() -> int:
    """Print the table; 1 if something that training itself needs is wrong."""
    parser = argparse.ArgumentParser(description="Checks what zipnerf-ns needs from this machine.")
    parser.add_argument("--link-ffmpeg", action="store_true", help="make imageio-ffmpeg's program our ffmpeg")
    if parser.parse_args().link_ffmpeg:
        link = link_ffmpeg()
        print("ffmpeg is on the path already" if link is None else f"ffmpeg: linked {link}")
        return 0
    findings = check_all()
    print(format_table(findings))
    return int(any(finding.state == "wrong" for finding in findings))


if __name__ == "__main__":
    sys.exit(main())
