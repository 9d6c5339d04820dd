"""The explorer: its arithmetic against the package, and the page as readers use it, in a real browser."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess

import pytest
import torch
from browsing import HTML, ROOT, Browser

from sbnref import modes
from sbnref.conformance import oracle

pytestmark = pytest.mark.slow

STATISTICS = ROOT / "docs" / "_static" / "explorer" / "statistics.js"
EPS = 1e-5
FIELDS = ("n", "h", "w", "mean", "std")

Rank = dict[str, float]

# For a list of cases, everything that statistics.js computes, as JSON (which has no infinity: it goes as a string).
COMPUTE = """
JSON.stringify(cases.map((ranks) => {
  const real = js.truth(ranks);
  const of = (mode) => {
    const computed = js.combine(ranks, mode);
    if (real === null) return computed;
    return { ...computed, errors: js.relativeErrors(computed, real), outputs: js.outputs(computed, real) };
  };
  return { truth: real, modes: Object.fromEntries(js.MODES.map((mode) => [mode, of(mode)])) };
}), (_, value) => (Math.abs(value) === Infinity ? String(value) : value))
"""

HARD = "#ranks=120,128,128,-12.25,1.75/601,128,128,2,1/3,8,8,4,0/1,8,8,8,1/1,1,1,3,1/4,8,8,-4,0.2/0,4,4,1,1/7,6,5,-1234.5,250.5"  # noqa: E501


def random_case(rng: random.Random) -> list[Rank]:
    """Small enough to be filled with elements; empty ranks and single elements are frequent."""
    return [
        {
            "n": rng.choice([0, 1, 2, 3, 5]),
            "h": rng.choice([0, 1, 1, 2, 4, 7]),
            "w": rng.choice([1, 1, 2, 3, 6]),
            "mean": rng.choice([0.0, 1.0, round(rng.uniform(-20, 20), 2)]),
            "std": rng.choice([0.0, 1.0, round(rng.uniform(0, 5), 2)]),
        }
        for _ in range(rng.randint(1, 8))
    ]


def fragment(ranks: list[Rank]) -> str:
    return "#ranks=" + "/".join(",".join(f"{rank[field]:g}" for field in FIELDS) for rank in ranks)


def tensor(rank: Rank) -> torch.Tensor:
    """(n, 1, h, w) elements that have the rank's mean and standard deviation; a single one has none."""
    x = torch.randn(int(rank["n"]), 1, int(rank["h"]), int(rank["w"]), dtype=torch.float64)
    if x.numel() < 2:
        return torch.full_like(x, rank["mean"])
    return (x - x.mean()) / x.std(correction=0) * rank["std"] + rank["mean"]


def payload(x: torch.Tensor, stats_mode: str) -> torch.Tensor:
    """(4,) what a rank with the input x sends."""
    if x.numel() == 0:
        return torch.zeros(4, dtype=torch.float64)
    w, mean, var = modes.rank_weight(stats_mode, x.shape[0], x.numel()), x.mean(), x.var(correction=0)
    return torch.tensor([w * mean, w * (var + mean**2), w, x.numel()], dtype=torch.float64)


def close(value: float, expected: torch.Tensor | float) -> bool:
    return float(value) == pytest.approx(float(expected), rel=1e-9, abs=1e-9)


def in_chromium(request: pytest.FixtureRequest, cases: list[list[Rank]]) -> str:
    browser = request.getfixturevalue("browser")
    browser.open("harness.html")
    script = "const [cases, done] = arguments; import('/_static/explorer/statistics.js').then((js) => done(COMPUTE))"
    return browser.driver.execute_async_script(script.replace("COMPUTE", COMPUTE.strip()), cases)


def in_node(_: pytest.FixtureRequest, cases: list[list[Rank]]) -> str:
    if not shutil.which("node"):
        pytest.skip("the arithmetic was not run by node: it is not installed")
    script = f"import * as js from '{STATISTICS.as_uri()}'; const cases = {json.dumps(cases)}; console.log({COMPUTE})"
    command = ["node", "--input-type=module", "--eval", script]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("engine", [in_chromium, in_node])
def test_arithmetic_is_the_packages(engine, request):
    torch.manual_seed(0)
    rng = random.Random(0)
    cases = [random_case(rng) for _ in range(150)]
    for ranks, computed in zip(cases, json.loads(engine(request, cases)), strict=True):
        xs = [tensor(rank) for rank in ranks]
        whole = torch.cat([x.flatten() for x in xs])
        if len(whole) == 0:
            assert computed["truth"] is None
        else:
            assert close(computed["truth"]["mean"], whole.mean())
            assert close(computed["truth"]["variance"], whole.var(correction=0))
        for mode in modes.STATS_MODES:
            check_mode(mode, xs, whole, computed["modes"][mode])


