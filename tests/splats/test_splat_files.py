"""Files of Gaussians against another package's reader, the published layouts, and what their pictures lose."""

from __future__ import annotations

import dataclasses
import gzip
import io
import itertools
import json
import math
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from _splats import ball, look_at, picture, pinhole, psnr
from PIL import Image
from plyfile import PlyData

from zipnerf_ns.data import memory
from zipnerf_ns.errors import InputError
from zipnerf_ns.splats.files import read_gaussians, write_gaussians
from zipnerf_ns.splats.files.compact import codebook, palette, visibility
from zipnerf_ns.splats.files.spz import pack_quaternions, unpack_quaternions
from zipnerf_ns.splats.gaussians import Gaussians

VIEW = look_at(torch.tensor([2.5, -1.5, 1.0]), torch.zeros(3), torch.tensor([0.0, 0.0, 1.0]))
SIZE = (96, 72)


def view(gaussians: Gaussians) -> torch.Tensor:
    """The picture of a ball that fills it."""
    return picture(gaussians, VIEW, pinhole(100.0, SIZE), SIZE)


@pytest.mark.parametrize("antialiased", [False, True])
@pytest.mark.parametrize("degree", [0, 1, 3])
def test_ply_is_what_another_reader_takes(tmp_path: Path, degree: int, antialiased: bool):
    """Every number is found by 3DGS's names in plyfile's reading, and comes back as it was."""
    gaussians = ball(50, degree, antialiased=antialiased)
    write_gaussians(gaussians, tmp_path / "scene.ply")
    data = PlyData.read(tmp_path / "scene.ply")
    vertex = data["vertex"]
    terms = gaussians.sh.shape[1] - 1
    for color in range(3):
        np.testing.assert_array_equal(vertex[f"f_dc_{color}"], gaussians.sh[:, 0, color])
        for term in range(terms):
            # All of red's, then green's, then blue's.
            np.testing.assert_array_equal(vertex[f"f_rest_{color * terms + term}"], gaussians.sh[:, 1 + term, color])
    np.testing.assert_array_equal(np.stack([vertex[f"rot_{i}"] for i in range(4)], 1), gaussians.quats)
    np.testing.assert_array_equal(np.stack([vertex[f"scale_{i}"] for i in range(3)], 1), gaussians.scales)
    assert ("SplatRenderMode: mip" in data.comments) == antialiased
    back = read_gaussians(tmp_path / "scene.ply")
    assert back.antialiased == antialiased
    for name in ("means", "scales", "opacities", "sh"):
        assert torch.equal(getattr(back, name), getattr(gaussians, name)), name
    torch.testing.assert_close(back.quats, gaussians.quats)


def test_ply_of_another_writer_is_read(tmp_path: Path):
    """Columns in another order, of another type, and some that say nothing to us; quaternions of any length."""
    gaussians = ball(20, 0)
    columns = {"extra": torch.zeros(20), "opacity": gaussians.opacities}
    columns |= {f"rot_{i}": 3.0 * gaussians.quats[:, i] for i in range(4)}
    columns |= {f"scale_{i}": gaussians.scales[:, i] for i in range(3)}
    columns |= {f"f_dc_{i}": gaussians.sh[:, 0, i] for i in range(3)}
    columns |= {name: gaussians.means[:, i] for i, name in enumerate("xyz")}
    rows = np.empty(20, [(name, "<f8" if name in "xyz" else "<f4") for name in columns])
    for name, values in columns.items():
        rows[name] = values.numpy()
    header = [f"property {'double' if name in 'xyz' else 'float'} {name}" for name in columns]
    text = ["ply", "format binary_little_endian 1.0", "element vertex 20", *header, "end_header\n"]
    (tmp_path / "scene.ply").write_bytes("\n".join(text).encode() + rows.tobytes())
    back = read_gaussians(tmp_path / "scene.ply")
    assert torch.equal(back.means, gaussians.means) and torch.equal(back.sh, gaussians.sh) and not back.antialiased
    torch.testing.assert_close(back.quats, gaussians.quats)


@pytest.mark.parametrize("antialiased", [False, True])
@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize(("suffix", "least"), [(".spz", 33.0), (".sog", 35.0)])
def test_compact_files_look_the_same(tmp_path: Path, suffix: str, least: float, degree: int, antialiased: bool):
    """What gsplat's formulas draw of the file is what they draw of the Gaussians, within its rounding."""
    gaussians = ball(300, degree, antialiased=antialiased)
    write_gaussians(gaussians, tmp_path / f"scene{suffix}")
    back = read_gaussians(tmp_path / f"scene{suffix}")
    assert (len(back), back.degree, back.antialiased) == (300, degree, antialiased)
    assert psnr(view(back), view(gaussians)) > least


