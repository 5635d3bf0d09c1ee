"""The metrics of `mtl.metrics` where rows count several times, for many counts at once: what a bootstrap needs.

A row that is drawn k times counts as k rows. Each function here gives just what the metric's `score` gives for the
repeated rows, without repeating them: sums over rows become products of the counts with a matrix, (R, N) @ (N, C).
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import scipy.sparse
import torch

from classification_mtl import chosen_labels, class_ids
from configuration_mtl import TaskConfig
from tasks_mtl import MULTI_LABEL, ORDINAL, REGRESSION, SCORED_PAIRS, SINGLE_LABEL, TRIPLETS

Floats = npt.NDArray[np.float64]
Scores = dict[str, Floats]
Weighing = Callable[[Floats], Scores]


def labelled_rows(labels: npt.NDArray) -> npt.NDArray[np.bool_]:
    """Returns which rows have a label, (N,), from class ids, (N,), or floats with nan for missing, (N,) or (N, C)."""
    if labels.dtype.kind == "f":
        return ~np.isnan(labels).reshape(len(labels), -1).all(axis=1)
    return labels >= 0


def weighing(task: TaskConfig, logits: npt.NDArray, labels: npt.NDArray) -> Weighing | None:
    """Returns the function that gives a task's metrics, (R,) each, from how often each row counts, (R, N).

    Args:
        task: The task.
        logits: Outputs of the rows, all finite. Shape (N, C), for ordinal classification (N, C - 1).
        labels: Labels, at least one a row: class ids, (N,); floats, (N,) or (N, C), with nan for a missing cell.

    Returns:
        The function; None for a type whose metric sets the rows against each other, so that a row that is drawn twice
        would find itself. An undefined metric is nan.
    """
    kind = _KINDS.get(task.problem_type)
    return None if kind is None else kind(task, np.asarray(logits), np.asarray(labels))


def _single_label(task: TaskConfig, logits: npt.NDArray, labels: npt.NDArray) -> Weighing:
    predicted = class_ids(task, torch.from_numpy(logits)).numpy()  # (N,)
    said, true = (_one_hot(ids, logits.shape[1]) for ids in (predicted, labels))  # (N, C) each
    hits = said.multiply(true).tocsr()  # (N, C)

    def weighed(counts: Floats) -> Scores:
        total = counts.sum(axis=1)  # (R,)
        tp, p, t = counts @ hits, counts @ said, counts @ true  # (R, C) each
        right = tp.sum(axis=1)  # (R,)
        return {"accuracy": _over(right, total), "f1_macro": _macro_f1(tp, p + t), "mcc": _mcc(right, total, p, t)}

    return weighed


def _mcc(right: Floats, total: Floats, p: Floats, t: Floats) -> Floats:
    # Gorodkin 2004 by its sums; a constant side is 0 / 0, which the metric calls 0.
    covariance = right * total - (p * t).sum(axis=1)
    spread = (total**2 - (p**2).sum(axis=1)) * (total**2 - (t**2).sum(axis=1))
    return np.divide(covariance, np.sqrt(spread), out=np.zeros_like(right), where=spread > 0)


def _ordinal(task: TaskConfig, logits: npt.NDArray, labels: npt.NDArray) -> Weighing:
    predicted = class_ids(task, torch.from_numpy(logits)).numpy()  # (N,)
    classes = logits.shape[1] + 1
    said, true = _one_hot(predicted, classes), _one_hot(labels, classes)  # (N, C) each
    distance = np.abs(predicted - labels).astype(np.float64)  # (N,)
    ranks = np.arange(classes)
    squares = np.square(ranks[:, None] - ranks).astype(np.float64)  # (C, C)

    def weighed(counts: Floats) -> Scores:
        total = counts.sum(axis=1)  # (R,)
        p, t = counts @ said, counts @ true  # (R, C) each
        by_chance = ((t @ squares) * p).sum(axis=1) / total  # (R,); 0 where both sides are of one class
        qwk = 1 - _over(counts @ distance**2, by_chance)
        return {
            "qwk": qwk,
            "accuracy": counts @ (distance == 0).astype(np.float64) / total,
            "mae": counts @ distance / total,
        }

    return weighed


def _multi_label(task: TaskConfig, logits: npt.NDArray, labels: npt.NDArray) -> Weighing:
    known = ~np.isnan(labels)  # (N, C)
    positive = labels == 1  # (N, C), False where missing
    chosen = chosen_labels(task, torch.from_numpy(logits)).numpy() & known  # (N, C)
    both, said, true = (some.astype(np.float64) for some in (chosen & positive, chosen, positive))  # (N, C) each

    def weighed(counts: Floats) -> Scores:
        tp, p, t = counts @ both, counts @ said, counts @ true  # (R, C) each
        precisions = [
            _average_precision(logits[rows, column], positive[rows, column], counts[:, rows])
            for column, rows in enumerate(known.T)
        ]
        return {
            "f1_micro": _over(2 * tp.sum(axis=1), (p + t).sum(axis=1)),
            "f1_macro": _macro_f1(tp, p + t),
            "map": _mean_of_defined(np.stack(precisions, axis=1)),
        }

    return weighed


def _average_precision(scores: npt.NDArray, positive: npt.NDArray[np.bool_], counts: Floats) -> Floats:
    """Returns the area under the steps of precision over recall, (R,); nan without a positive or a negative row."""
    if not len(scores):
        return np.full(len(counts), np.nan)
    order = np.argsort(-scores, kind="stable")  # (N,)
    group = np.append(0, np.cumsum(np.diff(scores[order]) != 0))  # (N,), the same number for rows that tie.
    places = np.flatnonzero(positive[order])  # (P,)
    # Precision counts only where recall rises: at the end of each of the G groups that have a positive row.
    groups, firsts = np.unique(group[places], return_index=True)  # (G,) each
    if not len(groups):
        return np.full(len(counts), np.nan)
    ends = np.searchsorted(group, groups, side="right") - 1  # (G,)
    drawn = counts[:, order]  # (R, N)
    taken = np.cumsum(drawn, axis=1)  # (R, N)
    gained = np.add.reduceat(drawn[:, places], firsts, axis=1)  # (R, G)
    found = np.cumsum(gained, axis=1)  # (R, G)
    all_positive, all_rows = found[:, -1], taken[:, -1]  # (R,) each
    precision = _over(found, taken[:, ends], undefined=0.0)  # (R, G)
    area = _over((precision * gained).sum(axis=1), all_positive)
    return np.where(all_positive < all_rows, area, np.nan)


def _numbers(task: TaskConfig, logits: npt.NDArray, labels: npt.NDArray) -> Weighing:
    outputs, targets = (np.atleast_2d(some.astype(np.float64).T).T for some in (logits, labels))  # (N, C) each
    known = [~np.isnan(column) for column in targets.T]  # (N,) each
    columns = [(outputs[rows, place], targets[rows, place], rows) for place, rows in enumerate(known) if rows.any()]

    def weighed(counts: Floats) -> Scores:
        found: dict[str, list[Floats]] = {"pearson": [], "spearman": []}
        if task.problem_type == REGRESSION:
            found["rmse"] = []
        for said, true, rows in columns:
            some = counts[:, rows]  # (R, n)
            plain, ranked = ([kind(side, some) for side in (said, true)] for kind in (_repeated, _ranks))
            varies = _varies(said, some) & _varies(true, some)  # (R,)
            for key, both in (("pearson", plain), ("spearman", ranked)):
                found[key].append(np.where(varies, _correlation(both, some), np.nan))
            if "rmse" in found:
                found["rmse"].append(np.sqrt(_over(some @ (said - true) ** 2, some.sum(axis=1))))
        # An output of which a resample has no row is left out, one in which the figure is undefined is not.
        drawn = np.stack([counts[:, rows].sum(axis=1) > 0 for _, _, rows in columns])  # (C, R)
        return {key: _mean_where(np.stack(values), drawn) for key, values in found.items()}

    return weighed


def _ranks(values: Floats, counts: Floats) -> Floats:
    """Returns the rank of each row among the drawn ones, ties at their mean. Shape (R, N)."""
    _, groups = np.unique(values, return_inverse=True)  # (N,)
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    sizes = np.add.reduceat(counts[:, order], starts, axis=1)  # (R, groups)
    return (np.cumsum(sizes, axis=1) - (sizes - 1) / 2)[:, groups]


def _repeated(values: Floats, counts: Floats) -> Floats:
    return np.broadcast_to(values, counts.shape)


def _varies(values: Floats, counts: Floats) -> npt.NDArray[np.bool_]:
    """Returns whether the values, (N,), of the drawn rows differ, (R,)."""
    least, most = (np.where(counts > 0, sign * values, -np.inf).max(axis=1) * sign for sign in (-1, 1))  # (R,) each
    # What float32 rounds away is no spread, and its ranks are none either, as in `mtl.metrics`.
    return most - least > 4 * np.finfo(np.float32).eps * np.maximum(np.abs(least), np.abs(most))


def _correlation(both: Sequence[Floats], counts: Floats) -> Floats:
    """Returns Pearson's r of two sides, (R, N) each, (R,), where both vary."""
    total = counts.sum(axis=1, keepdims=True)  # (R, 1)
    a, b = (side - _over((counts * side).sum(axis=1, keepdims=True), total) for side in both)  # (R, N) each
    squares = (counts * a**2).sum(axis=1) * (counts * b**2).sum(axis=1)  # (R,)
    return np.clip(_over((counts * a * b).sum(axis=1), np.sqrt(squares)), -1.0, 1.0)


