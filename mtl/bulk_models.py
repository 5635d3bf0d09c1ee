"""What answers the texts of a bulk run: a saved model in torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from modeling_mtl import MTLModel
from mtl.bulk import Answer, Text
from mtl.content_keys import key_of, key_of_config, key_of_tokenizer, key_of_weights
from mtl.precision import has_fast_bf16


@dataclass(frozen=True)
class BulkOptions:
    """How a model is loaded and run; small, so that workers elsewhere can be given it.

    Args:
        name: Folder of the saved model, or its name on the Hub.
        revision: Branch, tag or commit on the Hub.
        trust_remote_code: Whether code of the encoder's repository may run.
        precision: `"auto"`, bf16 where the processor is fast in it, `"fp32"` or `"bf16"`.
        batch_size: Sentences of a forward pass at most; as many as the budget of tokens allows if not given.
    """

    name: str
    revision: str | None = None
    trust_remote_code: bool = False
    precision: str = "auto"
    batch_size: int | None = None

    @property
    def precision_in_use(self) -> str:
        """What `"auto"` is on this machine."""
        if self.precision != "auto":
            return self.precision
        return "bf16" if has_fast_bf16() else "fp32"


class TorchBulkModel:
    """A saved multi-task model, on a GPU if there is one.

    Args:
        options: Which model, and how it is run.

    Raises:
        OSError: If there is no such model.
    """

    def __init__(self, options: BulkOptions) -> None:
        hub = {"revision": options.revision, "trust_remote_code": options.trust_remote_code}
        self.model: MTLModel = MTLModel.from_pretrained(options.name, **hub).eval()
        self.tasks = tuple(self.model.config.tasks)
        keys = [key_of_config(self.model.config), key_of_weights(self.model), key_of_tokenizer(self.model.tokenizer)]
        self.fingerprint = key_of(*keys, options.precision_in_use)
        if torch.accelerator.is_available():
            self.model.to(torch.accelerator.current_accelerator())
        self._options: dict[str, Any] = {"precision": options.precision_in_use, "show_progress_bar": False}
        if options.batch_size is not None:
            self._options["batch_size"] = options.batch_size

    def answer(self, texts: Sequence[Text], *, embeddings: bool, predictions: bool) -> Answer:
        """Returns embeddings and predictions of texts, as far as they are wanted, from one pass."""
        if embeddings and predictions:
            return self.model.encode_and_predict(texts, **self._options)
        if embeddings:
            return self.model.encode(texts, **self._options), None
        return None, self.model.predict(texts, **self._options)
