"""The player: what it shows against what the simulation counts, and as readers use it, in a real browser."""

from __future__ import annotations

import base64
import json
import re
import sys

import pytest
from browsing import HTML, ROOT, Browser

from sbnref.lab import Call, Kernels, Recording, count, record
from sbnref.lab.page import page
from sbnref.lab.recording import Act, example

sys.path.append(str(ROOT / "tutorials"))
sys.path.append(str(ROOT / "docs"))
from kernels import ladder
from recordings import BLOCKS, CHANNELS_FIRST, CHANNELS_LAST, THREADS, slug

pytestmark = pytest.mark.slow

KERNELS = r"""
#include "laboratory.cuh"

namespace sbnref::laboratory {

__global__ void mean(Problem p) {
    const int64_t c = blockIdx.x;
    double sum = 0;
    for (int64_t i = threadIdx.x; i < p.count(); i += kThreads) sum += load(p.x, p.at(c, i));
    sum = sum_over_block(sum);
    if (threadIdx.x == 0) store(p.mean, c, static_cast<float>(sum / p.count()));
}

// Every lane a column of its own, in memory as in the banks.
__global__ void columns(Problem p) {
    SHARED_ARRAY(float, table, 32 * 32);
    const int64_t i = 8 * threadIdx.x;
    if (threadIdx.x >= 32) return;
    table[32 * threadIdx.x] = i < p.x.size ? load(p.x, i) : 0;
    store(p.y, i, float(table[32 * threadIdx.x]));
    if (threadIdx.x % 2 == 0) take_ticket(p.tickets, 0, 100);
}

__global__ void too_far(Problem p) { load(p.x, p.x.size - 40 + threadIdx.x); }

void forward(const Problem& p) { launch("mean", mean, p.C, p); }
void apart(const Problem& p) { launch("columns", columns, 1, p); }
void far(const Problem& p) { launch("far", too_far, 1, p); }

}  // namespace sbnref::laboratory
"""

Counts = dict[str, int]


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Recording]:
    """Of each function above."""
    file = tmp_path_factory.mktemp("kernels") / "mine.cu"
    file.write_text(KERNELS)
    kernels = Kernels(file, ("forward", "apart", "far"), 64)
    x = example((2, 4, 6, 6))
    return {name: record(Call(kernels, x), f"<{name}>", [name]) for name in kernels.functions}


def show(browser: Browser, *recordings: Recording, width: int = 1280) -> None:
    """A page as ``sbnref lab trace`` writes it."""
    browser.resize(width)
    text = base64.b64encode(page("Mine & yours", *recordings).encode()).decode()
    browser.driver.get(f"data:text/html;base64,{text}")
    browser.wait(f"document.querySelectorAll('.player .view').length === {len(recordings)}")


def press(browser: Browser, name: str, player: str = ".player") -> None:
    button = browser.driver.find_element("css selector", f"{player} [name={name}]")
    browser.run("arguments[0].scrollIntoView({ block: 'center' })", button)  # not below the page's header
    button.click()


def choose(browser: Browser, name: str, value: object) -> None:
    """In a list or on the slider."""
    script = """const [name, value] = arguments, control = document.querySelector(`[name=${name}]`);
        control.value = value; for (const type of ['input', 'change']) control.dispatchEvent(new Event(type))"""
    browser.run(script, name, value)


def go_to(browser: Browser, time: int) -> None:
    choose(browser, "time", time)


def shown(browser: Browser, view: int = 0, player: str = ".player") -> Counts:
    """The counters on the page."""
    script = """const [view, player] = arguments;
        return [...document.querySelectorAll(`${player} .view`)[view].querySelectorAll('[data-count]')]
        .map((cell) => [cell.dataset.count, Number(cell.innerText.replaceAll(',', ''))])"""
    return dict(browser.run(script, view, player))


def counted(recording: Recording) -> Counts:
    counts = recording.counts()
    return counts | {"asked": counts.pop("read") + counts.pop("written")}


def words(browser: Browser) -> str:
    return browser.run("return document.querySelector('.words').innerText")


def time(browser: Browser) -> int:
    return int(browser.run("return document.querySelector('[name=time]').value"))