def _triplets(task: TaskConfig, logits: npt.NDArray, labels: npt.NDArray) -> Weighing:
    judged = ~np.isnan(logits[:, 1])  # (N,)
    nearer = (judged & (logits[:, 0] > logits[:, 1])).astype(np.float64)  # (N,)
    return lambda counts: {"accuracy": _over(counts @ nearer, counts @ judged.astype(np.float64))}


_KINDS: dict[str, Callable[[TaskConfig, npt.NDArray, npt.NDArray], Weighing]] = {
    SINGLE_LABEL: _single_label,
    ORDINAL: _ordinal,
    MULTI_LABEL: _multi_label,
    REGRESSION: _numbers,
    SCORED_PAIRS: _numbers,
    TRIPLETS: _triplets,
}


def _one_hot(ids: npt.NDArray, count: int) -> scipy.sparse.csr_array:
    rows = np.arange(len(ids))
    return scipy.sparse.csr_array((np.ones(len(ids)), (rows, ids)), shape=(len(ids), count))


def _macro_f1(tp: Floats, sizes: Floats) -> Floats:
    """Returns the mean F1, (R,), of the classes that occur, from true positives and predicted plus true, (R, C)."""
    return _mean_of_defined(_over(2 * tp, sizes))


def _mean_of_defined(values: Floats) -> Floats:
    return _mean_where(np.nan_to_num(values).T, ~np.isnan(values).T)


def _mean_where(values: Floats, counts: npt.NDArray[np.bool_]) -> Floats:
    """Returns the mean over the first axis of the values that count, nan where none does."""
    return _over(np.where(counts, values, 0.0).sum(axis=0), counts.sum(axis=0).astype(np.float64))


def _over(values: Floats, totals: Floats, undefined: float = np.nan) -> Floats:
    return np.divide(values, totals, out=np.full(np.broadcast(values, totals).shape, undefined), where=totals > 0)