def check_mode(mode: str, xs: list[torch.Tensor], whole: torch.Tensor, computed: dict) -> None:
    assert computed["weights"] == [modes.rank_weight(mode, x.shape[0], x.numel()) for x in xs]
    stats = modes.combine(torch.stack([payload(x, mode) for x in xs]).sum(0), modes.fixed_divisor(mode, len(xs)))
    assert computed["divisor"] == stats.divisor
    assert close(computed["mean"], stats.mean)
    assert close(computed["variance"], stats.var)
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    ys, mean, var = oracle.forward(xs, one, zero, mode, EPS)
    assert close(computed["mean"], mean)
    assert close(computed["variance"], var)
    if len(whole) == 0:
        return
    y = torch.cat([y.flatten() for y in ys])
    assert close(computed["outputs"]["mean"], y.mean())
    assert computed["outputs"]["std"] == pytest.approx(float(y.std(correction=0)), abs=1e-7)
    check_error(computed["errors"]["mean"], float(mean), float(whole.mean()))
    check_error(computed["errors"]["variance"], float(var), float(whole.var(correction=0)))


def check_error(error: float | str, value: float, real: float) -> None:
    if abs(value - real) < 1e-12:
        assert error == 0
    elif abs(real) < 1e-12:
        assert float(error) == float("inf") * (value - real)
    else:
        assert error == pytest.approx((value - real) / abs(real), rel=1e-9)


@pytest.fixture(params=["harness.html", "explorer.html"])
def page(request: pytest.FixtureRequest) -> str:
    """The explorer on a bare page, and within the built site."""
    if request.param != "harness.html" and not (HTML / request.param).exists():
        pytest.skip("the explorer was not tested within the site: docs/_build/html is not built (make docs)")
    return request.param


def numbers(text: str) -> list[float]:
    """Those in a text as the page writes them."""
    text = text.replace("−", "-").replace("\u00a0", " ")
    for power in re.findall(r"·10[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+", text):
        exponent = power[3:].translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789"))
        text = text.replace(power, "e" + exponent)
    return [float(match) for match in re.findall(r"[-+]?\d+(?:\.\d+)?(?:e-?\d+)?", text)]


def cells(browser: Browser) -> dict[str, list[str]]:
    """The table of results, by mode."""
    script = """return [...document.querySelectorAll('.results tbody tr')].map(
        (row) => [...row.cells].map((cell) => cell.innerText))"""
    return {head.strip().strip("'"): rest for head, *rest in browser.run(script)}


def text(browser: Browser, selector: str) -> str:
    return browser.run("return document.querySelector(arguments[0]).innerText", selector)


def state(browser: Browser) -> list[list[float]]:
    """The numbers in the inputs."""
    script = """return [...document.querySelectorAll('.inputs tbody tr')].map(
        (row) => [...row.querySelectorAll('input')].map((input) => input.valueAsNumber))"""
    return browser.run(script)


def test_the_table_shows_what_the_package_computes(browser):
    torch.manual_seed(1)
    rng = random.Random(1)
    browser.open("harness.html")
    for ranks in [random_case(rng) for _ in range(20)]:
        browser.show(fragment(ranks))
        xs = [tensor(rank) for rank in ranks]
        whole = torch.cat([x.flatten() for x in xs])
        shown = cells(browser)
        assert list(shown) == ["truth", *modes.STATS_MODES]
        for mode in modes.STATS_MODES:
            zero = torch.zeros(1, dtype=torch.float64)
            _, mean, var = oracle.forward(xs, zero, zero, mode, EPS)
            if len(whole) == 0:
                assert shown[mode] == ["0", "0", "none"]
                continue
            pairs = zip((mean, var), (whole.mean(), whole.var(correction=0)), shown[mode][:2], strict=True)
            for value, real, cell in pairs:
                check_cell(cell, float(value), float(real))


def check_cell(cell: str, value: float, real: float) -> None:
    first, *error = numbers(cell)
    assert first == pytest.approx(value, rel=1e-3, abs=1e-12)
    if abs(value - real) < 1e-12:
        assert "= truth" in cell
    elif abs(real) > 1e-12:
        assert error[0] == pytest.approx(100 * (value - real) / abs(real), rel=1e-2)
        assert "%" in cell