def marked(browser: Browser) -> list[str]:
    return browser.run("return [...document.querySelectorAll('.view:first-child .current')].map((e) => e.innerText)")


@pytest.mark.parametrize("name", ["forward", "apart", "far"])
def test_at_the_end_the_counters_are_those_of_the_simulation(browser, recordings, name):
    show(browser, recordings[name])
    assert set(shown(browser).values()) == {0}
    press(browser, "end")
    assert shown(browser) == counted(recordings[name])


def test_playing_ends_at_the_same_counts(browser, recordings):
    show(browser, recordings["forward"])
    choose(browser, "speed", 256)
    press(browser, "play")
    length = len(recordings["forward"].steps)
    browser.wait(f"document.querySelector('output').innerText === 'step {length} of {length}'", 20)
    assert browser.run("return document.querySelector('[name=play]').innerText") == "Play"
    assert shown(browser) == counted(recordings["forward"])


def test_every_moment_can_be_gone_to(browser, recordings):
    recording = recordings["forward"]
    show(browser, recording)
    for moment in (50, 7, len(recording.steps), 20, 0):
        go_to(browser, moment)
        part = Recording("", (), False, recording.launches, recording.arrays, recording.sites, recording.steps[:moment])
        assert shown(browser) == counted(part)


def test_two_run_on_one_clock(browser, recordings):
    show(browser, recordings["forward"], recordings["apart"])
    short = len(recordings["apart"].steps)
    go_to(browser, short + 5)
    assert shown(browser, 0)["steps"] == short + 5
    assert shown(browser, 1) == counted(recordings["apart"])
    titles = browser.run("return [...document.querySelectorAll('h3')].map((h) => h.innerText)")
    assert titles == [f"<{name}>, on (2, 4, 6, 6) contiguous" for name in ("forward", "apart")]


def test_a_step_is_said_and_its_lines_are_marked(browser, recordings):
    recording = recordings["forward"]
    show(browser, recording)
    assert words(browser) == "Before the first instruction."
    press(browser, "forth")
    assert words(browser) == "Step 1: mean, block 0, warp 0: all lanes read 128 bytes of x, 4 sectors."
    assert [line.strip() for line in marked(browser)] == [KERNELS.splitlines()[8].strip()]
    shuffle = next(i for i, step in enumerate(recording.steps, 1) if step.act is Act.SHUFFLE)
    go_to(browser, shuffle)
    assert "lane 0 takes lane 16's" in words(browser)
    kernel, helper = marked(browser)
    assert "sum_over_block(sum)" in kernel
    assert "__shfl_down_sync" in helper
    visible = """return [...document.querySelectorAll('.current')].every((line) => {
        const [a, b] = [line, line.parentElement].map((e) => e.getBoundingClientRect());
        return a.top >= b.top - 1 && a.bottom <= b.bottom + 1; })"""
    assert browser.run(visible)


def test_the_words_for_conflicts_and_tickets(browser, recordings):
    show(browser, recordings["apart"])
    said = []
    for moment in range(1, len(recordings["apart"].steps) + 1):
        go_to(browser, moment)
        said.append(words(browser).split(": ", 2)[2])
    assert said == [
        "all lanes read 128 bytes of x, 32 sectors.",
        "all lanes write 4 bytes each of table in shared memory, with 31 bank conflicts.",
        "all lanes read 4 bytes each of table in shared memory, with 31 bank conflicts.",
        "all lanes write 128 bytes of y, 32 sectors.",
        "16 lanes take a ticket, 64 bytes of tickets, 1 sector.",
    ]
    browser.run("document.querySelector('details').open = true")
    browser.wait("document.querySelectorAll('details li').length > 0")
    listed = browser.run("return [...document.querySelectorAll('details li')].map((li) => li.innerText)")
    assert [line.split(": ", 1)[1] for line in listed] == said


def test_an_early_end_is_said(browser, recordings):
    show(browser, recordings["far"])
    error = browser.driver.find_element("css selector", ".error")
    assert error.is_displayed()
    assert "reads elements [288, 289) of a global array of 288" in error.text
    press(browser, "end")
    assert "now" in error.get_attribute("class")


