"""A scene's folder names its parser, once for all who ask."""

from __future__ import annotations

import pytest

from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig
from nerfstudio.data.dataparsers.phototourism_dataparser import PhototourismDataParserConfig

from zipnerf_ns.data.dataparsers.formats import FORMATS, find_format, format_of
from zipnerf_ns.data.dataparsers.multiscale import MultiscaleDataParserConfig


@pytest.mark.parametrize("row", FORMATS, ids=[row.name for row in FORMATS])
def test_each_format_is_found_by_its_marker(tmp_path, row):
    assert find_format(tmp_path) is None
    (tmp_path / row.marker).mkdir(parents=True)
    assert find_format(tmp_path) is row and format_of(row.parser()) is row
    source = MultiscaleDataParserConfig(data=tmp_path).source()
    assert type(source) is row.parser and source.data == tmp_path


def test_a_file_is_transforms_and_other_parsers_have_no_row(tmp_path):
    assert find_format(tmp_path / "other.json") is FORMATS[0]
    assert format_of(PhototourismDataParserConfig()) is None
    assert format_of(ColmapDataParserConfig()).name == "colmap"
