"""What the logits of a classification mean: the loss of a label, the probabilities, the decision, the confidence.

The file travels with every saved model; see `modeling_mtl.py`.
"""

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

try:
    if not TYPE_CHECKING:  # To a type checker these are top-level modules.
        from .tasks_mtl import IGNORE_INDEX, MULTI_LABEL, ORDINAL, REGRESSION, SINGLE_LABEL, TaskConfig
except ImportError:
    # As an installed top-level module there is no parent package; inside one, a failed import is a real fault.
    if __package__:
        raise
    from tasks_mtl import IGNORE_INDEX, MULTI_LABEL, ORDINAL, REGRESSION, SINGLE_LABEL, TaskConfig

MULTI_LABEL_THRESHOLD = 0.5
"""The probability from which on a label is predicted, where its task has no thresholds of its own."""


class CosineLinear(nn.Linear):
    """Gives the cosine between features and the vector of each class, times a scale; lengths take no part.

    Wang et al., "NormFace: L2 Hypersphere Embedding for Face Verification", ACM Multimedia 2017, section 3, with a
    scale that is set instead of learned.

    Args:
        in_features: Width of the features, H.
        out_features: Count of classes, C.
        scale: What the cosines are multiplied by.
    """

    def __init__(self, in_features: int, out_features: int, scale: float) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.scale = scale

    def forward(self, input: Tensor) -> Tensor:
        """Returns logits, (..., C), of features, (..., H)."""
        return self.scale * F.linear(F.normalize(input, dim=-1), F.normalize(self.weight, dim=-1))


def single_label_loss(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Sums the cross-entropy, -log softmax of the label, over the rows with a class.

    With smoothing e each row's loss is (1 - e) of that, and e of the mean over all classes (Szegedy et al.,
    "Rethinking the Inception Architecture for Computer Vision", CVPR 2016, section 7).

    Args:
        logits: Float32 logits. Shape (B, C).
        labels: Class ids; rows with a negative one give exactly zero loss and gradient. Shape (B,).
        label_smoothing: The share e, in [0, 1).
    """
    targets = labels.masked_fill(labels < 0, IGNORE_INDEX)  # (B,)
    return F.cross_entropy(
        logits, targets, ignore_index=IGNORE_INDEX, reduction="sum", label_smoothing=label_smoothing
    )


def ordinal_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Sums the negative log-likelihood of ordered labels over the rows with a class, by continuation ratios.

    Logit k says whether a row that has reached class k goes on: P(y > k | y >= k) = sigmoid(f_k). So a row of class y
    has y binary cross-entropies of "goes on", and, unless y is the last class, one of "stops". It is the model of Shi,
    Cao and Raschka, "Deep Neural Networks for Rank-Consistent Ordinal Regression Based On Conditional Probabilities",
    Pattern Analysis and Applications 2023, section 3. They divide the sum by the count of binary terms; divided by the
    count of rows, as here, it is a likelihood like that of the other tasks.

    Args:
        logits: Float32 logits of the steps between the classes. Shape (B, C - 1).
        labels: Class ids; rows with a negative one give exactly zero loss and gradient. Shape (B,).
    """
    steps = torch.arange(logits.shape[1], device=logits.device)  # (C - 1,)
    reached = labels.unsqueeze(1) >= steps  # (B, C - 1)
    goes_on = (labels.unsqueeze(1) > steps).to(logits.dtype)  # (B, C - 1)
    losses = F.binary_cross_entropy_with_logits(logits, goes_on, reduction="none")  # (B, C - 1)
    return losses.masked_fill(~reached, 0.0).sum()


def ordinal_survival(logits: Tensor) -> Tensor:
    """Returns P(y > k) for every class but the last, (..., C - 1), from ordinal logits, (..., C - 1)."""
    return _sigmoid(logits).cumprod(dim=-1)


def ordinal_probabilities(logits: Tensor) -> Tensor:
    """Returns the probabilities of the classes, (..., C), from ordinal logits, (..., C - 1); they sum to 1."""
    reaches = F.pad(ordinal_survival(logits), (1, 0), value=1.0)  # (..., C), P(y >= k)
    stops = F.pad(_sigmoid(-logits), (0, 1), value=1.0)  # (..., C), P(y = k | y >= k)
    return reaches * stops


def ordinal_log_probabilities(logits: Tensor) -> Tensor:
    """Returns the logs of the probabilities of the classes, (..., C), from ordinal logits, (..., C - 1)."""
    reaches = F.pad(F.logsigmoid(logits).cumsum(dim=-1), (1, 0))  # (..., C), log P(y >= k)
    return reaches + F.pad(F.logsigmoid(-logits), (0, 1))  # log P(y = k | y >= k), 0 for the last class


def ordinal_median(logits: Tensor) -> Tensor:
    """Returns the median class, (...), from ordinal logits, (..., C - 1): the first k with P(y <= k) >= 0.5.

    No other class has a smaller expected distance, in classes, from the label.
    """
    return (ordinal_survival(logits) > 0.5).sum(dim=-1)


def confidence(logits: Tensor, score: str) -> Tensor:
    """Returns how sure a single-label head is that a sentence is of one of its classes at all.

    Args:
        logits: Logits. Shape (..., C).
        score: `"probability"`, the largest softmax probability (Hendrycks and Gimpel, "A Baseline for Detecting
            Misclassified and Out-of-Distribution Examples in Neural Networks", ICLR 2017); `"logit"`, the largest
            logit; `"energy"`, log of the sum of exp of the logits, which is the negative free energy at temperature 1
            (Liu et al., "Energy-based Out-of-distribution Detection", NeurIPS 2020, equation 4).

    Returns:
        Float64, in which probabilities near 1 still differ. Shape (...).
    """
    return _CONFIDENCES[score](logits.double())


