"""What stands on the pooled embedding: a task's head, and the loss of what it says.

The file travels with every saved model; see `modeling_mtl.py`.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional as F

try:
    if not TYPE_CHECKING:  # To a type checker these are top-level modules.
        from .classification_mtl import CosineLinear, ordinal_loss, single_label_loss
        from .similarity_mtl import similarity_loss
        from .tasks_mtl import MULTI_LABEL, ORDINAL, REGRESSION, SINGLE_LABEL, TaskConfig, valid_labels
except ImportError:
    # As an installed top-level module there is no parent package; inside one, a failed import is a real fault.
    if __package__:
        raise
    from classification_mtl import CosineLinear, ordinal_loss, single_label_loss
    from similarity_mtl import similarity_loss
    from tasks_mtl import MULTI_LABEL, ORDINAL, REGRESSION, SINGLE_LABEL, TaskConfig, valid_labels


class TaskHead(nn.Module):
    """Maps the pooled embedding to a task's logits: a linear layer, or one hidden layer with GELU before it.

    Args:
        task: The task; gives the number of outputs and the hidden width.
        hidden_size: Width of the pooled embedding.
        dropout: Probability of dropout after the hidden layer.
    """

    def __init__(self, task: TaskConfig, hidden_size: int, dropout: float) -> None:
        super().__init__()
        width = task.hidden_size or hidden_size
        self.hidden = None
        if task.hidden_size is not None:
            self.hidden = nn.Sequential(nn.Linear(hidden_size, width), nn.GELU(), nn.Dropout(dropout))
        self.out_proj: nn.Linear = nn.Linear(width, task.num_logits)
        if task.cosine_scale is not None:
            self.out_proj = CosineLinear(width, task.num_logits, task.cosine_scale)

    def forward(self, features: Tensor) -> Tensor:
        """Returns float32 logits, (B, C), of pooled embeddings, (B, H)."""
        features = features.to(self.out_proj.weight.dtype)  # (B, H)
        if self.hidden is not None:
            features = self.hidden(features)
        return self.out_proj(features).float()  # (B, C)


def task_loss(task: TaskConfig, outputs: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Sums any task's loss over the valid labels of a batch; see [`summed_loss`] and `similarity_loss`."""
    if task.has_head:
        return summed_loss(task.problem_type, outputs, labels, label_smoothing)
    return similarity_loss(task, outputs, labels)


def summed_loss(problem_type: str, logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Sums a task's loss over the valid labels of a batch; missing ones give exactly zero gradient.

    Cross-entropy for single-label, negative log-likelihood for ordinal (see `classification_mtl`), binary
    cross-entropy per label for multi-label, squared error for regression.

    Args:
        problem_type: The task's problem type.
        logits: Float32 outputs of the head. Shape (B, C), for ordinal (B, C - 1).
        labels: See [`MTLModel.forward`]. Shape (B,) or (B, C).
        label_smoothing: Share of a single-label loss that goes to all classes alike.
    """
    smoothing = {"label_smoothing": label_smoothing} if label_smoothing else {}
    return _SUMMED_LOSSES[problem_type](logits, labels, **smoothing)


def _summed_over_cells(loss: Callable[..., Tensor], logits: Tensor, labels: Tensor) -> Tensor:
    labels = labels.view_as(logits)  # (B, C)
    losses = loss(logits, labels.nan_to_num().to(logits.dtype), reduction="none")  # (B, C)
    return losses.masked_fill(~valid_labels(labels), 0.0).sum()


_SUMMED_LOSSES: dict[str, Callable[..., Tensor]] = {
    SINGLE_LABEL: single_label_loss,
    ORDINAL: ordinal_loss,
    MULTI_LABEL: partial(_summed_over_cells, F.binary_cross_entropy_with_logits),
    REGRESSION: partial(_summed_over_cells, F.mse_loss),
}
