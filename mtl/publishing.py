"""One folder for several libraries: a model as sentence-transformers, transformers and this package each read it.

    publish(model, "published")

The root holds configuration, code and heads; `backbone/` is a plain checkpoint of the encoder; `modules.json` tells
sentence-transformers how to pool it. No weight is in it twice.
"""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import HfApi
from safetensors import safe_open

from configuration_mtl import MTLConfig
from interop_mtl import POOLING_KEYS
from modeling_mtl import MTLModel
from mtl.card_origin import Origin, find_origin
from mtl.content_keys import key_of_model
from mtl.published_card import TASKS, published_card
from mtl.published_files import CARD, MANIFEST, read_manifest, sha256, tree_files, write_manifest
from mtl.sequence_folder import save_sequence_classification
from predictor_mtl import MANIFEST as EXPORT
from sharing_mtl import save_tokenizer

BACKBONE, HEADS, INDEX = "backbone", "heads.safetensors", "model.safetensors.index.json"
CARRIED = ("figures", "onnx", "openvino", EXPORT, "predictor_mtl.py", "LICENSE")
"""What is copied from beside the model, where it is there: pictures of the card, exported graphs, the licence."""
_MODULE = "sentence_transformers.models."  # Understood by every release from 2 on.
# Of an earlier push in another layout. A loader would prefer weights in one file to those of the index.
_SUPERSEDED = ["*.safetensors", "*.index.json", "*_mtl.py", "onnx/*", "openvino/*", f"{TASKS}/*", EXPORT, MANIFEST]


def publish(
    model: MTLModel,
    target: str | os.PathLike[str],
    *,
    source: str | os.PathLike[str] | None = None,
    classifiers: Sequence[str] = (),
    repo_id: str | None = None,
) -> Path:
    """Writes a model in the layout that four loaders read; returns the folder.

    Everything is written beside the target, which is put in place at the end, by renaming. An earlier folder of this
    function is replaced, and its card is kept if it was edited; any other folder with something in it is left alone.

    Args:
        model: The model, with its tokenizer.
        target: The folder to make.
        source: Folder that the model was loaded from, whose card, pictures and exported graphs are taken along.
        classifiers: Tasks that the folder has as plain classifiers too, in `tasks/<task>`, each with its own weights.
        repo_id: Name of the repository that the card names in its examples; a placeholder if not given.

    Raises:
        FileExistsError: If the target holds files that this function did not write.
        ValueError: If the encoder is code in a repository, the model has no tokenizer, there is an adapter in it, or
            the card of the source cannot be read, or graphs were exported from another model; if there is no such
            task, or no plain classifier can have it.
    """
    target = Path(target).resolve()
    check_publishable(model.config)
    if model.tokenizer is None:
        raise ValueError(
            "The model has no tokenizer. Set one: `model.tokenizer = AutoTokenizer.from_pretrained(...)`."
        )
    if unknown := [name for name in classifiers if name not in model.config.task_names]:
        raise ValueError(f"There is no task {unknown[0]!r}. The model has {model.config.task_names}.")
    edited = _edited_card(target)
    origin = Origin() if source is None else find_origin(str(source))
    with _replaced(target) as folder:
        _write_model(model, folder)
        _write_modules(model, folder)
        if source is not None:
            _check_export(Path(source), model)
            _carry(Path(source), folder)
        for name in classifiers:
            save_sequence_classification(model, name, folder / TASKS / name, origin=origin)
        published_card(folder, model, repo_id=repo_id).save(folder / CARD)
        write_manifest(folder)
        if edited is not None:
            (folder / CARD).write_bytes(edited)
    return target


def check_publishable(config: MTLConfig) -> None:
    """Checks that the encoder is one that loaders know without code of a repository.

    Raises:
        ValueError: If it is not.
    """
    if config.text_config.is_remote_code():
        raise ValueError(
            f"The encoder is code in its repository ({sorted(config.text_config.auto_map.values())}), which "
            "sentence-transformers and `AutoModel` would have to run. Share the model as it was saved, by "
            "`model.push_to_hub(...)`, or take an encoder that transformers has."
        )


def push(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    replace_card: bool = False,
) -> str:
    """Uploads a published folder as one commit, and removes what an earlier layout left; returns its address.

    Args:
        folder: What [`publish`] wrote.
        repo_id: Name of the repository, which is made if it is not there.
        private: Whether a new repository is private.
        revision: Branch to push to, made if it is not there.
        token: Token for the Hub.
        replace_card: Whether a card that the repository has already gives way to that of the folder.

    Raises:
        ValueError: If the folder is not a published one.
    """
    if read_manifest(Path(folder)) is None:
        raise ValueError(f"{folder} has no {MANIFEST}, so it is no published folder. Make one by `mtl publish`.")
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    keeps_card = not replace_card and api.file_exists(repo_id, CARD, revision=revision)
    commit = api.upload_folder(
        repo_id=repo_id,
        folder_path=Path(folder),
        commit_message="Upload the model in the layout of several libraries",
        revision=revision,
        ignore_patterns=["*__pycache__/*", *([CARD] if keeps_card else [])],  # What importing the folder's code left.
        delete_patterns=_SUPERSEDED,
    )
    return str(commit)


