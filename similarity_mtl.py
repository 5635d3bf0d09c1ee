"""Similarity objectives: what the embeddings of a batch say of each other, and the losses on it.

A task without a head trains the embedding itself. Its outputs stand where those of a head would, and are made of
cosines, so that the loss, and a metric, is a function of outputs and labels alone:

| problem type     | outputs of B rows, nan in rows without the texts               | labels                     |
|------------------|----------------------------------------------------------------|----------------------------|
| `scored_pairs`   | (B,): cosine of the two texts                                  | score, nan for missing     |
| `positive_pairs` | (B, 3): cosine to the positive, to the nearest negative, loss  | 1, -100 for missing        |
| `triplets`       | (B, 2): cosine to the positive, to the negative                | 1, -100 for missing        |
| `contrastive`    | (B, H): the unit embedding, in every row                       | class id, -100 for missing |

The file travels with every saved model; see `modeling_mtl.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

try:
    if not TYPE_CHECKING:  # To a type checker these are top-level modules.
        from .tasks_mtl import CONTRASTIVE, POSITIVE_PAIRS, SCORED_PAIRS, TRIPLETS, TaskConfig, valid_labels
except ImportError:
    # As an installed top-level module there is no parent package; inside one, a failed import is a real fault.
    if __package__:
        raise
    from tasks_mtl import CONTRASTIVE, POSITIVE_PAIRS, SCORED_PAIRS, TRIPLETS, TaskConfig, valid_labels

_CHUNK_ROWS = 1024
"""Rows of a cosine matrix held at once; an evaluation takes all rows of a split together."""


@dataclass(frozen=True)
class ComparedTexts:
    """The texts of a batch, each encoded for itself.

    Args:
        anchors: Unit embedding of each example's first text. Shape (B, H).
        others: Unit embeddings of all further texts of the batch. Shape (M, H).
        partners: Row in `others` of each example's second and third text, -1 for none. Shape (B, 2).
        identity: A number for each anchor, then each other; equal where the tokens are. Shape (B + M,).
    """

    anchors: Tensor
    others: Tensor
    partners: Tensor
    identity: Tensor


def similarity_outputs(
    tasks: Sequence[TaskConfig], texts: ComparedTexts, labels: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Returns the outputs of similarity tasks, float32; see the table in this module's docstring.

    Args:
        tasks: Tasks; those with a head are passed over.
        texts: The texts of the batch.
        labels: Labels by task; say which rows are of which task. A task that is left out has no row.
    """
    outputs = {}
    # Products of matrices would be in bfloat16 under autocast, too coarse for cosines over a temperature.
    with torch.autocast(texts.anchors.device.type, enabled=False):
        for task in tasks:
            if not task.has_head:
                label = labels.get(task.name)
                count = texts.anchors.shape[0]
                present = torch.zeros(count, dtype=torch.bool) if label is None else valid_labels(label)  # (B,)
                rows = present.to(texts.anchors.device).nonzero().squeeze(1)  # (P,)
                outputs[task.name] = _OUTPUTS[task.problem_type](task, texts, rows)
    return outputs


def similarity_loss(task: TaskConfig, outputs: Tensor, labels: Tensor) -> Tensor:
    """Sums a similarity task's loss over its rows; the others get exactly zero gradient. Shape ().

    Args:
        task: The task.
        outputs: What [`similarity_outputs`] gives. Shape (B,) or (B, C).
        labels: Its labels. Shape (B,).
    """
    present = valid_labels(labels)  # (B,)
    with torch.autocast(outputs.device.type, enabled=False):
        return _LOSSES[task.loss or ""](task, outputs[present].float(), labels[present])


def text_identity(batches: Sequence[tuple[Any, Tensor]]) -> Tensor:
    """Numbers the texts of several padded batches, equal texts alike, whichever side their padding is on.

    Args:
        batches: Token ids, (B, T), and attention mask, (B, T), of each batch; B and T may differ.

    Returns:
        The numbers of all rows, batch after batch. Shape (sum of B,).
    """
    width = max(ids.shape[1] for ids, _ in batches)
    rows = []
    for ids, mask in batches:
        real = mask.bool()  # (B, T)
        order = (~real).long().argsort(dim=1, stable=True)  # (B, T), tokens first
        moved = ids.masked_fill(~real, -1).gather(1, order)  # (B, T)
        rows.append(F.pad(moved, (0, width - ids.shape[1]), value=-1))
    return torch.cat(rows).unique(dim=0, return_inverse=True)[1]


def _cosines(texts: ComparedTexts, rows: Tensor, which: int) -> Tensor:
    """Returns the cosine of each row's first text with its second (0) or third (1). Shape (P,)."""
    return (texts.anchors[rows] * texts.others[texts.partners[rows, which]]).sum(dim=-1)


