"""LPIPS against torchmetrics' network with the same random weights, and which files of weights it takes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from _rays import normal, uniform
from torchmetrics.functional.image.lpips import _LPIPS
from torchvision import models

from zipnerf_ns.render import lpips as lpips_module
from zipnerf_ns.render.lpips import BACKBONES, load_all
from zipnerf_ns.render.metrics import ImageMetrics


def random_state(name: str, seed: int) -> dict[str, torch.Tensor]:
    """A classifier's convolutions, random, under the names of its published file."""
    with torch.device("meta"):
        shapes = getattr(models, BACKBONES[name].architecture)().features.state_dict()
    generator = torch.Generator().manual_seed(seed)
    return {
        # As large as keeps values of the same size from layer to layer.
        f"features.{key}": torch.randn(value.shape, generator=generator) * (2.0 / value[0].numel()) ** 0.5
        for key, value in shapes.items()
    }


def publish(name: str, folder: Path, state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Writes weights to a file, and makes it the published one: its name ends with what its hash begins with."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / "unnamed")
    digits = hashlib.sha256((folder / "unnamed").read_bytes()).hexdigest()[:8]
    path = (folder / "unnamed").rename(folder / f"{name}-{digits}.pth")
    monkeypatch.setitem(BACKBONES, name, BACKBONES[name]._replace(file=path.name))
    return path


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines = []
    monkeypatch.setattr(lpips_module.CONSOLE, "log", lambda text, **_: lines.append(text))
    return lines


@pytest.mark.parametrize("name, size", [("lpips", (16, 21)), ("lpips_alex", (31, 40))])
def test_it_is_torchmetrics_with_the_same_weights(name, size, tmp_path, monkeypatch, said):
    """The real architecture and the published heads, at the smallest size and at one of odd sides."""
    backbone, state = BACKBONES[name], random_state(name, 1)
    publish(name, tmp_path, state, monkeypatch)
    before = torch.get_rng_state()
    network = load_all(tmp_path)[name]
    # A training must not notice that it was measured.
    assert torch.equal(torch.get_rng_state(), before)
    with torch.device("meta"):
        other = _LPIPS(net=backbone.heads, pretrained=False, pnet_rand=True)
    other.to_empty(device="cpu")
    # Its slices keep the numbers of the classifier's layers.
    other.net.load_state_dict({key: state[f"features.{key.split('.', 1)[1]}"] for key in other.net.state_dict()})
    heads = Path(lpips_module.torchmetrics.__file__).parent / f"functional/image/lpips_models/{backbone.heads}.pth"
    other.load_state_dict(torch.load(heads, map_location="cpu", weights_only=True), strict=False)
    other.scaling_layer.__init__()
    for height, width in (size, (size[0] + 6, size[1] + 1)):
        first = uniform((height, width, 3), 2)
        second = (first + 0.2 * normal((height, width, 3), 3)).clamp(0.0, 1.0)
        expected = float(other(*(x.permute(2, 0, 1)[None] for x in (first, second)), normalize=True))
        assert expected > 0.01
        assert float(network(first, second)) == pytest.approx(expected, rel=1e-4)
        assert float(network(first, first)) == 0.0
        assert ImageMetrics(tmp_path)(first, second)[name] == pytest.approx(expected, rel=0.05)


def test_a_smaller_picture_leaves_nothing_to_compare(tmp_path, monkeypatch, said):
    """Which sizes are too small is what the networks refuse."""
    for name, backbone in BACKBONES.items():
        publish(name, tmp_path, random_state(name, 1), monkeypatch)
        small = uniform((backbone.min_size - 1, 50, 3), 2)
        with pytest.raises(RuntimeError, match="too small"):
            load_all(tmp_path)[name](small, small)
        assert name not in ImageMetrics(tmp_path)(small, small)


def test_each_weights_file_stands_for_its_own_metric(tmp_path, monkeypatch, said):
    """Without VGG's one line says so, and AlexNet's is no substitute; without AlexNet's, which is an extra, none."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    assert load_all(None) == {}
    alex = publish("lpips_alex", tmp_path / "hub" / "checkpoints", random_state("lpips_alex", 1), monkeypatch)
    assert set(load_all(None)) == {"lpips_alex"}
    assert len(said) == 2 and all("lpips is left out" in line for line in said)
    assert str(alex.with_name("vgg16-397923af.pth")) in said[0] and "--pipeline.model.lpips-weights" in said[0]
    publish("lpips", tmp_path / "given", random_state("lpips", 1), monkeypatch)
    said.clear()
    assert set(load_all(tmp_path / "given")) == {"lpips"} and said == []


def test_another_file_of_that_name_is_refused(tmp_path, monkeypatch, said):
    """Cut short, or of another training: its values would look like LPIPS."""
    for name in BACKBONES:
        path = publish(name, tmp_path, random_state(name, 1), monkeypatch)
        path.write_bytes(path.read_bytes()[:-1])
    assert load_all(tmp_path) == {}
    assert len(said) == 2 and all("is not the published file" in line for line in said)
