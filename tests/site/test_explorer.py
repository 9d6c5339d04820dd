"""The explorer in a browser: its numbers agree with the package, and visitors can edit, share and read a case."""

from __future__ import annotations

import random
import re

import pytest
import torch
from browsing import PHONE, Browser

from sbnref import modes
from sbnref.conformance import oracle

pytestmark = pytest.mark.slow

EPS, ONE = 1e-5, torch.ones(1, dtype=torch.float64)
PAGE = "explorer.html"

Rank = list[float]  # n, h, w, mean, standard deviation


def random_case(rng: random.Random) -> list[Rank]:
    """Return up to eight small ranks; empty ranks and single elements are frequent."""
    size = lambda *sizes: rng.choice([0, 1, 1, *sizes])  # noqa: E731
    value = lambda low, high: rng.choice([0.0, 1.0, round(rng.uniform(low, high), 2)])  # noqa: E731
    return [
        [size(2, 3, 5), size(2, 4, 7), size(2, 3, 6), value(-20, 20), value(0, 5)] for _ in range(rng.randint(1, 8))
    ]


def tensor(rank: Rank) -> torch.Tensor:
    """Return (n, 1, h, w) elements with the rank's mean and standard deviation; a single element has no deviation."""
    n, h, w, mean, std = rank
    x = torch.randn(n, 1, h, w, dtype=torch.float64)
    if x.numel() < 2:
        return torch.full_like(x, mean)
    return (x - x.mean()) / x.std(correction=0) * std + mean


def numbers(text: str) -> list[float]:
    """Return the numbers in a text of the page, such as −1.5·10⁻³."""
    text = re.sub("·10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)", r"e\1", text.replace("−", "-"))
    text = text.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789"))
    return [float(match) for match in re.findall(r"[-+]?\d+(?:\.\d+)?(?:e-?\d+)?", text)]


def results(browser: Browser) -> dict[str, list[str]]:
    """Return the cells of the table of results by mode."""
    script = "return [...document.querySelectorAll('.results tr')].map((row) => [...row.cells].map((c) => c.innerText))"
    return {head.strip().strip("'"): rest for head, *rest in browser.run(script)}


def inputs(browser: Browser) -> list[list[float]]:
    """Return the numbers in the inputs, rank by rank."""
    of_a_row = "(row) => [...row.querySelectorAll('input')].map((input) => input.valueAsNumber)"
    return browser.run(f"return [...document.querySelectorAll('.inputs tbody tr')].map({of_a_row})")


def replace(browser: Browser, rank: int, key: str, value: str) -> None:
    """Overwrite a rank's number by typing."""
    from selenium.webdriver.common.keys import Keys

    browser.find(f"[data-rank='{rank}'][data-key={key}]").send_keys(Keys.CONTROL + "a" + Keys.NULL + value)


def test_the_table_shows_what_the_package_computes(browser):
    torch.manual_seed(0)
    rng = random.Random(0)
    browser.open(PAGE)
    for ranks in [random_case(rng) for _ in range(25)]:
        browser.show("#ranks=" + "/".join(",".join(f"{value:g}" for value in rank) for rank in ranks))
        xs, shown = [tensor(rank) for rank in ranks], results(browser)
        whole = torch.cat([x.flatten() for x in xs])
        for mode in modes.STATS_MODES:
            ys, mean, var = oracle.forward(xs, ONE, 0 * ONE, mode, EPS)
            y, mean, var = torch.cat([y.flatten() for y in ys]), float(mean), float(var)
            assert [numbers(cell)[0] for cell in shown[mode][:2]] == pytest.approx([mean, var], rel=1e-3, abs=1e-9)
            if len(whole) == 0:
                assert shown[mode][2] == "none"
                continue
            outputs = [float(y.mean()), float(y.std(correction=0))]
            assert numbers(shown[mode][2]) == pytest.approx(outputs, rel=1e-2, abs=1e-3)
            for cell, value, truth in zip(shown[mode], (mean, var), (whole.mean(), whole.var(correction=0))):  # noqa: B905
                assert ("= truth" in cell) == (abs(value - float(truth)) < 1e-9)
    for extreme in ("0,0,0,0,0/1,1,1,-9999,9999", "999,999,999,9999,0/1,1,1,0.000001,0"):
        browser.show(f"#ranks={extreme}")
        assert not re.search(r"NaN|Infinity|undefined|null", browser.run("return document.body.innerText"))


