"""Controls that the model adds to nerfstudio's viewer, and their values as a render sees them.

Nerfstudio finds viewer elements on modules within the model, puts them into its panel, and renders anew when one is
changed. The elements exist in every process, but their values reach only the renders that a viewer asked for: an
evaluation in the same process, while a viewer is open, must measure the model and not the state of a panel.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.viewer.render_state_machine import RenderStateMachine
from nerfstudio.viewer.viewer_elements import (
    ViewerCheckbox,
    ViewerDropdown,
    ViewerElement,
    ViewerRGB,
    ViewerSlider,
)

from zipnerf_ns.functional.hash_grid import Prefilter
from zipnerf_ns.render.outputs import EXTRA_OUTPUTS

MAX_CONE_SCALE = 4.0
"""The widest cones that can be chosen, in pixels."""

AS_TRAINED = "as trained"
MEAN, OF_A_PHOTO = "mean of the photos", "of one photo"
BACKGROUNDS = {"white": (1.0, 1.0, 1.0), "gray": (0.5, 0.5, 0.5), "black": (0.0, 0.0, 0.0)}
CHOSEN_COLOR = "chosen color"


class View(NamedTuple):
    """How one render differs from the model as it was trained."""

    prefilter: Prefilter | None = None
    """Anti-aliasing mode of every field; the configured one if None."""
    cone_scale: float = 1.0
    """Factor on the radius of every ray's cone: 0 for rays without width, 2 for cones of two pixels."""
    num_active: int | None = None
    """Hash levels of the rendered field that are read, from the coarsest; all if None."""
    photo: int | None = None
    """Number of the training photo whose appearance is shown; the mean of all if None."""
    background: tuple[float, float, float] | None = None
    """Color behind what is transparent, in [0, 1]; the configured one if None. A crop's own goes before it."""
    extra_outputs: bool = False
    """Whether outputs that cost more are rendered at once, for whoever cannot ask for them later."""


UNCHANGED = View()
"""The model as it was trained."""


class Asked(NamedTuple):
    """A picture that is to be rendered: enough for any process with the model."""

    source: Cameras | RayBundle
    """A camera, or flat rays."""
    obb_box: OrientedBox | None = None
    """A crop of a camera's rays."""
    names: tuple[str, ...] | None = None
    """Outputs that cost more, which alone are rendered; None for all others."""
    view: View = UNCHANGED
    """The viewer's differences."""
    side: int = 1
    """Side of the squares of pixels whose rays share their proposals; a camera's pixels are counted in them then."""
    times: int = 1
    """Side of the squares of the camera's pixels whose mean is shown."""
    widening: float = 1.0
    """Factor on the cones of its pixels."""


class ViewerControls(nn.Module):
    """The elements; without parameters or buffers, so that checkpoints know nothing of them.

    Nerfstudio lists elements by the names of these attributes, in alphabetical order.

    Args:
        num_levels: hash levels of the rendered field.
        num_photos: training photos with an appearance; 0 leaves those controls out.
        prefilters: anti-aliasing modes to choose from besides the trained one; none leaves that control out.
    """

    def __init__(
        self, num_levels: int, num_photos: int = 0, prefilters: Sequence[Prefilter] = ()
    ) -> None:
        super().__init__()
        self.num_levels = num_levels
        self.antialiasing = None
        if prefilters:
            self.antialiasing = ViewerDropdown(
                "Anti-aliasing", AS_TRAINED, [AS_TRAINED, *prefilters], hint="How fine levels are faded out with size"
            )
        self.antialiasing_width = ViewerSlider(
            "Cone width", 1.0, 0.0, MAX_CONE_SCALE, 0.05, hint="In pixels: 0 is sharp and shimmers, above 1 blurs"
        )
        self.appearance = self.appearance_photo = None
        if num_photos:
            self.appearance = ViewerDropdown(
                "Appearance", MEAN, [MEAN, OF_A_PHOTO], hint="Light and exposure", cb_hook=self._show_photo
            )
            self.appearance_photo = ViewerSlider("Photo", 0, 0, max(num_photos - 1, 1), 1, visible=False)
            self.num_photos = num_photos
        names = [AS_TRAINED, *BACKGROUNDS, CHOSEN_COLOR]
        self.background = ViewerDropdown(
            "Background", AS_TRAINED, names, hint="Behind what is transparent", cb_hook=self._show_color
        )
        self.background_color = ViewerRGB("Color", (255, 211, 105), visible=False)
        self.finest_level = ViewerSlider(
            "Finest level", num_levels, 1, max(num_levels, 2), 1, hint="Coarser than this only: what each level adds"
        )
        self.extra_outputs = ViewerCheckbox(
            "Further outputs", False, hint=f"{', '.join(EXTRA_OUTPUTS)} as further output types; slower"
        )

    def read(self) -> View:
        """The values in force for the calling thread: UNCHANGED unless it renders for a viewer.

        Read once at the start of a render and handed on, so that all of it sees the same values, and an interrupted
        one leaves nothing behind.
        """
        if not isinstance(threading.current_thread(), RenderStateMachine):
            return UNCHANGED
        return self.values()

    def values(self) -> View:
        """The elements' values, whoever asks."""
        mode = AS_TRAINED if self.antialiasing is None else self.antialiasing.value
        level = int(self.finest_level.value)
        return View(
            prefilter=None if mode == AS_TRAINED else mode,
            cone_scale=float(self.antialiasing_width.value),
            num_active=None if level >= self.num_levels else level,
            photo=self._photo(),
            background=self._background(),
            extra_outputs=bool(self.extra_outputs.value),
        )

    def _photo(self) -> int | None:
        if self.appearance is None or self.appearance.value != OF_A_PHOTO:
            return None
        return min(int(self.appearance_photo.value), self.num_photos - 1)

    def _background(self) -> tuple[float, float, float] | None:
        choice = self.background.value
        if choice == CHOSEN_COLOR:
            red, green, blue = self.background_color.value
            return red / 255.0, green / 255.0, blue / 255.0
        return BACKGROUNDS.get(choice)

    def _show_photo(self, element: ViewerElement) -> None:
        self.appearance_photo.set_visible(element.value == OF_A_PHOTO)

    def _show_color(self, element: ViewerElement) -> None:
        self.background_color.set_visible(element.value == CHOSEN_COLOR)
