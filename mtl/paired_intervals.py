"""How far a difference between two models can be trusted: chance of the test rows, and chance of the trainings.

Rows are drawn again by the bootstrap (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13), the
same rows for both models. Seeds are not: of three seeds drawn with replacement, all are alike so often that the
percentiles are but the least and the greatest, and where trainings differ much such an interval misses the truth in
one case of four, in place of one of twenty. Their part is Welch's t interval ("The generalization of Student's problem
when several different population variances are involved", Biometrika 1947), and both parts are put together in
quadrature (Zou and Donner, "Construction of confidence limits about effect measures: a general approach", Statistics
in Medicine 2008).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.stats

from configuration_mtl import TaskConfig
from mtl.metrics import compute_task_metrics
from tasks_mtl import CONTRASTIVE, POSITIVE_PAIRS, SINGLE_LABEL

WITHOUT_INTERVAL = (POSITIVE_PAIRS, CONTRASTIVE)
"""Types whose metric sets the rows against each other: a row that is drawn twice would find itself."""
_MOST_UNDEFINED = 0.05
"""Share of the resamples in which a metric may be undefined; what is left speaks for all of them."""
_RESAMPLES_AT_ONCE = 100


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval.

    Args:
        value: The figure; None if it is undefined.
        low: Lower end; None if there is no interval.
        high: Upper end.
    """

    value: float | None
    low: float | None = None
    high: float | None = None

    def times(self, factor: float) -> "Estimate":
        """Returns the figure in another unit; a factor below 0 turns it round."""
        ends = [None if end is None else end * factor for end in (self.low, self.high)]
        low, high = ends if factor >= 0 else reversed(ends)
        return Estimate(None if self.value is None else self.value * factor, low, high)


@dataclass(frozen=True, eq=False)
class PairedModels:
    """What two kinds of model, trained with the same seeds, say of the rows that have a label of a task.

    Args:
        task: The task.
        metric: Key of the metric by which they are compared.
        places: Place of each row among all rows of the split, so that tasks share the rows that are drawn. Shape (N,).
        labels: Labels, see `compute_task_metrics`. Shape (N,) or (N, C).
        logits: Outputs of both for each seed. Shape (N, C) each.
    """

    task: TaskConfig
    metric: str
    places: npt.NDArray[np.int64]
    labels: npt.NDArray
    logits: Sequence[tuple[npt.NDArray, npt.NDArray]]

    def scores(self, rows: npt.NDArray[np.int64] | slice = slice(None)) -> npt.NDArray[np.float64]:
        """Returns the metric of both models on some rows. Shape (2, seeds)."""
        return np.array([[self.score(some, rows) for some in both] for both in self.logits]).T

    def score(self, logits: npt.NDArray, rows: npt.NDArray[np.int64] | slice = slice(None)) -> float:
        """Returns the metric of some outputs; nan if it is undefined."""
        metrics = compute_task_metrics(self.task.problem_type, logits[rows], self.labels[rows])
        return float(metrics.get(self.metric, np.nan))


def drawn_differences(
    pairs: Sequence[PairedModels], *, resamples: int, seed: int
) -> dict[str, npt.NDArray[np.float64]]:
    """Returns the mean difference over the seeds of each task in every resample of the rows. Shape (resamples,) each.

    A resample draws as many rows as have a label of any of the tasks, with replacement, and each task is measured on
    those of them that have its label. So what tasks that label the same rows have in common is in it.

    Args:
        pairs: What is compared, of each task; tasks without an interval are left out.
        resamples: Count of resamples.
        seed: Seed of the draws.
    """
    pairs = [pair for pair in pairs if pair.task.problem_type not in WITHOUT_INTERVAL]
    if not pairs:
        return {}
    union = np.unique(np.concatenate([pair.places for pair in pairs]))  # (M,)
    columns = {pair.task.name: np.searchsorted(union, pair.places) for pair in pairs}  # (N,) each
    found: dict[str, list[npt.NDArray[np.float64]]] = {pair.task.name: [] for pair in pairs}
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, _RESAMPLES_AT_ONCE):
        draws = rng.integers(len(union), size=(min(_RESAMPLES_AT_ONCE, resamples - start), len(union)))
        counts = np.stack([np.bincount(some, minlength=len(union)) for some in draws])  # (R, M)
        for pair in pairs:
            found[pair.task.name].append(_mean_differences(pair, counts[:, columns[pair.task.name]]))
    return {name: np.concatenate(some) for name, some in found.items()}


def _mean_differences(pair: PairedModels, counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Returns the mean difference over the seeds, (R,), where rows count as often as `counts`, (R, N), says."""
    if pair.metric == "accuracy" and pair.task.problem_type == SINGLE_LABEL:
        # A mean over the rows: one product in place of a metric for each resample.
        right = [[(some.argmax(axis=1) == pair.labels).astype(np.float64) for some in both] for both in pair.logits]
        gained = np.mean([first - second for first, second in right], axis=0)  # (N,)
        totals = counts.sum(axis=1)  # (R,)
        return np.divide(counts @ gained, totals, out=np.full(len(counts), np.nan), where=totals > 0)
    rows = np.arange(len(pair.labels))
    means = [pair.scores(np.repeat(rows, some)).mean(axis=1) for some in counts]
    return np.array([first - second for first, second in means])


def interval(scores: npt.NDArray[np.float64], drawn: npt.NDArray[np.float64] | None, *, level: float) -> Estimate:
    """Returns the mean difference over the seeds with its interval.

    The trainings of two models are taken as independent: what a common seed gives to both makes the interval wider
    than it had to be, not narrower. With one seed it is that of the rows alone, and holds for these very models.

    Args:
        scores: The figure of both models for each seed. Shape (2, seeds).
        drawn: The mean difference in resamples of the rows; None for no interval. Shape (resamples,).
        level: Probability with which the interval is to hold.
    """
    value = float(np.subtract(*scores.mean(axis=1)))
    if math.isnan(value):
        return Estimate(None)
    if drawn is None or np.isnan(drawn).mean() > _MOST_UNDEFINED:
        return Estimate(value)
    tail = (1 - level) / 2
    low, high = (float(end) for end in np.nanquantile(drawn, [tail, 1 - tail]))
    half = _of_trainings(scores, tail) if scores.shape[1] > 1 else 0.0
    # A skewed resampling may lie wholly on one side of the figure.
    below, above = max(value - low, 0.0), max(high - value, 0.0)
    return Estimate(value, value - math.hypot(below, half), value + math.hypot(above, half))


def _of_trainings(scores: npt.NDArray[np.float64], tail: float) -> float:
    """Returns half of Welch's interval for the difference of two means over seeds."""
    seeds = scores.shape[1]
    variances = scores.var(axis=1, ddof=1) / seeds  # (2,), of the means
    total = float(variances.sum())
    if total == 0.0:
        return 0.0
    freedom = total**2 / float((variances**2).sum() / (seeds - 1))
    return float(scipy.stats.t.ppf(1 - tail, freedom)) * math.sqrt(total)
