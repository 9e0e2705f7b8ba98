"""COLMAP's commands by pycolmap: they are those that nerfstudio runs. tests/test_own_photos.py runs them."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from nerfstudio.process_data import colmap_utils
from nerfstudio.process_data.process_data_utils import CameraModel

from zipnerf_ns.errors import InputError
from zipnerf_ns.tools import colmap

TOOL = "python -m zipnerf_ns.tools.colmap"


class PretendedPycolmap(ModuleType):
    """Writes models with so many images each, as folders that hold a file with the number, and notes the calls."""

    __version__ = "4.9.9"

    def __init__(self, images_of_models: list[int]) -> None:
        super().__init__("pycolmap")
        # Without one a module counts as not installed.
        self.__spec__ = ModuleSpec("pycolmap", None)
        self.images_of_models = images_of_models
        self.calls: list[Any] = []
        self.CameraMode = SimpleNamespace(SINGLE="single", AUTO="auto")
        self.Device = SimpleNamespace(auto="auto", cpu="cpu")
        self.ImageReaderOptions = self.IncrementalPipelineOptions = SimpleNamespace

    def set_random_seed(self, seed: int) -> None:
        self.calls.append(("seed", seed))

    def extract_features(self, database: Path, images: Path, **options: Any) -> None:
        self.calls.append(("extract", database, images, options))

    def match_exhaustive(self, database: Path, device: str) -> None:
        self.calls.append(("exhaustive", database, device))

    def match_sequential(self, database: Path, device: str) -> None:
        self.calls.append(("sequential", database, device))

    def incremental_mapping(self, database: Path, images: Path, output: Path, options: Any) -> dict[int, Any]:
        self.calls.append(("map", options.ba_global_function_tolerance))
        for number, count in enumerate(self.images_of_models):
            (output / str(number)).mkdir()
            (output / str(number) / "count").write_text(str(count))
        return {
            number: SimpleNamespace(num_reg_images=lambda count=count: count)
            for number, count in enumerate(self.images_of_models)
        }


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> PretendedPycolmap:
    module = PretendedPycolmap([3, 9, 5])
    monkeypatch.setitem(sys.modules, "pycolmap", module)
    return module


def nerfstudios_commands(monkeypatch: pytest.MonkeyPatch, folder: Path, **options: Any) -> list[list[str]]:
    """The arguments of every command that ns-process-data runs with a COLMAP of our version."""
    commands: list[str] = []

    def run_command(command: str, verbose: bool = False) -> str:
        commands.append(command)
        return f"usage: \n\nCOLMAP {PretendedPycolmap.__version__} (the package pycolmap)\n"

    monkeypatch.setattr(colmap_utils, "run_command", run_command)
    monkeypatch.setattr(colmap_utils, "get_vocab_tree", lambda: folder / "tree.fbow")
    colmap_utils.run_colmap(folder / "images", folder, CameraModel.OPENCV, colmap_cmd=TOOL, **options)
    assert all(command.startswith(f"{TOOL} ") for command in commands)
    return [command[len(TOOL) :].replace('"', "").split() for command in commands]


@pytest.mark.parametrize("method", ["exhaustive", "sequential"])
@pytest.mark.parametrize("gpu", [False, True])
def test_nerfstudios_commands_are_carried_out(tmp_path, monkeypatch, pretended, method, gpu):
    mask = tmp_path / "mask.png"
    mask.touch(), (tmp_path / "images").mkdir()
    commands = nerfstudios_commands(monkeypatch, tmp_path, gpu=gpu, matching_method=method, camera_mask_path=mask)
    assert [command[0] for command in commands] == [
        "-h", "feature_extractor", f"{method}_matcher", "mapper", "bundle_adjuster",
    ]  # fmt: skip
    assert [colmap.main(command) for command in commands[1:4]] == [0, 0, 0]
    database, device = tmp_path / "database.db", "auto" if gpu else "cpu"
    reader = SimpleNamespace(camera_model="OPENCV", camera_mask_path=str(mask))
    extraction = {"camera_mode": "single", "reader_options": reader, "device": device}
    done = [call for call in pretended.calls if call[0] != "seed"]
    assert done == [("extract", database, tmp_path / "images", extraction), (method, database, device), ("map", 1e-6)]
    assert ("seed", colmap.SEED) in pretended.calls
    refined = colmap.make_parser().parse_args(commands[4])
    assert refined.input_path == refined.output_path == tmp_path / "sparse/0" and refined.refine_principal_point


def test_paths_with_spaces_are_put_together_again(tmp_path, monkeypatch, pretended):
    """Nerfstudio hands them to the shell without quotes."""
    folder = tmp_path / "my photos of May"
    (folder / "images").mkdir(parents=True)
    (folder / "mask 1.png").touch()
    options = {"matching_method": "exhaustive", "camera_mask_path": folder / "mask 1.png"}
    commands = nerfstudios_commands(monkeypatch, folder, **options)
    assert "photos" in commands[1]
    assert [colmap.main(command) for command in commands[1:4]] == [0, 0, 0]
    extraction = next(call for call in pretended.calls if call[0] == "extract")
    assert extraction[1:3] == (folder / "database.db", folder / "images")
    assert extraction[3]["reader_options"].camera_mask_path == str(folder / "mask 1.png")
    assert (folder / "sparse/0/count").read_text() == "9"


def test_a_path_that_the_shell_has_changed_is_named(tmp_path, monkeypatch, pretended, capsys):
    folder = tmp_path / "two  spaces"
    (folder / "images").mkdir(parents=True)
    assert colmap.main(nerfstudios_commands(monkeypatch, folder, matching_method="exhaustive")[1]) == 1
    said = capsys.readouterr().err
    assert str(tmp_path / "two spaces") in said and "--output-dir another name" in said
    assert {call[0] for call in pretended.calls} == {"seed"}


def photographs(folder: Path, **sizes: tuple[int, int]) -> Path:
    for name, size in sizes.items():
        path = folder / name.replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(path, format="JPEG")
    return folder


def extracted(program: Path, photos: Path) -> subprocess.CompletedProcess:
    """What a program that nerfstudio's shell calls by this name hears from the first command of COLMAP."""
    ours = f"{sys.executable} -m zipnerf_ns.tools.colmap feature_extractor --image_path {photos} --database_path /no/db"
    program.write_text(f"import subprocess, sys\nsys.exit(subprocess.run({ours!r}, shell=True).returncode)\n")
    command = [sys.executable, program, "images", "--data", photos, "--output-dir", program.parent]
    return subprocess.run(command, capture_output=True, text=True)


