"""Figures of an embedding: by hand in the plane, against brute force, and against the library's own functions."""

import itertools
import math

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import spearmanr
from sklearn.preprocessing import normalize

from mtl.embedding_geometry import (
    class_alignment,
    neighbour_purity,
    pair_alignment,
    plane,
    rank_correlation,
    uniformity,
)

Floats = npt.NDArray[np.floating]


def degrees(*angles: float) -> Floats:
    """Returns unit vectors in the plane at these angles, so that distances can be read off."""
    radians = np.radians(angles)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def units(count: int, width: int = 8, seed: int = 0) -> Floats:
    return normalize(np.random.default_rng(seed).normal(size=(count, width))).astype(np.float32)


def classes_of(count: int, classes: int, seed: int = 1) -> npt.NDArray[np.int64]:
    return np.random.default_rng(seed).integers(classes, size=count)


def test_rank_correlation_by_hand() -> None:
    # Cosines 1, 1/2, 0 and -1 have the ranks 4, 3, 2, 1; the scores 5, 1, 2, 0 the ranks 4, 2, 3, 1. The squared
    # differences sum up to 2, so it is 1 - 6 * 2 / (4 * 15).
    value = rank_correlation(degrees(0, 0, 0, 0), degrees(0, 60, 90, 180), np.array([5.0, 1.0, 2.0, 0.0]))
    assert value == pytest.approx(0.8)


def test_rank_correlation_is_that_of_scipy_with_ties() -> None:
    first, second, scores = units(50), units(50, seed=2), np.arange(50) % 4 / 2
    expected = spearmanr((first * second).sum(axis=1), scores).statistic
    assert rank_correlation(first, second, scores) == pytest.approx(expected, abs=1e-6)  # Sums in float32.


@pytest.mark.parametrize("scores", [[1.0], [2.0, 2.0]])
def test_rank_correlation_that_is_undefined(scores: list[float]) -> None:
    assert math.isnan(rank_correlation(units(len(scores)), units(len(scores), seed=2), np.array(scores)))


def test_purity_by_hand() -> None:
    # At 0, 10 and 30 degrees class 0, at 80 degrees class 1. The two nearest: of 0 both of its class, of 10 too, of 30
    # too, of 80 none: 6 of 8. By chance one class of 3 in 4 rows: 3 * 2 / (4 * 3).
    found = neighbour_purity(degrees(0, 10, 30, 80), np.array([0, 0, 0, 1]), neighbours=2)
    assert (found.value, found.chance, found.neighbours, found.rows) == (0.75, 0.5, 2, 4)


@pytest.mark.parametrize("neighbours", [1, 10])
def test_purity_is_that_of_all_distances_sorted(neighbours: int) -> None:
    embeddings, classes = units(300), classes_of(300, 4)
    cosines = embeddings.astype(np.float64) @ embeddings.T.astype(np.float64)
    shares = []
    for row in range(300):
        others = sorted((other for other in range(300) if other != row), key=lambda other: -cosines[row, other])
        shares.append(np.mean([classes[other] == classes[row] for other in others[:neighbours]]))
    found = neighbour_purity(embeddings, classes, neighbours=neighbours)
    assert found.value == pytest.approx(np.mean(shares), abs=1e-12)
    pairs = [classes[a] == classes[b] for a, b in itertools.combinations(range(300), 2)]
    assert found.chance == pytest.approx(np.mean(pairs), abs=1e-12)


def test_purity_of_equal_texts_leaves_each_row_out() -> None:
    # Twelve copies of one text, each a class of its own: only the row itself could share its class.
    found = neighbour_purity(degrees(*[0] * 12), np.arange(12), neighbours=3)
    assert found.value == 0.0