# What a canvas holds in its cells: the color in the middle of cell i of the first row.
PIXELS = """
  const [selector, cells, left, cell] = arguments;
  const canvas = document.querySelector(selector);
  const pen = canvas.getContext('2d');
  return [...Array(cells).keys()].map(
    (i) => pen.getImageData(left + i * cell + 2, selector.includes('lanes') ? 5 : 3, 1, 1).data.slice(0, 3).join());
"""


def test_lanes_and_sectors_are_lit_and_stay_shaded(browser, recordings):
    show(browser, recordings["forward"])
    lanes = lambda: browser.run(PIXELS, ".lanes canvas", 32, 58, 14)  # noqa: E731
    sectors = lambda: browser.run(PIXELS, ".memory canvas", 32, 0, 14)  # noqa: E731
    swatch = "return getComputedStyle(document.querySelector('.legend .' + arguments[0]), '::before').backgroundColor"
    color = lambda name: browser.run(swatch, name).removeprefix("rgb(").removesuffix(")").replace(" ", "")  # noqa: E731
    assert set(lanes()) == set(sectors()) == {color("cell")}
    press(browser, "forth")
    assert set(lanes()) == {color("read")}
    assert sectors() == [color("read")] * 4 + [color("cell")] * 28
    go_to(browser, 3)  # the tail: 8 lanes, one sector of 36 elements and three of the next image
    step = recordings["forward"].steps[2]
    assert lanes() == [color("read") if lane in step.lanes else color("cell") for lane in range(32)]
    assert sectors()[:4] == [color("once")] * 4


def test_the_keyboard_does_everything(browser, recordings):
    from selenium.webdriver.common.keys import Keys

    recording = recordings["forward"]
    show(browser, recording)
    keys = lambda *pressed: [browser.driver.switch_to.active_element.send_keys(key) for key in pressed]  # noqa: E731
    browser.run("document.querySelector('[name=first]').focus()")
    reached = []
    for _ in range(9):
        reached.append(browser.run("return document.activeElement.name || document.activeElement.ariaLabel || ''"))
        style = "const style = getComputedStyle(document.activeElement); "
        assert browser.run(style + "return style.outlineStyle") == "solid", reached[-1]
        keys(Keys.TAB)
    assert reached[:7] == ["first", "back", "play", "forth", "end", "speed", "time"]
    assert reached[7:9] == ["Lanes of the warps", "Source"]
    for focus in ("time", "forth"):
        browser.run(f"document.querySelector('[name={focus}]').focus()")
        keys(Keys.HOME)
        assert time(browser) == 0
        keys(*[Keys.ARROW_RIGHT] * 3, Keys.ARROW_LEFT)
        assert time(browser) == 2
        keys(Keys.END)
        assert time(browser) == len(recording.steps)
    keys(Keys.HOME, "p")
    browser.wait("document.querySelector('[name=time]').value > 1")
    keys("p")
    assert browser.run("return document.querySelector('[name=play]').innerText") == "Play"
    browser.run("document.querySelector('[name=speed]').focus()")
    before = time(browser)
    keys(Keys.ARROW_DOWN)
    assert time(browser) == before
    assert browser.run("return document.querySelector('[name=speed]').value") == "64"


def test_screen_readers_find_names_and_are_left_alone_while_it_plays(browser, recordings):
    show(browser, recordings["forward"])
    controls = browser.driver.find_elements("css selector", ".player :is(button, input, select):not([hidden] *)")
    names = [control.accessible_name for control in controls]
    assert all(names)
    assert len(set(names)) == len(names)
    live = "return document.querySelector('.words').getAttribute('aria-live')"
    assert browser.run(live) == "polite"
    press(browser, "play")
    browser.wait("document.querySelector('[name=time]').value > 0")
    assert browser.run(live) == "off"
    press(browser, "play")
    assert browser.run(live) == "polite"
    table = browser.driver.find_element("css selector", ".counters")
    assert table.accessible_name == "So far"


def test_reduced_motion_starts_slow(browser, recordings):
    speed = "return document.querySelector('[name=speed]').value"
    show(browser, recordings["forward"])
    assert browser.run(speed) == "16"
    features = [{"name": "prefers-reduced-motion", "value": "reduce"}]
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    show(browser, recordings["forward"])
    assert browser.run(speed) == "1"
    moving = """return [...document.querySelectorAll('*')].filter((e) => {
        const style = getComputedStyle(e);
        return style.animationName !== 'none' || style.transitionDuration !== '0s' || style.scrollBehavior !== 'auto';
        }).length"""
    assert browser.run(moving) == 0


