"""An encoder without layers: a vector a token, so that the sentence embedding is their mean.

It trains and predicts as any other encoder of `MTLModel`, with every loss there is, and runs at the speed of a table.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput


class StaticEncoderConfig(PreTrainedConfig):
    """Configuration of [`StaticEncoder`].

    Args:
        vocab_size: Count of tokens, V.
        hidden_size: Width of a vector, H.
        unk_token_id: Id of the unknown token, whose vector stays zero; None if there is none.
    """

    model_type = "mtl-static"

    vocab_size: int = 30522
    hidden_size: int = 256
    unk_token_id: int | None = None


class StaticEncoder(PreTrainedModel):
    """Gives each token its vector.

    The unknown token's is zero and stays so: model2vec leaves that token out of the mean, which after L2 normalisation
    is the same.

    Args:
        config: The configuration.
    """

    config_class = StaticEncoderConfig
    base_model_prefix = "encoder"
    main_input_name = "input_ids"

    def __init__(self, config: StaticEncoderConfig) -> None:
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.unk_token_id)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Returns the table of vectors."""
        return self.embeddings

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> BaseModelOutput:
        """Returns the vectors of tokens, (B, T, H), of their ids, (B, T)."""
        return BaseModelOutput(last_hidden_state=self.embeddings(input_ids))  # (B, T, H)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            module.weight.normal_(std=module.embedding_dim**-0.5)
            if module.padding_idx is not None:
                module.weight[module.padding_idx].zero_()


AutoConfig.register(StaticEncoderConfig.model_type, StaticEncoderConfig, exist_ok=True)
AutoModel.register(StaticEncoderConfig, StaticEncoder, exist_ok=True)
