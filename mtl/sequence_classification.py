"""One task of a multi-task model as a plain sequence classifier, which pipelines and servers run without our code.

A stock classifier reads the first token, through a layer that is not linear, where our heads read, as a rule, the mean
over tokens. Both are written in the weights of stock modules, see `mean_layer` and `stock_heads`.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from batching_mtl import BatchLimits, Text, padded_batches, windows
from configuration_mtl import TaskConfig
from modeling_mtl import MTLModel
from mtl.linear_maps import map_of_features, set_linear
from mtl.mean_layer import write_hidden, write_mean, write_mean_and_hidden
from mtl.stock_classifiers import STOCK_KINDS, StockKind, head_layers, last_norm, make_classifier, post_norm_layer
from mtl.stock_classifiers import write_head as write_linear_head
from tasks_mtl import ORDINAL

TOLERANCE = 1e-5
"""By how much logits may differ, in units of the largest of them, or of 1 if all are smaller."""

PROBES = (
    "The battery lasts all day, and the screen is bright.",
    "No.",
    "",
    "Why was my card declined twice at the same shop on 12 March 2024?",
    "El tren sale a las siete; llegaremos tarde, como siempre.",
    "The plot is thin, the jokes are older than the actors, and I laughed until I cried.",
    " ".join(["He said that the committee had not decided, and that nobody knew when it would."] * 12),
)
"""Sentences that a conversion is measured on if none are given."""

_RELATIVE = ("deberta", "deberta-v2", "mpnet")
_LIMITS = BatchLimits(max_batch_tokens=4096, batch_size=4, window_size=1024)


def to_sequence_classification(model: MTLModel, task: str, *, sentences: Sequence[Text] = PROBES) -> PreTrainedModel:
    """Returns a model of the stock class, such as `BertForSequenceClassification`, that gives one task's logits.

    It has the names of the labels and the problem type in its configuration, so that pipelines make the same scores of
    its logits; a calibration temperature is in its weights. For a mean over tokens it has one layer more, but for
    ModernBERT, whose stock class takes a mean. Decisions by a threshold, the other tasks and the embedding are not in
    it. It is for inference only.

    Args:
        model: The model, in float32.
        task: Name of one of its tasks.
        sentences: What the logits of both are compared on.

    Raises:
        KeyError: If there is no such task.
        ValueError: If the task has no head, or its kind, its head, the pooling or the encoder has no equal in the
            stock class; if the model has no tokenizer; or if the logits differ by more than [`TOLERANCE`].
    """
    found = model.config.task(task)
    kind = STOCK_KINDS.get(model.config.text_config.model_type)
    reason = _reason_against(model, found, kind)
    if kind is None or reason is not None:
        raise ValueError(
            f"Task {task!r} cannot be written as a stock classifier: {reason}. Serve the whole model instead, as an "
            "ONNX graph (`mtl export onnx`), or as it is, with `trust_remote_code=True`."
        )
    classifier = make_classifier(model, kind, found, added_layers(model, found, kind))
    _write(classifier, kind, model, found)
    difference = largest_difference(model, found, classifier, sentences)
    if not difference <= TOLERANCE:
        raise ValueError(
            f"Task {task!r}: logits of the stock classifier differ by {difference:.1e}, more than {TOLERANCE:.0e} of "
            "the largest: the sizes of its weights differ too much for stock layers. Serve the whole model instead."
        )
    return classifier


def added_layers(model: MTLModel, task: TaskConfig, kind: StockKind) -> int:
    """Returns how many layers the classifier of a task has more than the model's encoder."""
    is_stock_head = model.config.pooling == "cls" and (task.hidden_size is None or kind.activation == "gelu")
    return int(kind.can_add_layer and not is_stock_head)


def classifier_tokenizer(model: MTLModel) -> PreTrainedTokenizerBase:
    """Returns a copy of a model's tokenizer that, told to truncate, cuts where the model's `predict` does."""
    tokenizer: PreTrainedTokenizerBase = copy.deepcopy(model.tokenizer)
    tokenizer.model_max_length = model.max_tokens() or tokenizer.model_max_length
    if model.config.pooling == "cls":
        tokenizer.padding_side = "right"  # A stock class reads the first place, even if padding stands there.
    return tokenizer