def _write_model(model: MTLModel, folder: Path) -> None:
    heads = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(f"{BACKBONE}.")}
    has_heads = bool(heads)
    model.save_pretrained(folder, state_dict=heads)  # Which takes the tensors out of the dict.
    (folder / CARD).unlink()  # One is made when everything else is there.
    if has_heads:
        (folder / "model.safetensors").rename(folder / HEADS)
    else:
        (folder / "model.safetensors").unlink(missing_ok=True)
    model.backbone.save_pretrained(folder / BACKBONE)
    save_tokenizer(model.tokenizer, folder / BACKBONE)
    _hide_origin(folder / BACKBONE / "config.json")
    for weights in folder.rglob("*.safetensors"):  # safetensors lets only their owner read them.
        shutil.copymode(folder / "config.json", weights)
    _write_json(folder / INDEX, _index(model, folder))


def _index(model: MTLModel, folder: Path) -> dict[str, Any]:
    """Returns which file holds which tensor, under the names that the files have."""
    weight_map: dict[str, str] = {}
    for name, path in tree_files(folder):
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                weight_map |= dict.fromkeys(file.keys(), name)
    tensors = model.state_dict().values()
    sizes = {
        "total_parameters": sum(tensor.numel() for tensor in tensors),
        "total_size": sum(tensor.numel() * tensor.element_size() for tensor in tensors),
    }
    return {"metadata": sizes, "weight_map": dict(sorted(weight_map.items()))}


def _write_modules(model: MTLModel, folder: Path) -> None:
    """Tells sentence-transformers what `encode` does, in the files that each of its releases reads."""
    names = ["Transformer", "Pooling", *(["Normalize"] if model.config.normalize else [])]
    paths = [BACKBONE, "1_Pooling", "2_Normalize"][: len(names)]
    modules = [
        {"idx": idx, "name": str(idx), "path": path, "type": _MODULE + name}
        for idx, (name, path) in enumerate(zip(names, paths, strict=True))
    ]
    _write_json(folder / "modules.json", modules)
    (folder / paths[1]).mkdir()
    switches = {switch: model.config.pooling == pooling for pooling, switch in POOLING_KEYS.items()}
    _write_json(folder / paths[1] / "config.json", {"word_embedding_dimension": model.config.hidden_size, **switches})
    limit = model.max_tokens()
    transformer = {} if limit is None else {"max_seq_length": limit}
    _write_json(folder / BACKBONE / "sentence_bert_config.json", {**transformer, "do_lower_case": False})
    settings = {
        "__version__": {"transformers": transformers.__version__, "pytorch": torch.__version__},
        "model_type": "SentenceTransformer",
        "prompts": {},
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    }
    _write_json(folder / "config_sentence_transformers.json", settings)


def _hide_origin(config_file: Path) -> None:
    """Takes out of the encoder's configuration the folder or name that it was loaded from; the card has the name."""
    fields = json.loads(config_file.read_text(encoding="utf-8"))
    if fields.pop("_name_or_path", None) is not None:
        _write_json(config_file, fields)


def _check_export(source: Path, model: MTLModel) -> None:
    path = source / EXPORT
    if not path.is_file():
        return
    exported = json.loads(path.read_text(encoding="utf-8")).get("weights")
    if exported != key_of_model(model):
        raise ValueError(
            f"The exported graphs in {source} are of other weights or settings than the model. Export it again "
            f"(`mtl export`), or remove {EXPORT} and its graphs."
        )


def _carry(source: Path, folder: Path) -> None:
    for name in (CARD, *CARRIED):
        if (source / name).is_dir():
            shutil.copytree(source / name, folder / name)
        elif (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _edited_card(target: Path) -> bytes | None:
    """Returns the card of an earlier folder if somebody changed it since.

    Raises:
        FileExistsError: If the folder holds files that were not written by [`publish`].
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return None
    recorded = read_manifest(target) if target.is_dir() else None
    if recorded is None:
        raise FileExistsError(f"{target} is there, and `mtl publish` did not write it. Give another folder.")
    others = [str(path.relative_to(target)) for path in target.rglob("*") if not path.is_dir()]
    foreign = sorted({name.replace(os.sep, "/") for name in others} - recorded.keys() - {MANIFEST})
    if foreign:
        raise FileExistsError(
            f"{target} holds files that `mtl publish` did not write: {foreign[:5]}. Move them, or give another folder."
        )
    card = target / CARD
    is_edited = card.is_file() and CARD in recorded and sha256(card) != recorded[CARD]["sha256"]
    return card.read_bytes() if is_edited else None


@contextlib.contextmanager
def _replaced(target: Path) -> Iterator[Path]:
    """Gives a folder to write to, which takes the place of `target` if the block ends without an error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{target.name}.publishing-"
    for leftover in target.parent.glob(f"{prefix}*"):  # Of a process that was killed.
        shutil.rmtree(leftover, ignore_errors=True)
    workshop = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    made, retired = workshop / "new", workshop / "old"
    try:
        made.mkdir()
        yield made
        if target.exists():
            target.rename(retired)
        try:
            made.rename(target)
        except BaseException:
            if retired.exists():
                retired.rename(target)
            raise
    finally:
        shutil.rmtree(workshop, ignore_errors=True)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