def test_formulas_hold_as_they_are_written(browser):
    """Numerator over divisor, evaluated as it stands on the page, is the result beside it."""
    browser.open("harness.html#ranks=2,8,8,-1.5,1/0,8,8,9,1/3,4,4,2,0.5/1,1,1,7,3")
    script = """return [...document.querySelectorAll('.equation')].map(
        (e) => ['.numerator', '.divisor', 'b'].map((part) => e.querySelector(part).textContent))"""
    equations = browser.run(script)
    assert len(equations) == 2 * len(modes.STATS_MODES)
    for numerator, divisor, result in equations:
        python = numerator.translate(str.maketrans({"·": "*", "−": "-", "²": "**2"}))
        assert re.fullmatch(r"[-+*(). \d]+", python)
        assert eval(python) / numbers(divisor)[0] == pytest.approx(numbers(result)[0], rel=2e-3)


# Which modes agree with the truth; None where there is none.
PRESETS = {
    "One empty rank": {"N", "exact"},
    "Equal batches": {"default", "N", "exact"},
    "All but one empty": {"N", "exact"},
    "Ragged batches": {"N", "exact"},
    "Unequal spatial sizes": {"exact"},
    "Means far apart": {"N", "exact"},
    "All empty": None,
}


def test_presets_show_what_they_promise(browser, page):
    browser.open(page)
    buttons = browser.driver.find_elements("css selector", ".presets button")
    assert [button.text for button in buttons] == list(PRESETS)
    for button, right in zip(buttons, PRESETS.values(), strict=True):
        button.click()
        pressed = [other.text for other in buttons if other.get_attribute("aria-pressed") == "true"]
        assert pressed == [button.text]
        assert len(text(browser, ".note")) > 40
        if right is None:
            assert "Every rank is empty" in text(browser, ".summary")
            assert "no elements on any rank" in text(browser, "figure")
        else:
            shown = cells(browser)
            assert {mode for mode in modes.STATS_MODES if all("= truth" in c for c in shown[mode][:2])} == right
            ending = text(browser, ".summary").split(".")[-2]
            assert {mode for mode in modes.STATS_MODES if f"'{mode}'" in ending} == right or "All three" in ending


def test_nothing_undefined_is_ever_shown(browser):
    extremes = ["0,0,0,0,0", "1,1,1,-9999,9999", "999,999,999,9999,0", "1,1,1,0.000001,0", "2,1,1,0.1,0.000001"]
    browser.open("harness.html")
    for first in extremes:
        for second in extremes:
            browser.show(f"#ranks={first}/{second}")
            markup = browser.run("return document.querySelector('.explorer').innerHTML")
            assert not re.search(r"NaN|Infinity|undefined|null|\[object", markup), (first, second)


def test_the_drawing_stands_where_the_numbers_say(browser):
    browser.open("harness.html#ranks=4,8,8,4,1/4,8,8,6,1/0,8,8,0,1")
    script = """
      const ticks = [...document.querySelectorAll('.axis text')];
      const scale = ticks.map((t) => [Number(t.textContent.replace('−', '-')), Number(t.getAttribute('x'))]);
      const box = (row) => document.querySelector(`figure .${row} .interval`).getBBox();
      const rows = ['truth', 'default', 'N', 'exact'].map((row) => [row, [box(row).x, box(row).width]]);
      return [scale, Object.fromEntries(rows)]"""
    scale, rows = browser.run(script)
    (v0, x0), (v1, x1) = scale[0], scale[-1]
    for row, (left, width) in rows.items():
        mean, variance = (numbers(cell)[0] for cell in cells(browser)[row][:2])
        low, high = (v0 + (x - x0) * (v1 - v0) / (x1 - x0) for x in (left, left + width))
        assert (low + high) / 2 == pytest.approx(mean, abs=0.02)
        assert (high - low) / 2 == pytest.approx(variance**0.5, abs=0.02)