def test_each_case_of_the_page_can_be_chosen(browser):
    browser.open(PAGE)
    for button in browser.driver.find_elements("css selector", ".presets button"):
        button.click()
        assert button.get_attribute("aria-pressed") == "true"
        assert len(browser.find(".note").text) > 40
    assert "Every rank is empty" in browser.find(".summary").text


def test_typing_changes_the_result_and_nonsense_does_not(browser):
    browser.open(PAGE + "#ranks=4,8,8,2,1/4,8,8,4,1")
    replace(browser, 1, "mean", "8")
    assert numbers(results(browser)["truth"][0]) == [5]
    replace(browser, 1, "n", "0")
    assert "= truth" in results(browser)["exact"][0]
    assert numbers(results(browser)["default"][0])[0] == 1
    replace(browser, 1, "n", "-1")
    assert browser.find(".problem").text == "Rank 1, batch size: a whole number from 0 to 999."
    assert numbers(results(browser)["default"][0])[0] == 1


def test_the_keyboard_reaches_each_control_once(browser):
    from selenium.webdriver.common.keys import Keys

    browser.open(PAGE + "#ranks=4,8,8,2,1/4,8,8,4,1")
    controls = browser.driver.find_elements("css selector", ".explorer :is(button, input):not([hidden] *)")
    browser.run("document.querySelector('.presets button').focus()")
    for control in controls:
        assert browser.driver.switch_to.active_element == control
        control.send_keys(Keys.TAB)
    assert len({control.accessible_name for control in controls}) == len(controls)
    browser.find("[data-rank='1'][data-key=n]").send_keys(Keys.ARROW_UP)
    browser.find("[data-rank='1'][data-key=mean]").send_keys(Keys.ARROW_DOWN)
    assert inputs(browser)[1] == [5, 8, 8, 3.5, 1]


def test_a_link_holds_the_case(browser):
    browser.open(PAGE)
    replace(browser, 2, "mean", "-3.25")
    browser.find(".add").click()
    browser.wait("location.hash.includes('-3.25') && location.hash.split('/').length === 5")
    case, shown = inputs(browser), results(browser)
    assert case[2] == [4, 8, 8, -3.25, 1]
    browser.open(browser.driver.current_url.removeprefix(browser.server + "/"))
    assert inputs(browser) == case
    assert results(browser) == shown
    browser.show("#ranks=1,1,1,x,1")
    assert "The link contains no valid case" in browser.find(".problem").text
    assert len(inputs(browser)) == 4


def test_a_phone_shows_everything_and_takes_touches(browser):
    wide = "120,128,128,-12.25,1.75/601,128,128,2,1/1,1,1,3,1/0,4,4,1,1/7,6,5,-1234.5,250.5"
    browser.open(f"{PAGE}#ranks={wide}", PHONE)
    assert browser.cut_off(".explorer *:not(.explorer-hidden, svg *)") == []
    clipped = "return [...document.querySelectorAll('.inputs input')].filter((i) => i.scrollWidth > i.clientWidth)"
    assert browser.run(clipped) == []
    browser.tap(".add")
    browser.wait("document.querySelectorAll('.inputs tbody tr').length === 6")
    browser.tap(".remove[data-rank='0']")
    browser.wait("document.querySelectorAll('.inputs tbody tr').length === 5")
    assert inputs(browser)[0] == [601, 128, 128, 2, 1]
