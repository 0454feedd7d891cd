"""The pictures of the documentation, by the models that come with the package.

python -m tests.demo.screenshots docs/demo [CHROMIUM]
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from innerloop.demo import answering
from innerloop.demo.serving import listen
from innerloop.use import Pretrained

from .conftest import running
from .figures import drawn
from .test_page import PHONE, QUERY, by_mouse, by_touch, told

CHARACTERS = ["A", "spiral", "zigzag", "T", "S"]


def characters(tab: Any, by: Any, number: int, again: str) -> None:
    """Draw some, and one of them again."""
    rng = random.Random(5)
    tab.locator("#count label", has_text=str(number)).click()
    for place, name in enumerate(CHARACTERS[:number], 1):
        by(tab, place, drawn(name, rng))
    by(tab, QUERY, drawn(again, rng))
    told(tab)
    tab.mouse.move(0, 0)
    tab.evaluate("document.activeElement.blur()")
    tab.evaluate("scrollTo(0, 0)")


def take(tab: Any, path: Path) -> None:
    """The whole page, in few colours, which takes a third of the bytes."""
    tab.screenshot(path=path, full_page=True)
    Image.open(path).convert("RGB").quantize(48, dither=Image.Dither.NONE).save(path, optimize=True)


def main(folder: Path, executable: str | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    models = [Pretrained.load(name) for name in ("strokes", "sinusoid")]
    with running(listen(), answering(models)) as address, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        still: dict[str, Any] = {"reduced_motion": "reduce"}
        tab = browser.new_page(viewport={"width": 1000, "height": 800}, **still)
        tab.goto(address)
        characters(tab, by_mouse, 5, "S")
        take(tab, folder / "characters.png")
        tab = browser.new_page(**{**PHONE, "device_scale_factor": 1}, color_scheme="dark", **still)
        tab.goto(address)
        characters(tab, by_touch, 3, "spiral")
        take(tab, folder / "phone.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
