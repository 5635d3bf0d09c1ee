"""How `mtl verify` compares the answers of a loader with those of the reference, against numbers done by hand."""

from collections.abc import Mapping
from typing import Any

import pytest

from mtl.verification_compare import Tolerance, compare

PREDICTED: Mapping[str, Any] = {"topic": {"label": "a", "probabilities": {"a": 0.75, "b": 0.25}}, "valence": 4.0}


def changed(**fields: Any) -> dict[str, Any]:
    return {"embeddings": [[0.6, 0.8]], "predictions": [{**PREDICTED, **fields}]}


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        (changed(), 0.0),
        ({"embeddings": [[0.6, 0.8 + 5e-7]]}, 5e-7),
        (changed(valence=4.0 + 8e-6), 2e-6),  # Relative to 4.
        (changed(topic={"label": "a", "probabilities": {"a": 0.75, "b": 0.25001}}), 1e-5),
        ({"embeddings": [[float("nan"), 0.8]]}, float("inf")),
    ],
)
def test_difference_is_the_largest_of_all_numbers(answer: dict[str, Any], value: float) -> None:
    found = compare(answer, changed(), Tolerance(1e-6))
    assert found.value == pytest.approx(value, rel=1e-4)
    assert found.is_within == (value <= 1e-6)
    assert bool(found.told) != found.is_within


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (changed(topic={"label": "b", "probabilities": {"a": 0.75, "b": 0.25}}), r"\['label'\] is 'b', that of the r"),
        ({"predictions": [{"topic": PREDICTED["topic"]}]}, r"predictions\[0\] are .*those of the reference"),
        ({"embeddings": [[0.6]]}, r"have shape \(1, 1\), those of the reference \(1, 2\)"),
        ({"predictions": []}, "predictions are "),
    ],
)
def test_other_decisions_and_shapes_are_told(answer: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        compare(answer, changed(), Tolerance(1.0))


def test_cosine_is_the_mean_over_sentences() -> None:
    expected = {"embeddings": [[1.0, 0.0], [0.0, 2.0]]}
    found = compare({"embeddings": [[3.0, 0.0], [1.0, 1.0]]}, expected, Tolerance(0.9, is_cosine=True))
    assert found.value == pytest.approx((1 + 0.5**0.5) / 2)
    assert not found.is_within


def test_scores_of_one_task_are_compared_with_its_predictions() -> None:
    scores = {"scores": [{"a": 0.75, "b": 0.25}]}
    assert compare(scores, changed(), Tolerance(1e-6), task="topic").value == 0.0
    number = {"scores": [{"LABEL_0": 4.5}]}
    assert compare(number, changed(), Tolerance(1.0), task="valence").value == pytest.approx(0.125)
    with pytest.raises(ValueError, match="the model has no such task"):
        compare(scores, changed(), Tolerance(1e-6), task="mood")
