"""What every metric of the house is: an `evaluate.Metric` that gives one number and needs no network."""

import os
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import datasets
import evaluate
import numpy as np


class ScoreMetric(evaluate.Metric, ABC):
    """One number from predictions and references, held in memory.

    `evaluate` writes what a metric is fed to `$HF_METRICS_CACHE` (`$HF_HOME/metrics`), beside a lock that it leaves
    behind. In one process the memory does as well, so that is the default here, and the folder is not even made.
    With `num_process > 1` the files are how `evaluate` gathers: they are used, and each run needs an `experiment_id`.
    """

    key: ClassVar[str]
    inputs: ClassVar[str]
    feature_options: ClassVar[list[Any]]  # what one row may be; `evaluate` picks the first that fits
    reference_feature: ClassVar[Any] = None  # what a row of references is, where it differs from the predictions

    def __init__(
        self, config_name: str | None = None, keep_in_memory: bool | None = None, *args: Any, **kwargs: Any
    ) -> None:
        in_memory = kwargs.get("num_process", 1) == 1 if keep_in_memory is None else keep_in_memory
        super().__init__(config_name, in_memory, *args, **kwargs)

    @classmethod
    @abstractmethod
    def score(cls, predictions: np.ndarray, references: np.ndarray) -> float:
        """Compute the number from at least one row."""

    def _info(self) -> evaluate.MetricInfo:
        features = [
            datasets.Features(predictions=option, references=self.reference_feature or option)
            for option in self.feature_options
        ]
        return evaluate.MetricInfo(
            description=type(self).__doc__,
            citation="",
            inputs_description=f"\n\n{self.inputs}\n",
            features=features if len(features) > 1 else features[0],
        )

    def _build_data_dir(self) -> str:
        if self.keep_in_memory:
            return os.path.join(self._data_dir_root, self.name, self.config_name)  # named, never made
        return super()._build_data_dir()

    def _compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> dict[str, float]:
        if not len(references):
            return {self.key: np.nan}
        return {self.key: float(self.score(np.asarray(predictions), np.asarray(references)))}
