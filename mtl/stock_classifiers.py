"""The classifiers of transformers as which one task of ours can be written, and what they compute."""

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from configuration_mtl import TaskConfig
from modeling_mtl import MTLModel
from mtl.linear_maps import LinearMap
from mtl.mean_layer import PostNormLayer
from mtl.stock_heads import write_norm, write_pairs, write_tanh


@dataclass(frozen=True)
class StockKind:
    """What the stock classifier of a type of encoder does after the encoder.

    Args:
        dense: Name of the layer that reads the pooled features; in it, `{base}` stands for the encoder's name.
        activation: What comes after it: `"tanh"`, `"relu"`, `"gelu"`, or `"norm"`, a LayerNorm alone.
        classifier: Name of the layer that gives the logits.
        layers: Name, within the encoder, of its list of layers, if a post-norm layer can be added to them.
        layer_names: Names of the modules within such a layer, in the order of [`PostNormLayer`].
        last_norm: Name, within the encoder, of the LayerNorm that gives the last states, if no layer has it.
    """

    dense: str
    activation: str
    classifier: str
    layers: str = ""
    layer_names: tuple[str, ...] = ()
    last_norm: str = ""

    @property
    def can_add_layer(self) -> bool:
        """Whether a layer can be added, as the mean over tokens needs it; else the classifier takes a mean itself."""
        return bool(self.layers)


_BERT_LAYER = (
    "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
    "attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm",
)  # fmt: skip
_DISTILBERT_LAYER = (
    "attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin",
    "sa_layer_norm", "ffn.lin1", "ffn.lin2", "output_layer_norm",
)  # fmt: skip
_ROBERTA = StockKind("classifier.dense", "tanh", "classifier.out_proj", "encoder.layer", _BERT_LAYER)

STOCK_KINDS = {
    "bert": StockKind("{base}.pooler.dense", "tanh", "classifier", "encoder.layer", _BERT_LAYER),
    "camembert": _ROBERTA,
    "distilbert": StockKind("pre_classifier", "relu", "classifier", "transformer.layer", _DISTILBERT_LAYER),
    "electra": StockKind("classifier.dense", "gelu", "classifier.out_proj", "encoder.layer", _BERT_LAYER),
    "modernbert": StockKind("head.dense", "norm", "classifier", last_norm="final_norm"),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
}
"""Type of encoder -> what its stock classifier does."""


def make_classifier(model: MTLModel, kind: StockKind, task: TaskConfig, added_layers: int) -> PreTrainedModel:
    """Makes the stock classifier with a model's encoder in it; layers that the encoder has not are drawn at random.

    Args:
        model: The model.
        kind: What the classifier of its type of encoder does.
        task: The task, for the names of the labels and the problem type.
        added_layers: How many layers it has more than the encoder.

    Raises:
        ValueError: If the encoder has other weights than a stock one.
    """
    ours = model.config.text_config
    config = type(ours).from_dict(ours.to_dict(), attn_implementation=ours._attn_implementation)
    config.num_hidden_layers += added_layers
    config.id2label, config.label2id, config.problem_type = task.id2label, task.label2id, task.problem_type
    config.name_or_path = ""  # Often a folder of this machine.
    if not kind.can_add_layer:
        config.classifier_pooling = model.config.pooling
        # An activation would be in the way of numbers that are to be linear, and a bias has to hold constants.
        config.classifier_activation, config.classifier_bias = "linear", True
    classifier: Any = AutoModelForSequenceClassification.from_config(config)
    # A pooler, which some encoders have, takes no part in ours.
    weights = {name: value for name, value in model.backbone.state_dict().items() if not name.startswith("pooler.")}
    loaded = classifier.base_model.load_state_dict(weights, strict=False)
    drawn = ("pooler.", f"{kind.layers}.{config.num_hidden_layers - 1}.") if added_layers else ("pooler.",)
    missing = [name for name in loaded.missing_keys if not name.startswith(drawn)]
    if missing or loaded.unexpected_keys:
        raise ValueError(
            f"The encoder is no plain {type(classifier.base_model).__name__}: it lacks the weights {missing[:3]}, and "
            f"has {loaded.unexpected_keys[:3]}. If that is an adapter, merge it first: "
            "`mtl.adapters.merge_adapter(model)`."
        )
    made: PreTrainedModel = classifier.to(model.device).eval()
    return made


def post_norm_layer(classifier: PreTrainedModel, kind: StockKind, index: int) -> PostNormLayer:
    """Returns the modules of a layer of the encoder in a classifier."""
    layer = classifier.base_model.get_submodule(kind.layers)[index]  # type: ignore[index]
    modules: list[Any] = [layer.get_submodule(name) for name in kind.layer_names]
    return PostNormLayer(*modules)


def last_norm(classifier: PreTrainedModel, kind: StockKind) -> nn.LayerNorm:
    """Returns the LayerNorm that gives the last states of the encoder in a classifier without added layers."""
    if kind.can_add_layer:
        return post_norm_layer(classifier, kind, -1).output_norm
    norm: Any = classifier.base_model.get_submodule(kind.last_norm)
    return norm


def head_layers(classifier: PreTrainedModel, kind: StockKind) -> tuple[nn.Linear, nn.Linear]:
    """Returns the layers of a classifier that read the pooled features, and that give the logits."""
    dense: Any = classifier.get_submodule(kind.dense.format(base=classifier.base_model_prefix))
    last: Any = classifier.get_submodule(kind.classifier)
    return dense, last


def write_head(classifier: PreTrainedModel, kind: StockKind, head: LinearMap) -> None:
    """Sets the layers after the encoder so that they compute a linear map of the pooled features."""
    dense, last = head_layers(classifier, kind)
    if kind.activation == "norm":
        norm: Any = classifier.get_submodule("head.norm")
        write_norm(dense, norm, last, head)
    elif kind.activation == "tanh":
        write_tanh(dense, last, head)
    else:
        write_pairs(dense, last, head)
