"""The verdict: from gains with intervals to a decision, none of which may be wrong."""

import dataclasses

import pytest

from mtl.verdict import Gain, judge, judge_task

COST = "one model in place of 3 is 30 MiB in place of 90"
HELPED, HARMED = Gain("a", 2.0, 1.0, 3.0), Gain("b", -2.0, -3.0, -1.0)
OPEN, TIGHT = Gain("c", 0.5, -1.5, 2.5), Gain("d", 0.1, -0.2, 0.4)
SAME, BARE, UNDEFINED = Gain("e", 0.0, 0.0, 0.0), Gain("f", -5.0), Gain("g", None)
SLIGHTLY = Gain("h", -0.3, -0.5, -0.1)
RISEN, LOST = Gain("i", 0.4, 0.0, 1.2), Gain("j", None, is_lost=True)


@pytest.mark.parametrize(
    ("gain", "verdict", "told"),
    [
        (HELPED, "helps", "+2.00 % [+1.00, +3.00]: the interval is above 0"),
        (HARMED, "harms", "below 0"),
        (OPEN, "no evidence", "a harm of more than 1.50 % is excluded, none smaller"),
        (SAME, "no evidence", "differ on too few rows to exclude a harm"),
        (RISEN, "no evidence", "differ on too few rows to exclude a harm"),
        (dataclasses.replace(SAME, low=1e-15, high=1e-15), "no evidence", "too few rows"),
        (LOST, "not judged", "undefined, though it is not so alone"),
        (BARE, "not judged", "no interval"),
        (UNDEFINED, "not judged", "undefined"),
    ],
)
def test_task(gain: Gain, verdict: str, told: str) -> None:
    judged = judge_task(gain)
    assert judged.verdict == verdict
    assert told in judged.reason


@pytest.mark.parametrize(
    ("gains", "tolerance", "decision", "split_off", "told"),
    [
        ([HELPED, HARMED], 0.0, "split off", ["b"], "b loses 2.00 %"),
        ([HELPED, HARMED], 0.9, "split off", ["b"], "chance of the test rows and the trainings"),
        # A harm of 1 % is proven, one of more than 1 % is not, and one of 3 % is not excluded.
        ([HELPED, HARMED], 1.0, "no evidence", [], "b is harmed, but by how much is open"),
        ([HELPED, HARMED], 3.0, "keep together", [], "b loses 2.00 %, within the accepted 3 %"),
        ([HELPED, OPEN], 0.0, "keep together", [], "nor ruled out: up to 1.50 % for c"),
        ([HELPED, TIGHT], 0.5, "keep together", [], "Sharing helps a"),
        ([OPEN, TIGHT], 0.0, "no evidence", [], "Harms of more than 1.50 % (c) are excluded"),
        ([OPEN, TIGHT], 1.5, "keep together", [], "harms no task by more than the accepted 1.5 %"),
        # What no row speaks against is not excluded, whatever is accepted.
        ([SAME, SAME], 0.0, "no evidence", [], "too few test rows to exclude a harm for e and e"),
        ([RISEN, TIGHT], 1.0, "no evidence", [], "too few test rows to exclude a harm for i"),
        ([RISEN, HELPED], 1.0, "keep together", [], "nor ruled out: of a size that so few rows do not tell for i"),
        ([HELPED], 0.0, "keep together", [], "Sharing helps a, and one model"),
        ([HELPED, LOST], 5.0, "no evidence", [], "j has no figure at all where it has one alone"),
        ([HELPED, HARMED, LOST], 0.0, "split off", ["b"], "j has no figure at all where it has one alone"),
        ([SLIGHTLY, TIGHT], 0.5, "keep together", [], "the accepted 0.5 %"),
        ([SLIGHTLY, TIGHT], 0.0, "split off", ["h"], "No two tasks are left to share a model"),
        ([SLIGHTLY, HARMED, TIGHT, OPEN], 0.0, "split off", ["h", "b"], "Train d and c together"),
        ([BARE, HELPED], 0.0, "keep together", [], "Not judged: f."),
        ([BARE, UNDEFINED], 0.0, "no evidence", [], "no task has a metric with an interval"),
    ],
)
def test_decision(gains: list[Gain], tolerance: float, decision: str, split_off: list[str], told: str) -> None:
    verdict = judge(gains, tolerance=tolerance, num_seeds=3, cost=COST)
    assert (verdict.decision, list(verdict.split_off)) == (decision, split_off)
    assert told in verdict.text
    hints = ("if not,", "would be gained:")
    assert (COST in verdict.text) == (decision == "keep together" or any(hint in verdict.text for hint in hints))


@pytest.mark.parametrize(
    ("num_seeds", "told"), [(1, "One seed: the intervals hold for these very models"), (2, "Two seeds"), (3, None)]
)
def test_few_seeds_are_told(num_seeds: int, told: str | None) -> None:
    text = judge([HELPED, TIGHT], num_seeds=num_seeds, cost=COST).text
    assert "The intervals of the 2 tasks hold together with 95 %" in text
    assert (told in text) if told else ("seed" not in text)
    harm = judge([HARMED, TIGHT], num_seeds=num_seeds, cost=COST).text
    assert ("and the trainings" in harm) == (num_seeds > 1)  # One seed knows nothing of them.
