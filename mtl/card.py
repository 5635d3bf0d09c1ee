"""The model card: what the model is, what it reached, and how to load it, from the figures of the run."""

from collections.abc import Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from configuration_mtl import MTLConfig
from mtl.calibration_report import calibration_section
from mtl.card_origin import Origin
from mtl.card_pictures import embedding_section, pictures_section
from mtl.card_tasks import tasks_section
from mtl.card_training import limits_section, training_section
from mtl.conflicts import summarize_conflicts
from mtl.evaluation import EvaluationResult
from mtl.markdown import code, literal
from mtl.rejection import REJECTION_METRICS
from mtl.sources import SourceConfig

# The names that `evaluate` gives metrics, where they differ from ours.
_HUB_METRIC = {
    "pearson": "pearsonr", "spearman": "spearmanr", "f1_macro": "f1", "f1_micro": "f1", "mcc": "matthews_correlation"
}  # fmt: skip


def build_card(
    config: MTLConfig,
    *,
    name: str,
    origin: Origin,
    license: str | None = None,
    language: Sequence[str] | None = None,
    sources: Sequence[SourceConfig],
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
        sources: Where its data came from.
        results: Results by split; the figures in the metadata are those of the last one.
        report: The report of the run, see `mtl.report`, with what `train_trainer.py` adds: under
            `chosen_on_validation` what was fitted there, by setting the names of the tasks.
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
        eval_results=_eval_results(config, sources, results[-1]) if results else None,
    )
    of_run = {task["name"] for task in report["tasks"]}
    body = [
        f"---\n{data.to_yaml()}\n---\n",
        f"# {literal(name)}\n",
        f"{_encoder(config, origin)} with {heads} on one {config.pooling}-pooled, "
        f"{config.hidden_size}-dimensional sentence embedding.{_beginning(origin)}\n",
        *tasks_section(config, kept=[task.name for task in config.tasks if task.name not in of_run]),
        *(_result_section(result, _caution(result, results, report)) for result in results),
        *calibration_section(report.get("calibration") or {}),
        *pictures_section(report),
        *embedding_section(report),
        training_section(report, [str(source.name) for source in sources], command),
        *_conflict_section(report),
        _usage_section(config, name, sources),
        limits_section(config, report),
        _licences_section(data.license, origin, sources),
    ]
    return ModelCard("\n".join(body) + "\n", ignore_metadata_errors=False)


def _eval_results(config: MTLConfig, sources: Sequence[SourceConfig], result: EvaluationResult) -> list[EvalResult]:
    entries = []
    for name, metrics in result.to_dict()["tasks"].items():
        # A task that teachers alone know has no source of its own.
        names = [str(source.name) for source in _sources_of(name, sources) or sources]
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
                    dataset_type=names[0],
                    dataset_name=", ".join(names),
                    dataset_split=result.split,
                    metric_type=_HUB_METRIC.get(metric, metric),
                    metric_name=metric,
                    metric_value=round(value, 4),
                )
            )
    return entries


def _sources_of(task: str, sources: Sequence[SourceConfig]) -> list[SourceConfig]:
    return [source for source in sources if task in (*source.labels, *source.pairs, *source.teachers)]


def _licences_section(license: str | None, origin: Origin, sources: Sequence[SourceConfig]) -> str:
    unknown = "not given"
    started = "the model it starts from" if origin.starts_from is not None else "the encoder"
    of_start = origin.license if origin.starts_from is not None else origin.encoder_license
    known = [("this model", license), (started, of_start)]
    known += [(f"the data {code(source.name)}", source.license) for source in sources]
    return "## Licences\n\n" + "".join(f"- {what}: {found or unknown}\n" for what, found in known)


def _encoder(config: MTLConfig, origin: Origin) -> str:
    is_plain = origin.base_model is not None and origin.base_model != origin.starts_from
    return f"One `{origin.base_model if is_plain else config.text_config.model_type}` encoder"


def _beginning(origin: Origin) -> str:
    return "" if origin.starts_from is None else f" It starts from the multi-task model `{origin.starts_from}`."


def _caution(result: EvaluationResult, results: Sequence[EvaluationResult], report: dict[str, Any]) -> list[str]:
    """Says what was chosen on a split, whose figures are then better than those of other rows would be."""
    if result.split != "validation":
        return []
    chosen = _chosen_on_validation(report)
    if not chosen:
        return []
    has_test = any(other.split == "test" for other in results)
    estimate = "those of test are the estimate" if has_test else "an estimate needs other rows, and there is no test"
    return [f"Chosen on these rows: {'; '.join(chosen)}. So these figures may flatter the model; {estimate}.\n"]


def _chosen_on_validation(report: dict[str, Any]) -> list[str]:
    settings = report.get("settings", {})
    chosen = []
    if report["training"]:
        if settings["load_best_model_at_end"]:
            chosen.append("the checkpoint (`load_best_model_at_end`)")
        if settings["early_stopping_patience"] is not None:
            chosen.append("the end of the training (`early_stopping_patience`)")
    fitted = report.get("chosen_on_validation", {})
    return chosen + [f"`{key}` of {', '.join(f'`{name}`' for name in names)}" for key, names in fitted.items()]


def _result_section(result: EvaluationResult, caution: Sequence[str]) -> str:
    lines = [f"## Results on {result.split} ({result.num_rows:,} rows)\n", *caution]
    lines += ["| task | metric | value | labelled rows |", "|---|---|---|---|"]
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


def _conflict_section(report: dict[str, Any]) -> list[str]:
    conflicts = summarize_conflicts(report["history"])
    if conflicts is None:
        return []
    heading = "## Conflicts of the tasks\n\nOf their gradients on the shared encoder, measured in training."
    return [f"{heading}\n\n{conflicts.table()}\n\n{conflicts.advice}\n"]


def _usage_section(config: MTLConfig, name: str, sources: Sequence[SourceConfig]) -> str:
    calls = "\n".join(f"model.predict({texts})  # {what}" for texts, what in _calls(config, sources))
    return f"""## Use

The folder carries its own code, so `trust_remote_code=True` is needed; read its `*_mtl.py` files first.

```python
from transformers import AutoModel

model = AutoModel.from_pretrained("{name if "/" in name else "<this folder>"}", trust_remote_code=True)
model.encode(["A sentence."])  # embeddings, for similarity and search
{calls}
```
"""


def _calls(config: MTLConfig, sources: Sequence[SourceConfig]) -> list[tuple[str, str]]:
    """Returns what heads take, single sentences or pairs of them as in their data, and what comes of it."""
    heads = [task.name for task in config.tasks if task.has_head]
    pairs = [name for name in heads if _reads_pairs(name, sources)]
    singles = [name for name in heads if name not in pairs]
    if not pairs:
        return [('["A sentence."]', "every task at once")] if singles else []
    calls = [('["A sentence."]', f"of use: {', '.join(singles)}")] if singles else []
    return [*calls, ('[("One sentence.", "And another.")]', f"pairs, for {', '.join(pairs)}")]


def _reads_pairs(task: str, sources: Sequence[SourceConfig]) -> bool:
    own = _sources_of(task, sources)
    return bool(own) and all(source.text_pair is not None for source in own)
