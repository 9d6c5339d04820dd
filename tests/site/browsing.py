"""Visit the built site with a browser."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
HTML = Path(os.environ.get("SBNREF_HTML", ROOT / "docs" / "_build" / "html"))  # SBNREF_HTML may name another site
PHONE = 390  # CSS pixels, the width of a common phone

# Scroll an element into the window and return its middle.
INTO_VIEW = """(element) => {
  element.scrollIntoView({ block: 'center', behavior: 'instant' });
  const box = element.getBoundingClientRect();
  return { x: box.x + box.width / 2, y: box.y + box.height / 2 };
}"""

TWO_FRAMES = "requestAnimationFrame(() => requestAnimationFrame(arguments[0]))"  # what follows the size is drawn then

CUT_OFF = """
  const fits = (e) => e.getBoundingClientRect().right <= innerWidth + 1;
  const scrolls = (e) => e !== document.body && e !== null &&
    (getComputedStyle(e).overflowX !== 'visible' || scrolls(e.parentElement));
  const page = document.documentElement;
  return [...(page.scrollWidth > innerWidth ? [page] : []), ...document.querySelectorAll(arguments[0])]
    .filter((e) => e === page || (!fits(e) && !scrolls(e))).slice(0, 3).map((e) => e.outerHTML.slice(0, 200));
"""

# Text in drawings that is smaller than a number of pixels.
SMALL_TEXT = """
  const size = (text) => parseFloat(getComputedStyle(text).fontSize) * text.getScreenCTM().a;
  const shown = [...document.querySelectorAll('article svg text')].filter((text) => text.checkVisibility());
  return shown.filter((text) => size(text) < arguments[0]).slice(0, 3).map((text) => text.outerHTML);
"""

# Text whose contrast to its background (WCAG's ratio) is below a number.
FAINT_TEXT = """
  const context = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
  const rgba = (color) => {
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = color;
    context.fillRect(0, 0, 1, 1);
    return context.getImageData(0, 0, 1, 1).data;
  };
  const linear = (value) => (value <= 10 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4);
  const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const background = (e) => {
    const color = rgba(getComputedStyle(e).backgroundColor);
    return color[3] > 127 || !e.parentElement ? color : background(e.parentElement);
  };
  const contrast = (e) => {
    const style = getComputedStyle(e);
    const text = luminance(rgba(e instanceof SVGElement ? style.fill : style.color)) + 0.05;
    const behind = luminance(background(e)) + 0.05;
    return Math.max(text, behind) / Math.min(text, behind);
  };
  const worded = (e) => [...e.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  return [...document.querySelectorAll('article *')]
    .filter((e) => worded(e) && e.checkVisibility({ visibilityProperty: true }) && contrast(e) < arguments[0])
    .slice(0, 3).map((e) => `${contrast(e).toFixed(1)} ${e.outerHTML.slice(0, 200)}`);
"""


@dataclass
class Browser:
    """Chromium, and the address of the server."""

    driver: object  # selenium's WebDriver; without selenium these tests are skipped
    server: str

    def open(self, path: str, width: int = 1280, height: int = 900) -> None:
        """Load a page from scratch."""
        self.resize(width, height)
        if "#" in path:  # a change of only the fragment does not reload a page
            self.driver.get("about:blank")
        self.driver.get(f"{self.server}/{path}")
        file = re.split("[?#]", path)[0]
        self.wait(f"location.pathname === {json.dumps('/' + file)} && document.readyState === 'complete'", 30)
        if path.startswith(("index.html", "explorer.html")):  # its modules may load after the page
            self.wait("document.querySelector('.explorer .results tbody tr') !== null", 30)

    def find(self, selector: str) -> object:
        """Return the first element that a CSS selector matches."""
        return self.driver.find_element("css selector", selector)

    def click(self, selector: str) -> None:
        """Click an element, even below the window or under the page's header."""
        self.run(f"({INTO_VIEW})(...arguments)", self.find(selector))
        self.find(selector).click()

    def tap(self, selector: str) -> None:
        """Touch the middle of an element."""
        points = [self.run(f"return ({INTO_VIEW})(...arguments)", self.find(selector))]
        for kind, touching in (("touchStart", points), ("touchEnd", [])):
            self.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touching})

    def cut_off(self, selector: str) -> list[str]:
        """Return elements that reach beyond the window's right edge outside of any scrolling container."""
        return self.run(CUT_OFF, selector)

    def show(self, case: str) -> None:
        """Show another case on the open page by its fragment."""
        self.driver.execute_async_script(
            "const [hash, done] = arguments; if (hash === location.hash) return done();"
            "addEventListener('hashchange', () => done(), { once: true }); location.hash = hash",
            case,
        )

    def resize(self, width: int, height: int = 900) -> None:
        """Set the window's inner size; the window itself cannot be as narrow as a phone."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.execute_async_script(TWO_FRAMES)

    def prefer(self, scheme: str, motion: str = "no-preference") -> None:
        """Set the system's preference: 'light' or 'dark', and optionally 'reduce' for motion."""
        features = [
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": motion},
        ]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def run(self, script: str, *arguments: object) -> object:
        """Run a script and return its value."""
        return self.driver.execute_script(script, *arguments)

    def wait(self, condition: str, seconds: float = 5) -> None:
        """Wait until a JavaScript expression is true."""
        from selenium.webdriver.support.wait import WebDriverWait

        WebDriverWait(self.driver, seconds, 0.05).until(lambda _: self.run(f"return {condition}"), condition)

    def requests(self) -> list[str]:
        """Return the addresses requested since the last call."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]

    def complaints(self) -> list[str]:
        """Return the console errors since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser")]
