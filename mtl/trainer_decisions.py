"""What a trainer fits after training: when its tasks reject, how sure they are, when they abstain."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from configuration_mtl import TaskConfig
from modeling_mtl import MTLModel
from mtl.calibration import fit_calibration
from mtl.calibration_plans import make_plans
from mtl.evaluation import EvaluationMetrics
from mtl.rejection import fit_rejection, tasks_that_reject, with_thresholds
from mtl.trainer_data import DataTrainer


class DecisionTrainer(DataTrainer):
    """A `Trainer` that fits thresholds and temperatures on validation, and from then on evaluates with them."""

    model: MTLModel
    tasks: tuple[TaskConfig, ...]

    def fit_rejection(
        self, dataset: Any = None, *, acceptance: float | None = None, task_names: Sequence[str] | None = None
    ) -> dict[str, float]:
        """Fits the rejection thresholds of tasks, by default of all that have an `out_of_scope_label`.

        From then on the model, its configuration and every evaluation have them; see `mtl.rejection.fit_rejection`,
        also for what is raised. Without a data set it is `eval_dataset`.
        """
        chosen = tasks_that_reject(self.tasks, task_names)
        rows = self.eval_dataset if dataset is None else dataset
        thresholds = fit_rejection(self, rows, chosen, acceptance=acceptance)
        self._set_tasks(with_thresholds(self.tasks, thresholds))
        return thresholds

    def calibrate(
        self,
        dataset: Any = None,
        *,
        temperature: bool | Collection[str] = True,
        label_thresholds: bool | Collection[str] = False,
        abstention_error_rate: float | Mapping[str, float] | None = None,
    ) -> dict[str, TaskConfig]:
        """Fits what makes probabilities and decisions of logits: by default a temperature of each task that has them.

        From then on the model, its configuration and every evaluation have it; neither `forward` nor a loss changes.
        Tasks without a head, and regressions, are left as they are.

        Args:
            dataset: The tokenised rows to fit on, which the model has not learned; `eval_dataset` if not given.
            temperature: Of which tasks: all (True), none (False), or those named.
            label_thresholds: Of which multi-label tasks a threshold a label is fitted, at which its F1 is largest.
            abstention_error_rate: Share of the rows that `predict` does not abstain on which may be wrong, for all
                single-label and ordinal tasks or by name; None fits no threshold for it.

        Returns:
            The tasks of which something was to be fitted, by name. What could not be is None there, and a warning says
            why.

        Raises:
            ValueError: As `make_plans` does, or if there is no data set, or several.
        """
        plans = make_plans(
            self.tasks,
            temperature=temperature,
            label_thresholds=label_thresholds,
            abstention_error_rate=abstention_error_rate,
        )
        rows = self.eval_dataset if dataset is None else dataset
        fitted = fit_calibration(self, rows, self.tasks, plans)
        self._set_tasks([fitted.get(task.name, task) for task in self.tasks])
        return fitted

    def _set_tasks(self, tasks: Sequence[TaskConfig]) -> None:
        self.model.config.set_tasks(tasks)
        self.tasks = tuple(self.model.config.tasks)
        if isinstance(self.compute_metrics, EvaluationMetrics):
            self.compute_metrics = EvaluationMetrics(self.tasks)
