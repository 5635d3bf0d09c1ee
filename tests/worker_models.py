"""The model and the tokenizer of the scripts that tests run by torchrun, which have no fixtures."""

from collections.abc import Sequence

from tokenizers import Tokenizer, models
from transformers import BertConfig, PreTrainedTokenizerFast, set_seed

from configuration_mtl import MTLConfig, TaskConfig
from modeling_mtl import MTLModel


def make_model(tasks: Sequence[TaskConfig]) -> MTLModel:
    """Returns a tiny random model without dropout, the same one each time."""
    set_seed(0)
    text_config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return MTLModel(MTLConfig(text_config=text_config, tasks=list(tasks), head_dropout=0.0))


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Returns a tokenizer that can pad, for rows that are tokens already."""
    vocabulary = Tokenizer(models.WordLevel({"[PAD]": 0}, "[PAD]"))
    return PreTrainedTokenizerFast(tokenizer_object=vocabulary, pad_token="[PAD]")
