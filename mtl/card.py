"""The model card: what the model is, what it reached, and how to load it, from the figures of the run."""

from collections.abc import Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from configuration_mtl import MTLConfig, TaskConfig
from mtl.calibration_report import calibration_limits, calibration_section
from mtl.card_origin import Origin
from mtl.conflicts import summarize_conflicts
from mtl.evaluation import EvaluationResult
from mtl.rejection import REJECTION_METRICS

# The Hub's names of metrics, where they differ from ours.
_HUB_METRIC = {"pearson": "pearsonr", "spearman": "spearmanr", "rmse": "rmse", "f1_macro": "f1", "f1_micro": "f1"}

_ALWAYS = (
    "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate",
    "head_learning_rate", "lr_scheduler_type", "warmup_steps", "adam_beta2", "weight_decay", "weighting",
    "train_sampling_strategy", "freeze", "freeze_schedule", "peft", "layer_decay", "average_weights",
    "backbone_dropout", "label_smoothing_factor", "head_dropout", "max_length", "seed",
)  # fmt: skip
_IF_SET = (
    "aggregation", "mixture", "homogeneous_batches", "teacher", "distillation_temperature", "gold_share",
    "teacher_annealing", "preserve_embeddings", "early_stopping_patience",
)  # fmt: skip
"""Settings of training that the card shows."""


def build_card(
    config: MTLConfig,
    *,
    name: str,
    origin: Origin,
    license: str | None = None,
    language: Sequence[str] | None = None,
    datasets: Sequence[str],
    results: Sequence[EvaluationResult],
    report: dict[str, Any],
    command: str,
) -> ModelCard:
    """Writes the card of a trained model.

    Args:
        config: The model's configuration.
        name: Name of the model.
        origin: What it was started from.
        license: Licence of the model, as the Hub writes it; that of the model it was started from if not given.
        language: Languages of the texts, as codes; likewise.
        datasets: Names of the sources.
        results: Results by split; the figures in the metadata are those of the last one.
        report: The report of the run, see `mtl.report`.
        command: The command that trained the model.
    """
    num_heads = sum(task.has_head for task in config.tasks)
    heads = "1 task head" if num_heads == 1 else f"{num_heads} task heads"
    language = language or origin.language
    data = ModelCardData(
        library_name="transformers",
        license=license or origin.license,
        language=list(language) if language else None,
        base_model=origin.base_model,
        tags=["multi-task", "sentence-similarity", "feature-extraction", "text-classification", "mtl"],
        model_name=name,
        eval_results=_eval_results(config, datasets, results[-1]) if results else None,
    )
    of_run = {task["name"] for task in report["tasks"]}
    body = [
        f"---\n{data.to_yaml()}\n---\n",
        f"# {name}\n",
        f"{_encoder(config, origin)} with {heads} on one {config.pooling}-pooled, "
        f"{config.hidden_size}-dimensional sentence embedding.{_beginning(origin)}\n",
        "## Tasks\n",
        "| task | type | outputs | weight |\n|---|---|---|---|",
        *(_task_row(task, is_kept=task.name not in of_run) for task in config.tasks),
        "",
        *(_result_section(result) for result in results),
        *calibration_section(report.get("calibration") or {}),
        _training_section(report, datasets, command),
        *_conflict_section(report),
        _usage_section(name),
        _limits_section(config, report),
    ]
    return ModelCard("\n".join(body) + "\n", ignore_metadata_errors=False)


def _eval_results(config: MTLConfig, datasets: Sequence[str], result: EvaluationResult) -> list[EvalResult]:
    entries = []
    for name, metrics in result.to_dict()["tasks"].items():
        for metric, value in metrics.items():
            if metric == "loss" or metric.endswith("support") or value is None:
                continue
            entries.append(
                EvalResult(
                    # The Hub has no type for regression on text.
                    task_type="text-classification" if config.task(name).has_head else "sentence-similarity",
                    task_name=name,
                    # The Hub's reader joins results of one task type and data set unless their configuration differs.
                    dataset_config=name,
                    dataset_type=datasets[0],
                    dataset_name=", ".join(datasets),
                    dataset_split=result.split,
                    metric_type=_HUB_METRIC.get(metric, metric),
                    metric_name=metric,
                    metric_value=round(value, 4),
                )
            )
    return entries


def _encoder(config: MTLConfig, origin: Origin) -> str:
    is_plain = origin.base_model is not None and origin.base_model != origin.starts_from
    return f"One `{origin.base_model if is_plain else config.text_config.model_type}` encoder"


def _beginning(origin: Origin) -> str:
    return "" if origin.starts_from is None else f" It starts from the multi-task model `{origin.starts_from}`."


def _task_row(task: TaskConfig, *, is_kept: bool = False) -> str:
    """Returns a task's row of the table; what is kept has a head of an earlier run, and no data in this one."""
    names = list(task.labels or [])
    if not task.has_head:
        return f"| `{task.name}` | {task.problem_type}, loss {task.loss} | the embedding | {task.weight} |"
    shown = ", ".join(names[:12]) + (f" … ({len(names)})" if len(names) > 12 else "") if names else task.num_labels
    shown = "; ".join([str(shown), *_decision(task)])
    # A label may be any text, but a cell of a table is one line, and ends at a bar.
    shown = " ".join(shown.split()).replace("|", "\\|")
    weight = "kept: neither trained nor measured in this run" if is_kept else task.weight
    return f"| `{task.name}` | {task.problem_type} | {shown} | {weight} |"


