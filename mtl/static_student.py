"""A static student of a model: vectors of tokens instead of an encoder, with all heads.

The vectors begin as model2vec distils them of the model's encoder, and are then trained like any encoder, on labels
and on what the model says. The folder that is written is one of model2vec, with the heads beside it.
"""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

import predictor_mtl
from classification_mtl import CosineLinear
from modeling_mtl import MTLModel
from mtl.export_folder import describe, write_manifest
from mtl.extras import require
from mtl.static_encoder import StaticEncoder, StaticEncoderConfig
from predictor_mtl import MANIFEST

HEADS = "heads.safetensors"
"""File of the heads of a static student."""
WEIGHTS = "model.safetensors"
MAX_TOKENS = 512
"""Tokens of a text that are read, as model2vec does."""
_PADDING = ("[PAD]", "<pad>")


def write_static_encoder(teacher: MTLModel, folder: Path, *, dimensions: int | None = 256) -> StaticEncoder:
    """Distils a model's encoder into vectors of tokens, and saves them as an encoder with its tokenizer.

    Minish Lab, "Model2Vec: Fast State-of-the-Art Static Embeddings", 2024: each token goes through the encoder by
    itself; the outputs are reduced by PCA and weighted by the rank of the token.

    Args:
        teacher: The model.
        folder: Where the encoder is saved.
        dimensions: Width of the vectors; that of the encoder if None.

    Raises:
        ImportError: If model2vec is not installed.
        ValueError: If the model has no fast tokenizer.
    """
    for module in ("model2vec", "skeletoken"):
        require(module, extra="static", what="A static student")
    distillation: Any = require("model2vec.distill", extra="static", what="A static student")
    if getattr(teacher.tokenizer, "backend_tokenizer", None) is None:
        raise ValueError("The model has no fast tokenizer, which a static student needs (`tokenizer.json`).")
    pooling = {"mean": "mean", "cls": "first", "max": "mean"}[teacher.config.pooling]
    # What distils takes rows out of the table of the encoder that it is given.
    static = distillation.distill_from_model(
        copy.deepcopy(teacher.backbone).float().cpu(),
        copy.deepcopy(teacher.tokenizer),
        pca_dims="auto" if dimensions is None else dimensions,
        quantize_to="float32",
        pooling=pooling,
        device="cpu",
    )
    vectors = np.array(static.embedding, dtype=np.float32)  # (V, H)
    unknown = _unknown_id(static.tokenizer)
    size, width = vectors.shape
    encoder = StaticEncoder(StaticEncoderConfig(vocab_size=size, hidden_size=width, unk_token_id=unknown))
    with torch.no_grad():
        encoder.embeddings.weight.copy_(torch.from_numpy(vectors))
        if unknown is not None:
            encoder.embeddings.weight[unknown].zero_()
    encoder.save_pretrained(folder)
    _tokenizer(static.tokenizer).save_pretrained(folder)
    return encoder


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    """Returns the id that a tokenizer gives what it does not know, whatever its name; None if it knows everything."""
    model = json.loads(tokenizer.to_str())["model"]
    found: int | None = model.get("unk_id")  # Of a unigram model, which has no name for it.
    name = model.get("unk_token")
    return found if name is None else tokenizer.token_to_id(name)


def _tokenizer(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Returns a tokenizer that adds nothing: what it would add has no meaning of its own in a mean."""
    bare = json.loads(tokenizer.to_str()) | {"post_processor": None, "padding": None, "truncation": None}
    names = tokenizer.get_vocab()
    unknown = _unknown_id(tokenizer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(bare)),
        model_max_length=MAX_TOKENS,
        # Padding is masked, so any token does.
        pad_token=next((name for name in _PADDING if name in names), None) or next(iter(names)),
        unk_token=None if unknown is None else tokenizer.id_to_token(unknown),
    )
    made.model_input_names = ["input_ids", "attention_mask"]
    return made


def write_static(model: MTLModel, folder: Path, **facts: Any) -> None:
    """Writes a model with a static encoder as a folder of model2vec, with what a predictor needs beside it.

    Args:
        model: The model; its heads see normalised embeddings.
        folder: Where it goes.
        **facts: What else the manifest says of it.

    Raises:
        ValueError: If the encoder is not a static one, or the pooling not the mean.
    """
    if not isinstance(model.backbone, StaticEncoder):
        raise ValueError(f"The encoder is a {type(model.backbone).__name__}. A static student has a StaticEncoder.")
    if model.config.pooling != "mean":
        raise ValueError(f"pooling is {model.config.pooling!r}, and a static student has the mean. Set it to 'mean'.")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)  # Until the last file is there no predictor takes old and new ones.
    vectors = model.backbone.embeddings.weight.detach().cpu().float().numpy()  # (V, H)
    save_file({"embeddings": np.ascontiguousarray(vectors)}, folder / WEIGHTS)
    tasks = [task for task in model.config.tasks if task.has_head]
    heads = {
        f"{task.name}.{name}": np.ascontiguousarray(tensor.detach().cpu().float().numpy())
        for task in tasks
        for name, tensor in _head_tensors(model.heads[task.name]).items()
    }
    save_file(heads, folder / HEADS)
    config = {
        "model_type": "model2vec",
        "architectures": ["StaticModel"],
        "hidden_dim": vectors.shape[1],
        "normalize": model.config.normalize,
        "seq_length": model.max_tokens(),
        "max_length": model.max_tokens(),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    model.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    shutil.copyfile(predictor_mtl.__file__, folder / "predictor_mtl.py")
    graph: dict[str, Any] = {"backend": "static", "precision": "fp32", "file": WEIGHTS, "heads": HEADS}
    graph["normalizes_for_heads"] = model.config.normalize_for_heads
    graph["cosine_tasks"] = [task.name for task in tasks if task.cosine_scale is not None]
    write_manifest(folder, {**describe(model), "graphs": [{**graph, **facts}]})


def _head_tensors(head: Any) -> dict[str, Tensor]:
    last = head.out_proj
    if isinstance(last, CosineLinear):  # Features of length 1 are left to the predictor.
        found = {
            "weight": last.scale * F.normalize(last.weight, dim=-1),
            "bias": last.weight.new_zeros(len(last.weight)),
        }
    else:
        found = {"weight": last.weight, "bias": last.bias}
    if head.hidden is not None:
        found |= {"hidden.weight": head.hidden[0].weight, "hidden.bias": head.hidden[0].bias}
    return found
