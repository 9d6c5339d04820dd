"""The player of kernels in a browser: its counters agree with the simulation, and visitors can step, read and link."""

from __future__ import annotations

import base64
import json

import pytest
from browsing import HTML, PHONE, Browser

from sbnref.lab import Call, Kernels, Recording, record
from sbnref.lab.page import page
from sbnref.lab.recording import Act, example

pytestmark = pytest.mark.slow

KERNELS = r"""
#include "laboratory.cuh"

__global__ void mean(Problem p) {
    const int64_t c = blockIdx.x;
    double sum = 0;
    for (int64_t i = threadIdx.x; i < p.count(); i += kThreads) sum += p.x[p.at(c, i)];
    sum = sum_over_block(sum);
    if (threadIdx.x == 0) p.mean[c] = static_cast<float>(sum / p.count());
}

// A second barrier is missing, before the last line.
__global__ void reverse(Problem p) {
    __shared__ float shared[kThreads];
    shared[threadIdx.x] = 0;
    __syncthreads();
    shared[threadIdx.x] = p.x[threadIdx.x];
    p.y[threadIdx.x] = shared[kThreads - 1 - threadIdx.x];
}

// As above, in an array of another name; only legal where each thread reads what it wrote itself.
template <bool kReversed>
__global__ void copy(Problem p) {
    __shared__ float tile[kThreads];
    tile[threadIdx.x] = 0;
    __syncthreads();
    tile[threadIdx.x] = p.x[threadIdx.x];
    p.y[kReversed ? kThreads - 1 - threadIdx.x : threadIdx.x] = tile[threadIdx.x];
}

void forward(const Problem& p) { mean<<<p.C, kThreads, 0, p.stream>>>(p); }
void race(const Problem& p) { reverse<<<1, kThreads, 0, p.stream>>>(p); }
void still(const Problem& p) { copy<false><<<1, kThreads, 0, p.stream>>>(p); }
void turned(const Problem& p) { copy<true><<<1, kThreads, 0, p.stream>>>(p); }
"""


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Recording]:
    """Record each function above."""
    file = tmp_path_factory.mktemp("kernels") / "mine.cu"
    file.write_text(KERNELS)
    kernels = Kernels(file, ("forward", "race", "still", "turned"), 64)
    x = example((2, 4, 6, 6))
    return {name: record(Call(kernels, x), f"<{name}>", [name]) for name in kernels.functions}


def show(browser: Browser, *recordings: Recording, width: int = 1280) -> None:
    """Open the page that ``sbnref lab trace`` writes."""
    browser.resize(width)
    text = base64.b64encode(page("Mine & yours", *recordings).encode()).decode()
    browser.driver.get(f"data:text/html;base64,{text}")
    browser.wait(f"document.querySelectorAll('.player .view').length === {len(recordings)}")


def choose(browser: Browser, name: str, value: object) -> None:
    """Choose from a list or move the slider."""
    script = """const [name, value] = arguments, control = document.querySelector(`[name=${name}]`);
        control.value = value; for (const type of ['input', 'change']) control.dispatchEvent(new Event(type))"""
    browser.run(script, name, value)


def shown(browser: Browser, view: str = ".view") -> dict[str, int]:
    """Return the counters on the page."""
    script = """return [...document.querySelector(arguments[0]).querySelectorAll('[data-count]')].map(
        (cell) => [cell.dataset.count, Number(cell.innerText.replaceAll(',', ''))])"""
    return dict(browser.run(script, view))


def as_shown(counts: dict[str, int]) -> dict[str, int]:
    """Rename a recording's counts like the page, which adds bytes read and written."""
    counts = dict(counts)
    return {"asked": counts.pop("read") + counts.pop("written"), **counts}


def test_it_plays_to_the_counts_of_the_simulation(browser, recordings):
    recording = recordings["forward"]
    show(browser, recording)
    browser.click("[name=first]")
    assert set(shown(browser).values()) == {0}
    choose(browser, "speed", 256)
    browser.click("[name=play]")
    length = len(recording.steps)
    browser.wait(f"document.querySelector('output').innerText === 'step {length} of {length}'", 20)
    assert shown(browser) == as_shown(recording.counts())
    choose(browser, "time", 20)
    part = Recording("", (), False, recording.launches, recording.arrays, recording.sites, recording.steps[:20])
    assert shown(browser) == as_shown(part.counts())


def test_a_step_has_a_sentence_and_its_line(browser, recordings):
    from selenium.webdriver.common.keys import Keys

    recording = recordings["forward"]
    show(browser, recording)
    assert browser.find(".words").text == "Step 1: mean, block 0, warp 0: all lanes read 128 bytes of x, 4 sectors."
    assert "sum += p.x[p.at(c, i)];" in browser.find(".current").text
    shuffle = next(i for i, step in enumerate(recording.steps, 1) if step.act is Act.SHUFFLE)
    choose(browser, "time", shuffle)
    assert "lane 0 takes lane 16's" in browser.find(".words").text
    assert "sum_over_block(sum)" in browser.find(".current").text
    assert "__shfl_down_sync" in browser.find(".excerpt .current").text
    browser.click("[name=back]")
    assert browser.find("output").text.startswith(f"step {shuffle - 1} of ")
    browser.find("[name=back]").send_keys(Keys.ARROW_RIGHT)
    assert browser.find("output").text.startswith(f"step {shuffle} of ")


