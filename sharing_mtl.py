"""Loading, saving and pushing: weights, configuration, code, tokenizer and card as one folder.

The file travels with every saved model; see `modeling_mtl.py`.
"""

import contextlib
import copy
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import HfApi, ModelCard, ModelCardData
from safetensors import SafetensorError
from transformers import AutoModel, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import custom_object_save, get_class_from_dynamic_module
from transformers.utils.hub import cached_file

try:
    if not TYPE_CHECKING:  # To a type checker these are top-level modules.
        from .configuration_mtl import MTLConfig
        from .pipeline_mtl import custom_pipelines
except ImportError:
    # As an installed top-level module there is no parent package; inside one, a failed import is a real fault.
    if __package__:
        raise
    from configuration_mtl import MTLConfig
    from pipeline_mtl import custom_pipelines

_HUB_KEYWORDS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


class SharingMixin(PreTrainedModel):
    """Loads, saves and pushes a model together with its tokenizer, its code and a card."""

    config: MTLConfig
    backbone: PreTrainedModel
    tokenizer: Any

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str] | None, *model_args: Any, **kwargs: Any
    ) -> Any:
        """Loads a saved model and its tokenizer; arguments as in `PreTrainedModel.from_pretrained`.

        Raises:
            OSError: If a weights file is truncated or corrupt.
            ValueError: If the backbone is code in the repository, and `trust_remote_code=True` is not given.
        """
        hub = {key: kwargs[key] for key in _HUB_KEYWORDS if kwargs.get(key) is not None}
        trusted = bool(kwargs.get("trust_remote_code"))
        own: Any = _class_of_folder(cls, pretrained_model_name_or_path) if trusted else cls
        if own is not cls:
            return own.from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        if kwargs.get("config") is None and _has_custom_backbone(pretrained_model_name_or_path, hub):
            config_class: Any = cls.config_class
            kwargs["config"] = config_class.from_pretrained(pretrained_model_name_or_path, **hub)
        if hasattr(kwargs.get("config"), "text_config"):
            kwargs["config"] = _with_backbone_code(kwargs["config"], pretrained_model_name_or_path, hub, trusted)
        try:
            loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        except SafetensorError as error:
            raise OSError(
                f"The weights in {str(pretrained_model_name_or_path)!r} are truncated or corrupt ({error}). Copy or "
                "download the model again (`force_download=True` for the Hub), or load an earlier checkpoint."
            ) from error
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if pretrained_model_name_or_path is not None and _has_tokenizer(pretrained_model_name_or_path, hub):
            # With the backbone's config at hand the loader neither reads ours again nor asks for trust again.
            text_config = model.config.text_config
            model.tokenizer = AutoTokenizer.from_pretrained(
                pretrained_model_name_or_path, config=text_config, trust_remote_code=trusted, **hub
            )
        return loaded

    def save_pretrained(  # type: ignore[override]  # What the base has after these is taken by keyword.
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: dict[str, Any] | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Saves weights, configuration, code, tokenizer and (where there is none yet) a model card.

        Everything is written beside the target first and put in place at the end, by renaming, so a save that fails
        or is interrupted while it writes leaves an earlier one as it was. Arguments as in
        `PreTrainedModel.save_pretrained`, where `save_original_format` is False by default: weights bear the names
        that they have in the model, which is how the Trainer reads its checkpoints.

        Raises:
            ValueError: If there is an adapter in the encoder that is not merged.
        """
        _refuse_adapter(self)
        kwargs.setdefault("save_original_format", False)
        target = Path(save_directory)
        if not is_main_process:
            super().save_pretrained(target, is_main_process=False, state_dict=state_dict, **kwargs)
            return
        names = ("repo_id", "commit_message", "commit_description", "private", "create_pr", "revision", "tags")
        hub = {name: kwargs.pop(name) for name in names if name in kwargs}
        self.config.custom_pipelines = custom_pipelines()
        with _staged(target, _weight_files(kwargs.get("variant"))) as staging:
            for custom in (self.backbone.config, self.backbone):
                if custom.is_remote_code():
                    custom_object_save(custom, staging, config=self.config.text_config)
            super().save_pretrained(staging, state_dict=state_dict, **kwargs)
            _hide_folder(staging / "config.json")
            for weights in staging.glob("*.safetensors"):  # safetensors lets only their owner read them.
                shutil.copymode(staging / "config.json", weights)
            if self.tokenizer is not None:
                save_tokenizer(self.tokenizer, staging)
            if not (target / "README.md").exists():
                self._default_card().save(staging / "README.md")
        if push_to_hub:
            repo_id = hub.pop("repo_id", target.name)
            self.push_to_hub(repo_id, card=target / "README.md", state_dict=state_dict, **hub, **kwargs)

    def push_to_hub(  # type: ignore[override]  # The base's own is a wrapper without a signature.
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        tags: str | list[str] | None = None,
        card: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> str:
        """Uploads code, weights, configuration, tokenizer and card as one commit; a card already there is kept.

        `card` is the file to upload as the card instead of a short one made here. The other arguments as in
        `PreTrainedModel.push_to_hub`; returns the address of the commit.
        """
        self.add_model_tags(tags or [])
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        keep_card = api.file_exists(repo_id, "README.md", revision=revision)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, **kwargs)
            if card is not None:
                shutil.copyfile(card, Path(folder, "README.md"))
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=commit_message or f"Upload {type(self).__name__}",
                commit_description=commit_description,
                revision=revision,
                create_pr=create_pr,
                ignore_patterns=["README.md"] if keep_card else None,
                # Those of an earlier push that are not replaced.
                delete_patterns=_weight_files(kwargs.get("variant")),
            )
        return str(commit)

    def _default_card(self) -> ModelCard:
        tasks = "\n".join(
            f"- `{task.name}`: {task.problem_type}" + (f" ({', '.join(task.labels)})" if task.labels else "")
            for task in self.config.tasks
        )
        tags = ["multi-task", "sentence-similarity", "text-classification", "mtl", *(self.model_tags or [])]
        data = ModelCardData(library_name="transformers", tags=tags)
        return ModelCard(
            f"---\n{data.to_yaml()}\n---\n\n# Multi-task sentence transformer\n\n"
            f"One {self.config.text_config.model_type} encoder, one embedding, {len(self.config.tasks)} tasks:\n\n"
            f"{tasks}\n\nNo figures were recorded with this checkpoint.\n\n"
            "```python\nfrom transformers import AutoModel\n\n"
            'model = AutoModel.from_pretrained("<this repository>", trust_remote_code=True)\n'
            'model.encode(["A sentence."])\nmodel.predict(["A sentence."])\n```\n',
            ignore_metadata_errors=False,
        )


def _refuse_adapter(model: PreTrainedModel) -> None:
    if any(name.endswith(".base_layer") for name, _ in model.named_modules()):
        raise ValueError(
            "There is an adapter in the encoder, under whose names no loader would find the weights. Merge it first "
            "(`mtl.adapters.merge_adapter(model)`), or save it alone (`mtl.adapters.save_adapter(model, folder)`)."
        )


def _hide_folder(config_file: Path) -> None:
    """Takes out of a saved configuration which folder of this machine the encoder was loaded from."""
    fields = json.loads(config_file.read_text(encoding="utf-8"))
    origin = fields["text_config"].get("_name_or_path") or ""
    if origin and (os.path.isabs(origin) or Path(origin).expanduser().is_dir()):
        del fields["text_config"]["_name_or_path"]
        config_file.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _class_of_folder(cls: type, name_or_path: str | os.PathLike[str] | None) -> type:
    """Returns the class that a folder's own code defines, where `cls` is of such code too; else `cls`.

    `AutoModel` finds the class by that of the configuration, and so gives a folder of the same name and the same
    `configuration_mtl.py` as an earlier one the model class of that one (seen with transformers 5.23).
    """
    package, _, module = cls.__module__.rpartition(".")
    if not package.startswith("transformers_modules.") or name_or_path is None:
        return cls
    if not Path(name_or_path, f"{module}.py").is_file():
        return cls
    found: type = get_class_from_dynamic_module(f"{module}.{cls.__name__}", name_or_path)
    return found


def _has_custom_backbone(name_or_path: str | os.PathLike[str] | None, hub: dict[str, Any]) -> bool:
    fields = {} if name_or_path is None else PreTrainedConfig.get_config_dict(name_or_path, **hub)[0]
    return "AutoConfig" in ((fields.get("text_config") or {}).get("auto_map") or ())


def _with_backbone_code(config: Any, name_or_path: Any, hub: dict[str, Any], trusted: bool) -> Any:
    """Gives a backbone whose classes are code in the repository these classes; other configs come back as they are."""
    text_config = config.text_config
    if not text_config.is_remote_code() or type(text_config) in AutoModel._model_mapping:
        return config
    auto_map = text_config.auto_map
    if not trusted:
        raise ValueError(
            f"The backbone of {str(name_or_path)!r} is code in that repository ({sorted(auto_map.values())}). Read "
            "it, then load with `trust_remote_code=True` to run it."
        )
    config_class: Any = get_class_from_dynamic_module(auto_map["AutoConfig"], name_or_path, **hub)
    model_class: Any = get_class_from_dynamic_module(auto_map["AutoModel"], name_or_path, **hub)
    config_class.register_for_auto_class()
    model_class.register_for_auto_class("AutoModel")
    # By the class, which is this repository's own: another repository's code is another class.
    AutoModel.register(config_class, model_class, exist_ok=True)
    config = copy.copy(config)
    config.text_config = config_class.from_dict(
        text_config.to_dict(), attn_implementation=text_config._attn_implementation
    )
    return config


def save_tokenizer(tokenizer: Any, folder: str | os.PathLike[str]) -> None:
    """Saves a tokenizer as it is now: its own method leaves out on which sides it pads and cuts if that was set late.

    Args:
        tokenizer: The tokenizer.
        folder: Where it goes.
    """
    for side in ("padding_side", "truncation_side"):
        known = tokenizer.init_kwargs.get(side, getattr(type(tokenizer), side))
        if getattr(tokenizer, side) != known:
            tokenizer.init_kwargs[side] = getattr(tokenizer, side)
    tokenizer.save_pretrained(folder)


def _has_tokenizer(name_or_path: str | os.PathLike[str], hub: dict[str, Any]) -> bool:
    file = cached_file(name_or_path, "tokenizer_config.json", _raise_exceptions_for_missing_entries=False, **hub)
    return file is not None


def _weight_files(variant: str | None) -> list[str]:
    """Returns patterns of the weight files of a variant: in one file, or in several with their index."""
    stem, index = (f"model.{variant}", f".{variant}") if variant else ("model", "")
    return [f"{stem}.safetensors", f"{stem}-*-of-*.safetensors", f"model.safetensors.index{index}.json"]


@contextlib.contextmanager
def _staged(target: Path, superseded: list[str]) -> Iterator[Path]:
    """Gives a folder to write to; its files replace those of `target` only if the block ends without an error.

    Files of `target` that fit a pattern in `superseded` and are not written again go then: a loader would prefer
    weights in one file to newer ones in several.
    """
    target.mkdir(parents=True, exist_ok=True)
    for leftover in target.glob(".saving-*"):  # Of a save that was killed.
        shutil.rmtree(leftover, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(prefix=".saving-", dir=target))
    try:
        yield staging
        written = {file.name for file in staging.iterdir()}
        for file in staging.iterdir():
            place = target / file.name
            if place.is_dir():  # One folder does not replace another.
                shutil.rmtree(place)
            os.replace(file, place)
        for old in [file for pattern in superseded for file in target.glob(pattern)]:
            if old.name not in written:
                old.unlink()
    finally:
        shutil.rmtree(staging, ignore_errors=True)