@torch.inference_mode()
def largest_difference(
    model: MTLModel, task: TaskConfig, classifier: PreTrainedModel, sentences: Sequence[Text] = PROBES
) -> float:
    """Returns by how much a classifier's logits differ from a model's, in units of the largest, or of 1.

    Args:
        model: The model.
        task: The task, whose temperature is in the logits of the classifier.
        classifier: The classifier of it.
        sentences: What they are compared on.

    Raises:
        ValueError: If the model has no tokenizer.
    """
    if model.tokenizer is None:
        raise ValueError("The model has no tokenizer, so no sentence can be compared. Set `model.tokenizer`.")
    tokenizer, was_training, largest, difference = classifier_tokenizer(model), model.training, 1.0, 0.0
    model.eval()
    for window in windows(sentences, _LIMITS.window_size):
        for _, inputs in padded_batches(tokenizer, window, model.max_tokens(), _LIMITS):
            inputs = inputs.to(model.device)
            expected = model(**inputs).logits[task.name] / (task.calibration_temperature or 1.0)  # (B, C)
            largest = max(largest, float(expected.abs().max()))
            distance = (classifier(**inputs).logits.float() - expected).abs().max()  # ()
            difference = max(difference, float(distance.nan_to_num(torch.inf)))
    model.train(was_training)
    return difference / largest


def _reason_against(model: MTLModel, task: TaskConfig, kind: StockKind | None) -> str | None:
    config = model.config
    encoder = config.text_config
    if kind is None or encoder.is_remote_code():
        return _about_type(encoder.model_type)
    refused = {
        "it has no head": not task.has_head,
        "pipelines make softmax or sigmoid of logits, but ordered labels have products of sigmoids": (
            task.problem_type == ORDINAL
        ),
        "its cosines need features of length 1, and no stock class normalises features": task.cosine_scale is not None,
        "its heads read embeddings of length 1, and no stock class normalises features": config.normalize_for_heads,
        "no stock class takes the maximum over tokens": config.pooling == "max",
        "the encoder is a decoder, whose first token does not see the others": bool(
            getattr(encoder, "is_decoder", False)
        ),
        f"the weights are {model.dtype}; load the model with `dtype=torch.float32`": model.dtype != torch.float32,
        "the width of the encoder is no multiple of its number of attention heads": bool(
            encoder.hidden_size % encoder.num_attention_heads
        ),
    }
    reason = next((text for text, is_so in refused.items() if is_so), None)
    return reason or _reason_against_sizes(config.pooling, encoder, task, kind)


def _reason_against_sizes(pooling: str, encoder: Any, task: TaskConfig, kind: StockKind) -> str | None:
    width, hidden = encoder.hidden_size, task.hidden_size
    most = width // 2 - 1
    if task.num_logits > most:
        return f"an encoder of width {width} carries at most {most} logits, and it has {task.num_logits}"
    if hidden is None:
        return None
    if not kind.can_add_layer:
        return f"its head has a hidden layer, for which {encoder.model_type} has no place"
    if pooling == "cls" and kind.activation == "gelu":
        return f"its head is {hidden} wide, and the stock one {width}" if hidden > width else None
    # DistilBERT has names of its own for both.
    activation = getattr(encoder, "hidden_act", None) or encoder.activation
    inner_width = getattr(encoder, "intermediate_size", None) or encoder.hidden_dim
    if activation != "gelu":
        return f"its head has a hidden layer with GELU, where the encoder has {activation!r}"
    if pooling == "mean" and hidden + task.num_logits > most:
        return (
            f"an encoder of width {width} carries at most {most} numbers, and its head has {hidden} hidden ones and "
            f"{task.num_logits} logits"
        )
    if hidden > inner_width:
        return f"its head is {hidden} wide, and the encoder's feed-forward part {inner_width}"
    return None


def _about_type(model_type: str) -> str:
    if model_type in _RELATIVE:
        return f"{model_type} adds terms of relative positions to attention, so no layer of it can take a mean"
    return f"the encoder is of type {model_type!r}, and known are {sorted(STOCK_KINDS)}"


def _write(classifier: PreTrainedModel, kind: StockKind, model: MTLModel, task: TaskConfig) -> None:
    head: Any = model.heads[task.name]
    divisor = task.calibration_temperature or 1.0
    if not added_layers(model, task, kind):
        if head.hidden is not None:
            _write_same_head(classifier, kind, head, divisor)
        else:
            features = map_of_features(head.out_proj, last_norm(classifier, kind), divisor)
            write_linear_head(classifier, kind, features)
        return
    layer, norm = post_norm_layer(classifier, kind, -1), post_norm_layer(classifier, kind, -2).output_norm
    if head.hidden is None:
        features = write_mean(layer, norm, head.out_proj, divisor)
    else:
        write = write_mean_and_hidden if model.config.pooling == "mean" else write_hidden
        features = write(layer, norm, head.hidden[0], head.out_proj, divisor)
    write_linear_head(classifier, kind, features)


def _write_same_head(classifier: PreTrainedModel, kind: StockKind, head: Any, divisor: float) -> None:
    dense, last = head_layers(classifier, kind)
    set_linear(dense, head.hidden[0].weight, head.hidden[0].bias)
    set_linear(last, head.out_proj.weight / divisor, head.out_proj.bias / divisor)
