"""Pictures whose rays are shared among the processes that torchrun has started to look at a run, a GPU each.

The first process runs the program, be it ns-eval, ns-render or the viewer, as if it were alone. The others have loaded
the same checkpoint; then they render parts of what it asks for until it ends.
"""

from __future__ import annotations

import atexit
import io
from threading import Lock

import torch
import torch.distributed as dist
from torch import Tensor

from nerfstudio.model_components import renderers

from zipnerf_ns.model import ZipNerfModel
from zipnerf_ns.render.viewer import Asked


class SharedPictures:
    """Gives each process its part of a picture's rays, and the first one the picture.

    Args:
        model: with the same parameters everywhere.
    """

    def __init__(self, model: ZipNerfModel) -> None:
        self._model = model
        # A viewer's clients ask at the same time.
        self._lock = Lock()

    def lead(self) -> None:
        """Has this process's pictures shared from now on, until it ends."""
        self._model.shared = self._render
        atexit.register(self._tell, b"")

    def follow(self) -> None:
        """Renders parts of the first process's pictures until that ends; then ends this one.

        Raises:
            SystemExit: in the end.
        """
        while said := self._tell(None):
            asked, background, num_rays = torch.load(io.BytesIO(said), map_location="cpu", weights_only=False)
            override = renderers.BACKGROUND_COLOR_OVERRIDE
            renderers.BACKGROUND_COLOR_OVERRIDE = background
            try:
                self._part(asked, num_rays)
            finally:
                renderers.BACKGROUND_COLOR_OVERRIDE = override
        raise SystemExit(0)

    def _render(self, asked: Asked, num_rays: int) -> dict[str, Tensor]:
        with self._lock:
            said = io.BytesIO()
            torch.save((asked, renderers.BACKGROUND_COLOR_OVERRIDE, num_rays), said)
            self._tell(said.getvalue())
            return self._part(asked, num_rays)

    def _tell(self, said: bytes | None) -> bytes:
        """What the first process says."""
        heard = [said]
        dist.broadcast_object_list(heard, device=torch.device("cpu"))
        return heard[0]

    def _part(self, asked: Asked, num_rays: int) -> dict[str, Tensor]:
        """Renders this process's part; to the first one, gives the whole."""
        rank, count = dist.get_rank(), dist.get_world_size()
        # All of the same length in whole squares, the last ones with rays of those before.
        square = asked.side**2
        length = -(-num_rays // (count * square)) * square
        starts = [min(length * process, num_rays - length) for process in range(count)]
        outputs = self._model.render_part(asked, starts[rank], starts[rank] + length)
        mine = torch.cat(list(outputs.values()), dim=-1)
        parts = [torch.empty_like(mine) for _ in starts] if rank == 0 else None
        dist.gather(mine, parts)
        if parts is None:
            return {}
        whole = mine.new_empty(num_rays, mine.shape[1])
        for start, part in zip(starts, parts, strict=True):
            whole[start : start + length] = part
        widths = [output.shape[1] for output in outputs.values()]
        return dict(zip(outputs, whole.split(widths, dim=-1), strict=True))
