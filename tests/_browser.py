"""A real Chromium without a window, and nerfstudio's viewer in it as a person sees and uses it."""

from __future__ import annotations

import io
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --hide-scrollbars "
    # The viewer draws with WebGL, here without a GPU.
    "--use-gl=angle --use-angle=swiftshader --enable-unsafe-swiftshader "
    "--window-size=1000,900"
).split()
ONLY_THIS_MACHINE = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
"""The viewer's page asks other hosts for a logo and for statistics."""
PICTURE = (slice(60, 560), slice(90, 660))
"""Rows and columns of a screenshot that show the render alone: below the title, beside axes and panel."""


def chromium_programs() -> tuple[str, str]:
    """The browser and its driver; skips the test that asks where there is none."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("needs Chromium and its driver: apt-get install chromium chromium-driver")
    return browser, driver


def open_browser(profile: Path) -> Any:
    """A driver of a new Chromium that resolves no names and keeps everything in a folder of its own."""
    browser, program = chromium_programs()
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install -e '.[dev]'")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, ONLY_THIS_MACHINE, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=program))


def wait_for(condition: Callable[[], Any], seconds: float, what: str, pause: float = 0.25) -> Any:
    """The first true answer of a condition; an error that says what did not happen otherwise."""
    deadline = time.monotonic() + seconds
    while True:
        answer = condition()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(pause)


class ViewerPage:
    """The viewer's page in a browser."""

    def __init__(self, driver: Any, url: str, folder: Path) -> None:
        self.driver, self.folder = driver, folder
        driver.get(url)
        wait_for(lambda: "Output type" in self.text(), 60, "the panel of the viewer's page")

    def text(self) -> str:
        """All that the page says."""
        return self.driver.execute_script("return document.body.innerText")

    def stat(self, name: str) -> str:
        """A line of the panel's head, such as Step or Resolution."""
        lines = [line for line in self.text().splitlines() if line.startswith(f"{name}: ")]
        return lines[0].removeprefix(f"{name}: ").strip() if lines else ""

    def screenshot(self) -> np.ndarray:
        """The part of the page that shows the render, ``[height, width, 3]`` in 0 to 255."""
        page = Image.open(io.BytesIO(self.driver.get_screenshot_as_png())).convert("RGB")
        return np.asarray(page).astype(np.float32)[PICTURE]

    def still(self, name: str, accept: Callable[[np.ndarray], bool], seconds: float = 150.0) -> np.ndarray:
        """The first acceptable picture that is at full resolution and has stopped changing; also kept as a file."""
        longest, deadline, before = int(self.setting("Max res")), time.monotonic() + seconds, None
        while True:
            sizes = [int(part) for part in self.stat("Resolution").removesuffix("px").split("x")]
            picture = self.screenshot()
            if max(sizes) == longest and before is not None and np.array_equal(before, picture) and accept(picture):
                break
            assert time.monotonic() < deadline, f"{name}: no such picture at {longest} pixels within {seconds:.0f} s"
            before = picture
            time.sleep(0.5)
        self.driver.save_screenshot(str(self.folder / f"{name}.png"))
        return picture

    def click(self, label: str) -> None:
        """Presses a button."""
        self.driver.find_element("xpath", f"//button[normalize-space()='{label}']").click()

    def _input(self, label: str) -> Any:
        """The field that belongs to a label: a dropdown's, or the number beside a slider."""
        row = f"//label[text()='{label}']/ancestor::div[contains(@class, 'mantine-Flex-root')][1]"
        return self.driver.find_element("xpath", f"{row}//input[not(@type='hidden')]")

    def setting(self, label: str) -> str:
        """A control's value."""
        return self._input(label).get_attribute("value")

    def enter(self, label: str, value: str) -> None:
        """Types a number beside a slider."""
        from selenium.webdriver.common.keys import Keys

        field = self._input(label)
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", field)
        field.click()
        field.send_keys(Keys.CONTROL + "a")
        field.send_keys(value + Keys.ENTER)
        wait_for(lambda: self.setting(label) == value, 10, f"{label} to be {value}, but it is {self.setting(label)}")

    def tick(self, label: str) -> None:
        """Switches a checkbox."""
        field = self._input(label)
        before = field.is_selected()
        # By script: what is shown of a checkbox lies over the field itself.
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'}); arguments[0].click()", field)
        wait_for(lambda: self._input(label).is_selected() != before, 10, f"{label} to change")

    def choose(self, label: str, option: str) -> None:
        """Chooses from a dropdown."""
        field = self._input(label)
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", field)
        field.click()
        path = f"//*[@role='option'][normalize-space()='{option}']"
        found = wait_for(lambda: self.driver.find_elements("xpath", path), 10, f"{option} among {label}")
        wait_for(found[0].is_displayed, 10, f"{option} to be seen")
        found[0].click()
        wait_for(lambda: self.setting(label) == option, 10, f"{label} to be {option}")

    def drag(self, right: int, down: int) -> None:
        """Turns the camera with the mouse, by pixels."""
        from selenium.webdriver.common.action_chains import ActionChains

        canvas = self.driver.find_element("tag name", "canvas")
        chain = ActionChains(self.driver).move_to_element_with_offset(canvas, -200, 0).click_and_hold()
        for _ in range(5):
            chain.move_by_offset(right // 5, down // 5)
        chain.release().perform()


def difference(first: np.ndarray, second: np.ndarray) -> float:
    """Mean absolute difference of two pictures, in steps of 255."""
    return float(np.abs(first - second).mean())


def detail(picture: np.ndarray) -> float:
    """Mean absolute difference of neighboring pixels."""
    return float(np.abs(np.diff(picture, axis=0)).mean() + np.abs(np.diff(picture, axis=1)).mean())


def is_blank(picture: np.ndarray) -> bool:
    """Whether a picture shows nothing: one color, or hardly more."""
    return picture.std(axis=(0, 1)).max() < 5.0 or len(np.unique(picture.reshape(-1, 3), axis=0)) < 50