def test_spz_is_as_published(tmp_path: Path):
    """One Gaussian whose bytes follow from Niantic's description by hand."""
    gaussians = Gaussians(
        torch.tensor([[1.5, -2.0, -0.25]]),
        torch.tensor([[1.0, 0.0, 0.0, 0.0]]),
        torch.tensor([[-4.0, -10.0, 0.5]]),
        torch.tensor([0.0]),
        torch.tensor([[[0.0, 1.0, -1.0], [0.5, 0.0, 33.0 / 128.0], [-0.5, 0.125, 0.0], [1.0, -1.0, 0.0]]]),
        antialiased=True,
    )
    write_gaussians(gaussians, tmp_path / "scene.spz")
    data = gzip.decompress((tmp_path / "scene.spz").read_bytes())
    assert struct.unpack("<IIIBBBB", data[:16]) == (0x5053474E, 3, 1, 1, 16, 1, 0)
    fixed = b"".join(int(value * 2**16).to_bytes(3, "little", signed=True) for value in (1.5, -2.0, -0.25))
    assert data[16:25] == fixed
    assert data[25] == 128 and list(data[26:29]) == [128, 166, 89] and list(data[29:32]) == [96, 0, 168]
    # w, the fourth, is the largest, and the others are 0.
    assert struct.unpack("<I", data[32:36])[0] == 3 << 30
    assert list(data[36:45]) == [192, 128, 161, 64, 144, 128, 255, 0, 128]


def test_spz_quaternions_keep_nine_bits():
    """Packed and unpacked, rotations of all kinds turn by less than a third of a degree."""
    quats = np.random.default_rng(0).normal(size=(2000, 4))
    quats[:4] = np.eye(4)
    quats[4:8] = -np.eye(4)
    quats /= np.linalg.norm(quats, axis=1, keepdims=True)
    back = unpack_quaternions(pack_quaternions(quats))
    cosines = np.abs((back * quats).sum(axis=1)).clip(max=1.0)
    assert np.degrees(2.0 * np.arccos(cosines)).max() < 0.34


def test_sog_is_as_published(tmp_path: Path):
    """Positions, rotations and colors of each pixel follow from its numbers as PlayCanvas describes them."""
    gaussians = ball(150, 2)
    gaussians = dataclasses.replace(gaussians, means=gaussians.means * 30.0)
    write_gaussians(gaussians, tmp_path / "scene.sog")
    with zipfile.ZipFile(tmp_path / "scene.sog") as archive:
        meta = json.loads(archive.read("meta.json"))
        images = {
            name: np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGBA")).reshape(-1, 4).astype(int)
            for name in archive.namelist()
            if name != "meta.json"
        }
    assert (meta["version"], meta["count"], meta["model"]) == (2, 150, "antialiased")
    assert len(meta["scales"]["codebook"]) == len(meta["sh0"]["codebook"]) == len(meta["shN"]["codebook"]) == 256
    found = set()
    for i in range(150):
        place = [
            low + (high - low) * (images["means_l.webp"][i, axis] + 256 * images["means_u.webp"][i, axis]) / 65535
            for axis, (low, high) in enumerate(zip(meta["means"]["mins"], meta["means"]["maxs"], strict=True))
        ]
        mean = torch.tensor([np.sign(value) * (np.exp(abs(value)) - 1.0) for value in place])
        j = int((gaussians.means - mean).norm(dim=1).argmin())
        found.add(j)
        torch.testing.assert_close(mean.float(), gaussians.means[j], atol=0.01, rtol=0.0)
        packed = images["quats.webp"][i]
        parts = [(value / 255.0 - 0.5) * 2.0 / 2.0**0.5 for value in packed[:3]]
        parts.insert(packed[3] - 252, max(0.0, 1.0 - sum(value**2 for value in parts)) ** 0.5)
        assert abs(float(torch.tensor(parts).float() @ gaussians.quats[j])) > 0.9999
        color = [meta["sh0"]["codebook"][value] for value in images["sh0.webp"][i, :3]]
        np.testing.assert_allclose(color, gaussians.sh[j, 0], atol=0.02)
        assert images["sh0.webp"][i, 3] == round(255 * float(torch.sigmoid(gaussians.opacities[j])))
        scale = [meta["scales"]["codebook"][value] for value in images["scales.webp"][i, :3]]
        np.testing.assert_allclose(scale, gaussians.scales[j], atol=0.05)
        label = images["shN_labels.webp"][i, 0] + 256 * images["shN_labels.webp"][i, 1]
        assert label < meta["shN"]["count"]
    assert found == set(range(150))


