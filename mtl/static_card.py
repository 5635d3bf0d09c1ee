"""The card of a static student: what it is, what it loses, and how it is loaded."""

from collections.abc import Sequence

from huggingface_hub import ModelCard, ModelCardData

from configuration_mtl import MTLConfig
from mtl.card_origin import Origin
from mtl.markdown import cell, literal
from mtl.quantization import TaskChange


def static_card(
    config: MTLConfig, changes: Sequence[TaskChange], *, split: str, origin: Origin, model: str
) -> ModelCard:
    """Writes the card.

    Args:
        config: Configuration of the student.
        changes: Each task in the teacher and in the student.
        split: What they were measured on.
        origin: What is known of the teacher.
        model: Folder or name of the teacher.
    """
    data = ModelCardData(
        library_name="model2vec",
        license=origin.license,
        language=list(origin.language) if origin.language else None,
        base_model=origin.base_model,
        tags=["model2vec", "static-embeddings", "multi-task", "sentence-similarity", "text-classification", "mtl"],
    )
    name = literal(origin.starts_from or model)
    rows = [
        f"| {cell(literal(change.task))} | {change.metric} | {change.before:.4f} | {change.after:.4f} | "
        f"{change.points_lost:+.2f} |"
        for change in changes
    ]
    body = [
        f"---\n{data.to_yaml()}\n---\n",
        f"# Static student of {name}\n",
        f"A vector of {config.hidden_size} numbers for each token, of which a sentence has the mean, and the heads of "
        "the tasks on it. It knows neither the order of words nor what they mean together; for that it is many times "
        "as fast as its teacher.\n",
        f"On the split `{split}`, {_SEEN if split == 'train' else _UNSEEN}:\n",
        "| task | metric | teacher | student | points lost |\n| --- | --- | --- | --- | --- |\n" + "\n".join(rows),
        _LOADING,
    ]
    return ModelCard("\n".join(body), ignore_metadata_errors=False)


_UNSEEN, _SEEN = "which neither was trained on", "which the student was trained on, as there is no other"

_LOADING = """
## Use

Embeddings and every task, with numpy, tokenizers and safetensors alone. `predictor_mtl.py` is code: read it first.

```python
import sys

sys.path.insert(0, "<this folder>")
from predictor_mtl import MTLPredictor

predictor = MTLPredictor("<this folder>")
embeddings = predictor.encode(["A sentence.", "Another one."])
predictions = predictor.predict(["A sentence.", "Another one."])
```

Embeddings alone, with model2vec, which runs no code of this folder:

```python
from model2vec import StaticModel

embeddings = StaticModel.from_pretrained("<this folder>").encode(["A sentence.", "Another one."])
```
"""
