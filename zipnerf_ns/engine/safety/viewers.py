"""Clients of the viewer that come and go: what viser 0.2.7 and Nerfstudio 1.1.5 keep of them must not add up."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nerfstudio.viewer import viewer as nerfstudio_viewer
from nerfstudio.viewer.render_state_machine import RenderStateMachine

LAST_PICTURE = 20.0
"""Seconds that a picture may take to notice that nobody waits for it."""


@contextmanager
def atomic(handler: Any) -> Iterator[None]:
    """Viser's ``WebsockMessageHandler.atomic``, whose lock was never given back where what is done within fails.

    It does where a client has gone whose camera moves: from then on every message would have been waited for, and
    with them the training.
    """
    thread = threading.get_ident()
    if thread == handler._locked_thread_id:
        yield
        return
    with handler._atomic_lock:
        handler._locked_thread_id = thread
        try:
            yield
        finally:
            # Before the lock: the next one writes its own number there.
            handler._locked_thread_id = -1


def forget_lost_clients(viewer: Any) -> None:
    """Ends the render threads of clients that had gone before they were met, of which Nerfstudio never hears.

    Args:
        viewer: Nerfstudio's.
    """
    server = viewer.viser_server
    connected = getattr(server._websock_server, "_client_state_from_id", None)
    if connected is None:
        return
    for client in [client for client in list(viewer.render_statemachines) if client not in connected]:
        with server._client_lock:
            server._connected_clients.pop(client, None)
        thread = viewer.render_statemachines.pop(client, None)
        if thread is not None:
            thread.running = False


@contextmanager
def pictures_end(trainer: Any) -> Iterator[None]:
    """Ends the viewer's render threads when what is done within is over: one that is in torch when Python ends would
    abort the program, whose status would then be 134.

    Args:
        trainer: with or without a viewer.
    """
    try:
        yield
    finally:
        if trainer.viewer_state is not None:
            # Those of clients that come now wait for this.
            trainer.viewer_state.ready = False
        threads = [thread for thread in threading.enumerate() if isinstance(thread, RenderStateMachine)]
        for thread in threads:
            thread.running, thread.interrupt_render_flag = False, True
        for thread in threads:
            thread.join(LAST_PICTURE)


def mend_viewers() -> None:
    """Has viser take :func:`atomic` in the place of its own, and Nerfstudio's viewer forget lost clients at a step."""
    infra, viewers = getattr(nerfstudio_viewer.viser.infra, "_infra", None), nerfstudio_viewer.Viewer
    if hasattr(infra, "WebsockMessageHandler"):
        infra.WebsockMessageHandler.atomic = atomic
    update_scene = viewers.update_scene

    def update(viewer: Any, *arguments: Any, **named: Any) -> None:
        forget_lost_clients(viewer)
        update_scene(viewer, *arguments, **named)

    viewers.update_scene = update
