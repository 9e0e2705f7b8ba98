"""Copies a scene with better camera poses: `python -m zipnerf_ns.tools.refine_poses SCENE OUTPUT`.

For poses that are nearly right, as those of a phone's or a robot's own tracking. COLMAP finds poses and lenses of the
photographs anew (`pip install 'zipnerf-ns[photos]'`), and all of them together are moved to where the given cameras
stand: the scene keeps its frame, its scale, and the pose of every photograph that could not be placed.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
from PIL import Image
from tyro.conf import Positional, arg

from nerfstudio.cameras.cameras import CAMERA_MODEL_TO_TYPE, CameraType

from zipnerf_ns.data.disk.files import write_json
from zipnerf_ns.data.images import read_mask
from zipnerf_ns.errors import InputError
from zipnerf_ns.functional.similarity import align_cameras, move_cameras, pose_errors
from zipnerf_ns.tools.command import command
from zipnerf_ns.tools.disturb_poses import link_files, open_scene, write_scene
from zipnerf_ns.tools.reconstruction.mapping import Placement, Workshop
from zipnerf_ns.tools.reconstruction.pictures import Picture
from zipnerf_ns.tools.reconstruction.writing import camera_to_world, intrinsics

MODELS = {CameraType.PERSPECTIVE: "OPENCV", CameraType.FISHEYE: "OPENCV_FISHEYE"}
"""COLMAP's camera models, which are Nerfstudio's too."""
DISTORTION = {"OPENCV": ("k1", "k2", "p1", "p2"), "OPENCV_FISHEYE": ("k1", "k2", "k3", "k4")}
STATED = ("k1", "k2", "k3", "k4", "p1", "p2")
"""What a frame's ``distortion_params`` are."""


def refine_scene(
    scene: Annotated[Path, Positional, arg(metavar="SCENE")],
    output: Annotated[Path, Positional, arg(metavar="OUTPUT")],
) -> Path:
    """Copies a scene with poses and lenses that fit its photographs better.

    Args:
        scene: folder with a transforms.json of Nerfstudio's and the files that it names, linked where that can be.
        output: folder to write; must not exist.

    Returns:
        The new folder.
    Raises:
        InputError: the scene cannot be read, its photographs do not belong together, ``output`` exists, or pycolmap is
            missing.
    """
    scene, output, meta = open_scene(scene, output)
    with TemporaryDirectory() as work:
        placement = place(scene, meta, Path(work))
    print(move_frames(meta, placement))
    link_files(scene, output)
    # Last, for then an interrupted run leaves nothing like a scene.
    write_json(output / "transforms.json", meta)
    return output


def place(scene: Path, meta: dict[str, Any], work: Path) -> Placement:
    """Where COLMAP places a scene's photographs, in a frame of its own.

    Args:
        scene: the folder that ``meta`` describes, in Nerfstudio's format, each frame with its lens.
        work: an empty folder for features and models.
    """
    model = MODELS.get(CAMERA_MODEL_TO_TYPE[meta["camera_model"]])
    if model is None:
        raise InputError(f"cameras of model {meta['camera_model']} cannot be refined: perspective and fisheye can.")
    pictures, lenses = [], {}
    for frame in meta["frames"]:
        name = os.path.normpath(frame["file_path"])
        if os.path.isabs(name) or name.startswith(".."):
            raise InputError(f"{name} lies outside of {scene}, whose photographs are refined. Copy or link it there.")
        distortion = dict(zip(STATED, frame.get("distortion_params", [0.0] * len(STATED)), strict=True))
        lens = [*(frame[key] for key in ("fl_x", "fl_y", "cx", "cy")), *(distortion[key] for key in DISTORTION[model])]
        size = frame["w"], frame["h"]
        camera = f"{size} {lens}"
        lenses[camera] = ", ".join(map(str, lens))
        pictures.append(Picture(name, size, camera, 0, "mask_path" in frame))
        if "mask_path" in frame:
            mask = work / "masks" / f"{name}.png"
            mask.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(read_mask(scene / frame["mask_path"])[..., 0].numpy()).save(mask)
    masks = work / "masks" if pictures[0].has_mask else None
    workshop = Workshop(pictures, scene, masks, work, model, lenses)
    workshop.enter_pictures()
    return workshop.place(workshop.find_features(), workshop.match())


def move_frames(meta: dict[str, Any], placement: Placement) -> str:
    """Gives the frames of a scene the poses and lenses of a placement; what has changed, in lines.

    Args:
        meta: in Nerfstudio's format, changed in place.
        placement: of its photographs, in any frame.
    """
    model = placement.model
    images = {image.name: image for image in (model.image(number) for number in model.reg_image_ids())}
    frames = [frame for frame in meta["frames"] if os.path.normpath(frame["file_path"]) in images]
    placed = [images[os.path.normpath(frame["file_path"])] for frame in frames]
    given = torch.tensor([frame["transform_matrix"] for frame in frames], dtype=torch.float64)[:, :3]
    found = torch.stack([torch.from_numpy(camera_to_world(image.cam_from_world().matrix())) for image in placed])[:, :3]
    moved = move_cameras(align_cameras(found, given), found)
    for frame, image, pose in zip(frames, placed, moved, strict=True):
        frame.pop("distortion_params", None)
        frame |= intrinsics(image.camera)
        frame["transform_matrix"] = [*pose.tolist(), [0.0, 0.0, 0.0, 1.0]]
        meta["camera_model"] = image.camera.model_name
    degrees, shifts = pose_errors(moved, given)
    spread = (given[:, :, 3] - given[:, :, 3].mean(dim=0)).norm(dim=-1).mean().clamp_min(1e-12)
    percent = 100.0 * shifts / spread
    lines = [
        f"{len(frames)} of {len(meta['frames'])} cameras refined: turned by {degrees.mean():.2f} degrees "
        f"(at most {degrees.max():.2f}), shifted by {percent.mean():.2f}% of their spread (at most "
        f"{percent.max():.2f}%); reprojection error {model.compute_mean_reprojection_error():.2f} px"
    ]
    lines += [f"  as given: {name} {reason}" for name, reason in placement.unplaced.items()]
    return "\n".join(lines)


@command(OSError)
def main(arguments: list[str] | None = None) -> None:
    """The command."""
    write_scene(refine_scene, "refine_poses", "Refined scene", arguments)


if __name__ == "__main__":
    sys.exit(main())
