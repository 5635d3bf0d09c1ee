"""How the gradients of the tasks become the one gradient of the shared encoder: torchjd's aggregators by name.

Each combines the tasks' gradients by weights that it finds from their inner products. Not taken are GradVac, whose
moving averages know a task by its row, so that a step without labels of one task would mix them up; and aggregators
that need more than inner products.
"""

import logging

import torch

from mtl.loss_weighting import step_seed
from mtl.task_gradients import StepGradients

logger = logging.getLogger(__name__)

CAGRAD_C = 0.5
"""How far CAGrad may go from the mean gradient, as a share of its norm."""

AGGREGATIONS: dict[str, tuple[str, dict[str, float]]] = {
    "sum": ("SumWeighting", {}),
    "mean": ("MeanWeighting", {}),
    "pcgrad": ("PCGradWeighting", {}),
    "aligned_mtl": ("AlignedMTLWeighting", {}),
    "mgda": ("MGDAWeighting", {}),
    "imtl_g": ("IMTLGWeighting", {}),
    "cagrad": ("CAGradWeighting", {"c": CAGRAD_C}),
    "upgrad": ("UPGradWeighting", {}),
    "dualproj": ("DualProjWeighting", {}),
}
"""By the name that settings use: the class in `torchjd.aggregation`, and its arguments."""

_EXTRAS = {"cagrad": "torchjd[cagrad]"}


class Aggregation:
    """Combines the task gradients of a step, and writes the result to the `.grad` of the shared parameters.

    torchjd gives the weights of the tasks' gradients from their Gramian. That is scaled to trace 1 before, which
    changes no weights, but keeps the thresholds of torchjd, which are absolute, away from small gradients: UPGrad
    would take those for zero and average, CAGrad would stop.

    Args:
        name: A name of [`AGGREGATIONS`].
        seed: Seed of what draws (PCGrad, the order of its projections).

    Raises:
        ImportError: If a package is missing.
        ValueError: If the name is unknown.
    """

    def __init__(self, name: str, *, seed: int = 0) -> None:
        if name not in AGGREGATIONS:
            raise ValueError(f"aggregation {name!r} is unknown. Use one of {['none', *AGGREGATIONS]}.")
        class_name, settings = AGGREGATIONS[name]
        try:
            from torchjd import aggregation

            self._weighting = getattr(aggregation, class_name)(**settings)
        except ImportError as error:
            extra = _EXTRAS.get(name, "torchjd[quadprog_projector]")
            raise ImportError(f'aggregation={name!r} needs `pip install "{extra}"`.') from error
        self._seed = seed

    def weights(self, gramian: torch.Tensor, step: int) -> torch.Tensor:
        """Returns the weight of each row in the aggregated gradient, (rows,).

        Args:
            gramian: Inner products of the rows. Shape (rows, rows).
            step: Number of the optimizer step, from which draws follow; the generator of the run is left alone.
        """
        trace = gramian.diagonal().sum()
        scaled = gramian / torch.where(trace > 0, trace, 1.0)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.default_generator.manual_seed(step_seed(self._seed, step))
            return self._weighting(scaled)

    def apply(self, gradients: StepGradients, step: int) -> None:
        """Adds the aggregated gradient to the `.grad` of the parameters."""
        weights = self.weights(gradients.gramian(), step)
        for parameter, jacobian in zip(gradients.parameters, gradients.jacobians, strict=True):
            combined = torch.tensordot(weights.to(jacobian.dtype), jacobian, dims=1)
            parameter.grad = combined if parameter.grad is None else parameter.grad + combined