def test_photographs_that_nerfstudio_would_bend_are_refused(tmp_path, pretended):
    """Those that are of one size, or which are called for by another program, are not."""
    two = photographs(tmp_path / "two = sizes", a_jpg=(30, 20), b_JPG=(20, 30), c_jpg=(30, 20))
    kinds = photographs(tmp_path / "kinds", a_jpg=(30, 20), b_HEIC=(30, 20))
    for folder, said in (
        (two, "one size and one camera, but a.jpg has 30x20, b.JPG has 20x30 pixels. Use"),
        (kinds, "passes over b.HEIC, whose kind it does not read. Use python -m zipnerf_ns.tools.photos"),
    ):
        for command in (["ns-process-data", "images", "--data", str(folder)], ["x", f"--data={folder}", "-v"]):
            with pytest.raises(InputError, match=re.escape(said)):
                colmap.check_originals(command)
    same = photographs(tmp_path / "same", a_jpg=(30, 20), b_jpg=(30, 20), _hidden_jpg=(1, 1))
    (same / "c.png").write_text("none")
    colmap.check_originals(["ns-process-data", "images", "--data", str(same)])
    colmap.check_originals([])


@pytest.mark.skipif(importlib.util.find_spec("pycolmap") is None, reason="the package pycolmap is not installed")
def test_who_calls_is_found(tmp_path):
    photos = photographs(tmp_path / "photos", a_jpg=(30, 20), b_jpg=(20, 30))
    refused = extracted(tmp_path / "ns-process-data", photos)
    assert refused.returncode == 1 and refused.stderr.startswith("Error: ns-process-data gives all photographs one")
    assert "/no is not there" in extracted(tmp_path / "another.py", photos).stderr


def test_the_largest_model_becomes_the_one_that_nerfstudio_reads(tmp_path, pretended):
    folders = ("--database_path", str(tmp_path / "db"), "--image_path", str(tmp_path), "--output_path", str(tmp_path))
    assert colmap.main(["mapper", *folders]) == 0
    assert {path.name: (path / "count").read_text() for path in tmp_path.iterdir()} == {"0": "9", "1": "3", "2": "5"}


def test_no_model_is_an_error(tmp_path, pretended, capsys):
    pretended.images_of_models = []
    folders = ("--database_path", str(tmp_path / "db"), "--image_path", str(tmp_path), "--output_path", str(tmp_path))
    assert colmap.main(["mapper", *folders]) == 1
    assert capsys.readouterr().err.startswith("Error: no poses were found.")


def test_the_vocabulary_tree_is_refused_before_anything_is_matched(tmp_path, monkeypatch, pretended, capsys):
    commands = nerfstudios_commands(monkeypatch, tmp_path, matching_method="vocab_tree")
    assert colmap.main(commands[2]) == 1
    said = capsys.readouterr().err
    assert "--matching-method exhaustive" in said and "--matching-method sequential" in said
    assert {call[0] for call in pretended.calls} <= {"seed"}


def test_without_pycolmap_the_first_command_says_what_to_install(tmp_path, monkeypatch, capsys):
    """And not the help, of which nerfstudio would say that COLMAP is missing."""
    monkeypatch.setattr(colmap.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as left:
        colmap.main(["-h"])
    assert left.value.code == 0
    for command in nerfstudios_commands(monkeypatch, tmp_path, matching_method="exhaustive")[1:]:
        assert colmap.main(command) == 1
        assert "pip install 'pycolmap>=4,<5'" in capsys.readouterr().err


def test_nerfstudio_reads_the_version(pretended, monkeypatch, capsys):
    def run_command(command: str, verbose: bool = False) -> str:
        with pytest.raises(SystemExit):
            colmap.main(command.split()[3:])
        return capsys.readouterr().out

    monkeypatch.setattr(colmap_utils, "run_command", run_command)
    assert str(colmap_utils.get_colmap_version(TOOL)) == PretendedPycolmap.__version__
