"""The page in a browser, wide and narrow: load, upload, paste, slide, change a token, draw, stop, see the codebook.

Skipped where one of three is missing: pip install 'channelvq[app]' playwright; apt-get install chromium.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING = [name for name in ("gradio", "playwright") if find_spec(name) is None] + ([] if BROWSER else ["chromium"])
pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
    pytest.mark.filterwarnings("default"),  # of the browser's driver
]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "channelvq", "app", "--port", str(port)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}) as process:
        try:
            url = f"http://127.0.0.1:{port}/"
            for _ in range(600):
                with suppress(urllib.error.URLError):
                    urllib.request.urlopen(url, timeout=5).close()
                    break
                time.sleep(0.1)
                assert process.poll() is None, process.stderr and process.stderr.read().decode()
            yield url
        finally:
            process.terminate()


@pytest.fixture(params=[(1280, "light"), (390, "dark")], ids=["wide", "phone"])
def visit(request: pytest.FixtureRequest, address: str) -> Iterator[tuple[Any, list[str]]]:
    """The loaded page, and what went wrong in it or left the machine."""
    from playwright.sync_api import sync_playwright

    width, scheme = request.param
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page, wrong = browser.new_page(
            viewport={"width": width, "height": 850}, color_scheme=scheme,
            permissions=["clipboard-read", "clipboard-write"],
        ), list[str]()  # fmt: skip
        page.on("console", lambda line: wrong.append(line.text) if line.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda asked: None if _local(asked.url, address) else wrong.append(asked.url))
        page.goto(address)
        page.wait_for_selector("#compared img", timeout=90_000)
        yield page, wrong
        browser.close()


def _local(url: str, address: str) -> bool:
    return url.startswith((address, "data:", "blob:"))


def _source(page: Any, of: str) -> str:
    return page.locator(f"{of} img").nth(1).get_attribute("src")


def _changes(page: Any, of: str, before: str) -> str:
    page.wait_for_function(
        "([of, before]) => document.querySelectorAll(of + ' img')[1]?.src !== before", arg=[of, before], timeout=60_000
    )
    return _source(page, of)


def test_a_visit(visit: tuple[Any, list[str]], tmp_path: Path) -> None:
    page, wrong = visit
    Image.radial_gradient("L").convert("RGB").save(tmp_path / "mine.png")
    shown = _source(page, "#compared")
    page.set_input_files("#upload input[type=file]", tmp_path / "mine.png")
    shown = _changes(page, "#compared", shown)

    page.evaluate(
        """async () => {
            const canvas = document.createElement('canvas')
            canvas.getContext('2d').fillRect(0, 0, 80, 40)
            const file = await new Promise(done => canvas.toBlob(done, 'image/png'))
            await navigator.clipboard.write([new ClipboardItem({'image/png': file})])
        }"""
    )
    page.locator('#upload button[aria-label="Paste from clipboard"]').click()
    shown = _changes(page, "#compared", shown)

    slider = page.locator("#length input[type=range]")
    slider.focus()
    for _ in range(3):  # by the keyboard
        slider.press("ArrowLeft")
        shown = _changes(page, "#compared", shown)
    assert "picture-29.cvq" in page.locator("#compared a").get_attribute("download")

    changed = _source(page, "#changed")
    page.locator("#place input[type=range]").focus()
    page.locator("#place input[type=range]").press("End")
    _changes(page, "#changed", changed)

    page.get_by_role("tab", name="Generate").click()
    page.evaluate(
        """() => { window.pictures = new Set(); new MutationObserver(() => {
            const picture = document.querySelector('#drawn .cvq-card img');
            if (picture) window.pictures.add(picture.src)
        }).observe(document.body, {childList: true, subtree: true, attributes: true}) }"""
    )
    page.locator("#draw").click()
    page.wait_for_selector('#drawn [data-tokens="64"]', timeout=90_000)
    assert page.evaluate("window.pictures.size") >= 4
    page.locator("#draw").click()
    page.wait_for_selector('#drawn [data-tokens]:not([data-tokens="64"])', timeout=90_000)
    page.get_by_role("button", name="Stop").click()
    page.wait_for_timeout(1500)  # in which it would be done
    assert int(page.locator("#drawn [data-tokens]").get_attribute("data-tokens")) < 64

    page.get_by_role("tab", name="Codebook").click()
    page.wait_for_selector("#atlas img", timeout=60_000)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    # The preview of an upload is gradio's, below its own label.
    assert page.evaluate("[...document.querySelectorAll('figure img')].every(image => image.alt)")
    assert page.evaluate("[...document.images].every(image => image.hasAttribute('alt'))")
    assert wrong == []


def test_what_is_no_picture_is_said_to_the_visitor(visit: tuple[Any, list[str]], tmp_path: Path) -> None:
    page, _ = visit
    Image.new("1", (8192, 4096)).save(tmp_path / "huge.png")
    page.set_input_files("#upload input[type=file]", tmp_path / "huge.png")
    said = page.get_by_text("8192 x 4096 pixels are more than").first
    said.wait_for(timeout=60_000)
    assert said.is_visible()