def test_sog_once_read_loses_no_color(tmp_path: Path):
    """Sets of coefficients that fit are kept as they are, so that a page of a .sog shows its very colors."""
    write_gaussians(ball(200, 3), tmp_path / "scene.sog")
    first = read_gaussians(tmp_path / "scene.sog")
    write_gaussians(first, tmp_path / "again.sog")
    again = read_gaussians(tmp_path / "again.sog")
    assert torch.equal(again.sh, first.sh)


@pytest.mark.parametrize("suffix", [".ply", ".spz", ".sog"])
def test_files_that_are_no_good_are_refused(tmp_path: Path, suffix: str):
    """Absent, cut off anywhere, or of another kind: one line, not numbers from nowhere."""
    write_gaussians(ball(40, 1), tmp_path / f"scene{suffix}")
    whole = (tmp_path / f"scene{suffix}").read_bytes()
    for share in (0.0, 0.1, 0.5, 0.99):
        (tmp_path / f"cut{suffix}").write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(InputError, match="cut"):
            read_gaussians(tmp_path / f"cut{suffix}")
    with pytest.raises(InputError, match="not there"):
        read_gaussians(tmp_path / f"absent{suffix}")
    with pytest.raises(InputError, match="no format"):
        write_gaussians(ball(4), tmp_path / "scene.txt")


@pytest.mark.parametrize("suffix", [".ply", ".spz", ".sog"])
def test_an_altered_file_is_read_or_refused_in_one_line(tmp_path: Path, suffix: str):
    """Bytes anywhere, and of a .sog each entry of its description."""
    write_gaussians(ball(40, 1), tmp_path / f"scene{suffix}")
    whole, random = (tmp_path / f"scene{suffix}").read_bytes(), np.random.default_rng(0)
    files = []
    for place in random.integers(min(len(whole), 700), size=60):
        files.append(whole[:place] + random.bytes(1) + whole[place + 1 :])
    if suffix == ".sog":
        with zipfile.ZipFile(tmp_path / "scene.sog") as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        meta = json.loads(parts["meta.json"])
        for key, wrong in itertools.product([*meta, *meta["shN"]], [None, -1, 10**12, "x", {}, [1], math.nan]):
            changed = {**meta, **({key: wrong} if key in meta else {}), "shN": {**meta["shN"], key: wrong}}
            files.append(zipped({**parts, "meta.json": json.dumps(changed).encode()}))
    refused = 0
    for content in files:
        (tmp_path / f"altered{suffix}").write_bytes(content)
        try:
            read_gaussians(tmp_path / f"altered{suffix}")
        except InputError as error:
            refused += 1
            assert "altered" in str(error) or "version" in str(error)
    assert refused > 5


def zipped(parts: dict[str, bytes], **how: int) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", **how) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return data.getvalue()


def test_files_that_unpack_to_gigabytes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """By what they claim, before it is unpacked: here there are a hundred megabytes."""
    monkeypatch.setattr(memory, "room_on", lambda device: 100_000_000)
    write_gaussians(ball(40, 1), tmp_path / "scene.sog")
    assert len(read_gaussians(tmp_path / "scene.sog")) == 40
    with zipfile.ZipFile(tmp_path / "scene.sog") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    zeros, image = bytes(20_000_000), io.BytesIO()
    Image.new("RGB", (8192, 4096)).save(image, "WEBP", lossless=True)
    bombs = {
        "claims.spz": gzip.compress(struct.pack("<IIIBBBB", 0x5053474E, 3, 2**31, 3, 16, 0, 0) + zeros),
        "text.sog": zipped({**parts, "meta.json": parts["meta.json"] + b" " * 20_000_000}, compression=8),
        "picture.sog": zipped({**parts, "quats.webp": image.getvalue()}),
    }
    for name, content in bombs.items():
        assert len(content) < 100_000
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name} unpacks to .* GiB.*Take a smaller one"):
            read_gaussians(tmp_path / name)


