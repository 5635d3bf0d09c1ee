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
from mtl.bootstrap import resampled_counts
from mtl.evaluation import EvaluationMetrics
from mtl.weighted_metrics import Weighing, weighing
from tasks_mtl import TRIPLETS

_MOST_UNDEFINED = 0.05
"""Share of the resamples in which a metric may be undefined; what is left speaks for all of them."""
_CELLS_AT_ONCE = 500_000


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
class Said:
    """What a model says of the rows of a task.

    Args:
        task: The task, with the thresholds by which this model decides.
        logits: Its outputs. Shape (N, C).
    """

    task: TaskConfig
    logits: npt.NDArray

    def score(self, labels: npt.NDArray, metric: str) -> float:
        """Returns a metric of it; nan if it is undefined."""
        name = self.task.name
        metrics = EvaluationMetrics([self.task]).by_task({name: self.logits}, {name: labels})[name]
        return float(metrics.get(metric, np.nan))

    def weighing(self, labels: npt.NDArray) -> Weighing | None:
        """Returns the function that gives its metrics by how often rows count; None where these can have no interval.

        That is where an output is not finite, or a metric sets the rows against each other, so that a row which is
        drawn twice would find itself.
        """
        # A triplet without a negative has nan in its place.
        needed = self.logits[:, :1] if self.task.problem_type == TRIPLETS else self.logits
        return weighing(self.task, self.logits, labels) if np.isfinite(needed).all() else None


@dataclass(frozen=True, eq=False)
class PairedModels:
    """What two kinds of model, trained with the same seeds, say of the rows that have a label of a task.

    Args:
        name: Name of the task.
        metric: Key of the metric by which they are compared.
        places: Place of each row among all rows of the split, so that tasks share the rows that are drawn. Shape (N,).
        labels: Labels, none of them missing, see `mtl.predictions`. Shape (N,) or (N, C).
        models: What both say, for each seed.
    """

    name: str
    metric: str
    places: npt.NDArray[np.int64]
    labels: npt.NDArray
    models: Sequence[tuple[Said, Said]]

    def scores(self) -> npt.NDArray[np.float64]:
        """Returns the metric of both models. Shape (2, seeds)."""
        return np.array([[model.score(self.labels, self.metric) for model in both] for both in self.models]).T

    def weighings(self) -> list[list[Weighing]] | None:
        """Returns for each seed what gives both models' metrics by how often rows count, if all have intervals."""
        found = [[model.weighing(self.labels) for model in both] for both in self.models]
        known = [[one for one in both if one is not None] for both in found]
        return known if known == found else None


def drawn_differences(
    pairs: Sequence[PairedModels], *, resamples: int, seed: int
) -> dict[str, npt.NDArray[np.float64]]:
    """Returns the mean difference over the seeds of each task in every resample of the rows. Shape (resamples,) each.

    A resample draws as many rows as have a label of any of the tasks, with replacement, and each task is measured on
    those of them that have its label. So what tasks that label the same rows have in common is in it.

    Args:
        pairs: What is compared, of each task; tasks that can have no interval are left out.
        resamples: Count of resamples.
        seed: Seed of the draws.
    """
    known = [(pair, functions) for pair in pairs if (functions := pair.weighings()) is not None]
    if not known:
        return {}
    union = np.unique(np.concatenate([pair.places for pair, _ in known]))  # (M,)
    columns = {pair.name: np.searchsorted(union, pair.places) for pair, _ in known}  # (N,) each
    found: dict[str, list[npt.NDArray[np.float64]]] = {pair.name: [] for pair, _ in known}
    rng = np.random.default_rng(seed)
    at_once = max(1, _CELLS_AT_ONCE // len(union))
    for start in range(0, resamples, at_once):
        counts = resampled_counts(rng, min(at_once, resamples - start), len(union))  # (R, M)
        for pair, functions in known:
            mine = counts[:, columns[pair.name]]  # (R, N)
            with np.errstate(divide="ignore", invalid="ignore"):  # A draw without a row of the task is nan.
                drawn = [[weighed(mine)[pair.metric] for weighed in both] for both in functions]
            first, second = np.mean(drawn, axis=0)  # (R,) each
            found[pair.name].append(first - second)
    return {name: np.concatenate(some) for name, some in found.items()}


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
