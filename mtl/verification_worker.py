"""One loader of `mtl verify`, in a process of its own: it loads a folder and writes down what the model answers.

It is run by its path, with a request as JSON on the standard input, and imports nothing of this package; neither can
the code of the folder, nor can that open a connection. This keeps mistakes in, not malice: it is no sandbox.
"""

import contextlib
import importlib.util
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

_HOUSE = ("mtl", "merge_models", "train_report", "train_setup", "train_trainer")
_NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.sendmsg")
_TASK = "multi-task-classification"


class _Refused:
    """Refuses to find modules, before all other finders: the package may be installed where this runs."""

    def __init__(self, names: Sequence[str], suffix: str | None) -> None:
        self.names, self.suffix = set(names), suffix

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        root = name.partition(".")[0]
        if root in self.names or (self.suffix is not None and root.endswith(self.suffix)):
            raise ImportError(f"{name} cannot be imported here: a stranger does not have it, or need not have it")


def main() -> None:
    """Runs the loader that the request names, and writes its answer, or its error, to the file that it names."""
    request = json.load(sys.stdin)
    sys.addaudithook(_stay_offline)
    if request["loader"] != "package":
        sys.meta_path.insert(0, _Refused(_HOUSE, "_mtl"))
    try:
        with contextlib.redirect_stdout(sys.stderr):
            answer = LOADERS[request["loader"]](request)
    except Exception as error:  # Whatever a folder or its code does wrong is the finding, not a fault of this program.
        traceback.print_exc()
        answer = {"error": f"{type(error).__name__}: {error}"}
    Path(request["output"]).write_text(json.dumps(answer, default=_as_list), encoding="utf-8")


def _as_list(value: Any) -> Any:
    return value.tolist()  # Of an array or a number of numpy; anything else is the fault of what gave it.


def _stay_offline(event: str, args: tuple[Any, ...]) -> None:
    # A connection to a socket file, which has a path for an address, stays on the machine.
    if event in _NETWORK and not (event == "socket.connect" and isinstance(args[1], str | bytes)):
        raise ConnectionError(
            f"{event} {args[1:]}: a folder is verified offline, and something in it wants the network"
        )


def _package(request: dict[str, Any]) -> dict[str, Any]:
    sys.path.insert(0, request["root"])
    from modeling_mtl import MTLModel

    return _answers(MTLModel, request, trust_remote_code=request["trust_remote_code"])


def _remote_code(request: dict[str, Any]) -> dict[str, Any]:
    from transformers import AutoModel

    return _answers(AutoModel, request, trust_remote_code=True)


def _answers(loader: Any, request: dict[str, Any], **trust: bool) -> dict[str, Any]:
    import torch

    model, loading = loader.from_pretrained(request["folder"], dtype=torch.float32, output_loading_info=True, **trust)
    if wrong := {key: sorted(map(str, names)) for key, names in loading.items() if names}:
        raise ValueError(f"The weights do not fit the model: {wrong}")
    texts = request["sentences"]
    return {"embeddings": model.encode(texts).tolist(), "predictions": model.predict(texts)}


def _sentence_transformers(request: dict[str, Any]) -> dict[str, Any]:
    import torch
    from sentence_transformers import SentenceTransformer

    settings: dict[str, Any] = {"model_kwargs": {"dtype": torch.float32}, "local_files_only": True}
    model = SentenceTransformer(request["folder"], device="cpu", **settings)
    return {"embeddings": model.encode(request["sentences"]).tolist()}


def _encoder(request: dict[str, Any]) -> dict[str, Any]:
    """Loads the encoder alone, and pools as `modules.json` says."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = Path(request["folder"])
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    switches = json.loads((folder / modules[1]["path"] / "config.json").read_text(encoding="utf-8"))
    place = {"subfolder": modules[0]["path"]}
    settings = json.loads((folder / place["subfolder"] / "sentence_bert_config.json").read_text(encoding="utf-8"))
    limit = settings.get("max_seq_length")
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, **place)
    options: dict[str, Any] = {"padding": True, "truncation": limit is not None, "max_length": limit}
    inputs = tokenizer(request["sentences"], return_tensors="pt", **options)
    encoder = AutoModel.from_pretrained(folder, dtype=torch.float32, **place).eval()
    with torch.inference_mode():
        states = encoder(**inputs).last_hidden_state  # (B, T, H)
    mask = inputs["attention_mask"].unsqueeze(-1)  # (B, T, 1)
    if switches.get("pooling_mode_cls_token"):
        pooled = states[torch.arange(len(states)), inputs["attention_mask"].argmax(dim=1)]  # (B, H)
    elif switches.get("pooling_mode_max_tokens"):
        pooled = states.masked_fill(mask == 0, float("-inf")).amax(dim=1)  # (B, H)
    else:
        pooled = (states * mask).sum(dim=1) / mask.sum(dim=1)  # (B, H)
    unit = torch.nn.functional.normalize(pooled, dim=-1)  # (B, H)
    return {"embeddings": (unit if len(modules) == 3 else pooled).tolist()}


def _predictor(request: dict[str, Any]) -> dict[str, Any]:
    sys.meta_path.insert(0, _Refused(("torch", "transformers", "sentence_transformers"), None))
    place = Path(request["folder"], "predictor_mtl.py")
    spec: Any = importlib.util.spec_from_file_location("predictor_mtl", place)
    module = importlib.util.module_from_spec(spec)
    sys.modules["predictor_mtl"] = module  # Where dataclasses look for the types of their fields.
    spec.loader.exec_module(module)
    settings = {key: request[key] for key in ("backend", "precision")}
    predictor = module.MTLPredictor(request["folder"], **settings)
    texts = request["sentences"]
    return {"embeddings": predictor.encode(texts), "predictions": predictor.predict(texts)}


def _model2vec(request: dict[str, Any]) -> dict[str, Any]:
    from model2vec import StaticModel

    return {"embeddings": StaticModel.from_pretrained(request["folder"]).encode(request["sentences"])}


def _pipeline(request: dict[str, Any]) -> dict[str, Any]:
    import torch
    from transformers import pipeline

    make: Any = pipeline  # Its annotation knows the tasks of the library alone.
    pipe = make(_TASK, model=request["folder"], trust_remote_code=True, dtype=torch.float32, device="cpu")
    return {"predictions": list(pipe(request["sentences"]))}


def _classifier(request: dict[str, Any]) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    place = {"subfolder": request["subfolder"]}
    model = AutoModelForSequenceClassification.from_pretrained(request["folder"], dtype=torch.float32, **place)
    tokenizer = AutoTokenizer.from_pretrained(request["folder"], **place)
    pipe: Any = pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")
    # Left to itself, the pipeline makes a probability of a single output, whatever it is.
    applied = {"function_to_apply": "none"} if model.config.problem_type == "regression" else {}
    answers = pipe(request["sentences"], top_k=None, truncation=True, **applied)
    return {"scores": [{entry["label"]: entry["score"] for entry in answer} for answer in answers]}


LOADERS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "package": _package,
    "remote_code": _remote_code,
    "sentence_transformers": _sentence_transformers,
    "encoder": _encoder,
    "predictor": _predictor,
    "model2vec": _model2vec,
    "pipeline": _pipeline,
    "classifier": _classifier,
}
"""What a request may ask for."""


if __name__ == "__main__":
    main()