def _decision(task: TaskConfig) -> list[str]:
    """Returns what turns logits into a decision, as it was fitted or set."""
    said = []
    if task.calibration_temperature is not None:
        said.append(f"temperature {task.calibration_temperature:.4f}")
    if task.label_thresholds is not None:
        lowest, highest = min(task.label_thresholds), max(task.label_thresholds)
        said.append(f"thresholds of the labels from {lowest:.4f} to {highest:.4f}")
    if task.rejection_threshold is not None:
        said.append(f"`{task.out_of_scope_label}` below {task.rejection_score} {task.rejection_threshold:.4f}")
    if task.abstention_threshold is not None:
        said.append(f"abstains below score {task.abstention_threshold:.4f}")
    return said


def _result_section(result: EvaluationResult) -> str:
    lines = [f"## Results on {result.split} ({result.num_rows:,} rows)\n", "| task | metric | value | labelled rows |"]
    lines.append("|---|---|---|---|")
    for name, metrics in result.to_dict()["tasks"].items():
        for metric, value in metrics.items():
            if not metric.endswith("support"):
                figure = "undefined" if value is None else f"{value:.4f}"
                lines.append(f"| `{name}` | {metric} | {figure} | {_support_of(metric, metrics)} |")
    return "\n".join(lines) + "\n"


def _support_of(metric: str, metrics: dict[str, Any]) -> str:
    inside, outside = metrics["support"], metrics.get("oos_support", 0)
    if metric == "oos_recall":
        return f"{outside:,}"
    return f"{inside + outside:,}" if metric in REJECTION_METRICS else f"{inside:,}"


def _training_section(report: dict[str, Any], datasets: Sequence[str], command: str) -> str:
    training, parameters = report["training"], report["parameters"]
    rows = ", ".join(f"{split} {count:,}" for split, count in report["data"]["rows"].items())
    runtime = training.get("train_runtime")
    if runtime is None:
        did, shown = f"Nothing was trained, the model was measured in {report['precision']}.", ""
    else:
        did = (
            f"Training took {runtime:.0f} s ({training['steps']:,} steps) in {report['precision']}, with "
            f"{parameters['trained']:,} of {parameters['total']:,} parameters learning."
        )
        lines = "\n".join(f"| {key} | {value} |" for key, value in _shown_settings(report["settings"]).items())
        shown = f"| setting | value |\n|---|---|\n{lines}\n\n"
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    return (
        f"## Training\n\n```bash\n{command}\n```\n\nData: {', '.join(datasets)}; rows: {rows}.\n\n{did}\n\n"
        f"{shown}Versions: {versions}.\n"
    )


def _shown_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings that training went by; of those that are seldom used, the ones that are set."""
    hidden = {"num_train_epochs" if settings["max_steps"] > 0 else "max_steps"}  # The other one ends the training.
    if not settings.get("teacher") and not any(source.get("teachers") for source in settings.get("sources", ())):
        hidden |= {"distillation_temperature", "gold_share", "teacher_annealing"}
    elif settings["teacher_annealing"]:
        hidden |= {"gold_share"}
    always = {key: settings[key] for key in _ALWAYS if settings.get(key) is not None}
    seldom = {key: settings[key] for key in _IF_SET if settings.get(key) not in (None, False, 0, "none", [])}
    return {key: value for key, value in (always | seldom).items() if key not in hidden}


def _conflict_section(report: dict[str, Any]) -> list[str]:
    conflicts = summarize_conflicts(report["history"])
    if conflicts is None:
        return []
    heading = "## Conflicts of the tasks\n\nOf their gradients on the shared encoder, measured in training."
    return [f"{heading}\n\n{conflicts.table()}\n\n{conflicts.advice}\n"]


def _usage_section(name: str) -> str:
    return f"""## Use

The folder carries its own code, so `trust_remote_code=True` is needed; read its `*_mtl.py` files first.

```python
from transformers import AutoModel

model = AutoModel.from_pretrained("{name if "/" in name else "<this folder>"}", trust_remote_code=True)
model.encode(["A sentence."])   # embeddings, for similarity and search
model.predict(["A sentence."])  # every task at once
```
"""


def _limits_section(config: MTLConfig, report: dict[str, Any]) -> str:
    truncated, rows = (sum(report["data"][key].values()) for key in ("truncated", "rows"))
    limit = "the tokenizer's limit" if config.max_seq_length is None else f"{config.max_seq_length} tokens"
    scores = "".join(f"{line}\n" for line in calibration_limits(config.tasks))
    return (
        "## Limits\n\n"
        f"- Texts are cut at {limit}; of the {rows:,} rows that it was trained and measured on {truncated:,} texts "
        "were longer.\n"
        f"{scores}"
        "- The figures hold for data like that named above; other text may fare worse.\n"
    )
