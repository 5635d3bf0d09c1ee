"""A graph and a predictor for it, as an export leaves them beside a model: enough to load a folder without torch."""

from pathlib import Path

import torch
from torch import Tensor, nn

from modeling_mtl import MTLModel

PREDICTOR = '''
import json
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer


class MTLPredictor:
    """Embeds sentences and predicts the task `topic`, one sentence at a time."""

    def __init__(self, folder, backend="auto", precision="auto", threads=None):
        assert backend in ("auto", "onnx") and precision in ("auto", "fp32")
        self.settings = json.loads(Path(folder, "mtl_inference.json").read_text())
        self.tokenizer = Tokenizer.from_file(str(Path(folder, "tokenizer.json")))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(self.settings["max_tokens"])
        self.session = onnxruntime.InferenceSession(str(Path(folder, "onnx", "model.onnx")))

    def _run(self, text):
        ids = np.array([self.tokenizer.encode(text).ids])
        return self.session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})

    def encode(self, sentences):
        return np.concatenate([self._run(text)[0] for text in sentences])

    def predict(self, sentences):
        rows = []
        for text in sentences:
            logits = self._run(text)[1][0]
            shares = np.exp(logits - logits.max())
            shares = (shares / shares.sum()).tolist()
            probabilities = dict(zip(self.settings["topic"], shares, strict=True))
            label = max(probabilities, key=probabilities.get)
            rows.append({"topic": {"label": label, "score": probabilities[label], "probabilities": probabilities}})
        return rows
'''


class _Graph(nn.Module):
    def __init__(self, model: MTLModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        output = self.model(input_ids=input_ids, attention_mask=attention_mask)
        return output.embeddings, output.logits["topic"]


def write_graph(model: MTLModel, file: Path) -> None:
    """Writes the graph of a model: ids and mask to its embedding and the logits of its task `topic`."""
    file.parent.mkdir()
    ids = torch.ones(2, 8, dtype=torch.long)
    shape = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")}
    torch.onnx.export(
        _Graph(model).eval(),
        (ids, torch.ones_like(ids)),
        str(file),
        dynamo=True,
        input_names=["input_ids", "attention_mask"],
        output_names=["sentence_embedding", "logits_topic"],
        dynamic_shapes=(shape, shape),
    )
