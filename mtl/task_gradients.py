"""The gradient of each task's loss by the shared parameters, over the micro-batches of an optimizer step."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from modeling_mtl import MTLModel


@dataclass(frozen=True)
class StepGradients:
    """The gradients of the tasks in one step: a row for each task that has labels in it.

    Args:
        tasks: Names of the rows.
        parameters: The shared parameters that learn and that some loss depends on.
        jacobians: For each parameter the rows' gradients, (rows, *parameter.shape).
    """

    tasks: tuple[str, ...]
    parameters: list[nn.Parameter]
    jacobians: list[Tensor]

    def gramian(self) -> Tensor:
        """Returns the inner products of the rows, float32, (rows, rows)."""
        flat = (jacobian.flatten(1).float() for jacobian in self.jacobians)
        return torch.stack([rows @ rows.T for rows in flat]).sum(0)


class TaskGradients:
    """Gathers the gradients of a step, micro-batch by micro-batch.

    Every term is differentiated by the parameters themselves, one after the other. torchjd's `mtl_backward` would
    first go to a tensor that all losses depend on; there is none where one task's loss is of another pass through the
    encoder than that of the next. The time is the same, a pass backwards for each task, and so is the memory, a copy
    of the encoder's gradients for each.

    Args:
        model: The model; all its parameters outside the heads are shared.
        without_weight: Names of tasks that do not count, and get no row.
        reduce_mean: Averages a tensor over processes; None for one process.
    """

    def __init__(
        self,
        model: MTLModel,
        *,
        without_weight: Iterable[str] = (),
        reduce_mean: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._model = model
        self._without_weight = frozenset(without_weight)
        self._reduce_mean = reduce_mean
        self._tasks: tuple[str, ...] = ()
        self._parameters: list[nn.Parameter] = []
        self._jacobians: list[Tensor | None] = []

    def shared_parameters(self) -> list[nn.Parameter]:
        """Returns the parameters outside the heads that learn now: what is frozen may change in training."""
        own = {id(parameter) for parameter in self._model.heads.parameters()}
        return [weight for weight in self._model.parameters() if weight.requires_grad and id(weight) not in own]

    def own_parameters(self) -> list[nn.Parameter]:
        """Returns the parameters of the heads that learn now."""
        return [weight for weight in self._model.heads.parameters() if weight.requires_grad]

    def add(self, terms: Mapping[str, Tensor], num_items: Mapping[str, Tensor]) -> None:
        """Adds the gradients of a micro-batch; the graph stays for a further pass backwards.

        Args:
            terms: What each task adds to the loss of the micro-batch, weighted. Shape () each.
            num_items: Each task's count of valid labels in the whole step; a task without any gets no row. A term
                that is not counted always gets one. Shape () each.
        """
        if not self._jacobians:
            self._tasks = self._rows(terms, num_items)
            self._parameters = self.shared_parameters()
            self._jacobians = [None] * len(self._parameters)
        if not self._parameters:
            return
        for row, task in enumerate(self._tasks):
            gradients = torch.autograd.grad(terms[task], self._parameters, retain_graph=True, allow_unused=True)
            for index, (weight, gradient) in enumerate(zip(self._parameters, gradients, strict=True)):
                if gradient is not None:
                    jacobian = self._jacobians[index]
                    if jacobian is None:
                        jacobian = self._jacobians[index] = weight.new_zeros(len(self._tasks), *weight.shape)
                    jacobian[row] += gradient

    def _rows(self, terms: Mapping[str, Tensor], num_items: Mapping[str, Tensor]) -> tuple[str, ...]:
        counts = dict(zip(num_items, torch.stack(list(num_items.values())).tolist(), strict=True))
        return tuple(
            name
            for name, term in terms.items()
            if counts.get(name, 1) > 0 and name not in self._without_weight and term.requires_grad
        )

    def take(self) -> StepGradients | None:
        """Returns the gradients of the step, and begins anew; None if nothing shared learns or no task has a label."""
        tasks, weights, gathered = self._tasks, self._parameters, self._jacobians
        self._tasks, self._parameters, self._jacobians = (), [], []
        if not tasks:
            return None
        parameters, jacobians = [], []
        for weight, jacobian in zip(weights, gathered, strict=True):
            if self._reduce_mean is not None:  # With zeros, as every process has to take part for every parameter.
                jacobian = weight.new_zeros(len(tasks), *weight.shape) if jacobian is None else jacobian
                jacobian = self._reduce_mean(jacobian)
            if jacobian is not None:
                parameters.append(weight)
                jacobians.append(jacobian)
        return StepGradients(tasks, parameters, jacobians) if parameters else None
