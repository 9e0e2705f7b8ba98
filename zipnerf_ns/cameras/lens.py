"""What the calibration of a lens has missed, learned together with the scene from all photos that it took.

Photogrammetry leaves principal points in the middle by default, and turns and shifts every camera by what that costs.
One lens's photos then show a common error that corrections of single poses can hardly find: a focal length, a principal
point and a turn of all its cameras alike. In a camera's frame the three are one linear map of directions.
"""

from __future__ import annotations

import copy
import dataclasses

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.cameras.rays import RayBundle

from zipnerf_ns.functional.camera_motion import Preconditioner, inverse_roots, rotate

NO_LENS = (
    "--pipeline.model.optimize-lens learns nothing here: it corrects perspective lenses with eight photos or more, "
    "and there is none."
)
"""What a person is told of a training without a lens that is corrected."""
MAX_LENSES = 8
"""Lenses that are corrected, those with the most photos."""
FEWEST_PHOTOS = 8
"""Photos below which a lens is left as it is."""
SAME = 2e-3
"""Differences of numbers, over the picture's width, up to which two cameras have one lens."""
PIXELS_ALONG_A_SIDE = 8
"""Pixels of each row and column of a picture over which the parameters' effects are averaged."""
LEARNED_UNTIL = 0.5
"""Share of the training in which lenses are corrected. After it no ray needs a gradient, and steps are shorter."""
DAMPING = 1e-3
"""Share of its diagonal that is added to the Gram matrix. A principal point and a turn look nearly alike."""
TURN, SCALE, CENTER = slice(0, 3), slice(3, 5), slice(5, 7)
"""Parameters of a lens: a turn in the camera's frame (radians), logarithms by which directions spread along the
picture's two axes, and their shift there at distance 1."""


class LensCorrections(nn.Module):
    """Learned corrections of lenses; zero at first.

    Args:
        num_cameras: training cameras.
    """

    def __init__(self, num_cameras: int) -> None:
        super().__init__()
        self.corrections = nn.Parameter(torch.zeros(MAX_LENSES, 7))
        # Of the training cameras, which a checkpoint need not hold.
        self.register_buffer("lens", torch.full((num_cameras,), -1), persistent=False)
        self.register_buffer("rotations", torch.eye(3).repeat(num_cameras, 1, 1), persistent=False)
        self.known: Float[Tensor, "lenses numbers"] = torch.zeros(0, 11)
        self.is_learned = True
        """Whether rays carry gradients to the corrections."""

    def adopt(self, cameras: Cameras) -> None:
        """Says which the training cameras are, ``[cameras]``; required before anything else."""
        self.known = find_lenses(cameras)
        self.lens.copy_(self.lenses_of(cameras))
        self.rotations.copy_(cameras.camera_to_worlds[:, :, :3])

    def learns_at(self, progress: float) -> bool:
        """Whether there is anything to correct, and still time for it, at a share of the training from 0 to 1."""
        return len(self.known) > 0 and progress < LEARNED_UNTIL

    def lenses_of(self, cameras: Cameras) -> Int[Tensor, " cameras"]:
        """Which of the training's lenses cameras have, by their numbers; -1 for none of them."""
        numbers = _numbers(cameras)
        if len(self.known) == 0:
            return torch.full((len(numbers),), -1)
        far = (numbers[:, None] - self.known).abs().amax(dim=-1)
        least, lens = far.min(dim=-1)
        return torch.where(least <= SAME, lens, -1)

    def corrected_bundle(self, bundle: RayBundle, cameras: Cameras | None = None) -> RayBundle:
        """The rays as their lenses see them, with a gradient to the corrections; the bundle is left as it is.

        Args:
            bundle: of any shape, with ``camera_indices``.
            cameras: that these count, ``[cameras]``; the training's if not given.
        """
        corrections = self.corrections if self.is_learned else self.corrections.detach()
        lens, rotations = self.lens, self.rotations
        if cameras is not None:
            lens = self.lenses_of(cameras).to(lens.device)
            rotations = cameras.camera_to_worlds[:, :, :3].to(lens.device)
        with torch.autocast(bundle.origins.device.type, enabled=False):
            maps = _maps(corrections).index_select(0, lens.clamp(min=0))
            maps = torch.where((lens >= 0)[:, None, None], maps, torch.eye(3, device=maps.device))
            maps = _product(_product(rotations, maps), rotations.mT)
            chosen = maps.index_select(0, bundle.camera_indices.reshape(-1))
            directions = (chosen * bundle.directions.reshape(-1, 1, 3)).sum(dim=-1)
        return dataclasses.replace(bundle, directions=directions.view(bundle.directions.shape))

    @torch.no_grad()
    def corrected(self, cameras: Cameras) -> Cameras:
        """A copy of cameras, of any shape, with the corrections of their lenses in their numbers and poses."""
        flat = cameras.flatten()
        lens = self.lenses_of(flat).to(self.corrections.device)
        chosen = torch.where((lens >= 0)[:, None], self.corrections[lens.clamp(min=0)], 0.0).to(flat.fx)
        moved = copy.copy(flat)
        grown, shift = chosen[:, SCALE].exp(), chosen[:, CENTER]
        moved.fx, moved.fy = flat.fx / grown[:, :1], flat.fy / grown[:, 1:]
        # Rows go down where the camera's second axis goes up.
        moved.cx, moved.cy = flat.cx - shift[:, :1] * moved.fx, flat.cy + shift[:, 1:] * moved.fy
        poses = flat.camera_to_worlds
        turned = poses[:, :, :3] @ _turn(chosen[:, TURN])
        moved.camera_to_worlds = torch.cat([turned, poses[:, :, 3:]], dim=-1)
        return moved.reshape(cameras.shape)

    @torch.no_grad()
    def preconditioner(self) -> Preconditioner:
        """Coordinates in which a unit of any of a lens's parameters moves what it sees by a radian."""
        # Columns of a known lens: focal lengths and principal point over the picture's width, its height.
        fx, fy, cx, cy, height = self.known[:, :5].double().T[..., None]
        at = (torch.arange(PIXELS_ALONG_A_SIDE, dtype=torch.float64) + 0.5) / PIXELS_ALONG_A_SIDE
        shares = torch.cartesian_prod(at, at).T
        x, y = (shares[0] - cx) / fx, (cy - shares[1] * height) / fy
        gram = _gram(torch.stack([x, y, -torch.ones_like(x)], dim=-1))
        diagonal = torch.diagonal(gram, dim1=-2, dim2=-1)
        matrix, inverse = inverse_roots(gram + torch.diag_embed(DAMPING * diagonal))
        rest = torch.eye(7, dtype=torch.float64).expand(MAX_LENSES - len(gram), 7, 7)
        matrix, inverse = torch.cat([matrix, rest]), torch.cat([inverse, rest])
        return Preconditioner(matrix, inverse, torch.zeros(MAX_LENSES, 7, 0, dtype=torch.float64))


