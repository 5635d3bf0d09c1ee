"""Figures of a report: what is chosen to be shown, by hand; the files; and texts that would break an image."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.collections import PatchCollection
from matplotlib.image import imread
from report_stand_in import INTENTS, NASTY, make_comparison, make_report

from mtl.figure_style import BLUE, INK, in_figure_style, new_plot, one_line, svg_element
from mtl.figures import figure_name, report_plots, write_figures
from mtl.figures_intervals import gain_estimates, metric_estimates, slice_estimates
from mtl.figures_map import draw_map, frequent_labels, look
from mtl.figures_matrices import conflict_matrix, confused_pairs, draw_confusion, draw_signed, most_confused
from mtl.figures_outputs import draw_reliability
from mtl.figures_training import draw_losses, task_curves
from problem_types_mtl import SINGLE_LABEL

ROOT = Path(__file__).parent.parent
SVG = "{http://www.w3.org/2000/svg}"
MATRIX = [[5, 0, 2, 0], [7, 5, 0, 0], [0, 0, 5, 0], [0, 1, 0, 5]]


def test_most_frequent_confusions_come_first() -> None:
    assert confused_pairs(MATRIX) == [(1, 0), (0, 2), (3, 1)]
    assert most_confused(MATRIX, 4) == [0, 1, 2, 3]
    assert most_confused(MATRIX, 3) == [0, 1, 2]
    assert most_confused(MATRIX, 2) == [0, 1]
    assert most_confused([[3, 0], [0, 2]], 1) == []


def test_confusion_of_many_classes_counts_the_others_in_a_column() -> None:
    matrix = np.diag(np.full(30, 10))
    for place in range(1, 19):
        matrix[0, place] = 2
    matrix[0, 29] = 1  # Of a pair that no longer fits beside the 20 most confused ones, together with that of 28.
    matrix[27, 28] = 1
    figure = draw_confusion({"labels": [f"class {place}" for place in range(30)], "matrix": matrix.tolist()})
    (plot,) = figure.axes
    names = [label.get_text() for label in plot.get_xticklabels()]
    assert len(names) == 21
    assert names[0] == "class 0"
    assert names[-1] == "any other"
    assert [label.get_text() for label in plot.get_yticklabels()] == names[:-1]
    (cells,) = [artist for artist in plot.collections if isinstance(artist, PatchCollection)]
    # Opacity is the share of the true class: of its 47 rows 10 are right.
    assert float(np.asarray(cells.get_facecolor())[0, 3]) == pytest.approx(10 / 47)


def test_cells_are_opaque_as_numbers_are_large() -> None:
    matrix = [[None, 0.5], [-0.25, None]]
    figure = draw_signed(["a", "b"], matrix, opaque=0.1, rows="of", columns="with")
    (cells,) = [artist for artist in figure.axes[0].collections if isinstance(artist, PatchCollection)]
    colours = np.asarray(cells.get_facecolor())
    assert colours[:, 3].tolist() == [1.0, 0.5]
    assert colours[0, 2] > colours[0, 0], "above zero is blue"
    assert colours[1, 0] > colours[1, 2], "below zero is brown"
    assert [text.get_text() for text in figure.axes[0].texts] == ["+0.50", "-0.25"]
    small = draw_signed(["a", "b"], matrix, opaque=1.0, rows="of", columns="with").axes[0]
    (cells,) = [artist for artist in small.collections if isinstance(artist, PatchCollection)]
    assert np.asarray(cells.get_facecolor())[:, 3].tolist() == [0.5, 0.25]


def test_conflicts_as_a_matrix() -> None:
    names, matrix = conflict_matrix(make_report()["conflicts"])
    assert names == ["intent", "tags", "valence"]
    assert matrix == [[None, 0.12, -0.21], [0.12, None, 0.04], [-0.21, 0.04, None]]


def test_curves_are_those_of_the_task_alone() -> None:
    history: list[dict[str, Any]] = [
        {"loss_a": 2.0, "loss_a_b": 9.0, "step": 1},
        {"eval_a_loss": 1.5, "eval_a_accuracy": 0.5, "eval_a_b_accuracy": 0.1, "eval_a_b_loss": 8.0, "step": 2},
        {"loss_a": None, "eval_a_accuracy": None, "step": 3},
    ]
    assert task_curves(history, {"name": "a", "problem_type": SINGLE_LABEL}) == {
        "training_loss": [[1, 2.0]],
        "validation_loss": [[2, 1.5]],
        "metrics": {"accuracy": [[2, 0.5]]},
    }


def test_errors_and_losses_share_no_axis_with_other_metrics() -> None:
    found = metric_estimates(make_report()["evidence"]["test"])
    assert [(some.group, some.label) for some in found if some.group == "valence"] == [
        ("valence", "pearson"),
        ("valence", "spearman"),
    ]
    assert [some.label for some in found if some.is_main] == ["accuracy", "f1_micro", "pearson"]


def test_largest_slices_are_drawn() -> None:
    def part(number: int) -> dict[str, Any]:
        figure = {"metric": "accuracy", "value": 0.5, "low": 0.4, "high": 0.6, "support": number}
        return {"by": "document", "value": number, "rows": number, "tasks": {"a": figure} if number != 20 else {}}

    evidence = {"slices": [part(number) for number in range(21)]}
    assert [some.label for some in slice_estimates(evidence, "a")] == [f"{place} ({place})" for place in range(8, 20)]


def test_gain_has_the_interval_of_the_difference_in_percent() -> None:
    comparison = make_comparison()
    first = gain_estimates(comparison)[0]
    assert (first.value, first.low, first.high) == pytest.approx((0.6 / 0.949, 0.1 / 0.949, 1.1 / 0.949))
    task = comparison["tasks"]["intent"]
    task |= {"lower_is_better": True, "relative_gain_percent": -task["relative_gain_percent"]}
    turned = gain_estimates(comparison)[0]
    assert (turned.value, turned.low, turned.high) == pytest.approx((-0.6 / 0.949, -1.1 / 0.949, -0.1 / 0.949))


def test_map_names_the_frequent_labels() -> None:
    assert frequent_labels([2, 2, 0, -1, -1, -1, 0, 1], most=2) == [0, 2]
    assert look(0) != look(7)
    assert look(0) == look(21)


def test_reliability_leaves_out_empty_bins() -> None:
    bins = [
        {"low": 0.0, "high": 0.5, "count": 0, "confidence": None, "accuracy": None},
        {"low": 0.5, "high": 1.0, "count": 4, "confidence": 0.8, "accuracy": 0.75},
    ]
    figure = draw_reliability({"ece": 0.05, "bins": bins, "temperature": None, "before": None})
    _, line = figure.axes[0].lines
    assert line.get_xydata().tolist() == [[0.8, 0.75]]  # type: ignore[union-attr]


def test_every_figure_is_a_picture_with_its_data(tmp_path: Path) -> None:
    files = write_figures(make_report(), tmp_path / "figures", comparison=make_comparison())
    pictures = [file for file in files if file.suffix == ".png"]
    assert sorted(file.name for file in files) == sorted(file.name for file in (tmp_path / "figures").iterdir())
    assert {file.stem for file in pictures} >= {
        "loss", "score", "learning_rate", "loss-intent", "metrics-valence", "conflicts", "results", "confusion-intent",
        "reliability-tags", "predicted-valence", "residuals-valence", "slices-tags", "map-intent", "gains", "transfer",
    }  # fmt: skip
    for picture in pictures:
        pixels = imread(picture)
        assert min(pixels.shape[:2]) > 150
        assert pixels.std() > 0.01, f"{picture.name} is blank"
        assert json.loads(picture.with_suffix(".json").read_text())["data"]
    whole = json.loads((tmp_path / "figures" / "confusion-intent.json").read_text())
    assert len(whole["data"]["matrix"]) == INTENTS
    assert "the 19 of 150 classes" in whole["shows"]


def test_tasks_that_differ_in_case_have_files_of_their_own(tmp_path: Path) -> None:
    report: dict[str, Any] = {"tasks": [{"name": name, "problem_type": SINGLE_LABEL} for name in ("a", "A")]}
    report["history"] = [{"loss_a": 2.0, "loss_A": 3.0, "step": 1}]
    files = write_figures(report, tmp_path)
    assert len({file.name.casefold() for file in files}) == 4
    assert [json.loads(file.read_text())["data"]["training_loss"] for file in files[1::2]] == [[[1, 2.0]], [[1, 3.0]]]


def test_each_output_of_a_regression_has_its_figures() -> None:
    report = make_report()
    task = report["evidence"]["test"]["tasks"]["valence"]
    task["residuals"] = [{**task["residuals"][0], "output": output} for output in ("LABEL_0", "arousal")]
    plots = [plot for plot in report_plots(report) if plot.kind in ("predicted", "residuals")]
    assert [(plot.task, plot.part, plot.name) for plot in plots] == [
        ("valence", output, f"{kind}-valence-{output}")
        for output in ("LABEL_0", "arousal")
        for kind in ("predicted", "residuals")
    ]
    titles = [plot.figure.axes[0].get_title(loc="left") for plot in plots]
    assert titles == [
        "Predicted by true, LABEL_0",
        "Residuals, LABEL_0",
        "Predicted by true, arousal",
        "Residuals, arousal",
    ]


def test_reliability_says_what_its_bins_are_of() -> None:
    drawn = {plot.task: plot for plot in report_plots(make_report()) if plot.kind == "reliability"}
    labels = {task: [axes.get_ylabel() for axes in plot.figure.axes] for task, plot in drawn.items()}
    assert labels == {"intent": ["accuracy", "count"], "tags": ["share that has it", "count"]}
    assert drawn["intent"].figure.axes[1].get_xlabel() == "confidence"
    assert drawn["tags"].figure.axes[1].get_xlabel() == "probability of a label"


def test_many_classes_of_which_none_is_confused_have_no_matrix() -> None:
    report = make_report()
    confusion = report["evidence"]["test"]["tasks"]["intent"]["confusion"]
    confusion["matrix"] = np.diag([5] * INTENTS).tolist()
    assert "confusion" not in [plot.kind for plot in report_plots(report)]
    confusion |= {"labels": ["a", "b"], "matrix": [[5, 0], [0, 5]]}
    assert "confusion" in [plot.kind for plot in report_plots(report)]


def test_legend_names_labels_that_begin_with_an_underscore() -> None:
    plane = {
        "points": [[0.0, 0.0], [1.0, 1.0], [2.0, 0.0]],
        "tasks": {"a": {"labels": ["_x", "y"], "of_point": [0, 1, -1]}},
    }
    legend: Any = draw_map(plane, "a").axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["_x", "y"]
    assert [handle.get_color() for handle in legend.legend_handles] == [look(label)[0] for label in (0, 1)]


def test_nothing_to_draw(tmp_path: Path) -> None:
    assert report_plots({}) == []
    assert report_plots({"history": [], "tasks": [], "evidence": {}, "embedding": None, "conflicts": None}) == []


def test_unknown_split_is_told() -> None:
    with pytest.raises(ValueError, match=r"no evidence of a split 'dev', but of \['validation', 'test'\]"):
        report_plots(make_report(), split="dev")


def test_texts_stay_texts_in_an_svg() -> None:
    confusion = {"labels": [NASTY, "$a$ and $b$", "#1d2329"], "matrix": [[3, 1, 0], [0, 4, 0], [0, 0, 2]]}
    code = svg_element(draw_confusion(confusion), name="one", alt=NASTY)
    root = ElementTree.fromstring(code)
    known = {"svg", "g", "path", "defs", "text", "use", "clipPath", "rect"}
    assert {element.tag.removeprefix(SVG) for element in root.iter()} <= known
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert texts.count(one_line(NASTY, 22)) == 2
    assert texts.count("$a$ and $b$") == 2
    assert texts.count("#1d2329") == 2, "a label that reads like a colour is a label"
    assert root.attrib["aria-label"] == one_line(NASTY, 1000)
    assert "</script" not in code


def test_svg_has_the_colours_and_the_names_of_its_page() -> None:
    figure = draw_losses({"training_loss": [[1, 2.0], [2, 1.0]], "validation_loss": [[2, 1.5]]})
    first, second = (svg_element(figure, name=name, alt="Loss") for name in ("one", "two"))
    assert "var(--ink)" in first
    assert "var(--colour-0)" in first
    assert not any(colour in first for colour in (INK, BLUE))
    names = [
        {element.get("id") for element in ElementTree.fromstring(code).iter()} - {None} for code in (first, second)
    ]
    assert names[0]
    assert not names[0] & names[1]
    for code, own in zip((first, second), names, strict=True):
        used = {element.get("href", "#")[1:] for element in ElementTree.fromstring(code).iter()} - {""}
        assert used <= own


def test_line_of_any_text() -> None:
    assert one_line("a\nb\t\x00c\ud800") == "a b c"
    assert one_line("abcdefgh", 5) == "abcd…"
    assert figure_name("confusion", "a/../b c") == "confusion-a-b-c"


def test_style_ends_with_the_figure() -> None:
    before = dict(matplotlib.rcParams)
    draw_losses({"training_loss": [[1, 2.0]]})

    @in_figure_style
    def fail() -> Any:
        new_plot(1, 1)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert dict(matplotlib.rcParams) == before


@pytest.mark.slow
def test_no_backend_is_chosen_for_the_process() -> None:
    code = "import sys; from mtl.figures_training import draw_losses; draw_losses({'training_loss': [[1, 2.0]]})"
    code += "; assert 'matplotlib.figure' in sys.modules; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=120)


def test_missing_matplotlib_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'needs matplotlib: `pip install "mtl-sentence-transformers\[report\]"`'):
        write_figures({"history": [{"loss": 1.0, "step": 1}]}, tmp_path)
