"""The built site in a real browser: search, light and dark, and every page on a phone."""

from __future__ import annotations

import re

import pytest
from browsing import FAINT_TEXT, HTML, PHONE, ROOT, SMALL_TEXT

from sbnref.debugging.monitor.report import MODE_COLORS

pytestmark = pytest.mark.slow

GENERATED = ("_modules", "_static", "_sources", "_downloads")  # by Sphinx, or not pages


def pages() -> list[str]:
    """Return the addresses of the pages, without generated ones."""
    found = (path.relative_to(HTML) for path in sorted(HTML.rglob("*.html")))
    return [str(path) for path in found if path.parts[0] not in GENERATED]


def test_search_finds_a_page_or_says_that_it_finds_nothing(browser):
    browser.open("index.html")
    field = browser.driver.find_element("css selector", ".sidebar-search")
    field.send_keys("explorer")
    field.submit()
    browser.wait("document.querySelectorAll('#search-results li a').length > 0", 10)
    browser.run("document.querySelector('#search-results li a[href*=\"explorer.html\"]').click()")
    browser.wait("document.querySelector('h1')?.innerText.startsWith('Explorer')")
    browser.open("search.html?q=xylophonequartz")
    browser.wait("document.querySelector('#search-results').innerText.includes('did not match')", 10)


def test_the_toggle_changes_the_theme_and_it_lasts(browser):
    browser.open("index.html")
    background = "return getComputedStyle(document.body).backgroundColor"
    theme = "return document.body.dataset.theme"
    seen = {browser.run(theme): browser.run(background)}
    toggle = browser.driver.find_element("css selector", ".content-icon-container .theme-toggle")
    for _ in range(2):
        toggle.click()
        seen[browser.run(theme)] = browser.run(background)
    assert set(seen) == {"auto", "light", "dark"}
    assert seen["auto"] == seen["light"] != seen["dark"]
    while browser.run(theme) != "dark":
        toggle.click()
    browser.open("explorer.html")
    assert browser.run(theme) == "dark"
    assert browser.run(background) == seen["dark"]
    assert browser.run("return getComputedStyle(document.querySelector('.explorer')).colorScheme") == "dark"
    browser.run("localStorage.clear()")


def test_dark_is_followed_when_the_system_asks(browser):
    browser.open("index.html")
    page = "return getComputedStyle(document.body).backgroundColor"
    light = browser.run(page)
    browser.prefer("dark")
    assert browser.run(page) != light
    browser.open("learn/06_find_the_bug.html")
    style = "return getComputedStyle(document.querySelector('{}')).{}"
    assert browser.run(style.format(".output_html pre", "backgroundColor")) == "rgb(255, 255, 255)"
    assert "invert" in browser.run(style.format("article img", "filter"))


def test_a_figure_comes_before_its_code_which_is_folded(browser):
    browser.open("learn/03_when_a_rank_is_empty.html")
    folded = "document.querySelectorAll('.figure + details:not([open]) > .highlight-Python')"
    browser.wait(f"{folded}.length === 2")
    assert browser.run(f"return {folded}[0].textContent.includes('plt.subplots')")


def test_a_phone_gets_the_menu(browser):
    browser.open("index.html", 360, 740)
    browser.driver.find_element("css selector", ".mobile-header .nav-overlay-icon").click()
    browser.wait("document.querySelector('.sidebar-drawer').getBoundingClientRect().left >= 0")
    links = browser.driver.find_elements("css selector", ".sidebar-tree a.reference")
    assert any(link.is_displayed() for link in links)


def test_the_landing_page_has_the_explorer_and_three_entries(browser):
    browser.open("index.html", PHONE)
    browser.click(".presets button:nth-of-type(2)")
    assert "All three modes agree" in browser.find(".explorer .summary").text
    cards = browser.driver.find_elements("css selector", ".card strong a")
    assert [card.text for card in cards] == ["Learn", "Use", "Teach"]


def test_a_mode_has_one_color():
    css = (ROOT / "docs" / "_static" / "site.css").read_text()
    assert dict(re.findall(r"--mode-(\w+): light-dark\((#\w+)", css)) == MODE_COLORS


def test_the_keyboard_starts_a_drawing_and_reduced_motion_stops_it(browser):
    browser.open("derivations/payload.html")
    moving = "document.getAnimations().some((animation) => animation.playState === 'running')"
    assert not browser.run(f"return {moving}")
    browser.find(".drawing button").send_keys("\n")
    browser.wait(moving)
    browser.prefer("light", motion="reduce")
    assert not browser.find(".drawing button").is_displayed()
    assert not browser.run(f"return {moving}")


@pytest.mark.parametrize("page", pages() or ["index.html"])
def test_a_page_fits_every_screen_and_is_legible_in_both_themes(browser, page):
    browser.open(page, 1440, 900)
    typeset = "(window.MathJax?.startup?.promise ?? Promise.resolve())"
    browser.driver.execute_async_script(f"{typeset}.then(arguments[0])")
    for width in (1440, 1024, 360, PHONE):
        browser.resize(width, 740)
        assert browser.cut_off("article *") == [], width
    assert browser.run(SMALL_TEXT, 11) == []
    for theme in ("light", "dark"):
        browser.run(f"document.body.dataset.theme = '{theme}'")
        assert browser.run(FAINT_TEXT, 4.5) == [], theme
    assert browser.run("return document.title")
