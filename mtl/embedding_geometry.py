"""What an embedding looks like from within: rank correlation, neighbours, alignment, uniformity, and a plane of it.

Every function takes unit vectors and gives plain numbers; what is undefined is `nan`, as all is of embeddings that are
not finite, such as a diverged model gives. Memory grows with the rows, and not with their square.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr
from sklearn.decomposition import PCA
from sklearn.metrics import pairwise_distances_chunked
from sklearn.neighbors import NearestNeighbors

Floats = npt.NDArray[np.floating]
Ids = npt.NDArray[np.integer]

NEIGHBOURS = 10
_BLOCK_MIB = 64


@dataclass(frozen=True)
class Purity:
    """How far nearest neighbours share a label.

    Args:
        value: Mean share of the nearest other rows that have the label of the row, 0 to 1.
        chance: What that share is on average when neighbours are drawn at random.
        neighbours: Count of neighbours of a row.
        rows: Count of rows.
    """

    value: float
    chance: float
    neighbours: int
    rows: int


@dataclass(frozen=True, eq=False)
class Plane:
    """An embedding in the two directions in which it varies most.

    Args:
        points: The coordinates. Shape (N, 2).
        explained: Share of the variance along each of the two; None where nothing varies.
    """

    points: Floats
    explained: tuple[float, float] | None


def rank_correlation(first: Floats, second: Floats, scores: Floats) -> float:
    """Returns Spearman's correlation of the cosines of pairs and their scores; ties have their mean rank.

    Args:
        first: Unit embeddings of the first texts. Shape (P, H).
        second: Unit embeddings of the second texts. Shape (P, H).
        scores: How near the two are to a person. Shape (P,).
    """
    cosines = np.einsum("ph,ph->p", first.astype(np.float64), second.astype(np.float64))  # (P,)
    if len(scores) < 2 or np.ptp(cosines) == 0 or np.ptp(scores) == 0:
        return np.nan
    return float(spearmanr(cosines, scores).statistic)


def neighbour_purity(embeddings: Floats, classes: Ids, *, neighbours: int = NEIGHBOURS) -> Purity:
    """Returns in how far a row's nearest neighbours by cosine, without itself, are of its class.

    A class with fewer other rows than there are neighbours cannot reach 1.

    Args:
        embeddings: Unit embeddings. Shape (N, H).
        classes: Class ids. Shape (N,).
        neighbours: How many neighbours count, at most N - 1.
    """
    rows = len(classes)
    neighbours = min(neighbours, rows - 1)
    if neighbours < 1 or not np.isfinite(embeddings).all():
        return Purity(np.nan, np.nan, max(neighbours, 0), rows)
    # Euclidean distance orders unit vectors as the cosine does; without a query no row is its own neighbour.
    search = NearestNeighbors(n_neighbors=neighbours, algorithm="brute").fit(embeddings)
    nearest = search.kneighbors(return_distance=False)  # (N, K)
    _, counts = np.unique(classes, return_counts=True)
    chance = float((counts * (counts - 1)).sum() / (rows * (rows - 1)))
    return Purity(float((classes[nearest] == classes[:, None]).mean()), chance, neighbours, rows)


def class_alignment(embeddings: Floats, classes: Ids) -> float:
    """Returns the mean squared distance of all pairs of rows of one class, 0 to 4: 0 where classes are points.

    It is the alignment of Wang and Isola, "Understanding Contrastive Representation Learning through Alignment and
    Uniformity on the Hypersphere", ICML 2020, with alpha = 2, and rows of one class as positive pairs. A pair counts
    as any other, so large classes count more.

    Args:
        embeddings: Unit embeddings. Shape (N, H).
        classes: Class ids. Shape (N,).
    """
    _, places, counts = np.unique(classes, return_inverse=True, return_counts=True)
    pairs = int((counts * (counts - 1)).sum())
    if not pairs:
        return np.nan
    # Over ordered pairs of a class with n rows and the sum s, |x - y|^2 sums up to 2 n (sum of |x|^2) - 2 |s|^2.
    exact = embeddings.astype(np.float64)  # (N, H)
    sums = np.zeros((len(counts), exact.shape[1]))  # (C, H)
    np.add.at(sums, places, exact)
    squares = np.bincount(places, weights=np.square(exact).sum(axis=1))  # (C,)
    return float(2 * (counts * squares - np.square(sums).sum(axis=1)).sum() / pairs)


def pair_alignment(first: Floats, second: Floats) -> float:
    """Returns the mean squared distance of positive pairs, 0 to 4; see [`class_alignment`].

    Args:
        first: Unit embeddings of the first texts. Shape (P, H).
        second: Unit embeddings of the second texts. Shape (P, H).
    """
    if not len(first):
        return np.nan
    return float(np.square(first.astype(np.float64) - second).sum(axis=1).mean())


def uniformity(embeddings: Floats) -> float:
    """Returns the log of the mean of exp(-2 |x - y|^2) over all pairs of rows: 0 for one point, lower if spread out.

    It is the uniformity of Wang and Isola, ICML 2020 (see [`class_alignment`]), with t = 2. On a sphere of many
    dimensions it cannot fall much below -4.

    Args:
        embeddings: Unit embeddings. Shape (N, H).
    """
    rows = len(embeddings)
    if rows < 2 or not np.isfinite(embeddings).all():
        return np.nan
    blocks = pairwise_distances_chunked(
        embeddings.astype(np.float64),
        metric="euclidean",
        working_memory=_BLOCK_MIB,
        reduce_func=lambda distances, _: np.exp(-2 * np.square(distances)).sum(axis=1),
    )
    total = sum(float(block.sum()) for block in blocks) - rows  # Each row is at distance 0 of itself.
    return float(np.log(total / (rows * (rows - 1))))


def plane(embeddings: Floats) -> Plane:
    """Returns the first two principal components of an embedding, without randomness; one point if not all is finite.

    Args:
        embeddings: The embeddings. Shape (N, H).
    """
    rows = len(embeddings)
    if rows < 2 or not np.isfinite(embeddings).all() or not np.ptp(embeddings, axis=0).any():
        return Plane(np.zeros((rows, 2)), None)
    components = min(2, *embeddings.shape)
    method = PCA(components, svd_solver="full")
    points = np.zeros((rows, 2))  # (N, 2)
    points[:, :components] = method.fit_transform(embeddings.astype(np.float64))
    shares = [*method.explained_variance_ratio_.tolist(), 0.0]
    return Plane(points, (shares[0], shares[1]))
