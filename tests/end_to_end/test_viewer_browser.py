"""The viewer in a real browser, while a scene trains and after it: what a person sees changes as it should."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from _browser import ViewerPage, chromium_programs, detail, difference, is_blank, open_browser, wait_for
from _programs import train_command
from _scenes import free_port

from zipnerf_ns.tools.system_check import script_environment

STEPS = 100
MAX_RES = "96"
"""Pixels of a still camera's longer side: what two cores render within a second."""


class Training(NamedTuple):
    """An ns-train with its viewer."""

    process: subprocess.Popen
    url: str
    log: Path


@pytest.fixture(scope="module")
def training(tiny_scene, tmp_path_factory) -> Iterator[Training]:
    """ns-train with the viewer on, as a user starts it; ended as a user ends it, with Ctrl-C."""
    chromium_programs()
    folder = tmp_path_factory.mktemp("viewer")
    log, port = folder / "train.log", free_port()
    viewer = ("--viewer.websocket-host", "127.0.0.1", "--viewer.websocket-port", port)
    viewer += ("--viewer.max-num-display-images", 4, "--viewer.quit-on-train-completion", "False")
    command = train_command(tiny_scene, folder, "--max-num-iterations", STEPS, *viewer)
    with log.open("w") as stream:
        process = subprocess.Popen(
            command,
            env={**script_environment(), "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            # Where the tests run in a shell's background, Ctrl-C is ignored, also by what they start.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        try:
            yield Training(process, f"http://127.0.0.1:{port}", log)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


@pytest.fixture
def page(training, tmp_path) -> Iterator[ViewerPage]:
    """The viewer's page, as soon as ns-train has it."""
    with open_browser(tmp_path / "profile") as driver:
        said = training.log.read_text
        # A page that comes while the viewer is still being put together keeps a panel without its values.
        wait_for(lambda: "logging events to" in said() or training.process.poll() is not None, 120, "ns-train's viewer")
        assert training.process.poll() is None, said()[-3000:]
        visit = ViewerPage(driver, training.url, tmp_path)
        yield visit
        # Also, and above all, of a visit that failed.
        driver.save_screenshot(str(tmp_path / "last.png"))


def test_a_person_looks_around_while_it_trains_and_after(training, page):
    """One visit, in the order in which a person would do it; screenshots stay in pytest's folder."""
    # First of all: a render at the viewer's 512 pixels takes a CPU longer than all of the training.
    page.enter("Max res", MAX_RES)
    page.click("Hide Train Cams")
    wait_for(lambda: not is_blank(page.screenshot()), 60, "a picture while it trains")
    page.driver.save_screenshot(str(page.folder / "0_training.png"))
    wait_for(lambda: "Training Finished" in training.log.read_text(), 120, "the end of the training")

    # What was seen last may be of an earlier step: another output and back renders anew.
    seen = page.screenshot()
    page.choose("Output type", "depth")
    depth = page.still("1_depth", lambda picture: not is_blank(picture) and difference(picture, seen) > 20.0)
    page.choose("Output type", "rgb")
    trained = page.still("2_trained", lambda picture: not is_blank(picture) and difference(picture, depth) > 20.0)

    def is_as_trained(picture: np.ndarray) -> bool:
        # The page shows JPEGs, of any quality while the machine is busy.
        return difference(picture, trained) < 2.0

    page.enter("Cone width", "4")
    page.still("3_wide_cones", lambda picture: not is_as_trained(picture) and detail(picture) < 0.95 * detail(trained))
    page.choose("Anti-aliasing", "none")
    page.still("4_wide_cones_without_filter", lambda picture: detail(picture) > 0.97 * detail(trained))
    page.choose("Anti-aliasing", "as trained")
    page.enter("Cone width", "1")
    page.still("5_pixels_cones_again", is_as_trained)
    page.enter("Finest level", "2")
    page.still("6_coarse_levels", lambda picture: detail(picture) < 0.7 * detail(trained))
    page.enter("Finest level", "8")
    page.still("7_all_levels_again", is_as_trained)
    page.tick("Further outputs")
    # The list of outputs is that of the last picture.
    page.still("8_with_more_outputs", is_as_trained)
    page.choose("Output type", "normals")
    page.still("9_normals", lambda picture: not is_blank(picture) and difference(picture, trained) > 20.0)
    page.choose("Output type", "rgb")
    page.tick("Further outputs")
    page.drag(150, -30)
    page.still("10_moved", lambda picture: not is_blank(picture) and difference(picture, trained) > 15.0)

    said = training.log.read_text()
    assert "Traceback" not in said, said[-3000:]
    # As the viewer's last line asks.
    training.process.send_signal(signal.SIGINT)
    training.process.wait(60)
    after = training.log.read_text().removeprefix(said)
    assert re.findall(r"^(\w+(?:Error|Exception|Interrupt))\b", after, re.MULTILINE) == [], after
