"""The rows of the intents for what measures trained models: data sets of configs/intents.yaml, some tasks alone."""

from collections.abc import Sequence

import yaml
from datasets import DatasetDict
from seeds import ROOT

from configuration_mtl import TaskConfig
from mtl.data import load_sources
from mtl.sources import SourceConfig

SETTINGS = ROOT / "configs" / "intents.yaml"


def intent_rows(tasks: Sequence[TaskConfig], data_dir: str) -> tuple[DatasetDict, tuple[TaskConfig, ...]]:
    """Reads the sources that label some of the tasks, for these tasks alone; returns splits and completed tasks."""
    names = {task.name for task in tasks}
    sources = []
    for source in yaml.safe_load(SETTINGS.read_text(encoding="utf-8"))["sources"]:
        labels = {name: column for name, column in source["labels"].items() if name in names}
        if labels:
            sources.append(SourceConfig.from_dict(source | {"labels": labels}))
    return load_sources(sources, tasks, base_dir=data_dir)
