"""Fixtures of the browser tests: a headless Chromium and a server on localhost."""

from __future__ import annotations

import functools
import http.server
import shutil
import threading
from collections.abc import Iterator

import pytest
from browsing import HTML, Browser


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """Serve the built site and yield its address."""
    if not (HTML / "index.html").exists():
        pytest.skip("the site was not tested: docs/_build/html is not built (make docs)")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(HTML))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://localhost:{httpd.server_port}"
        httpd.shutdown()


@pytest.fixture(scope="session")
def chromium(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Yield one browser for all tests."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="no browser tests: selenium is not installed")
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    chromedriver = shutil.which("chromedriver")
    if not binary or not chromedriver:
        pytest.skip(
            "no browser tests: chromium or chromedriver is missing (Debian's packages chromium, chromium-driver)"
        )
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "SEVERE"})
    options.add_experimental_option("perfLoggingPrefs", {"enableNetwork": True, "enablePage": False})
    for flag in (
        "headless=new", "no-sandbox", "disable-gpu", "disable-quic", "disable-dev-shm-usage", "no-first-run",
        "disable-background-networking", "disable-component-update", "disable-sync", "hide-scrollbars",
        f"user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    driver = webdriver.Chrome(options, webdriver.ChromeService(chromedriver))
    try:
        yield Browser(driver, server)
    finally:
        driver.quit()


@pytest.fixture
def browser(chromium: Browser) -> Iterator[Browser]:
    """Yield the browser in a clean state, and expect no console errors or outside requests after the test."""
    chromium.prefer("light")
    chromium.requests()
    chromium.complaints()
    yield chromium
    assert [text for text in chromium.complaints() if "/favicon.ico" not in text] == []
    own = ("chrome:", "chrome-untrusted:")  # the new-tab page
    here = (chromium.server, "data:", "about:", "blob:", *own)
    assert [url for url in chromium.requests() if not url.startswith(here)] == []