OVERFLOWS = """return [...document.querySelectorAll('.player *')].filter((e) => {
    if (e.getBoundingClientRect().right <= innerWidth + 1) return false;
    for (let p = e.parentElement; p && p !== document.body; p = p.parentElement)
      if (getComputedStyle(p).overflowX !== 'visible') return false;
    return true; }).map((e) => e.outerHTML.slice(0, 100))"""


@pytest.mark.parametrize("width", [360, 800, 1280])
def test_nothing_overflows(browser, recordings, width):
    show(browser, recordings["forward"], recordings["apart"], width=width)
    for moment in (0, 3, 30):
        go_to(browser, moment)
        assert browser.run("return document.documentElement.scrollWidth") == width
        assert browser.run(OVERFLOWS) == []


# ---- within the site ----


@pytest.fixture
def site(browser: Browser) -> Browser:
    if not (HTML / "kernels.html").exists():
        pytest.skip("the page of kernels was not tested: docs/_build/html is not built (make docs)")
    return browser


def opened(browser: Browser, fragment: str = "", width: int = 1280) -> None:
    browser.open(f"kernels.html{fragment}", width)
    browser.wait("document.querySelector('.player .view') !== null", 30)


def titles(browser: Browser) -> list[str]:
    return browser.run("return [...document.querySelectorAll('.view h3')].map((h) => h.innerText.split(',')[0])")


def test_all_recordings_are_there_and_small(site):
    folder = HTML / "_static" / "kernels"
    names = json.loads((folder / "index.json").read_text())
    assert len(names) == 8 + 4 + 8
    for name in names:
        size = (folder / f"{name}.json").stat().st_size
        assert size <= 300_000, name


def test_every_recording_plays_to_the_counts_that_it_was_written_with(site):
    folder = HTML / "_static" / "kernels"
    for name in json.loads((folder / "index.json").read_text()):
        counts = json.loads((folder / f"{name}.json").read_text())["counts"]
        opened(site, f"#{name}")
        press(site, "end")
        assert shown(site) == counts | {"asked": counts.pop("read") + counts.pop("written")}, name


def test_the_address_chooses_and_follows_the_choice(site):
    opened(site, "#3-split+4-wide")
    assert titles(site) == ["3 split", "4 wide"]
    choose(site, "right", "")
    site.wait("document.querySelectorAll('.view').length === 1")
    assert site.run("return location.hash") == "#3-split"
    site.run("location.hash = '#backward_apply+6-backwards'")
    site.wait("document.querySelectorAll('.view').length === 2")
    assert titles(site) == ["backward_apply", "6 backwards"]
    opened(site, "#nothing-of-the-kind")
    assert titles(site) == ["1 naive"]


@pytest.mark.parametrize(
    ("theme", "system", "dark"), [("auto", "dark", True), ("light", "dark", False), ("dark", "light", True)]
)
def test_light_and_dark_follow_the_theme(site, theme, system, dark):
    site.prefer(system)
    opened(site)
    site.run("document.body.dataset.theme = arguments[0]", theme)
    press(site, "forth")
    site.wait("document.querySelector('[name=time]').value === '1'")
    background = "return getComputedStyle(document.querySelector('.player button')).backgroundColor"
    assert (max(map(int, site.run(background)[4:-1].split(","))) < 60) == dark
    assert site.run("return getComputedStyle(document.querySelector('.player')).colorScheme") == (
        "dark" if dark else "light"
    )


@pytest.mark.parametrize("width", [360, 1024])
def test_nothing_overflows_within_the_site(site, width):
    for fragment in ("#7-channels-last+3-on-channels-last", "#backward_stats"):
        opened(site, fragment, width)
        go_to(site, 60)
        assert site.run("return document.documentElement.scrollWidth") == width
        assert site.run(OVERFLOWS) == []


# ---- within the tutorials ----

RUNGS, OWN = "learn/05_from_formula_to_kernel.html", "learn/12_your_own_kernel.html"