def test_the_keyboard_reaches_and_does_everything(browser, page):
    from selenium.webdriver.common.keys import Keys

    browser.open(page)
    press = lambda *keys: [browser.driver.switch_to.active_element.send_keys(key) for key in keys]  # noqa: E731
    focused = lambda: browser.run("return document.activeElement.ariaLabel || document.activeElement.innerText")  # noqa: E731
    browser.run("document.querySelector('.presets button').focus()")
    press(Keys.TAB, Keys.ENTER)
    assert text(browser, ".summary").endswith("All three modes agree with the truth.")
    reached = []
    while focused() != "Copy link to this case":
        press(Keys.TAB)
        reached.append(focused())
        style = "const style = getComputedStyle(document.activeElement); "
        outline = browser.run(style + "return [style.outlineStyle, style.outlineWidth]")
        assert outline == ["solid", "2px"], reached[-1]
    labels = ("batch size", "height", "width", "mean", "standard deviation")
    expected = [f"Rank {r}, {label}" for r in range(4) for label in labels]
    assert [name for name in reached if name.startswith("Rank")] == expected
    assert {"Remove rank 3", "Add a rank"} < set(reached)

    browser.run("document.querySelector('[data-rank=\"1\"][data-key=n]').focus()")
    press(Keys.ARROW_UP)
    assert state(browser)[1][0] == 5
    press(Keys.TAB, Keys.TAB, Keys.TAB, Keys.ARROW_DOWN, Keys.TAB, Keys.ARROW_UP, Keys.ARROW_UP)
    assert state(browser)[1] == [5, 8, 8, 0.5, 1.2]
    assert "strong" in browser.run("return document.querySelector('.rank[data-rank=\"1\"]').getAttribute('class')")
    assert "Mode 'default' is off" in text(browser, ".summary")

    browser.run("document.querySelector('.add').focus()")
    press(Keys.ENTER)
    assert focused() == "Rank 4, batch size"
    browser.run("document.querySelector('.remove[data-rank=\"4\"]').focus()")
    press(*[Keys.ENTER] * 4)
    assert len(state(browser)) == 1
    assert focused() == "Rank 0, batch size"  # nothing left to remove


def test_up_to_eight_ranks(browser):
    browser.open("harness.html")
    add = browser.driver.find_element("css selector", ".add")
    for _ in range(4):
        add.click()
    assert len(state(browser)) == 8
    assert not add.is_enabled()
    assert len(browser.driver.find_elements("css selector", "svg .rank")) == 3  # new ranks are copies of the empty last


def test_what_is_no_number_is_said_and_changes_nothing(browser):
    from selenium.webdriver.common.keys import Keys

    browser.open("harness.html")
    batch = browser.driver.find_element("css selector", "[data-rank='0'][data-key=n]")
    for wrong in ("1.5", "-1", "1000", ""):
        batch.send_keys(Keys.CONTROL + "a")
        batch.send_keys(wrong or Keys.DELETE)
        assert batch.get_attribute("aria-invalid") == "true"
        assert text(browser, ".problem") == "Rank 0, batch size: a whole number from 0 to 999."
    batch.send_keys(Keys.TAB)
    assert batch.get_attribute("aria-invalid") == "false"
    assert text(browser, ".problem") == ""
    assert state(browser)[0][0] == 100  # typed on the way to 1000


