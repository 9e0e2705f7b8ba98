"""The page of Gaussians in a real browser, from a plain web server: seen, turned by mouse and fingers, loading told."""

from __future__ import annotations

import io
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _browser import chromium_programs, is_blank, open_browser, wait_for
from _splats import ball, look_at, picture, pinhole, psnr
from PIL import Image
from scipy.spatial.transform import Rotation
from torch import Tensor

from zipnerf_ns.splats.files.sog import decode
from zipnerf_ns.splats.page import StartView, write_page

START = StartView(position=(2.4, -1.5, 1.2), target=(0.1, 0.0, -0.1), up=(0.0, 0.0, 1.0), fov=50.0)
RADIANS_PER_PIXEL = 0.006
DESK, PHONE = (320, 240, 1), (120, 180, 2)
"""Width and height in points, and pixels in a point."""
SLOW = 15000.0
"""Bytes a second, at which the page takes two seconds."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The page's address and folder."""
    chromium_programs()
    folder = tmp_path_factory.mktemp("page")
    write_page(ball(300), folder, START, title="A ball", background=(0.0, 0.0, 0.0))
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        port = process.stdout.readline().split(" port ")[1].split()[0]
        yield f"http://127.0.0.1:{port}/", folder
        process.terminate()


@pytest.fixture(scope="module")
def driver(server: tuple[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A browser of its own."""
    driver = open_browser(tmp_path_factory.mktemp("profile"))
    yield driver
    driver.quit()


def resize(driver: Any, screen: tuple[int, int, int]) -> None:
    """Gives the browser another screen."""
    width, height, density = screen
    touch = density > 1
    metrics = {"width": width, "height": height, "deviceScaleFactor": density, "mobile": touch}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": touch})


def is_loaded(driver: Any) -> bool:
    """Whether the page shows the scene, and nothing above it."""
    return driver.execute_script("return document.querySelector('#status').hidden")


def still(driver: Any) -> Tensor:
    """The page's picture once it stays the same, ``[height, width, 3]`` in 0 to 1."""
    before: list[bytes] = [b""]

    def settled() -> bool:
        before.append(driver.get_screenshot_as_png())
        return before[-1] == before[-2]

    wait_for(settled, 30, "the picture to stay as it is")
    pixels = np.asarray(Image.open(io.BytesIO(before[-1])).convert("RGB"))
    assert not is_blank(pixels.astype(np.float32))
    return torch.from_numpy(pixels.astype(np.float32) / 255.0)


def expected(folder: Path, screen: tuple[int, int, int], right: float = 0.0, down: float = 0.0) -> Tensor:
    """What gsplat's formulas draw of the page's files after a drag by so many points."""
    width, height, density = screen
    size = (width * density, height * density)
    target, up = (torch.tensor(value) for value in (START.target, START.up))
    offset = torch.tensor(START.position) - target
    aside = torch.nn.functional.normalize(torch.linalg.cross(up, offset), dim=0)
    for axis, angle in ((aside, -down * RADIANS_PER_PIXEL), (up, -right * RADIANS_PER_PIXEL)):
        turn = Rotation.from_rotvec(angle * axis.double().numpy()).as_matrix()
        offset = torch.tensor(turn).float() @ offset
    focal = 0.5 * min(size) / math.tan(math.radians(START.fov / 2.0))
    gaussians = decode(lambda name: (folder / name).read_bytes())
    return picture(gaussians, look_at(target + offset, target, up), pinhole(focal, size), size).clamp(0.0, 1.0)


def touch(driver: Any, paths: list[list[tuple[float, float]]]) -> None:
    """Fingers that go along their paths at once."""
    points = [[{"x": path[0][0], "y": path[0][1], "id": i} for i, path in enumerate(paths)]]
    for step in range(1, 6):
        share = step / 5.0
        points.append(
            [
                {"x": a[0] + share * (b[0] - a[0]), "y": a[1] + share * (b[1] - a[1]), "id": i}
                for i, (a, b) in enumerate(paths)
            ]
        )
    for i, fingers in enumerate([*points, []]):
        kind = "touchStart" if i == 0 else "touchMove" if fingers else "touchEnd"
        driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": fingers})


def test_loading_is_shown(server: tuple[str, Path], driver: Any):
    """Over a slow line the page says how much has come, and then shows the scene; nothing comes from elsewhere."""
    url, _ = server
    resize(driver, DESK)
    driver.execute_cdp_cmd("Network.enable", {})
    line = {"offline": False, "latency": 0, "downloadThroughput": SLOW, "uploadThroughput": SLOW}
    driver.execute_cdp_cmd("Network.emulateNetworkConditions", line)
    driver.get(url)
    script = """const status = document.querySelector('#status');
    return [status.hidden, status.querySelector('progress').value, status.innerText];"""
    seen: list[tuple[bool, float, str]] = []

    def loaded() -> bool:
        seen.append(driver.execute_script(script))
        return seen[-1][0]

    wait_for(loaded, 60, "the scene to be loaded", pause=0.1)
    shares = [value for hidden, value, text in seen if not hidden and text.startswith("Loading ")]
    assert shares == sorted(shares) and len({value for value in shares if 0.0 < value < 1.0}) >= 2, seen
    assert seen[-1][1] == 1.0 and driver.title == "A ball"
    line |= {"downloadThroughput": -1, "uploadThroughput": -1}
    driver.execute_cdp_cmd("Network.emulateNetworkConditions", line)
    names = driver.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert len(names) >= 10 and all(name.startswith(url) for name in names), names


def test_page_is_gsplats_picture_and_turns_by_mouse(server: tuple[str, Path], driver: Any):
    """The start view and one that the mouse has turned to are gsplat's; the wheel comes nearer, two clicks go back."""
    from selenium.webdriver.common.action_chains import ActionChains

    url, folder = server
    resize(driver, DESK)
    driver.get(url)
    wait_for(lambda: is_loaded(driver), 60, "the scene to be loaded")
    first = still(driver)
    assert psnr(first, expected(folder, DESK)) > 45.0
    canvas = driver.find_element("tag name", "canvas")
    chain = ActionChains(driver).move_to_element(canvas).click_and_hold()
    for _ in range(5):
        chain.move_by_offset(24, 8)
    chain.release().perform()
    turned = still(driver)
    truth = expected(folder, DESK, right=120.0, down=40.0)
    assert psnr(turned, truth) > 45.0 and psnr(first, truth) < 25.0
    ActionChains(driver).scroll_by_amount(0, -400).perform()
    nearer = still(driver)
    assert (nearer.amax(dim=-1) > 0.1).float().mean() > 1.5 * (turned.amax(dim=-1) > 0.1).float().mean()
    ActionChains(driver).double_click(canvas).perform()
    wait_for(lambda: torch.equal(still(driver), first), 30, "the start view again")
    assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_page_turns_by_touch(server: tuple[str, Path], driver: Any):
    """On an upright phone's screen: one finger turns as the mouse does, and two come nearer."""
    url, folder = server
    resize(driver, PHONE)
    driver.get(url)
    wait_for(lambda: is_loaded(driver), 60, "the scene to be loaded")
    first = still(driver)
    assert psnr(first, expected(folder, PHONE)) > 45.0
    touch(driver, [[(10, 90), (110, 60)]])
    turned = still(driver)
    truth = expected(folder, PHONE, right=100.0, down=-30.0)
    assert psnr(turned, truth) > 45.0 and psnr(first, truth) < 25.0
    touch(driver, [[(50, 90), (30, 90)], [(70, 90), (90, 90)]])
    nearer = still(driver)
    assert (nearer.amax(dim=-1) > 0.1).float().mean() > 1.5 * (turned.amax(dim=-1) > 0.1).float().mean()


def test_page_says_what_is_wrong(server: tuple[str, Path], driver: Any):
    """A folder that was copied without one of its files."""
    url, folder = server
    (folder / "quats.webp").rename(folder / "elsewhere")
    try:
        driver.get(url)
        text = "return document.querySelector('#status').innerText"
        wait_for(lambda: "cannot be shown" in driver.execute_script(text), 30, "an error on the page")
        assert "quats.webp: the server answers 404" in driver.execute_script(text)
    finally:
        (folder / "elsewhere").rename(folder / "quats.webp")