def watch(browser: Browser, name: str) -> str:
    """Open the player that shows a recording first, as a reader does with the keyboard; its selector."""
    from selenium.webdriver.common.keys import Keys

    browser.run("document.documentElement.style.scrollBehavior = 'auto'")  # a click does not wait for a smooth one
    player = f".player:is([data-show='{name}'], [data-show^='{name}+'])"
    summary = browser.driver.find_element("css selector", f"details:has({player}) > summary")
    summary.send_keys(Keys.ENTER)
    browser.wait(f'document.querySelector("{player} .view") !== null', 30)
    return player


def test_every_rung_of_tutorial_5_has_its_player_and_counts_what_the_tutorial_counts(site):
    site.open(RUNGS)
    assert not [url for url in site.requests() if "kernels" in url and url.endswith(".json")]  # they start when asked
    for rung, about in ladder.RUNGS.items():
        player = watch(site, slug(rung))
        press(site, "end", player)
        section = f"document.querySelector(\"{player}\").closest('section')"
        title, heading, text = site.run(
            f"const s = {section}; return ['.view h3', ':scope > :is(h1, h2)'].map((q) => s.querySelector(q).innerText)"
            ".concat([s.innerText])"
        )
        last = about.tile > 1
        shape = CHANNELS_LAST if last else CHANNELS_FIRST
        assert title == f"{rung}, on {shape} {'channels-last' if last else 'contiguous'}"
        assert heading.startswith(f"Rung {rung[0]}: ")
        call = ladder.Call(rung, example(shape, channels_last=last), blocks=BLOCKS, threads=THREADS)
        counts, seen = count(call), shown(site, 0, player)
        assert seen["asked"] == counts.read + counts.written
        assert seen["sectors"] == counts.moved / 32
        assert seen["accesses"] == counts.requests
        # The tutorial's tensor is larger, so partial results weigh less there; in whole sizes of x it is the same.
        stated = re.search(r"([\d.]+) times x read, ([\d.]+) times written", text)
        if not last:
            assert round(sum(map(float, stated.groups()))) == round(seen["asked"] / call.x.nbytes)


def test_every_step_of_ones_own_kernel_has_its_player(site):
    site.open(OWN)
    index = json.loads((HTML / "_static" / "kernels" / "index.json").read_text())
    said = site.run("return document.querySelector('article').innerText")
    grades = {
        f"{part}: {status}": 4 if status == "passed" else 2
        for part in ("legal", "right")
        for status in ("passed", "failed")
    }
    assert {grade: said.count(grade) for grade in grades} == grades  # four steps, and what is shown to go wrong
    steps = [name for name in index if name.startswith("own-")]
    for name in steps:
        player = watch(site, name)
        press(site, "end", player)
        counts = json.loads((HTML / "_static" / "kernels" / f"{name}.json").read_text())["counts"]
        printed = said.split("watch(")[2 + steps.index(name)]  # the first is its definition
        assert [what for what in counts if f"{what} {counts[what]:,}" not in printed] == [], name
        assert shown(site, 0, player) == counts | {"asked": counts.pop("read") + counts.pop("written")}


@pytest.mark.parametrize(("width", "scheme", "name"), [(360, "dark", "7-channels-last"), (1280, "light", "2-welford")])
def test_a_player_in_a_tutorial_fits_follows_the_theme_and_moves_nothing_by_itself(site, width, scheme, name):
    site.prefer(scheme)
    site.open(RUNGS, width)
    player = watch(site, name)
    press(site, "end", player)
    site.run("""window.moved = []; new PerformanceObserver((list) => window.moved.push(...list.getEntries()
        .flatMap((e) => e.sources.filter((s) => s.previousRect.top !== s.currentRect.top))
        .map((s) => `${s.node?.className} ${s.previousRect.top} ${s.currentRect.top}`)))
        .observe({ type: 'layout-shift' })""")
    site.run(f'document.querySelector("{player} [name=speed]").value = 256')
    press(site, "play", player)
    site.wait(f"document.querySelector(\"{player} [name=play]\").innerText === 'Play'", 20)
    assert site.run("return window.moved") == []
    assert site.run("return document.documentElement.scrollWidth") == width
    assert site.run(OVERFLOWS) == []
    assert site.run(f'return getComputedStyle(document.querySelector("{player}")).colorScheme') == scheme