def test_a_link_holds_the_case(browser, page):
    from selenium.webdriver.common.keys import Keys

    browser.open(page)
    mean = browser.driver.find_element("css selector", "[data-rank='2'][data-key=mean]")
    mean.send_keys(Keys.CONTROL + "a")
    mean.send_keys("-3.25")
    browser.driver.find_element("css selector", ".add").click()
    browser.wait("location.hash.includes('-3.25')")
    case, shown, address = state(browser), cells(browser), browser.driver.current_url
    assert len(case) == 5
    assert case[2] == [4, 8, 8, -3.25, 1]

    permissions = {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    browser.driver.execute_cdp_cmd("Browser.grantPermissions", permissions)
    browser.driver.find_element("css selector", ".copy").click()
    browser.wait("document.querySelector('.copied').innerText === 'Link copied.'")
    read = "navigator.clipboard.readText().then(arguments[0])"
    assert browser.driver.execute_async_script(read) == address

    browser.open(address.removeprefix(browser.server + "/"))
    assert state(browser) == case
    assert cells(browser) == shown
    browser.run("location.hash = '#ranks=2,1,3,0.5,2'")  # another link, opened in the same page
    browser.wait("document.querySelectorAll('.inputs tbody tr').length === 1")
    assert state(browser) == [[2, 1, 3, 0.5, 2]]


def test_a_link_can_be_copied_by_hand(browser):
    browser.open("harness.html#ranks=2,1,3,0.5,2")
    browser.run("navigator.clipboard.writeText = () => Promise.reject(new Error('denied'))")
    browser.driver.find_element("css selector", ".copy").click()
    browser.wait("!document.querySelector('.link').hidden")
    assert browser.run("return getSelection().toString()").endswith("#ranks=2,1,3,0.5,2")


NINE = "/".join(["1,1,1,0,1"] * 9)


@pytest.mark.parametrize("link", ["", "1,2,3", "1,1,1,x,1", "1,1,1,0,-1", "1.5,1,1,0,1", ",,,,", NINE])
def test_an_unreadable_link_says_so(browser, link):
    browser.open("harness.html#ranks=" + link)
    assert "no case that can be read" in text(browser, ".problem")
    assert len(state(browser)) == 4


def test_an_anchor_is_no_case(browser):
    browser.open("harness.html#what-to-try")
    assert text(browser, ".problem") == ""
    browser.run("document.querySelector('.add').click(); location.hash = '#what-to-notice'")
    assert len(state(browser)) == 5


def test_screen_readers_find_names_and_tables(browser, page):
    browser.open(page)
    controls = browser.driver.find_elements("css selector", ".explorer :is(button, input):not([hidden] *)")
    names = [control.accessible_name for control in controls]
    assert all(names)
    assert len(set(names)) == len(names)
    tables = browser.driver.find_elements("css selector", ".explorer table")
    assert [table.aria_role for table in tables] == ["table", "table"]
    assert all(table.accessible_name for table in tables)
    assert browser.run("return [...document.querySelectorAll('.results tbody th')].every((th) => th.scope === 'row')")
    assert browser.driver.find_element("css selector", "figure svg").accessible_name
    assert browser.driver.find_element("css selector", ".summary").aria_role == "status"


# The lowest contrast of a text, and of a line or mark that carries meaning, against the paper.
CONTRAST = """
  const light = (color) => {
    const canvas = new OffscreenCanvas(1, 1).getContext('2d');
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((c) => c / 255)
      .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const root = document.querySelector('.explorer');
  const paper = getComputedStyle(root.querySelector('button')).backgroundColor;
  const contrast = (color) => {
    const [dark, bright] = [light(color), light(paper)].sort((a, b) => a - b);
    return (bright + 0.05) / (dark + 0.05);
  };
  const texts = [...root.querySelectorAll('*')].filter(
    (e) => !e.disabled && [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()));
  const ink = (e) => getComputedStyle(e)[e.namespaceURI.endsWith('svg') ? 'fill' : 'color'];
  const marks = [...root.querySelectorAll('svg .mark, svg .interval, svg .rank')];
  const stroke = (e) => getComputedStyle(e)[e.matches('.mark') ? 'fill' : 'stroke'];
  return {
    paper: light(paper),
    texts: Math.min(...texts.map((e) => contrast(ink(e)))),
    marks: Math.min(...marks.map((e) => contrast(stroke(e)))),
  };
"""


@pytest.mark.parametrize(
    ("theme", "system", "dark"),
    [("auto", "light", False), ("auto", "dark", True), ("light", "dark", False), ("dark", "light", True)],
)
def test_light_and_dark_follow_the_theme(browser, page, theme, system, dark):
    browser.prefer(system)
    browser.open(page)
    browser.run("document.body.dataset.theme = arguments[0]", theme)
    seen = browser.run(CONTRAST)
    assert seen["paper"] < 0.05 if dark else seen["paper"] > 0.9
    assert seen["texts"] >= 4.5
    assert seen["marks"] >= 3


@pytest.mark.parametrize("width", [360, 800, 1280])
def test_nothing_overflows(browser, page, width):
    browser.open(page + HARD, width)
    assert browser.run("return document.documentElement.scrollWidth") == width
    outside = """return [...document.querySelectorAll('.explorer *:not(.explorer-hidden, svg *)')].filter((e) => {
        const box = e.getBoundingClientRect(); return box.width && (box.left < 0 || box.right > innerWidth); })
        .map((e) => e.outerHTML)"""
    assert browser.run(outside) == []
    clipped = "return [...document.querySelectorAll('.inputs input')].filter((i) => i.scrollWidth > i.clientWidth)"
    assert [element.get_attribute("aria-label") for element in browser.run(clipped)] == []
    labels = """return [...document.querySelectorAll('figure svg text')].filter((t) => {
        const [a, b] = [t.getBoundingClientRect(), t.ownerSVGElement.getBoundingClientRect()];
        return a.left < b.left - 1 || a.right > b.right + 1; }).map((t) => t.textContent)"""
    assert browser.run(labels) == []


def test_the_drawing_follows_the_window(browser):
    browser.open("harness.html", 1280)
    browser.resize(360)
    browser.wait("document.querySelector('figure svg').clientWidth < 360")
    assert browser.run("return document.documentElement.scrollWidth") == 360