def test_a_missing_barrier_is_shown_beside_another_recording_on_a_phone_too(browser, recordings):
    show(browser, recordings["forward"], recordings["race"])
    error = browser.driver.find_elements("css selector", ".error")[1]
    assert "a barrier in between" in error.text
    length = len(recordings["race"].steps)
    choose(browser, "time", length + 5)
    assert shown(browser)["steps"] == length + 5
    assert shown(browser, ".view:last-child")["steps"] == length
    assert "now" in error.get_attribute("class")
    show(browser, recordings["forward"], recordings["race"], width=PHONE)
    browser.tap("[name=forth]")
    browser.wait("document.querySelector('[name=time]').value === '2'")
    assert browser.cut_off(".player *") == []


def test_a_phone_shows_controls_words_and_picture_together(browser):
    browser.open("kernels.html#2-welford@40", PHONE, 844)
    browser.wait("document.querySelector('.view') !== null", 30)
    script = """document.querySelector('.said').scrollIntoView({ block: 'start', behavior: 'instant' });
        scrollBy({ top: -document.querySelector('.controls').getBoundingClientRect().bottom, behavior: 'instant' });
        const whole = (e) => [0, 1].every((at) => {
            const { x, top, bottom } = e.getBoundingClientRect();
            return e.contains(document.elementFromPoint(x + 3, at ? bottom - 1 : top + 1));
        });
        return [...document.querySelectorAll('.controls button, .words, .lanes, .memory')].filter((e) => !whole(e))
            .map((e) => e.outerHTML)"""
    assert browser.run(script) == []
    browser.find("[name=forth]").click()  # clicks in place, without scrolling
    assert browser.find("output").text.startswith("step 41 of ")


def test_the_first_difference_of_two_recordings_is_named_and_a_button_goes_there(browser, recordings):
    show(browser, recordings["forward"], recordings["race"])
    assert browser.find(".difference").text.startswith(
        "The two differ first at step 1: in <forward>, all lanes read 128 bytes of x, 4 sectors; "
        "in <race>, all lanes write 4 bytes each of shared in shared memory."
    )
    for names, words in (
        (("race", "still"), "in <race>, lane 0 reads 4 bytes of x, 1 sector; in <still>, all lanes read 128 bytes"),
        (("still", "turned"), "in both, all lanes write 128 bytes of y, 4 sectors, but with different"),
    ):
        one, other = (recordings[name] for name in names)
        show(browser, one, other)
        step = next(i for i, (a, b) in enumerate(zip(one.steps, other.steps, strict=False), 1) if a.lanes != b.lanes)
        assert browser.find(".difference").text.startswith(f"The two differ first at step {step}: {words}")
        browser.click("[name=differ]")
        assert browser.find("output").text.startswith(f"step {step} of ")
    show(browser, recordings["race"], recordings["race"])
    assert browser.find(".difference").text == "The two do the same at every step."
    show(browser, recordings["race"])
    assert not browser.find(".difference").is_displayed()


def test_every_recording_of_the_site_plays_to_its_counts(browser):
    folder = HTML / "_static" / "kernels"
    titles = json.loads((folder / "index.json").read_text())
    assert len(titles) == 10 + 4 + 8  # ladder, tutorial 12, package
    browser.open("kernels.html")
    for name, title in titles.items():
        browser.run("location.hash = arguments[0]", name)
        browser.wait(f"document.querySelector('.view h3')?.innerText.startsWith({json.dumps(title + ',')})", 30)
        browser.click("[name=end]")
        assert shown(browser) == as_shown(json.loads((folder / f"{name}.json").read_text())["counts"]), name


def test_a_link_holds_the_choice(browser):
    titles = "[...document.querySelectorAll('.view h3')].map((h) => h.innerText.split(',')[0]).join()"
    browser.open("kernels.html#3-split+4-wide@12")
    browser.wait(f"{titles} === '3 split,4 wide'", 30)
    assert browser.find("output").text.startswith("step 12 of ")
    browser.run("location.hash = '3-split+4-wide'")  # a link without a step
    browser.wait("document.querySelector('output').innerText.startsWith('step 1 of ')")
    choose(browser, "right", "")
    browser.wait(f"{titles} === '3 split' && location.hash === '#3-split'")
    browser.open("kernels.html#nothing-of-the-kind")
    browser.wait(f"{titles} === '1 naive'")
    assert browser.find("output").text.startswith("step 1 of ")


@pytest.mark.parametrize(("tutorial", "players"), [("05_from_formula_to_kernel", 9), ("12_your_own_kernel", 4)])
def test_the_players_of_a_tutorial_start_when_opened(browser, tutorial, players):
    browser.open(f"learn/{tutorial}.html", PHONE)
    names = browser.run("return [...document.querySelectorAll('details .player')].map((e) => e.dataset.show)")
    assert len(names) == players
    assert not browser.run("return document.querySelector('.player .view')")
    for name in names:
        player = f".player[data-show='{name}']"
        browser.click(f"details:has({player}) > summary")
        browser.wait(f'document.querySelector("{player} .view") !== null', 30)
        browser.click(f"{player} [name=end]")
        assert shown(browser, f"{player} .view")["steps"] > 0
    assert browser.cut_off(".player *") == []
