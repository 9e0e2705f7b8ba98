"""A scene of 3D Gaussians as 3D Gaussian Splatting (3DGS, Kerbl et al. 2023) has them, and how they are moved."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nerfstudio.utils.math import components_from_spherical_harmonics

from zipnerf_ns.functional.similarity import Similarity

SH_C0 = 0.28209479177387814
"""The constant spherical harmonic: a Gaussian's mean color is 0.5 + SH_C0 times its first coefficient."""


@dataclass(frozen=True)
class Gaussians:
    """Gaussians with opacities and colors, as they are optimized: before exponential function and sigmoid."""

    means: Float[Tensor, "gaussians 3"]
    quats: Float[Tensor, "gaussians 4"]
    """Rotations from the Gaussians' own axes, as unit quaternions w, x, y, z."""
    scales: Float[Tensor, "gaussians 3"]
    """Logarithms of the standard deviations along their own axes."""
    opacities: Float[Tensor, "gaussians"]
    """Logits."""
    sh: Float[Tensor, "gaussians coefficients 3"]
    """Coefficients of spherical harmonics, the constant first, in 3DGS's order and signs: color = 0.5 + their sum."""
    antialiased: bool
    """Whether they are to be drawn with gsplat's rasterize_mode "antialiased"."""

    def __post_init__(self) -> None:
        if (self.degree + 1) ** 2 != self.sh.shape[1]:
            raise ValueError(f"{self.sh.shape[1]} coefficients are no whole number of degrees.")

    def __len__(self) -> int:
        return len(self.means)

    @property
    def degree(self) -> int:
        """Highest degree of the spherical harmonics."""
        return math.isqrt(self.sh.shape[1]) - 1

    def select(self, which: Bool[Tensor, "gaussians"] | Int[Tensor, "chosen"]) -> Gaussians:
        """Those of a mask, or of indices in their order."""
        return self._with(lambda values: values[which])

    def cpu(self) -> Gaussians:
        """The same in main memory."""
        return self._with(Tensor.cpu)

    def _with(self, change: Callable[[Tensor], Tensor]) -> Gaussians:
        names = ("means", "quats", "scales", "opacities", "sh")
        return dataclasses.replace(self, **{name: change(getattr(self, name)) for name in names})

    def finite(self) -> Bool[Tensor, "gaussians"]:
        """Whether all numbers of a Gaussian are finite, and its quaternion is no zero."""
        numbers = torch.cat([self.means, self.quats, self.scales, self.opacities[:, None], self.sh.flatten(1)], dim=1)
        return numbers.isfinite().all(dim=1) & (self.quats.norm(dim=1) > 0.0)

    def moved(self, similarity: Similarity) -> Gaussians:
        """The same scene in another frame: places, shapes and the directions that colors depend on."""
        scale, rotation, translation = (value.to(self.means) for value in similarity)
        return dataclasses.replace(
            self,
            means=scale * self.means @ rotation.T + translation,
            quats=multiply(rotation_to_quaternion(rotation), self.quats),
            scales=self.scales + scale.log(),
            sh=rotate_sh(self.sh, rotation),
        )


def rotation_to_quaternion(rotation: Float[Tensor, "3 3"]) -> Float[Tensor, "4"]:
    """The unit quaternion w, x, y, z of a rotation, with w >= 0."""
    # The eigenvector of Bar-Itzhack (2000): well-conditioned at every angle, and the nearest for a matrix that rounds.
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = rotation.double().tolist()
    form = [
        [xx + yy + zz, zy - yz, xz - zx, yx - xy],
        [zy - yz, xx - yy - zz, xy + yx, xz + zx],
        [xz - zx, xy + yx, yy - xx - zz, yz + zy],
        [yx - xy, xz + zx, yz + zy, zz - xx - yy],
    ]
    quaternion = torch.linalg.eigh(torch.tensor(form, dtype=torch.float64)).eigenvectors[:, -1]
    return (quaternion if quaternion[0] >= 0.0 else -quaternion).to(rotation)


def multiply(left: Float[Tensor, "*#batch 4"], right: Float[Tensor, "*#batch 4"]) -> Float[Tensor, "*batch 4"]:
    """The quaternion that turns by the right one, then by the left one."""
    w, x, y, z = left.unbind(-1)
    a, b, c, d = right.unbind(-1)
    parts = [
        w * a - x * b - y * c - z * d,
        w * b + x * a + y * d - z * c,
        w * c - x * d + y * a + z * b,
        w * d + x * c - y * b + z * a,
    ]
    return torch.stack(parts, dim=-1)


def rotate_sh(
    sh: Float[Tensor, "gaussians coefficients 3"], rotation: Float[Tensor, "3 3"]
) -> Float[Tensor, "gaussians coefficients 3"]:
    """Coefficients of the functions that have been turned with the scene: f'(rotation d) = f(d)."""
    levels = math.isqrt(sh.shape[1])
    directions = torch.nn.functional.normalize(
        torch.randn(16 * sh.shape[1], 3, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    # The functions of each degree turn into each other: what they become is read off at more directions than unknowns.
    before = components_from_spherical_harmonics(levels, directions @ rotation.cpu().float())
    after = components_from_spherical_harmonics(levels, directions)
    turned = torch.empty_like(sh)
    for degree in range(levels):
        rows = slice(degree**2, (degree + 1) ** 2)
        matrix = torch.linalg.lstsq(after[:, rows].double(), before[:, rows].double()).solution
        # 3DGS's functions of odd order have the other sign than Nerfstudio's.
        signs = (-1.0) ** torch.arange(-degree, degree + 1, dtype=matrix.dtype)
        turned[:, rows] = torch.einsum("ij,njc->nic", (signs[:, None] * matrix * signs).to(sh), sh[:, rows])
    return turned
