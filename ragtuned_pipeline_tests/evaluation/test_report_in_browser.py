"""The pages in a real browser, started once: what a reader sees, and what the pages ask for."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ragtuned_pipeline.evaluation.reporting.corpora_report import write_corpora_report
from ragtuned_pipeline.evaluation.reporting.report import write_report
from ragtuned_pipeline_tests.evaluation import browser, showcase

pytestmark = pytest.mark.skipif(
    browser.CHROMIUM is None, reason="needs Debian's chromium (apt-get install chromium)"
)

PHONE = (390, 844)
DESKTOP = (1280, 900)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reports of a home with one corpus."""
    made = tmp_path_factory.mktemp("reports")
    inputs = showcase.inputs()
    write_report(inputs, made / "harrow" / "index.html")
    write_corpora_report({"harrow": inputs.scorecard}, made)
    return made


@pytest.fixture(scope="module")
def _started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    with browser.start(tmp_path_factory.mktemp("chromium")) as started:
        yield started


@pytest.fixture(params=["harrow/index.html", "index.html"])
def page(
    request: pytest.FixtureRequest, folder: Path, _started: browser.Browser
) -> browser.Browser:
    """Each page in turn, freshly loaded in a desktop window, light."""
    _started.resize(*DESKTOP)
    _started.prefer("light")
    _started.open(folder / request.param)
    return _started


def test_nothing_is_complained_of_and_nothing_is_fetched(page: browser.Browser) -> None:
    assert page.evaluate("document.readyState") == "complete"
    assert page.of("Runtime.exceptionThrown") == []
    assert page.of("Log.entryAdded") == []
    assert page.of("Runtime.consoleAPICalled") == []
    own = page.evaluate("location.href")
    asked = [event["request"]["url"] for event in page.of("Network.requestWillBeSent")]
    assert own in asked
    assert not [url for url in asked if url != own and not url.startswith("data:")]


def test_the_policy_holds(page: browser.Browser) -> None:
    """A script that a document brought in would not run."""
    page.evaluate(
        "{ const s = document.createElement('script'); s.textContent = 'window.ran = true';"
        "document.body.append(s); }"
    )
    assert page.evaluate("window.ran === undefined")


SORT = """
(() => {
  const problems = [];
  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const numbers = head.classList.contains("n");
      const seen = {};
      for (let click = 0; click < 2; click++) {
        head.querySelector("button").click();
        const order = head.getAttribute("aria-sort");
        const values = [...table.tBodies[0].rows].map((row) => row.cells[column].dataset.value);
        if (values.includes(undefined)) { problems.push([head.textContent, "no value"]); return; }
        const known = values.filter((value) => value !== "");
        if (values.slice(0, known.length).includes("")) problems.push([head.textContent, "gaps"]);
        const sorted = [...known].sort(
          numbers ? (a, b) => Number(a) - Number(b) : (a, b) => a.localeCompare(b));
        if (order === "descending") sorted.reverse();
        if (known.join("|") !== sorted.join("|")) problems.push([head.textContent, order, known]);
        seen[order] = true;
      }
      if (!seen.ascending || !seen.descending) problems.push([head.textContent, "one way only"]);
    });
  }
  return [document.querySelectorAll("table.sortable").length, problems];
})()
"""


def test_every_column_of_every_table_sorts_both_ways(page: browser.Browser) -> None:
    tables, problems = page.evaluate(SORT)
    assert tables >= 3
    assert problems == []


def test_numbers_sort_as_numbers(page: browser.Browser) -> None:
    """As words, 11,800 would stand between 1,480 and 24."""
    if page.evaluate("location.href").endswith("harrow/index.html"):
        shown = page.evaluate(
            """(() => {
              const table = document.querySelector("#table table");
              const heads = [...table.tHead.rows[0].cells];
              const column = heads.findIndex((h) => h.textContent.startsWith("Prompt tokens"));
              heads[column].querySelector("button").click();
              const cells = [...table.tBodies[0].rows].map((row) => row.cells[column].textContent);
              return [...new Set(cells)];
            })()"""
        )
        assert shown == ["71,000", "64,000", "11,800", "1,490", "1,480", "24"]


def test_a_phone_needs_no_sideways_scrolling(page: browser.Browser) -> None:
    page.resize(*PHONE)
    width, inner = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert inner == PHONE[0]
    assert width <= inner
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= inner
    wider = page.evaluate(
        "[...document.querySelectorAll('table')].filter((t) => t.scrollWidth > innerWidth"
        " && t.parentElement.className !== 'scroll').length"
    )
    assert wider == 0


CONTRAST = """
((selector) => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map((c) => c / 255).map(
      (c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const paper = getComputedStyle(document.body).backgroundColor;
  return [paper, Math.min(...[...document.querySelectorAll(selector)].map((element) => {
    const pair = [light(getComputedStyle(element).color), light(paper)].sort((a, b) => b - a);
    return (pair[0] + 0.05) / (pair[1] + 0.05);
  }))];
})("p, li, h1, h2, h3, th, td, a, small, .mark, summary")
"""


def test_dark_is_dark_and_both_can_be_read(page: browser.Browser) -> None:
    light, light_contrast = page.evaluate(CONTRAST)
    page.prefer("dark")
    dark, dark_contrast = page.evaluate(CONTRAST)
    assert light != dark
    # WCAG's level AA for text.
    assert light_contrast >= 4.5
    assert dark_contrast >= 4.5


def test_print_unfolds_what_is_folded_and_is_light(page: browser.Browser) -> None:
    page.prefer("dark")
    assert page.evaluate("[...document.querySelectorAll('details')].every((d) => !d.open)")
    printed = page.print()
    assert printed.startswith(b"%PDF")
    assert page.evaluate("[...document.querySelectorAll('details')].every((d) => d.open)")
    page.send("Emulation.setEmulatedMedia", media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    page.send("Emulation.setEmulatedMedia", media="")
