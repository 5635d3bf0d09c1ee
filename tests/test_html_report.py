"""The page of a report: what stands in it, what is left out, arbitrary texts, its size; it needs nothing else."""

import base64
import hashlib
import json
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from report_stand_in import INTENTS, NASTY, make_comparison, make_report

from mtl.html_report import render_report, write_html_report

LIMIT = 5 * 2**20
SECTIONS = [
    "results", "comparison", "tasks", "slices", "errors", "coverage", "calibration", "embedding", "training",
    "conflicts", "settings",
]  # fmt: skip
VOID = {"meta", "input", "img"}
SHOWN = NASTY.replace("\ud800", "\ufffd").replace("\x00", "\ufffd")


class Page(HTMLParser):
    """Reads a page: its elements with their attributes, the texts in them, and whether each is closed.

    Args:
        code: The page.
    """

    def __init__(self, code: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(code)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Returns the attributes of every element of a kind."""
        return [attributes for name, attributes in self.elements if name == tag]

    def words(self, tag: str) -> list[str]:
        """Returns the texts that stand in elements of a kind."""
        return [text for name, text in self.texts if name == tag]


@pytest.fixture(scope="module")
def page() -> Page:
    """Gives the page of a report with everything."""
    return Page(render_report(make_report(), comparison=make_comparison()))


def small_report(task: str) -> dict[str, Any]:
    """Returns a report that has little but the evidence of one task, without errors and slices."""
    report = make_report(errors=0)
    report |= {"embedding": None, "conflicts": None, "calibration": None, "history": []}
    for evidence in report["evidence"].values():
        evidence |= {"slices": [], "coverage": None, "tasks": {task: evidence["tasks"][task]}}
    return report


def test_page_has_a_section_for_all_there_is(page: Page) -> None:
    assert [section["id"] for section in page.all("section")] == SECTIONS
    assert page.words("h1") == ["all"]
    links = [link["href"] for link in page.all("a")]
    names = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(names) == len(set(names))
    assert links[0] == "#main"
    assert {str(link) for link in links} <= {f"#{name}" for name in names}
    assert {"#tasks", "#task-0", "#task-2", "#training-1"} <= set(links)


def test_page_needs_nothing_else(page: Page) -> None:
    for tag, attributes in page.elements:
        for key in ("src", "href", "xlink:href", "action", "data", "poster"):
            value = attributes.get(key) or "#"
            assert value.startswith(("#", "data:image/png;base64,")), f"{tag} has {key}={value[:80]}"
    styles = "".join([*page.words("style"), *(attributes.get("style") or "" for _, attributes in page.elements)])
    assert "@import" not in styles
    assert all(part.startswith("#figure-") for part in styles.split("url(")[1:])


def test_scripts_run_by_their_hash_alone(page: Page) -> None:
    kinds = [script.get("type") for script in page.all("script")]
    assert kinds == ["application/json", None]
    digest = base64.b64encode(hashlib.sha256(page.words("script")[-1].encode()).digest()).decode()
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert f"script-src 'sha256-{digest}'" in policy


def test_what_is_seen_is_also_said(page: Page) -> None:
    assert len(page.all("table")) == len(page.all("caption")) > 15
    figures = [svg for svg in page.all("svg") if svg.get("role") == "img"]
    assert len(figures) == 21
    assert all(svg["aria-label"] for svg in figures)
    assert all(image["alt"] for image in page.all("img"))
    assert all(head["scope"] == "col" for head in page.all("th"))
    assert page.all("html")[0]["lang"] == "en"


def test_figures_of_the_page_are_those_of_the_report(page: Page) -> None:
    cells = page.words("td") + page.words("strong")
    assert {"0.9480", "0.9280 to 0.9680", "0.8710", "12 min 34 s", "Split off valence: it loses 1.29 %."} <= {
        *cells, *page.words("p")
    }  # fmt: skip
    assert "0.3" not in cells
    assert "the 12 most frequent of 60 kinds" in " ".join(page.words("caption"))
    assert any("the 19 of 150 classes" in text for text in page.words("p"))


def test_map_is_in_the_page_as_data(page: Page) -> None:
    plane = make_report()["embedding"]["map"]
    assert json.loads(page.words("script")[0]) == {key: plane[key] for key in ("points", "texts", "tasks")}


def test_without_data_there_is_no_section() -> None:
    assert Page(render_report({})).all("section") == []
    report = small_report("tags")
    report["history"] = [{"loss": 2.0, "step": 1}]
    left = [section["id"] for section in Page(render_report(report)).all("section")]
    assert left == ["results", "tasks", "training", "settings"]
    del report["evidence"]
    assert [section["id"] for section in Page(render_report(report)).all("section")] == [
        "results",
        "training",
        "settings",
    ]


def test_undefined_figures_are_told() -> None:
    report = small_report("intent")
    task = report["evidence"]["test"]["tasks"]["intent"]
    task["metrics"]["accuracy"] |= {"value": None, "low": None, "high": None}
    task["labels"][0] |= {"precision": None, "recall": None, "f1": None}
    task["calibration"] = {"ece": None, "brier": None, "nll": None, "bins": [], "temperature": None, "before": None}
    report["evidence"]["test"]["score"] = None
    report["history"] = [{"loss_intent": value, "step": step} for step, value in enumerate((2.0, None, 1.0))]
    page = Page(render_report(report))
    assert page.words("td").count("n/a") == 5  # Two intervals, and three figures of the first label.
    assert "n/a" in page.words("strong")


def test_each_output_of_a_regression_is_shown() -> None:
    report = small_report("valence")
    task = report["evidence"]["test"]["tasks"]["valence"]
    task["residuals"] = [{**task["residuals"][0], "output": output} for output in ("pleasure", "arousal")]
    shown = [svg["aria-label"] for svg in Page(render_report(report)).all("svg") if svg.get("role") == "img"]
    for output in ("pleasure", "arousal"):
        assert f"Predicted by true numbers of valence, {output}, 300 rows." in shown
        assert sum(str(label).startswith(f"Residuals of valence, {output}:") for label in shown) == 1


def test_of_many_sets_of_tasks_some_are_shown() -> None:
    report = small_report("valence")
    coverage = make_report()["evidence"]["test"]["coverage"]
    coverage["patterns"] = [{"tasks": [f"task_{number}"], "rows": 1} for number in range(100)]
    report["evidence"]["test"]["coverage"] = {**coverage, "num_patterns": 4000}
    page = Page(render_report(report))
    assert "Tasks that are labelled together: the 20 most frequent of 4,000 sets" in page.words("caption")
    assert sum(text.startswith("task_") for text in page.words("td")) == 20


def test_no_confusion_is_told() -> None:
    report = small_report("intent")
    confusion = report["evidence"]["test"]["tasks"]["intent"]["confusion"]
    confusion["matrix"] = [[int(row == column) for column in range(INTENTS)] for row in range(INTENTS)]
    page = Page(render_report(report))
    assert "No row is taken for one of another class." in page.words("p")
    assert not any("The matrix has" in text for text in page.words("p"))


def test_other_split_is_shown_when_it_is_named() -> None:
    report = small_report("tags")
    report["evidence"]["validation"] |= {"num_rows": 777, "data": "reviews.csv"}
    assert "On 777 rows of validation of reviews.csv." in render_report(report, split="validation")
    assert "On 400 rows of test." in render_report(report)


def break_all(value: Any) -> Any:
    """Returns a report in which every text that is data, not a name of this package, is one that breaks things."""
    report = json.loads(json.dumps(value).replace("a sentence", json.dumps(NASTY)[1:-1]))
    report["settings"] = {NASTY: NASTY, "nested": [{NASTY: 1}]}
    report["versions"] = report["machine"] = {NASTY: NASTY}
    report["data"] = {"rows": {NASTY: 3}, "truncated": {}}
    report["conflicts"]["advice"] = report["embedding"]["advice"] = NASTY
    report["tasks"][0]["name"] = NASTY
    report["history"] = [{"loss": 1.0, f"loss_{NASTY}": 2.0, "step": step} for step in (1, 2)]
    report["calibration"] = {NASTY: report["calibration"]["intent"]}
    for evidence in report["evidence"].values():
        evidence["tasks"] = {NASTY: evidence["tasks"].pop("intent"), **evidence["tasks"]}
        evidence["split"] = NASTY
        evidence["coverage"]["by_source"] = {NASTY: {"rows": 1, "labelled": {"intent": 1, "tags": 0, "valence": 0}}}
        evidence["slices"][0] |= {"by": NASTY, "value": NASTY}
        for error in evidence["tasks"]["tags"]["errors"]:
            error |= {"source": NASTY, "label": NASTY, "predicted": NASTY}
    plane = report["embedding"]["map"]
    plane["tasks"] = {NASTY: plane["tasks"]["intent"], **plane["tasks"]}
    return report


def test_any_text_is_shown_as_it_is(tmp_path: Path) -> None:
    report, comparison = break_all(make_report(label=NASTY)), make_comparison()
    comparison["verdict"]["text"] = comparison["tasks"]["tags"]["verdict"] = NASTY
    files = write_html_report(report, tmp_path, comparison=comparison, title=NASTY)
    page = Page(files[0].read_text(encoding="utf-8"))
    assert [script.get("type") for script in page.all("script")] == ["application/json", None]
    assert page.all("b") == []
    assert page.words("h1") == [SHOWN]
    for tag in ("td", "p", "h3", "a", "option", "dt"):
        assert SHOWN in page.words(tag), tag
    assert any(SHOWN in text for text in page.words("td") if text != SHOWN), "an error's text"
    data = json.loads(page.words("script")[0])
    assert data["tasks"][NASTY]["labels"][0] == NASTY
    assert data["texts"][0] == f"{NASTY} 0"
    assert "{{ 7 * 7 }}" in files[0].read_text(encoding="utf-8"), "a text is no template"
    assert all(file.parent in (tmp_path, tmp_path / "figures") for file in files)


def test_size_of_the_page_is_bounded() -> None:
    report = make_report(errors=10_000, text="a rather long sentence " * 40)
    code = render_report(report, comparison=make_comparison())
    assert len(code.encode()) < LIMIT
    assert "Here are 999 of 30,000, at most 333 a task; the JSON of the evidence has them all." in code
    page = Page(code)
    assert page.words("td").count("1,000") == 0
    assert sum("…" in text for text in page.words("td")) == 999
    report = make_report(errors=10_000, label="a very long label " * 1000)
    assert len(render_report(report).encode()) < LIMIT


def test_files_of_a_report(tmp_path: Path) -> None:
    files = write_html_report(small_report("valence"), tmp_path / "out")
    assert files[0] == tmp_path / "out" / "report.html"
    assert {file.name for file in files[1:]} == {
        f"{name}{ending}"
        for name in ("results", "predicted-valence", "residuals-valence")
        for ending in (".png", ".json")
    }
    assert all(file.is_file() for file in files)


def test_missing_jinja_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r'needs jinja2: `pip install "mtl-sentence-transformers\[report\]"`'):
        render_report({})