def through_lens(model: nn.Module, cameras: Cameras) -> Cameras:
    """Cameras with what a model has learned of their lenses; themselves where it learns nothing of them."""
    lens = getattr(model, "lens", None)
    return cameras if lens is None else lens.corrected(cameras)


def find_lenses(cameras: Cameras) -> Float[Tensor, "lenses 11"]:
    """Numbers of the lenses that took enough photos, those with the most first."""
    found: list[tuple[int, Tensor]] = []
    numbers, counts = torch.unique(_numbers(cameras), dim=0, return_counts=True)
    for one, count in sorted(zip(numbers, counts.tolist(), strict=True), key=lambda pair: -pair[1]):
        near = [i for i, (_, other) in enumerate(found) if (one - other).abs().max() <= SAME]
        if near:
            found[near[0]] = found[near[0]][0] + count, found[near[0]][1]
        elif one.isfinite().all():
            found.append((count, one))
    kept = sorted((pair for pair in found if pair[0] >= FEWEST_PHOTOS), key=lambda pair: -pair[0])[:MAX_LENSES]
    return torch.stack([one for _, one in kept]) if kept else torch.zeros(0, 11)


def _numbers(cameras: Cameras) -> Float[Tensor, "cameras 11"]:
    """What tells lenses from each other, lengths over the picture's width: focal lengths, principal point, height, six
    numbers of distortion; infinite for others than perspective cameras, which are none's."""
    flat = cameras.flatten()
    width = flat.width.float()
    distortion = flat.distortion_params
    distortion = width.new_zeros(len(width), 6) if distortion is None else distortion
    lengths = torch.cat([flat.fx, flat.fy, flat.cx, flat.cy, flat.height.float()], dim=-1) / width
    numbers = torch.cat([lengths, distortion], dim=-1)
    return torch.where(flat.camera_type == CameraType.PERSPECTIVE.value, numbers, torch.inf).float().cpu()


def _turn(turns: Float[Tensor, "lenses 3"]) -> Float[Tensor, "lenses 3 3"]:
    eye = torch.eye(3, device=turns.device, dtype=turns.dtype).repeat(len(turns), 1)
    return rotate(turns.repeat_interleave(3, dim=0), eye).view(-1, 3, 3).mT


def _maps(corrections: Float[Tensor, "lenses 7"]) -> Float[Tensor, "lenses 3 3"]:
    """The linear maps of directions in a camera's frame, which looks along its negative third axis."""
    grown, shift = corrections[:, SCALE].exp(), corrections[:, CENTER]
    one, zero = torch.ones_like(grown[:, 0]), torch.zeros_like(grown[:, 0])
    rows = [grown[:, 0], zero, -shift[:, 0], zero, grown[:, 1], -shift[:, 1], zero, zero, one]
    return _product(_turn(corrections[:, TURN]), torch.stack(rows, dim=-1).view(-1, 3, 3))


def _product(first: Float[Tensor, "n 3 3"], second: Float[Tensor, "n 3 3"]) -> Float[Tensor, "n 3 3"]:
    """Matrix products in full precision, where torch may multiply in TF32."""
    return (first[:, :, :, None] * second[:, None]).sum(dim=2)


def _gram(points: Float[Tensor, "lenses pixels 3"]) -> Float[Tensor, "lenses 7 7"]:
    """Mean of J^T J, J the change of the unit direction to points at distance 1 with each of the parameters."""
    unit = torch.nn.functional.normalize(points, dim=-1)
    x, y, _ = points.unbind(dim=-1)
    zero = torch.zeros_like(x)
    axes = torch.eye(3, dtype=points.dtype).expand(*points.shape[:-1], 3, 3)
    turned = torch.linalg.cross(axes, points[..., None, :].expand_as(axes))
    others = [(x, zero, zero), (zero, y, zero), (zero + 1.0, zero, zero), (zero, zero + 1.0, zero)]
    moves = torch.cat([turned, torch.stack([torch.stack(one, dim=-1) for one in others], dim=-2)], dim=-2)
    moves = moves / points.norm(dim=-1)[..., None, None]
    seen = moves - (moves * unit[..., None, :]).sum(dim=-1, keepdim=True) * unit[..., None, :]
    return torch.einsum("lpic,lpjc->lij", seen, seen) / points.shape[1]
