"""Parts with a known answer -> the comparison: who is helped, who is harmed, what it costs, what it must refuse."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from configuration_mtl import TaskConfig
from mtl.comparison import compare_parts
from mtl.comparison_parts import FinishedPart, PartFolder
from mtl.comparison_plan import MULTI, PAIR, PROBE, SINGLE, PlannedPart
from mtl.comparison_tables import comparison_tables
from tasks_mtl import IGNORE_INDEX, OUT_OF_SCOPE_INDEX, REGRESSION

LABELS = ("a", "b", "c")
TASKS = (TaskConfig("up", labels=LABELS), TaskConfig("down", labels=LABELS), TaskConfig("size", REGRESSION))
METRICS = {"up": "accuracy", "down": "accuracy", "size": "rmse"}
ROWS = 900
RATES = {
    MULTI: {"up": 0.85, "down": 0.70, "size": 0.5},
    SINGLE: {"up": 0.70, "down": 0.85, "size": 1.0},
    PROBE: {"up": 0.60, "down": 0.60, "size": 2.0},
}
"""Accuracy, or standard deviation of the error, of each kind of model: sharing helps `up` and `size`, harms `down`."""


def truths(seed: int = 0) -> dict[str, npt.NDArray]:
    """Returns labels of every task; a third of the rows lacks each, and some are out of scope."""
    rng = np.random.default_rng(seed)
    found: dict[str, npt.NDArray] = {name: rng.integers(3, size=ROWS) for name in ("up", "down")}
    found["up"][rng.random(ROWS) < 0.3] = IGNORE_INDEX
    found["up"][:20] = OUT_OF_SCOPE_INDEX
    found["down"][rng.random(ROWS) < 0.3] = IGNORE_INDEX
    found["size"] = np.where(rng.random(ROWS) < 0.3, np.nan, rng.normal(size=ROWS))
    return found


def said(name: str, truth: npt.NDArray, rate: float, rng: np.random.Generator) -> npt.NDArray:
    """Returns what a model of a rate says, (N, C)."""
    if name == "size":
        return (np.nan_to_num(truth) + rng.normal(scale=rate, size=ROWS))[:, None]
    wrong = (truth + rng.integers(1, 3, size=ROWS)) % 3
    return np.eye(3)[np.where(rng.random(ROWS) < rate, np.maximum(truth, 0), wrong)]


def part(kind: str, names: tuple[str, ...], seed: int | None, rates: dict[str, float], **costs: Any) -> FinishedPart:
    """Returns a finished part; one of a single task has the rows of that task alone."""
    rng = np.random.default_rng([*" ".join([kind, *names]).encode(), seed or 0])
    labels = {name: some for name, some in truths().items() if name in names}
    logits = {name: said(name, some, rates[name], rng) for name, some in labels.items()}
    given = np.any([~np.isnan(some) & (some != IGNORE_INDEX) for some in labels.values()], axis=0)
    record = {"training_seconds": 10.0, "parameters": 1000, "disk_mib": 4.0, **costs}
    record["task_configs"] = [task.to_dict() for task in TASKS if task.name in names]
    cut: Any = [{name: some[given] for name, some in both.items()} for both in (logits, labels)]
    return FinishedPart(PlannedPart(kind, names, seed), record, np.flatnonzero(given), *cut)


def parts(seeds: tuple[int, ...] = (0, 1, 2), multi: dict[str, float] | None = None) -> list[FinishedPart]:
    """Returns all parts of the seeds, and the probe."""
    names = tuple(task.name for task in TASKS)
    found = [part(MULTI, names, seed, multi or RATES[MULTI], training_seconds=20.0, parameters=1100) for seed in seeds]
    found += [part(SINGLE, (name,), seed, RATES[SINGLE]) for name in names for seed in seeds]
    return [*found, part(PROBE, names, None, RATES[PROBE])]


def compared(some: list[FinishedPart], **settings: Any) -> dict[str, Any]:
    """Returns the comparison of parts, which must be JSON."""
    results = compare_parts(some, TASKS, metrics=METRICS, resamples=200, **settings)
    return json.loads(json.dumps(results, allow_nan=False))


def test_what_helps_and_what_harms_is_found() -> None:
    results = compared(parts())
    tasks = results["tasks"]
    assert {name: task["verdict"] for name, task in tasks.items()} == {"up": "helps", "down": "harms", "size": "helps"}
    assert (results["verdict"]["decision"], results["verdict"]["split_off"]) == ("split off", ["down"])
    up, size = tasks["up"], tasks["size"]
    assert up["difference"]["low"] < 0.15 < up["difference"]["high"]
    assert up["difference"]["value"] == pytest.approx(up["multi_task"]["mean"] - up["single_task"]["mean"])
    assert up["relative_gain_percent"] == pytest.approx(100 * up["difference"]["value"] / up["single_task"]["mean"])
    # The error is halved: the difference is below 0, the gain above.
    assert size["lower_is_better"]
    assert size["difference"]["high"] < 0
    assert size["relative_gain_percent"] == pytest.approx(50, abs=5)
    assert len(up["multi_task"]["by_seed"]) == 3
    assert len(up["probe"]["by_seed"]) == 1
    assert up["difference_to_probe"]["low"] > 0
    gains = [task["relative_gain_percent"] for task in tasks.values()]
    assert results["mean_relative_gain_percent"]["value"] == pytest.approx(np.mean(gains))
    assert results["seeds"] == [0, 1, 2]


def test_a_metric_of_errors_that_rises_is_a_harm() -> None:
    results = compared(parts(multi={"up": 0.70, "down": 0.85, "size": 1.6}))
    assert results["tasks"]["size"]["verdict"] == "harms"
    assert results["verdict"]["split_off"] == ["size"]


def test_without_a_difference_nothing_is_claimed() -> None:
    results = compared(parts(multi=RATES[SINGLE]))
    assert {task["verdict"] for task in results["tasks"].values()} == {"no evidence"}
    assert results["verdict"]["decision"] == "no evidence"
    mean = results["mean_relative_gain_percent"]
    assert mean["low"] < 0 < mean["high"]
    kept = compared(parts(multi=RATES[SINGLE]), tolerance=50.0)["verdict"]
    assert kept["decision"] == "keep together"


def first_rows(some: list[FinishedPart], count: int) -> list[FinishedPart]:
    """Returns parts that were measured on the first rows of the split alone."""
    cut = []
    for one in some:
        kept = one.places < count
        both: Any = [{name: values[kept] for name, values in of.items()} for of in (one.logits, one.labels)]
        cut.append(dataclasses.replace(one, places=one.places[kept], logits=both[0], labels=both[1]))
    return cut


def test_few_rows_have_no_interval_and_agreement_on_them_excludes_no_harm() -> None:
    few = compared(first_rows(parts(seeds=(0,)), 45))["tasks"]  # Of `up`, 20 of these are out of scope.
    assert few["up"]["support"] < 20 <= few["down"]["support"]
    assert few["up"]["difference"]["low"] is None
    assert few["up"]["verdict"] == "not judged"
    assert few["down"]["difference"]["low"] is not None
    # Alike on all rows: a harm on one row of 20 would leave no trace on so few in one case of three.
    alike = {name: (1.0 if name != "size" else 0.0) for name in METRICS}
    results = compared(
        [
            *first_rows([part(MULTI, tuple(METRICS), 0, alike)], 60),
            *(first_rows([part(SINGLE, (name,), 0, alike)], 60)[0] for name in METRICS),
        ],
        tolerance=1.0,
    )
    assert results["tasks"]["down"]["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert results["verdict"]["decision"] == "no evidence"


def test_a_figure_that_is_lost_is_no_ground_to_keep() -> None:
    best = {"up": 0.99, "down": 0.99, "size": 0.1}
    whole, *rest = parts(seeds=(0,), multi=best)
    by_pearson = {**METRICS, "size": "pearson"}
    assert compare_parts([whole, *rest], TASKS, metrics=by_pearson)["verdict"]["decision"] == "keep together"
    constant = dataclasses.replace(whole, logits={**whole.logits, "size": np.ones_like(whole.logits["size"])})
    results = compare_parts([constant, *rest], TASKS, metrics=by_pearson)
    assert results["verdict"]["decision"] == "no evidence"
    assert "size has no figure at all where it has one alone" in results["verdict"]["text"]
    # The mean over the tasks is over those that have a gain, and says so.
    mean = results["mean_relative_gain_percent"]
    assert mean["tasks"] == ["up", "down"]
    gains = [results["tasks"][name]["relative_gain_percent"] for name in mean["tasks"]]
    assert mean["value"] == pytest.approx(np.mean(gains))
    assert "Mean relative gain over 2 of the 3 tasks, those with a gain in percent: +" in table_of(results)


def test_figures_are_those_of_the_rows_with_a_label() -> None:
    results = compared(parts((0,)))
    truth, own = truths(), parts((0,))
    inside = truth["up"] >= 0
    right = own[0].logits["up"][np.isin(own[0].places, np.flatnonzero(inside))].argmax(1) == truth["up"][inside]
    assert results["tasks"]["up"]["multi_task"] == {
        "mean": pytest.approx(right.mean()),
        "std": None,
        "by_seed": [pytest.approx(right.mean())],
    }
    assert results["tasks"]["up"]["support"] == inside.sum()
    assert "One seed" in results["verdict"]["text"]


def test_a_model_below_the_untuned_encoder_is_told() -> None:
    assert "untuned" not in compared(parts())["verdict"]["text"]
    text = compared(parts(multi={"up": 0.4, "down": 0.85, "size": 3.0}))["verdict"]["text"]
    assert "In up, size the multi-task model is below linear models on the untuned encoder" in text


def test_seeds_that_are_not_whole_wait() -> None:
    some = [one for one in parts() if (one.part.kind, one.part.seed) != (SINGLE, 2)]
    assert compared(some)["seeds"] == [0, 1]
    with pytest.raises(ValueError, match="No seed"):
        compared([one for one in some if one.part.kind != SINGLE])


@pytest.mark.parametrize("name", ["up", "size"])
def test_parts_that_disagree_are_refused(name: str) -> None:
    some = parts()
    place = next(index for index, one in enumerate(some) if one.part.tasks == (name,))
    labels = some[place].labels[name].copy()
    labels[np.flatnonzero(labels > 0)[0]] = 0
    some[place] = dataclasses.replace(some[place], labels={name: labels})
    with pytest.raises(ValueError, match=f"single-{name}-seed-0 was measured on other test rows or labels"):
        compared(some)
    some[place] = dataclasses.replace(some[place], places=some[place].places + 1)
    with pytest.raises(ValueError, match="other test rows"):
        compared(some)


def test_costs_by_hand() -> None:
    latency = {"multi_task": 8.0, "single_task": 20.0, "about": {"texts": 32, "device": "cpu", "repeats": 5}}
    cost = compared(parts(), latency=latency)["cost"]
    assert cost["multi_task"] == {"training_seconds": 20.0, "parameters": 1100, "disk_mib": 4.0, "latency_ms": 8.0}
    assert cost["single_task"] == {"training_seconds": 30.0, "parameters": 3000, "disk_mib": 12.0, "latency_ms": 20.0}
    assert cost["ratio"]["latency_ms"] == 2.5
    assert cost["ratio"]["parameters"] == pytest.approx(3000 / 1100)
    assert "latency_ms" not in compared(parts())["cost"]["multi_task"]


def test_transfer_by_hand() -> None:
    pairs = [part(PAIR, ("up", "down"), seed, {"up": 1.0, "down": 0.5}) for seed in (0, 1, 2)]
    results = compared([*parts(), *pairs])
    assert results["transfer"]["tasks"] == ["up", "down", "size"]
    matrix = results["transfer"]["matrix"]
    alone = results["tasks"]["up"]["single_task"]["mean"]
    assert matrix[0][1] == pytest.approx(100 * (1.0 - alone) / alone)
    assert matrix[1][0] == pytest.approx(100 * (0.5 - 0.85) / 0.85, abs=5)
    assert [matrix[place][place] for place in range(3)] == [None] * 3
    assert matrix[2][0] is None  # That pair was not trained.
    assert compared(parts())["transfer"] is None


def test_a_figure_of_zero_alone_has_no_percent() -> None:
    some = [
        dataclasses.replace(one, logits={"up": np.eye(3)[(one.labels["up"] + 1) % 3]})
        if one.part.tasks == ("up",)
        else one
        for one in parts()
    ]
    up = compared(some)["tasks"]["up"]
    assert (up["relative_gain_percent"], up["verdict"]) == (None, "not judged")
    assert up["difference"]["low"] > 0


def table_of(results: dict[str, Any]) -> str:
    """Returns a comparison as Markdown, with a plan and a machine."""
    plan = {"seeds": [0, 1, 2], "max_steps": 5, "rows_per_step": 8, "confidence_level": 0.95}
    plan["parts"] = {"all tasks": {"epochs": 1.0}}
    machine, versions = {"cpu_count": 2, "platform": "Linux"}, {"torch": "2", "transformers": "5"}
    return comparison_tables({**results, "plan": plan, "machine": machine, "versions": versions, "precision": "fp32"})


def test_tables_tell_the_figures() -> None:
    pairs = [part(PAIR, ("up", "down"), seed, {"up": 1.0, "down": 0.5}) for seed in (0, 1, 2)]
    latency = {"multi_task": 8.0, "single_task": 20.0, "about": {"texts": 32, "device": "cpu", "repeats": 5}}
    results = compared([*parts(), *pairs], latency=latency)
    text = table_of(results)
    assert "Mean relative gain over the 3 tasks: " in text
    figures = results["tasks"]["up"]
    mean, spread = figures["multi_task"]["mean"], figures["multi_task"]["std"]
    assert f"| `up` | accuracy | {mean:.4f} ± {spread:.4f} | " in text
    assert f"{figures['relative_gain_percent']:+.2f}" in text
    assert "| `size` | rmse (lower is better) |" in text
    assert text.startswith("**split off**: Split off down")
    assert "| latency, ms | 8.0 | 20.0 | 2.50 |" in text
    assert "| gain of, % | with `up` | with `down` | with `size` |" in text
    assert "5 optimizer steps of 8 rows each, seeds 0, 1, 2" in text


def test_folder_keeps_what_a_part_says(tmp_path: Path) -> None:
    own, folder = part(SINGLE, ("up",), 1, RATES[SINGLE]), PartFolder(tmp_path / "part")
    assert not folder.is_done()
    folder.begin({"seed": 1, "tasks": ["up"]})
    assert folder.other_settings({"seed": 1, "tasks": ["up"]}) == []
    assert folder.other_settings({"seed": 2, "tasks": ["up"]}) == ["seed: 1, now 2"]
    arrays = {"place": own.places, "logits.up": own.logits["up"], "labels.up": own.labels["up"]}
    folder.finish({**own.record, **dataclasses.asdict(own.part)}, arrays)
    assert folder.is_done()
    read = folder.read()
    assert read.part == own.part
    (places, labels, said_by), (own_places, own_labels, own_said) = (one.of_task("up") for one in (read, own))
    assert said_by.task == TASKS[0]
    for mine, theirs in ((places, own_places), (labels, own_labels), (said_by.logits, own_said.logits)):
        np.testing.assert_array_equal(mine, theirs)
    whole = (folder.path / "predictions.safetensors").read_bytes()
    (folder.path / "predictions.safetensors").write_bytes(whole[:-10])
    assert not folder.is_done()
    folder.remove()
    assert not folder.path.exists()


def test_a_folder_whose_removal_is_cut_off_is_not_taken_for_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, folder = part(SINGLE, ("up",), 1, RATES[SINGLE]), PartFolder(tmp_path / "part")
    folder.begin({"learning_rate": 1e-3})
    folder.finish({**own.record, **dataclasses.asdict(own.part)}, {"place": own.places})
    folder.model.mkdir()
    (folder.model / "config.json").touch()

    def killed(path: Path, *args: Any, **kwargs: Any) -> None:
        (path / "fingerprint.json").unlink(missing_ok=True)  # The order in which files go is that of the disk.
        raise KeyboardInterrupt

    monkeypatch.setattr("shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        folder.remove()
    assert not folder.is_done()
    assert folder.other_settings({"learning_rate": 1e-2}) == ["learning_rate: 0.001, now 0.01"]
