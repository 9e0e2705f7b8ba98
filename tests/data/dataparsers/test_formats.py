"""A scene's folder names its parser, once for all who ask."""

from __future__ import annotations

from pathlib import Path

import pytest
from _published import write_mipnerf360_scene
from _scenes import assert_clear, make_datamanager, write_blender_scene, write_colmap_scene
from PIL import Image

from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig
from nerfstudio.data.dataparsers.phototourism_dataparser import PhototourismDataParserConfig

from zipnerf_ns.data.dataparsers.formats import FORMATS, find_format, format_of
from zipnerf_ns.data.dataparsers.multiscale import MultiscaleDataParserConfig
from zipnerf_ns.errors import InputError


@pytest.mark.parametrize("row", FORMATS, ids=[row.name for row in FORMATS])
def test_each_format_is_found_by_its_marker(tmp_path, row):
    assert find_format(tmp_path) is None
    (tmp_path / row.marker).mkdir(parents=True)
    assert find_format(tmp_path) is row and format_of(row.parser()) is row
    source = MultiscaleDataParserConfig(data=tmp_path).source()
    assert isinstance(source, row.parser) and source.data == tmp_path


def test_a_file_is_transforms_and_other_parsers_have_no_row(tmp_path):
    assert find_format(tmp_path / "other.json") is FORMATS[0]
    assert format_of(PhototourismDataParserConfig()) is None
    assert format_of(ColmapDataParserConfig()).name == "colmap"


def photographs(folder: Path) -> None:
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(folder / "images/IMG 1.JPG")


@pytest.mark.parametrize(
    "make,expected",
    [
        (write_blender_scene, "end the command with blender-data"),
        (lambda folder: write_colmap_scene(folder, ".bin"), "end the command with colmap to read"),
        (lambda folder: write_mipnerf360_scene(folder), "end the command with colmap to read"),
        (photographs, "python -m zipnerf_ns.tools.photos '"),
        (lambda folder: folder.mkdir(), "or run ns-process-data first"),
        (lambda folder: folder.write_text("a file"), "or run ns-process-data first"),
    ],
)
def test_a_folder_without_transforms_is_told_what_reads_it(tmp_path, make, expected):
    folder = tmp_path / "a scene"
    make(folder)
    with pytest.raises(InputError) as caught:
        make_datamanager(folder)
    assert_clear(str(caught.value), (f"{folder}/transforms.json does not exist. Check --data, or", expected))
