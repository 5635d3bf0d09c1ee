"""`pipeline("multi-task-classification", model=..., trust_remote_code=True)`: what `predict` says, as a pipeline.

The file travels with every saved model; see `modeling_mtl.py`.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from torch.utils.data import Dataset
from transformers import Pipeline

try:
    if not TYPE_CHECKING:  # To a type checker these are top-level modules.
        from .batching_mtl import BatchLimits, Text, padded_batches
        from .classification_mtl import predictions_of
except ImportError:
    # As an installed top-level module there is no parent package; inside one, a failed import is a real fault.
    if __package__:
        raise
    from batching_mtl import BatchLimits, Text, padded_batches
    from classification_mtl import predictions_of

PIPELINE_TASK = "multi-task-classification"
"""The name by which `pipeline(...)` finds the class in a saved model."""

_OPTIONS = ("tasks", "top_k", "return_embeddings")
_ONE = BatchLimits(max_batch_tokens=1, batch_size=1, window_size=1)
_EMBEDDING, _LOGITS = "embedding", "logits_"


class MTLPipeline(Pipeline):
    """Predicts every task of a multi-task model, batch by batch, as other pipelines do their one task.

    A call takes one sentence, a list, a generator, or a data set such as `KeyDataset`; the last two are answered while
    they are read. A pair of sentences that are encoded together is a tuple of two strings, as in `predict`, or a dict
    with `text` and `text_pair`. The answer to each is what `MTLModel.predict` gives. `batch_size` is the count of
    sentences in a forward pass, in the order they come in.

    Options, of `pipeline(...)` or of a call, which wins:

    - `tasks`: names of the tasks that are wanted; all that have a head if not given.
    - `top_k`: how many probabilities of a task are wanted, the largest first; with None all, in the order of the
      labels.
    - `return_embeddings`: whether the answer is `{"embedding": array, "predictions": {task: ...}}` instead, with the
      embedding of the sentence as `encode` gives it, (H,).

    Args:
        model: The model; it is set to evaluation mode.
        tokenizer: A tokenizer, if it is not to be the model's own, which it replaces.
        **kwargs: As in any pipeline, and the options above.

    Raises:
        KeyError: If there is no task of a name; the message lists those there are.
        TypeError: If an option is unknown, or an input is neither a sentence nor a pair.
        ValueError: If there is no tokenizer, a task has no head, or `top_k` is no count.
    """

    _load_processor: Any = False
    _load_image_processor: Any = False
    _load_feature_extractor: Any = False
    _load_tokenizer: Any = False  # The model brings its own.

    def __init__(self, model: Any, tokenizer: Any = None, **kwargs: Any) -> None:
        if tokenizer is not None:
            model.tokenizer = tokenizer
        if model.tokenizer is None:
            raise ValueError(
                "The model has no tokenizer, as none was saved with it. Give one: `pipeline(..., tokenizer=...)`."
            )
        super().__init__(model.eval(), tokenizer=model.tokenizer, **kwargs)

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Answers one input with a dict, a list with a list, and a data set or generator with an iterable."""
        if hasattr(inputs, "__len__") and not isinstance(inputs, str | Mapping | tuple) and len(inputs) == 0:
            return []
        if isinstance(inputs, Iterable) and not isinstance(inputs, str | Mapping | tuple | list | Dataset):
            # The base class takes no other iterables. What has a length is a column of a table, and fits in memory.
            inputs = list(inputs) if hasattr(inputs, "__len__") else (text for text in inputs)
        return super().__call__(inputs, *args, **kwargs)

    def _sanitize_parameters(
        self, **pipeline_parameters: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        for name in pipeline_parameters.keys() - set(_OPTIONS):
            raise TypeError(f"The pipeline has no option {name!r}. It has {list(_OPTIONS)}.")
        tasks, top_k = pipeline_parameters.get("tasks"), pipeline_parameters.get("top_k")
        if isinstance(tasks, str):
            pipeline_parameters["tasks"] = tasks = [tasks]
        for task in map(self.model.config.task, tasks or ()):
            if not task.has_head:
                raise ValueError(f"Task {task.name!r} has no head, so it predicts nothing. Leave it out of `tasks`.")
        if top_k is not None and (not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1):
            raise ValueError(f"top_k must be an int of at least 1, or None for all, found {top_k!r}.")
        return {}, {}, pipeline_parameters

    def preprocess(self, input_: Any, **preprocess_parameters: Any) -> dict[str, Any]:
        """Returns the encoder's inputs for one sentence or pair, (1, T) each, cut as `predict` cuts it."""
        model: Any = self.model
        _, inputs = next(padded_batches(self.tokenizer, [_as_text(input_)], model.max_tokens(), _ONE))
        return dict(inputs)

    def _forward(self, input_tensors: dict[str, Any], **forward_parameters: Any) -> Any:
        # Flat, because the base class takes batches apart by the values of a dict.
        output = self.model(**input_tensors)
        logits = {f"{_LOGITS}{name}": values for name, values in output.logits.items()}  # (B, C) each
        return {_EMBEDDING: output.embeddings, **logits}

    def postprocess(self, model_outputs: Any, **postprocess_parameters: Any) -> dict[str, Any]:
        """Returns what `predict` says of one sentence, of the tasks that are wanted."""
        wanted, top_k = postprocess_parameters.get("tasks"), postprocess_parameters.get("top_k")
        heads = [task for task in self.model.config.tasks if task.has_head and (not wanted or task.name in wanted)]
        predictions = {task.name: predictions_of(task, model_outputs[f"{_LOGITS}{task.name}"])[0] for task in heads}
        if top_k is not None:
            predictions = {name: _largest(prediction, top_k) for name, prediction in predictions.items()}
        if not postprocess_parameters.get("return_embeddings"):
            return predictions
        return {"embedding": model_outputs[_EMBEDDING][0].numpy(), "predictions": predictions}


def custom_pipelines() -> dict[str, Any]:
    """Returns what the configuration of a saved model says of its pipeline."""
    # Anew each time: the library puts classes in the place of names in what it reads.
    return {PIPELINE_TASK: {"impl": f"pipeline_mtl.{MTLPipeline.__name__}", "pt": ["AutoModel"], "type": "text"}}


def _as_text(given: Any) -> Text:
    parts = given
    if isinstance(given, Mapping) and given.keys() <= {"text", "text_pair"} and "text" in given:
        second = given.get("text_pair")
        parts = given["text"] if second is None else (given["text"], second)
    is_pair = isinstance(parts, tuple) and len(parts) == 2 and all(isinstance(part, str) for part in parts)
    if not isinstance(parts, str) and not is_pair:
        raise TypeError(
            f"Expected a sentence, a pair as a tuple of two strings, or a dict of 'text' and 'text_pair'; found "
            f"{str(given)[:100]!r} of type {type(given).__name__}. Of the rows of a table give the column of the "
            "texts, for a data set `KeyDataset(rows, 'text')`."
        )
    return parts


def _largest(prediction: Any, count: int) -> Any:
    if not isinstance(prediction, dict) or "probabilities" not in prediction:
        return prediction
    ordered = sorted(prediction["probabilities"].items(), key=lambda item: item[1], reverse=True)
    return prediction | {"probabilities": dict(ordered[:count])}
