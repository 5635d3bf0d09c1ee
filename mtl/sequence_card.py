"""The card of a task that became a plain sequence classifier: how to use it, how exact it is, and what it has not."""

import math
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from configuration_mtl import TaskConfig
from mtl.card_origin import Origin
from tasks_mtl import MULTI_LABEL, REGRESSION


@dataclass(frozen=True)
class SavedClassifier:
    """What was written.

    Args:
        folder: The folder.
        class_name: The stock class, such as `BertForSequenceClassification`.
        encoder_layers: Layers of the model's encoder.
        added_layers: Layers that the classifier has more.
        differences: By precision (`float32`, `bfloat16`, `float16`), how far its logits are from those of the model in
            float32, in units of the largest, or of 1; infinite where the precision does not serve.
    """

    folder: Path
    class_name: str
    encoder_layers: int
    added_layers: int
    differences: dict[str, float]


def classifier_card(saved: SavedClassifier, task: TaskConfig, origin: Origin) -> ModelCard:
    """Writes the card.

    Args:
        saved: What was written.
        task: The task.
        origin: What is known of the model: its name, licence and languages.
    """
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-classification",
        license=origin.license,
        language=list(origin.language) if origin.language else None,
        base_model=origin.base_model,
        tags=["text-classification"],
    )
    whole = "a multi-task model" if origin.starts_from is None else f"the multi-task model `{origin.starts_from}`"
    body = [
        f"---\n{data.to_yaml()}\n---\n",
        f"# {task.name}\n",
        f"The task `{task.name}` ({task.problem_type}) of {whole}, as a plain `{saved.class_name}`: it needs nothing "
        "but transformers, and no trust in code.\n",
        f"{_outputs(task)}\n",
        _use(task),
        "## What it is\n",
        _layers(saved),
        *_calibration(task),
        _precision(saved),
        "- For inference only: its last layers hold numbers of very different size, which neither training nor int8 "
        "quantisation would leave as they are.",
        f"- Not in it: the other tasks and the embedding{''.join(_lost(task))}.",
        f"- Licence of {whole}: {origin.license or 'not given'}.",
    ]
    return ModelCard("\n".join(body) + "\n", ignore_metadata_errors=False)


def _outputs(task: TaskConfig) -> str:
    what = "Outputs" if task.problem_type == REGRESSION else "Labels"
    # A label may be any text, but is part of a line here.
    return f"{what}: " + ", ".join(f"`{' '.join(label.split())}`" for label in task.id2label.values())


def _use(task: TaskConfig) -> str:
    score = {REGRESSION: "the numbers", MULTI_LABEL: "a probability for each label"}
    what = score.get(task.problem_type, "the probabilities of the labels")
    return f"""```python
from transformers import pipeline

classify = pipeline("text-classification", model="<this folder>")
classify("A sentence.", truncation=True, top_k=None)  # {what}
```
"""


def _layers(saved: SavedClassifier) -> str:
    if not saved.added_layers:
        return "- The encoder is the model's; the layers after it compute the head of the task."
    share = saved.added_layers / saved.encoder_layers
    return (
        f"- The encoder is the model's, with a layer more, which computes what the stock class has not, such as the "
        f"mean over tokens: {saved.encoder_layers + saved.added_layers} layers instead of {saved.encoder_layers}, so "
        f"about {share:.0%} more time."
    )


def _calibration(task: TaskConfig) -> list[str]:
    if task.calibration_temperature is None:
        return []
    return [f"- Scores are calibrated: the temperature, {task.calibration_temperature:.4f}, is in the weights."]


def _precision(saved: SavedClassifier) -> str:
    told = [f"{value:.0e} in {name}" for name, value in saved.differences.items() if math.isfinite(value)]
    fails = [name for name, value in saved.differences.items() if not math.isfinite(value)]
    not_in = f" It does not serve in {' or '.join(fails)}." if fails else ""
    return (
        "- Logits differ from those of the model in float32, relative to the largest (or to 1), by "
        f"{', '.join(told)}.{not_in}"
    )


def _lost(task: TaskConfig) -> list[str]:
    lost = {
        f"; the rejection of sentences that are `{task.out_of_scope_label}`": task.rejection_threshold is not None,
        f"; the abstention below a score of {task.abstention_threshold}": task.abstention_threshold is not None,
        "; the thresholds of the labels, in their order " + str(list(task.label_thresholds or ())): (
            task.label_thresholds is not None
        ),
    }
    return [text for text, is_lost in lost.items() if is_lost]