def _spread(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """Puts the values of some rows, (P, ...), among all of them, (B, ...), with nan in the others."""
    full = values.new_full((count, *values.shape[1:]), torch.nan)
    return full.index_copy(0, rows, values)


def _scored_outputs(task: TaskConfig, texts: ComparedTexts, rows: Tensor) -> Tensor:
    return _spread(_cosines(texts, rows, 0), rows, len(texts.anchors))  # (B,)


def _triplet_outputs(task: TaskConfig, texts: ComparedTexts, rows: Tensor) -> Tensor:
    both = torch.stack([_cosines(texts, rows, which) for which in (0, 1)], dim=1)  # (P, 2)
    return _spread(both, rows, len(texts.anchors))  # (B, 2)


def _contrastive_outputs(task: TaskConfig, texts: ComparedTexts, rows: Tensor) -> Tensor:
    return texts.anchors  # (B, H)


def _positive_outputs(task: TaskConfig, texts: ComparedTexts, rows: Tensor) -> Tensor:
    """Sets each anchor's positive against every other text that belongs to a row of the task in the batch.

    Texts with the tokens of the anchor or of its positive, and positives of the same anchor in other rows, are not
    negatives. InfoNCE of van den Oord, Li and Vinyals, "Representation Learning with Contrastive Predictive Coding",
    2018, equation 4, on cosines; with these negatives the ranking loss of Henderson et al., "Efficient Natural
    Language Response Suggestion for Smart Reply", 2017, section 4.4.
    """
    count, size = len(texts.anchors), len(rows)
    positives, hard = texts.partners[rows].unbind(dim=1)  # (P,) each
    columns = torch.cat([positives, hard[hard >= 0]])  # (N,), the positives first
    cosines = texts.anchors[rows] @ texts.others[columns].T  # (P, N)
    anchor, column = texts.identity[rows], texts.identity[count + columns]  # (P,), (N,)
    positive = column[:size]  # (P,)
    same = (column == anchor[:, None]) | (column == positive[:, None])  # (P, N)
    same[:, :size] |= anchor == anchor[:, None]
    own = torch.eye(size, len(columns), dtype=torch.bool, device=rows.device)  # (P, N)
    temperature = float(task.temperature or 1.0)
    losses = _find_own((cosines / temperature).masked_fill(same & ~own, -torch.inf))  # (P,)
    if task.symmetric:
        is_same = (anchor == anchor[:, None]) | (positive == positive[:, None]) | (anchor == positive[:, None])
        back = (cosines[:, :size].T / temperature).masked_fill(is_same & ~own[:, :size], -torch.inf)  # (P, P)
        losses = (losses + _find_own(back)) / 2
    nearest = cosines.masked_fill(same | own, -torch.inf)  # (P, N)
    nearest = nearest.amax(dim=1) if size else nearest.sum(dim=1)  # (P,)
    nearest = nearest.masked_fill(nearest.isneginf(), torch.nan)
    return _spread(torch.stack([cosines.diagonal(), nearest, losses], dim=1), rows, count)  # (B, 3)


def _find_own(scores: Tensor) -> Tensor:
    target = torch.arange(len(scores), device=scores.device)  # (P,)
    return F.cross_entropy(scores, target, reduction="none") if len(scores) else scores.sum(dim=1)


def _cosent(task: TaskConfig, cosines: Tensor, scores: Tensor) -> Tensor:
    """Su, "CoSENT: a more effective sentence vector scheme than Sentence-BERT", 2022, times the count of pairs.

    log(1 + sum of exp((cos_i - cos_j) / temperature) over all i, j where the score of i is below that of j), which is
    one number for all pairs of a batch; times their count it can be summed over batches as the other losses are.
    Memory is O(P): with the scores sorted, the sum over i is a running one.
    """
    scores, order = scores.float().sort()  # (P,)
    scaled = cosines[order] / float(task.temperature or 1.0)  # (P,)
    lower = torch.searchsorted(scores, scores)  # (P,), how many scores are below
    has_lower = lower > 0
    terms = scaled.logcumsumexp(dim=0)[lower[has_lower] - 1] - scaled[has_lower]
    return len(cosines) * torch.cat([scaled.new_zeros(1), terms]).logsumexp(dim=0)


def _squared_cosine_error(task: TaskConfig, cosines: Tensor, scores: Tensor) -> Tensor:
    """Squared error of the cosine against the score."""
    return (cosines - scores).square().sum()


def _info_nce(task: TaskConfig, outputs: Tensor, labels: Tensor) -> Tensor:
    """See [`_positive_outputs`], which had the other texts at hand."""
    return outputs[:, 2].sum()


def _margin(task: TaskConfig, outputs: Tensor, labels: Tensor) -> Tensor:
    """Schroff, Kalenichenko and Philbin, "FaceNet", CVPR 2015, equation 3, on cosine distance."""
    return (outputs[:, 1] - outputs[:, 0] + float(task.margin or 0.0)).relu().sum()


def _supervised_contrastive(task: TaskConfig, embeddings: Tensor, labels: Tensor) -> Tensor:
    """Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020, equation 2 (L_out).

    A row that has no other of its class among the rows has nothing to be drawn to, and adds 0.
    """
    total = embeddings[:0].sum()
    if len(embeddings) < 2:
        return total
    for rows in torch.arange(len(embeddings), device=embeddings.device).split(_CHUNK_ROWS):
        scores = embeddings[rows] @ embeddings.T / float(task.temperature or 1.0)  # (R, P)
        itself = rows[:, None] == torch.arange(len(embeddings), device=rows.device)  # (R, P)
        positive = (labels[rows, None] == labels) & ~itself  # (R, P)
        count = positive.sum(dim=1)  # (R,)
        has = count > 0
        normalizer = scores[has].masked_fill(itself[has], -torch.inf).logsumexp(dim=1)  # (A,)
        drawn = scores[has].masked_fill(~positive[has], 0.0).sum(dim=1) / count[has]  # (A,)
        total = total + (normalizer - drawn).sum()
    return total


_OUTPUTS: dict[str, Callable[[TaskConfig, ComparedTexts, Tensor], Tensor]] = {
    SCORED_PAIRS: _scored_outputs,
    POSITIVE_PAIRS: _positive_outputs,
    TRIPLETS: _triplet_outputs,
    CONTRASTIVE: _contrastive_outputs,
}
_LOSSES: dict[str, Callable[[TaskConfig, Any, Any], Tensor]] = {
    "cosent": _cosent,
    "cosine": _squared_cosine_error,
    "info_nce": _info_nce,
    "margin": _margin,
    "supervised_contrastive": _supervised_contrastive,
}