_CONFIDENCES: dict[str, Callable[[Tensor], Tensor]] = {
    "probability": lambda logits: logits.softmax(dim=-1).amax(dim=-1),
    "logit": lambda logits: logits.amax(dim=-1),
    "energy": lambda logits: logits.logsumexp(dim=-1),
}


def probabilities(task: TaskConfig, logits: Tensor) -> Tensor:
    """Returns what logits say of a task's classes, which sums to 1, or of each label of a multi-label task.

    Where the task has a `calibration_temperature`, logits are divided by it first (Guo et al., "On Calibration of
    Modern Neural Networks", ICML 2017, section 4.2).

    Args:
        task: A task whose head gives probabilities.
        logits: Logits of the head. Shape (..., C), for ordinal classification (..., C - 1).

    Returns:
        Probabilities in the precision of the logits. Shape (..., C).
    """
    temperature = task.calibration_temperature
    return _PROBABILITIES[task.problem_type](logits if temperature is None else logits / temperature)


def class_ids(task: TaskConfig, logits: Tensor) -> Tensor:
    """Returns the predicted class, (...), of logits: the likeliest one, for ordinal classification the median.

    It is that of the logits as they are. A temperature leaves the likeliest class as it is, but would move a median.
    """
    return ordinal_median(logits) if task.problem_type == ORDINAL else logits.argmax(dim=-1)


def class_scores(task: TaskConfig, logits: Tensor) -> Tensor:
    """Returns the probability of the predicted class, (...), of logits, (..., C), or (..., C - 1) for ordinal."""
    return probabilities(task, logits).gather(-1, class_ids(task, logits).unsqueeze(-1)).squeeze(-1)


def chosen_labels(task: TaskConfig, logits: Tensor) -> Tensor:
    """Returns whether each label of a multi-label task is predicted, (..., C), from logits, (..., C)."""
    least = task.label_thresholds or (MULTI_LABEL_THRESHOLD,)
    # In float64, in which a threshold between two neighbouring float32 probabilities still parts them.
    return probabilities(task, logits).double() >= torch.tensor(least, dtype=torch.float64, device=logits.device)


def predictions_of(task: TaskConfig, logits: Tensor) -> list[Any]:
    """Returns what a head says of each sentence of a batch, as `predict` gives it.

    A classification has `label`, `score` and `probabilities`, and what thresholds decide, `in_scope` and `abstains`;
    multi-label `labels` and `probabilities`; regression a number, or `{output: number}` if there are several.

    Args:
        task: The task.
        logits: Float32 logits of its head. Shape (B, C), for ordinal classification (B, C - 1).
    """
    # Tensors of the whole batch, and plain values from there on: with many heads this is what takes time.
    return _PREDICTIONS.get(task.problem_type, _class_predictions)(task, logits)


def _class_predictions(task: TaskConfig, logits: Tensor) -> list[dict[str, Any]]:
    names = list(task.id2label.values())
    rows, places = probabilities(task, logits).tolist(), class_ids(task, logits).tolist()
    predictions: list[dict[str, Any]] = [
        {"label": names[place], "score": row[place], "probabilities": dict(zip(names, row, strict=True))}
        for row, place in zip(rows, places, strict=True)
    ]
    if task.rejection_threshold is not None:
        # Of the logits as they are, for which the threshold was fitted.
        sure = confidence(logits, str(task.rejection_score)).tolist()
        for prediction, value in zip(predictions, sure, strict=True):
            prediction["in_scope"] = value >= task.rejection_threshold
            if not prediction["in_scope"]:
                prediction["label"] = task.out_of_scope_label
    if task.abstention_threshold is not None:
        for prediction in predictions:
            prediction["abstains"] = not prediction["score"] >= task.abstention_threshold  # True of nan, too.
    return predictions


def _multi_label_predictions(task: TaskConfig, logits: Tensor) -> list[dict[str, Any]]:
    names = list(task.id2label.values())
    chosen, values = chosen_labels(task, logits).tolist(), probabilities(task, logits).tolist()
    return [
        {"labels": list(itertools.compress(names, is_chosen)), "probabilities": dict(zip(names, row, strict=True))}
        for is_chosen, row in zip(chosen, values, strict=True)
    ]


def _regression_predictions(task: TaskConfig, logits: Tensor) -> list[Any]:
    if task.num_labels == 1:
        return logits.squeeze(-1).tolist()
    names = list(task.id2label.values())
    return [dict(zip(names, row, strict=True)) for row in logits.tolist()]


def _sigmoid(logits: Tensor) -> Tensor:
    # What stands beside a sentence in a batch must not change its values. Of numbers that lie side by side torch's CPU
    # kernel takes most in vectors and the rest one by one, which differs in the last bit; these lie apart.
    return torch.stack((logits, logits), dim=-1)[..., 0].sigmoid()


_PREDICTIONS: dict[str, Callable[[TaskConfig, Tensor], list[Any]]] = {
    MULTI_LABEL: _multi_label_predictions,
    REGRESSION: _regression_predictions,
}
_PROBABILITIES: dict[str, Callable[[Tensor], Tensor]] = {
    SINGLE_LABEL: lambda logits: logits.softmax(dim=-1),
    ORDINAL: ordinal_probabilities,
    MULTI_LABEL: _sigmoid,
}
