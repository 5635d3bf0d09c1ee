"""The card of a published folder: that of the model, its metadata, and how each library loads the folder."""

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard

from modeling_mtl import MTLModel
from mtl.published_files import CARD

BEGIN, END = "<!-- loading:begin -->", "<!-- loading:end -->"
TASKS = "tasks"
"""Folder of plain classifiers, each in a folder of its task's name."""
PLACEHOLDERS = ("<this folder>", "<this repository>")
"""What cards have where the name of the repository belongs."""
_TAGS = (
    "sentence-transformers", "sentence-similarity", "feature-extraction", "text-classification", "multi-task", "mtl",
    "custom_code",
)  # fmt: skip
_EXPORTS = ("onnx", "openvino")
_AUTO_CODE = "trust_remote_code=True)"
_PREDICTOR = "predictor_mtl.py"
_POOLED = {
    "mean": "embeddings = (states * mask).sum(dim=1) / mask.sum(dim=1)",
    "cls": "embeddings = states[torch.arange(len(states)), inputs.attention_mask.argmax(dim=1)]",
    "max": 'embeddings = states.masked_fill(mask == 0, float("-inf")).amax(dim=1)',
}


def published_card(folder: Path, model: MTLModel, *, repo_id: str | None = None) -> ModelCard:
    """Returns the card of a folder, from the one that it has, or else from what the model is.

    Metadata name sentence-transformers as the library, which reads the folder without running code of it; the figures
    stay. The section on loading goes before the card's own on use, or to the end; an earlier one is replaced.

    Args:
        folder: The folder, with everything in it but its card.
        model: The model.
        repo_id: Name of the repository in the examples.

    Raises:
        ValueError: If the card that is there cannot be read.
    """
    card = _own_card(folder / CARD, model)
    exports = [name for name in _EXPORTS if (folder / name).is_dir()]
    data: Any = card.data  # The fields of a card are not annotated.
    data.library_name = "sentence-transformers"
    data.pipeline_tag = "sentence-similarity"
    own = [data.tags] if isinstance(data.tags, str) else data.tags or []
    data.tags = list(dict.fromkeys([*own, *_TAGS, *exports]))
    text = _without_section(card.text)
    light = _light_code(exports[0], repo_id, model) if exports and (folder / _PREDICTOR).is_file() else None
    plain = next((path.parent.relative_to(folder) for path in sorted(folder.glob(f"{TASKS}/*/config.json"))), None)
    section = _section(model, light, plain, tells_all=_AUTO_CODE in text)
    before, heading, after = text.partition("\n## Use\n")
    text = f"{before.rstrip()}\n\n{section}\n{heading}{after}" if heading else f"{text.rstrip()}\n\n{section}\n"
    for placeholder in PLACEHOLDERS:
        text = text.replace(f'"{placeholder}"', f'"{repo_id or PLACEHOLDERS[0]}"')
    card.text = text
    return card


def _own_card(path: Path, model: MTLModel) -> ModelCard:
    if not path.is_file():
        return model._default_card()
    try:
        return ModelCard.load(path)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"The metadata of the card {path.name} cannot be read: {error}. Mend it.") from error


def _without_section(text: str) -> str:
    before, begin, rest = text.partition(BEGIN)
    return before.rstrip() + "\n" + rest.partition(END)[2] if begin else text


def _section(model: MTLModel, light: str | None, plain: Path | None, *, tells_all: bool) -> str:
    copies = [*(["exported graphs"] if light is not None else []), *(["classifiers of one task"] if plain else [])]
    but = f", but for {' and '.join(copies)}, which hold their own" if copies else ""
    parts = [f"{BEGIN}\n## Load it\n\nSeveral libraries read this repository; no weight is in it twice{but}."]
    parts.append(_block("Embeddings, with sentence-transformers. No code of the repository runs.", _WITH_ST))
    if not tells_all:
        parts.append(_block(_READ_FIRST, _WITH_CODE + (_PREDICT if len(model.heads) else "")))
    parts.append(_block(_PLAIN, _encoder_code(model)))
    if plain is not None:
        parts.append(_block(_ONE_TASK, _WITH_PIPELINE.replace("<folder>", plain.as_posix())))
    if light is not None:
        parts.append(_block(_LIGHT, light))
    return "\n\n".join([*parts, END])


def _block(what: str, code: str) -> str:
    return f"{what}\n\n```python\n{code.strip()}\n```"


_WITH_ST = """
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("<this folder>")
embeddings = model.encode(["A sentence.", "Another one."])
"""
_READ_FIRST = "Embeddings and every task, with transformers, which runs the `*_mtl.py` files: read them first."
_WITH_CODE = """
from transformers import AutoModel

model = AutoModel.from_pretrained("<this folder>", trust_remote_code=True)
embeddings = model.encode(["A sentence.", "Another one."])
"""
_PREDICT = 'predictions = model.predict(["A sentence.", "Another one."])\n'
_ONE_TASK = "One task as a plain classifier, with transformers. No code of the repository runs."
_WITH_PIPELINE = """
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

model = AutoModelForSequenceClassification.from_pretrained("<this folder>", subfolder="<folder>")
tokenizer = AutoTokenizer.from_pretrained("<this folder>", subfolder="<folder>")
classify = pipeline("text-classification", model=model, tokenizer=tokenizer)
scores = classify(["A sentence.", "Another one."], truncation=True)
"""
_PLAIN = (
    "The encoder alone, with transformers. No code of the repository runs. A pooler that is reported as missing has "
    "no part in the embeddings."
)
_LIGHT = (
    "Without torch: `predictor_mtl.py` imports numpy, tokenizers and the runtime alone. It is code too: read it first."
)


def _encoder_code(model: MTLModel) -> str:
    limit = model.max_tokens()
    truncation = "" if limit is None else f", truncation=True, max_length={limit}"
    lines = [
        "import torch" if model.config.pooling == "cls" or model.config.normalize else "",
        "from transformers import AutoModel, AutoTokenizer\n",
        'tokenizer = AutoTokenizer.from_pretrained("<this folder>", subfolder="backbone")',
        'encoder = AutoModel.from_pretrained("<this folder>", subfolder="backbone")',
        'texts = ["A sentence.", "Another one."]',
        f'inputs = tokenizer(texts, padding=True{truncation}, return_tensors="pt")',
        "states = encoder(**inputs).last_hidden_state",
        "" if model.config.pooling == "cls" else "mask = inputs.attention_mask.unsqueeze(-1)",
        _POOLED[model.config.pooling],
        "embeddings = torch.nn.functional.normalize(embeddings, dim=-1)" if model.config.normalize else "",
    ]
    return "\n".join(line for line in lines if line)


def _light_code(backend: str, repo_id: str | None, model: MTLModel) -> str:
    lines = [
        "import sys\n",
        "" if repo_id is None else "from huggingface_hub import snapshot_download\n",
        'folder = "<this folder>"' if repo_id is None else f'folder = snapshot_download("{repo_id}")',
        "sys.path.insert(0, folder)",
        "from predictor_mtl import MTLPredictor\n",
        f'predictor = MTLPredictor(folder, backend="{backend}")',
        'embeddings = predictor.encode(["A sentence.", "Another one."])',
        'predictions = predictor.predict(["A sentence.", "Another one."])' if len(model.heads) else "",
    ]
    return "\n".join(line for line in lines if line)