def test_flat_and_opaque_gaussians_of_other_programs_stay(tmp_path: Path):
    gaussians = ball(4)
    gaussians.scales[0, 2], gaussians.opacities[1:3] = -math.inf, torch.tensor([math.inf, -math.inf])
    gaussians.means[3] = math.nan
    write_gaussians(gaussians, tmp_path / "scene.ply")
    assert read_gaussians(tmp_path / "scene.ply").finite().tolist() == [True, True, True, False]


def test_points_without_gaussians_are_refused(tmp_path: Path):
    """A point cloud and a mesh are .ply, too; .spz cannot hold everything."""
    header = "ply\nformat binary_little_endian 1.0\nelement vertex 0\nproperty float x\nproperty float y\n"
    (tmp_path / "points.ply").write_text(header + "property float z\nend_header\n")
    with pytest.raises(InputError, match="f_dc_0 is missing"):
        read_gaussians(tmp_path / "points.ply")
    (tmp_path / "mesh.ply").write_text(header + "element face 0\nproperty list uchar int vertices\nend_header\n")
    with pytest.raises(InputError, match="something else"):
        read_gaussians(tmp_path / "mesh.ply")
    far = dataclasses.replace(ball(4), means=torch.full((4, 3), 1e7))
    with pytest.raises(InputError, match="up to 8,388,607"):
        write_gaussians(far, tmp_path / "far.spz")


def test_codebook_is_nearly_the_best():
    """Its squared error is close to the theory's for normal values, and few values are kept exactly."""
    values = torch.randn(200, 500, generator=torch.Generator().manual_seed(0))
    numbers, labels = codebook(values)
    # Panter and Dite: pi sqrt(3) / 2 / size^2 for a normal distribution.
    assert float((numbers[labels] - values).square().mean()) < 1.1 * 2.72 / 256**2
    assert torch.equal((values[..., None] - numbers).abs().argmin(dim=-1)[:5, :5], labels[:5, :5])
    few = torch.tensor([[3.0, -1.0, 3.0, 7.5]])
    numbers, labels = codebook(few)
    torch.testing.assert_close(numbers[labels], few)


def test_palette_finds_clusters():
    """Points about a few places are given places near theirs, and each its nearest."""
    generator = torch.Generator().manual_seed(0)
    places = 10.0 * torch.randn(8, 5, generator=generator)
    points = (places[:, None] + 0.1 * torch.randn(8, 50, 5, generator=generator)).flatten(0, 1)
    even = torch.ones(len(points))
    centers, labels = palette(points, 40, even)
    assert torch.equal(torch.cdist(points, centers).argmin(dim=1), labels)
    assert float((centers[labels] - points).norm(dim=1).max()) < 1.0
    assert torch.equal(palette(points, 40, even)[1], labels)


def test_palette_keeps_what_counts():
    """A tenth of the points that count a thousand times as much: nearly exact, where all alike are not."""
    points = torch.randn(1000, 20, generator=torch.Generator().manual_seed(0))
    weights = torch.ones(1000)
    weights[::10] = 1000.0

    def error(weights: torch.Tensor) -> float:
        centers, labels = palette(points, 200, weights)
        return float((centers[labels] - points)[::10].square().mean())

    assert error(weights) < 0.01 < 0.3 < error(torch.ones(1000))


def test_visibility_is_seen():
    """Twice as large along two axes and twice as far is seen as much; half as opaque half as much."""
    first = ball(200, 0)
    means = torch.cat([first.means, torch.tensor([[4.0, 0.0, 0.0], [8.0, 0.0, 0.0], [8.0, 0.0, 0.0]])])
    scales = torch.cat([first.scales, torch.tensor([[0.1, 0.1, 0.01], [0.01, 0.2, 0.2], [0.2, 0.2, 0.2]]).log()])
    opacities = torch.cat([first.opacities, torch.logit(torch.tensor([0.8, 0.8, 0.4]))])
    numbers = {"quats": first.quats[:1].repeat(203, 1), "sh": first.sh[:1].repeat(203, 1, 1)}
    gaussians = Gaussians(means, scales=scales, opacities=opacities, antialiased=True, **numbers)
    seen = visibility(gaussians, torch.zeros(3), 0.0)
    assert float(seen.mean()) == pytest.approx(1.0, rel=1e-3)
    assert float(seen[201] / seen[200]) == pytest.approx(1.0, rel=1e-4)
    assert float(seen[202] / seen[200]) == pytest.approx(0.5, rel=1e-4)
