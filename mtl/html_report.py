"""A run's report as one HTML file that needs nothing else: no network, no font, no script but its own."""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from mtl.extras import require
from mtl.figure_style import png_link, svg_element
from mtl.figures import Plot, report_plots, write_plots
from mtl.report_blocks import Fact, Picture, Section, duration, interval, number
from mtl.report_results import coverage_section, errors_section, results_section, slices_section, tasks_section
from mtl.report_run import (
    calibration_section,
    comparison_section,
    conflicts_section,
    embedding_section,
    settings_section,
    steps_of,
    training_section,
)
from mtl.report_splits import shown_split

PAGE, FIGURES = "report.html", "figures"
_TEMPLATES = Path(__file__).parent / "templates"
_NARROW = 5.0  # Inches.
_STYLES, _SCRIPTS = ("report.css",), ("tables.js", "map.js")


def render_report(
    report: Mapping[str, Any],
    *,
    comparison: Mapping[str, Any] | None = None,
    split: str | None = None,
    title: str | None = None,
) -> str:
    """Returns the page of a report; sections without data are left out.

    Args:
        report: What `mtl.report.build_report` gives, with `evidence` by split and `embedding` where it has them; any
            part may be missing.
        comparison: What `mtl compare` found.
        split: The split whose evidence is shown; test, validation or the first there is if not given.
        title: What it is called; the name of the model's folder if not given.

    Raises:
        ImportError: If matplotlib or Jinja2 is not installed.
        ValueError: If there is no evidence of the split.
    """
    return _page(report, comparison, split, title, report_plots(report, comparison, split))


def write_html_report(
    report: Mapping[str, Any],
    folder: Path,
    *,
    comparison: Mapping[str, Any] | None = None,
    split: str | None = None,
    title: str | None = None,
) -> list[Path]:
    """Writes the page, `report.html`, and its figures as `figures/*.png` and `figures/*.json`; returns the files.

    Args:
        report: See [`render_report`], as for what follows.
        folder: Where they go; it is made if it is not there.
        comparison: What `mtl compare` found.
        split: The split whose evidence is shown.
        title: What the page is called.

    Raises:
        ImportError: If matplotlib or Jinja2 is not installed.
        ValueError: If there is no evidence of the split.
    """
    plots = report_plots(report, comparison, split)
    page = _page(report, comparison, split, title, plots)
    files = write_plots(plots, folder / FIGURES)
    path = folder / PAGE
    path.write_text(page, encoding="utf-8")
    return [path, *files]


def _page(
    report: Mapping[str, Any],
    comparison: Mapping[str, Any] | None,
    split: str | None,
    title: str | None,
    plots: Sequence[Plot],
) -> str:
    jinja2 = require("jinja2", extra="report", what="A report as a page")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = (
        "\n".join((_TEMPLATES / name).read_text("utf-8") for name in some) for some in (_STYLES, _SCRIPTS)
    )
    chosen = shown_split(report, split)
    evidence = None if chosen is None else report["evidence"][chosen]
    page = environment.get_template("report.html.j2").render(
        title=title or _title(report),
        facts=_facts(report, evidence),
        sections=_sections(report, evidence, comparison, plots),
        style=style,
        script=script,
        # Scripts run by their hash alone: what slips into the page otherwise stays text.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    # Texts may hold what is none: control characters, and half a surrogate pair, which JSON can spell.
    return re.sub("[\0-\b\v\f\x0e-\x1f\ud800-\udfff]", "\ufffd", page)


def _sections(
    report: Mapping[str, Any],
    evidence: Mapping[str, Any] | None,
    comparison: Mapping[str, Any] | None,
    plots: Sequence[Plot],
) -> list[Section]:
    def pick(*kinds: str, task: str = "") -> list[Picture]:
        return [
            _picture(plot, f"figure-{place}")
            for kind in kinds
            for place, plot in enumerate(plots)
            if plot.kind == kind and plot.task == task
        ]

    images = {plot.task: (plot.alt, png_link(plot.figure)) for plot in plots if plot.kind == "map"}
    found = [results_section(report, evidence, pick), comparison_section(comparison, pick)]
    if evidence is not None:
        found += [tasks_section(evidence, pick), slices_section(evidence, pick), errors_section(evidence)]
        found.append(coverage_section(evidence))
    found += [
        calibration_section(report),
        embedding_section(report, images),
        training_section(report, pick),
        conflicts_section(report, pick),
        settings_section(report),
    ]
    return [section for section in found if section is not None]


def _picture(plot: Plot, name: str) -> Picture:
    svg = svg_element(plot.figure, name=name, alt=plot.alt)
    return Picture(name, svg, plot.caption, is_wide=plot.figure.get_figwidth() > _NARROW)


def _title(report: Mapping[str, Any]) -> str:
    settings = report.get("settings", {})
    name = settings.get("hub_model_id") or PurePath(settings.get("output_dir") or "").name
    return str(name or "Multi-task model")


def _facts(report: Mapping[str, Any], evidence: Mapping[str, Any] | None) -> list[Fact]:
    """Returns what the page begins with: the score, each task's primary metric, and what training took."""
    facts = []
    result = evidence or next(reversed(report.get("results", {}).values()), None)
    if result is not None:
        rows = f"{result['split']}, {result['num_rows']:,} rows"
        facts.append(Fact("score", number(result["score"]).text, f"mean of the primary metrics; {rows}"))
    if evidence is not None:
        for name, task in evidence["tasks"].items():
            metric = task["metrics"].get(task["primary_metric"])
            if metric is not None:
                ends = interval(metric["low"], metric["high"], ".3f").text
                facts.append(Fact(name, number(metric["value"]).text, f"{task['primary_metric']}, {ends}"))
    if seconds := (report.get("training") or {}).get("train_runtime"):
        facts.append(Fact("training", duration(seconds), steps_of(report["training"]).removesuffix(",")))
    if total := (report.get("parameters") or {}).get("total"):
        facts.append(
            Fact("parameters", f"{total / 1e6:.1f} M", f"{report['parameters']['trained'] / total:.0%} trained")
        )
    return facts
