"""The page of a report in a browser, as a reader uses it: by mouse, by keyboard, in the dark, and on paper."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_stand_in import make_comparison, make_report

from mtl.html_report import write_html_report

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright, of the extra dev, is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: `apt-get install chromium`"),
]
# It runs as root where tests run in a container, and is not to look for anything but the page.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SCORE, TRUE = 4, 2


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Gives the address of a written report."""
    files = write_html_report(make_report(), tmp_path_factory.mktemp("report"), comparison=make_comparison())
    return files[0].as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Gives a running browser."""
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """Gives the page, opened; in the end it has asked for nothing but itself, and has complained of nothing."""
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    requests, complaints = [], []
    opened.on("request", lambda request: requests.append(request.url))
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.goto(address)
    yield opened
    opened.close()
    assert requests == [address]
    assert complaints == []


def column(page: Any, place: int) -> list[str]:
    """Returns the texts of a column of the table of errors, from top to bottom, of the rows that are shown."""
    return page.locator(f"#errors tbody tr:not([hidden]) td:nth-child({place + 1})").all_inner_texts()


def test_errors_are_sorted_both_ways(page: Any) -> None:
    head = page.locator("#errors th").nth(SCORE)
    before = [float(score) for score in column(page, SCORE)]
    assert len(before) == 120
    assert before != sorted(before)
    head.get_by_role("button").click()
    assert [float(score) for score in column(page, SCORE)] == sorted(before)
    assert head.get_attribute("aria-sort") == "ascending"
    head.get_by_role("button").click()
    assert [float(score) for score in column(page, SCORE)] == sorted(before, reverse=True)
    assert head.get_attribute("aria-sort") == "descending"


def test_sorting_by_keyboard_and_by_text(page: Any) -> None:
    button = page.locator("#errors th").nth(TRUE).get_by_role("button")
    button.focus()
    page.keyboard.press("Enter")
    shown = column(page, TRUE)
    assert shown[0] == "-2.4"
    assert shown[-1] == "urgent"
    page.locator("#errors th").nth(SCORE).get_by_role("button").focus()
    page.keyboard.press("Space")
    assert page.locator("#errors th[aria-sort]").count() == 1


def test_undefined_figures_stay_last(page: Any) -> None:
    table = page.locator("#results table").first
    page.locator("#results summary").click()
    for _ in range(2):
        table.locator("th").nth(3).get_by_role("button").click()
        ends = table.locator("tbody td:nth-child(4)").all_inner_texts()
        assert ends[-3:] == ["n/a"] * 3
        assert "n/a" not in ends[:-3]


def test_errors_are_chosen_by_task_and_words(page: Any) -> None:
    errors = page.locator("#errors")
    errors.get_by_label("task").select_option("valence")
    assert set(column(page, 0)) == {"valence"}
    assert errors.locator("output").inner_text() == "40 of 120 rows"
    errors.get_by_label("search").fill("REVIEWS  number 7")
    assert column(page, 1) == [f"a sentence number {place}" for place in (7, 17, 27, 37)]
    errors.get_by_label("task").select_option("")
    assert column(page, 0) == ["intent"] * 4 + ["tags"] * 4 + ["valence"] * 4
    errors.get_by_label("search").fill("no such words")
    assert errors.locator("output").inner_text() == "0 of 120 rows"


def test_map_takes_the_colours_of_another_task(page: Any) -> None:
    embedding = page.locator("#embedding")
    paths = embedding.locator(".map-plane path")
    assert paths.count() > 100
    assert "colours and shapes repeat" in embedding.locator(".map-legend").inner_text()
    embedding.get_by_label("colours by").select_option("polarity")
    assert paths.count() == 3
    assert paths.first.get_attribute("fill") == "var(--none)"
    of_point = make_report()["embedding"]["map"]["tasks"]["polarity"]["of_point"]
    names = [f"{name} ({of_point.count(label)})" for label, name in enumerate(("left", "right"))]
    assert sorted(map(str.strip, embedding.locator(".map-legend li").all_inner_texts())) == names
    embedding.locator(".map-label").select_option("left")
    faint = {path.get_attribute("data-label"): path.get_attribute("fill-opacity") for path in paths.all()}
    assert faint == {"-1": "0.08", "0": "0.8", "1": "0.08"}


def test_legend_lets_one_label_stand_out(page: Any) -> None:
    embedding = page.locator("#embedding")
    embedding.get_by_label("colours by").select_option("polarity")
    button = embedding.locator(".map-legend button").first
    label = button.inner_text().split()[0]
    button.click()
    assert embedding.locator(".map-legend button").first.get_attribute("aria-pressed") == "true"
    assert embedding.locator(".map-label option:checked").inner_text() == label
    assert page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true", "the focus stays"
    page.keyboard.press("Enter")
    assert embedding.locator(".map-label option:checked").inner_text() == "all labels"


def test_sentences_of_the_map_are_read_by_mouse_and_keyboard(page: Any) -> None:
    embedding = page.locator("#embedding")
    readout = embedding.locator(".map-readout")
    assert readout.inner_text() == "Point at a sentence to read it."
    embedding.get_by_label("colours by").select_option("polarity")
    plane = embedding.locator(".map-plane svg")
    plane.hover()
    plane.focus()
    page.keyboard.press("ArrowRight")
    first = readout.inner_text()
    assert "a sentence" in first
    page.keyboard.press("ArrowRight")
    assert readout.inner_text() != first
    page.keyboard.press("ArrowLeft")
    assert readout.inner_text() == first


def test_pointer_reads_the_point_below_it(page: Any) -> None:
    plane = page.locator("#embedding .map-plane svg")
    plane.scroll_into_view_if_needed()
    plane.focus()
    page.keyboard.press("ArrowRight")
    text = page.locator(".map-readout").inner_text()
    place = page.locator("#embedding .ring").bounding_box()
    page.keyboard.press("ArrowRight")
    assert page.locator(".map-readout").inner_text() != text
    page.mouse.move(place["x"] + place["width"] / 2, place["y"] + place["height"] / 2)
    assert page.locator(".map-readout").inner_text() == text


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_page_fits_and_follows_the_colours_of_the_reader(page: Any, width: int, scheme: str, tmp_path: Path) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == width, "the page itself does not scroll sideways"
    colours = page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.querySelector('svg text')).fill]"
    )
    light, dark = "rgb(255, 255, 255)", "rgb(20, 24, 29)"
    ink = "rgb(29, 35, 41)" if scheme == "light" else "rgb(228, 232, 236)"
    assert colours[0] == (light if scheme == "light" else dark)
    fills = page.evaluate("[...document.querySelectorAll('svg text')].map(text => getComputedStyle(text).fill)")
    assert ink in fills
    picture = tmp_path / f"{scheme}-{width}.png"
    page.screenshot(path=picture, full_page=True)
    assert picture.stat().st_size > 50_000


def test_paper_has_all_tables_unfolded_and_no_controls(page: Any) -> None:
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("main details:not([open])").count() == 0
    assert not page.locator(".contents").is_visible()
    assert not page.locator("#errors .filters").is_visible()
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("main details[open]").count() == 0


def test_page_without_scripts_still_has_the_rows_and_the_map(browser: Any, address: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    opened = context.new_page()
    opened.goto(address)
    assert opened.locator("#errors tbody tr").count() == 120
    assert not opened.locator("#errors .filters").is_visible()
    assert opened.locator("#embedding img").count() == 2
    assert opened.locator("#embedding img").first.is_visible()
    context.close()
