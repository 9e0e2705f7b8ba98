"""LPIPS (Zhang et al., CVPR 2018), version 0.1: how far apart a classifier's features of two pictures are.

Each layer's features are divided by their length at every place; their squared differences are summed with weights that
were fitted to people's judgments, and averaged over the picture. Which classifier it is decides the figures: they have
names of their own.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import torch
import torchmetrics
from jaxtyping import Float
from torch import Tensor, nn

from nerfstudio.utils.rich_utils import CONSOLE


class Backbone(NamedTuple):
    """A classifier whose features are compared."""

    architecture: str
    """Torchvision's name."""
    file: str
    """Name of its published weights' file, whose SHA-256 begins with the last eight digits."""
    heads: str
    """Name of the fitted weights, which come with torchmetrics."""
    layers: tuple[int, ...]
    """Numbers of the layers, all of them ReLUs, whose values are compared."""
    min_size: int
    """The shortest side, pixels, of which its poolings leave anything."""


BACKBONES = {
    "lpips": Backbone("vgg16", "vgg16-397923af.pth", "vgg", (3, 8, 15, 22, 29), 16),
    "lpips_alex": Backbone("alexnet", "alexnet-owt-7be5be79.pth", "alex", (1, 4, 7, 9, 11), 31),
}
"""The classifiers by the metrics' names. Radiance fields are published with VGG's; few with AlexNet's: lower."""
DOWNLOAD = "https://download.pytorch.org/models"
"""Where the classifiers' weights are published: half a gigabyte for VGG, for which no evaluation should wait."""
MEAN, STD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""The classifiers' own normalization of colors, for values from -1 to 1."""
TINY_LENGTH = 1e-10
"""Added to a length that is divided by."""


class Lpips(nn.Module):
    """The distance that one classifier makes.

    Args:
        features: the classifier's layers up to the last that is compared.
        heads: the fitted weights, ``[channels]``, by the number of the layer.
    """

    def __init__(self, features: nn.Sequential, heads: dict[int, Tensor]) -> None:
        super().__init__()
        self.features = features.requires_grad_(False)
        for layer, weights in heads.items():
            self.register_buffer(f"head_{layer}", weights)

    def forward(
        self, first: Float[Tensor, "height width 3"], second: Float[Tensor, "height width 3"]
    ) -> Float[Tensor, ""]:
        """LPIPS of two pictures with values in [0, 1]."""
        mean, std = first.new_tensor(MEAN), first.new_tensor(STD)
        values = ((2.0 * torch.stack([first, second]) - 1.0 - mean) / std).permute(0, 3, 1, 2)
        total = first.new_zeros(())
        for number, layer in enumerate(self.features):
            values = layer(values)
            head = getattr(self, f"head_{number}", None)
            if head is not None:
                one, other = values / (values.norm(dim=1, keepdim=True) + TINY_LENGTH)
                total = total + torch.einsum("c,chw->hw", head, (one - other).square()).mean()
        return total


def load_lpips(backbone: Backbone, folder: Path) -> Lpips:
    """The distance of a classifier.

    Args:
        backbone: which.
        folder: where the file of its weights is.
    Raises:
        OSError: it is not there, or is not what its name says.
    """
    # Late, for it takes seconds that only who measures should wait for.
    from torchvision import models

    path = folder / backbone.file
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    if not hashlib.sha256(path.read_bytes()).hexdigest().startswith(path.stem[-8:]):
        raise OSError(f"{path} is not the published file, whose SHA-256 begins with {path.stem[-8:]}")
    # On no device: nothing is drawn at random, of which a training would notice, before the weights are there.
    with torch.device("meta"):
        features = getattr(models, backbone.architecture)().features[: backbone.layers[-1] + 1]
    state = torch.load(path, map_location="cpu", weights_only=True)
    features.load_state_dict({name: state[f"features.{name}"] for name in features.state_dict()}, assign=True)
    published = Path(torchmetrics.__file__).parent / f"functional/image/lpips_models/{backbone.heads}.pth"
    fitted = torch.load(published, map_location="cpu", weights_only=True)
    heads = {layer: fitted[f"lin{index}.model.1.weight"].flatten() for index, layer in enumerate(backbone.layers)}
    return Lpips(features, heads).eval()


def load_all(folder: Path | None) -> dict[str, Lpips]:
    """The distances whose weights are there, by the metrics' names; one line says why ``lpips`` is not among them.

    Args:
        folder: where the weights are; torch hub's cache if None.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints" if folder is None else folder
    found = {}
    for name, backbone in BACKBONES.items():
        try:
            found[name] = load_lpips(backbone, folder)
        except OSError as error:
            # AlexNet's is an extra: who has not put its weights there has not asked for it.
            if name == "lpips" or not isinstance(error, FileNotFoundError):
                CONSOLE.log(
                    f"{name} is left out: {error}. Take it from {DOWNLOAD}/{backbone.file} and put it there, or "
                    "name its folder with --pipeline.model.lpips-weights.",
                    markup=False,
                )
    return found