@pytest.mark.parametrize(("rows", "neighbours"), [(0, 0), (1, 0), (2, 1)])
def test_purity_of_few_rows(rows: int, neighbours: int) -> None:
    found = neighbour_purity(units(5)[:rows], np.zeros(rows, np.int64))
    assert found.neighbours == neighbours
    assert math.isnan(found.value) == (rows < 2)


def test_alignment_by_hand() -> None:
    # At right angles the squared distance is 2, at 60 degrees 1, at 180 degrees 4. Class 1 has three pairs.
    embeddings = degrees(0, 90, 0, 60, 180)
    assert class_alignment(embeddings[:2], np.array([0, 0])) == pytest.approx(2.0)
    expected = (2 + 1 + 4 + (2 - 2 * math.cos(math.radians(120)))) / 4
    assert class_alignment(embeddings, np.array([0, 0, 1, 1, 1])) == pytest.approx(expected, abs=1e-6)
    assert math.isnan(class_alignment(embeddings[:2], np.array([0, 1])))
    assert pair_alignment(degrees(0, 0), degrees(60, 180)) == pytest.approx(2.5)
    assert math.isnan(pair_alignment(degrees(), degrees()))


def test_alignment_is_that_of_all_pairs() -> None:
    embeddings, classes = units(120), classes_of(120, 5)
    pairs = [(a, b) for a, b in itertools.combinations(range(120), 2) if classes[a] == classes[b]]
    expected = np.mean([np.square(embeddings[a].astype(np.float64) - embeddings[b]).sum() for a, b in pairs])
    assert class_alignment(embeddings, classes) == pytest.approx(expected, rel=1e-9)


def test_uniformity_by_hand() -> None:
    assert uniformity(degrees(0, 180)) == pytest.approx(-8.0, abs=1e-6)  # One pair, at the squared distance 4.
    assert uniformity(degrees(20, 20, 20)) == pytest.approx(0.0, abs=1e-6)
    assert math.isnan(uniformity(degrees(0)))


def test_embeddings_of_a_diverged_model_have_no_figures() -> None:
    broken = np.full((12, 3), np.nan, dtype=np.float32)
    classes = np.arange(12) % 2
    assert math.isnan(uniformity(broken))
    assert math.isnan(class_alignment(broken, classes))
    purity = neighbour_purity(broken, classes)
    assert math.isnan(purity.value)
    assert (purity.neighbours, purity.rows) == (10, 12)
    found = plane(broken)
    assert found.explained is None
    assert found.points.tolist() == [[0.0, 0.0]] * 12


def test_uniformity_is_that_of_all_pairs_in_any_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings = units(400, width=16)
    kernel = [
        math.exp(-2 * np.square(a.astype(np.float64) - b).sum()) for a, b in itertools.combinations(embeddings, 2)
    ]
    expected = math.log(np.mean(kernel))
    assert uniformity(embeddings) == pytest.approx(expected, rel=1e-9)
    monkeypatch.setattr("mtl.embedding_geometry._BLOCK_MIB", 0.05)  # 16 rows of 400 distances at a time.
    assert uniformity(embeddings) == pytest.approx(expected, rel=1e-9)


def test_plane_finds_the_directions_of_most_variance() -> None:
    spread = np.zeros((4, 5))
    spread[:, 3], spread[:, 1] = [-3, -3, 3, 3], [-1, 1, -1, 1]
    found = plane(spread + 7)
    assert np.abs(found.points) == pytest.approx(np.abs(spread[:, [3, 1]]), abs=1e-9)
    assert found.explained == pytest.approx((0.9, 0.1))  # Variances 9 and 1.
    assert np.array_equal(found.points, plane(spread + 7).points)


def test_plane_of_what_does_not_vary() -> None:
    for embeddings in (degrees(), degrees(5), degrees(5, 5, 5)):
        found = plane(embeddings)
        assert found.points.shape == (len(embeddings), 2)
        assert not found.points.any()
        assert found.explained is None
    assert plane(np.array([[1.0], [3.0]])).explained == (1.0, 0.0)
