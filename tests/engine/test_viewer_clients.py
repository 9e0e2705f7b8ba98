"""The viewer of a training, opened and closed again and again: that costs neither the training nor the machine."""

from __future__ import annotations

import signal
import threading
from contextlib import suppress

import psutil
import pytest
import torch
from _browser import wait_for
from _scenes import free_port, start, tiny_config, write_scene

from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackLocation
from nerfstudio.viewer import viewer as nerfstudio_viewer
from nerfstudio.viewer.render_state_machine import RenderStateMachine

from zipnerf_ns.engine.safety import viewers
from zipnerf_ns.tools.soak import Viewer, camera_message, connected

pytestmark = pytest.mark.usefixtures("fresh_writers")

TIMES, SETTLED = 100, 20
"""Clients, of which two wait for a picture and every third is cut off; and those after which nothing grows."""


def open_and_close(url: str, seen: list[int], files: list[int]) -> None:
    """A hundred clients, one after the other."""
    for number in range(TIMES):
        with connected(url) as client:
            client.send(camera_message(0.0))
            for moved in range(200) if number in (0, TIMES - 1) else ():
                with suppress(TimeoutError):
                    while b"BackgroundImageMessage" not in client.recv(timeout=0.2):
                        pass
                    seen.append(number)
                    break
                # A picture comes while the camera moves: the training then makes way.
                client.send(camera_message(0.1 * moved))
            if number % 3 == 0:
                # As a lost network does: no word of parting.
                client.socket.close()
        files.append(psutil.Process().num_fds())


def test_a_viewer_that_opens_and_closes_a_hundred_times_costs_nothing(tmp_path, capsys):
    scene, port = write_scene(tmp_path / "scene"), free_port()
    config = tiny_config(scene, tmp_path / "seen", 100_000, vis="viewer+tensorboard")
    config.viewer.websocket_port, config.viewer.quit_on_train_completion = port, True
    seen: list[int] = []
    files: list[int] = []
    trainer = start(config)
    trainer.viewer_state.control_panel._max_res.value = 32
    clients = threading.Thread(target=open_and_close, args=(f"ws://127.0.0.1:{port}", seen, files), daemon=True)
    last: list[int] = []

    def follow(step: int) -> None:
        if step == 1:
            clients.start()
        if step > 1 and not clients.is_alive():
            trainer.stop_training = True
            last[:] = [step]

    trainer.callbacks.append(TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN_ITERATION], follow))
    trainer.train()
    assert len(files) == TIMES and seen == [0, TIMES - 1], capsys.readouterr().out[-2000:]
    assert max(files[-SETTLED:]) <= max(files[:SETTLED]) + 2
    wait_for(lambda: not any(isinstance(each, RenderStateMachine) for each in threading.enumerate()), 10, "their end")
    # What a client's end may have cost is one picture.
    assert capsys.readouterr().out.count("Warning") <= 1
    alone = start(tiny_config(scene, tmp_path / "alone", 100_000))
    alone.callbacks.append(TrainingCallback(
        [TrainingCallbackLocation.AFTER_TRAIN_ITERATION],
        lambda step: setattr(alone, "stop_training", step == last[0]),
    ))  # fmt: skip
    alone.train()
    expected = alone.pipeline.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in trainer.pipeline.state_dict().items())


def test_a_training_that_is_stopped_ends_its_pictures_first(tmp_path):
    """A client is connected and moves again and again; a thread that draws when Python ends would abort the program."""
    port = free_port()
    config = tiny_config(write_scene(tmp_path / "scene"), tmp_path, 100_000, vis="viewer+tensorboard")
    config.viewer.websocket_port = port
    trainer, client = start(config), Viewer(f"ws://127.0.0.1:{port}", pause=0.3)

    def stop(step: int) -> None:
        if client.pictures > 2 or step > 20_000:
            trainer.stops.received = signal.SIGTERM

    trainer.callbacks.append(TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN_ITERATION], stop))
    client.start()
    with pytest.raises(SystemExit) as ended:
        trainer.train()
    drawing = [thread for thread in threading.enumerate() if isinstance(thread, RenderStateMachine)]
    client.end()
    assert ended.value.code == 143 and client.pictures > 2 and client.connections == 1 and drawing == []


class Handler:
    """What viser's handler has."""

    def __init__(self) -> None:
        self._atomic_lock, self._locked_thread_id = threading.Lock(), -1


def test_an_error_gives_visers_lock_back_and_calls_within_each_other_wait_for_nobody():
    handler, infra = Handler(), nerfstudio_viewer.viser.infra._infra
    assert infra.WebsockMessageHandler.atomic is viewers.atomic
    with pytest.raises(KeyError), viewers.atomic(handler), viewers.atomic(handler):
        assert handler._atomic_lock.locked()
        raise KeyError
    assert not handler._atomic_lock.locked() and handler._locked_thread_id == -1
    with viewers.atomic(handler):
        assert handler._locked_thread_id == threading.get_ident()
