"""Loading, saving and pushing: weights, configuration, code, tokenizer and card as one folder.

The file travels with every saved model; see `modeling_mtl.py`.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard, ModelCardData
from safetensors import SafetensorError
from transformers import AutoTokenizer
from transformers.utils.hub import cached_file

_HUB_KEYWORDS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


class SharingMixin:
    """Loads, saves and pushes a `PreTrainedModel` together with its tokenizer, its code and a card."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str] | None, *model_args: Any, **kwargs: Any
    ) -> Any:
        """Loads a saved model and its tokenizer; arguments as in `PreTrainedModel.from_pretrained`.

        Raises:
            OSError: If a weights file is truncated or corrupt.
        """
        hub = {key: kwargs[key] for key in _HUB_KEYWORDS if kwargs.get(key) is not None}
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
            model.tokenizer = AutoTokenizer.from_pretrained(pretrained_model_name_or_path, config=text_config, **hub)
        return loaded

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Saves weights, configuration, code, tokenizer and (where there is none yet) a model card.

        Everything is written beside the target first and put in place at the end, so an interrupted save leaves an
        earlier one as it was. Arguments as in `PreTrainedModel.save_pretrained`.
        """
        target = Path(save_directory)
        if not is_main_process:
            super().save_pretrained(target, is_main_process=False, **kwargs)
            return
        names = ("repo_id", "commit_message", "private", "create_pr", "revision")
        hub = {name: kwargs.pop(name) for name in names if name in kwargs}
        with _staged(target) as staging:
            super().save_pretrained(staging, **kwargs)
            if self.tokenizer is not None:
                self.tokenizer.save_pretrained(staging)
            if not (target / "README.md").exists():
                self._default_card().save(staging / "README.md")
        if push_to_hub:
            self.push_to_hub(hub.pop("repo_id", target.name), token=kwargs.get("token"), **hub)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        **kwargs: Any,
    ) -> str:
        """Uploads code, weights, configuration, tokenizer and card as one commit; a card already there is kept.

        Arguments as in `PreTrainedModel.push_to_hub`; returns the address of the commit.
        """
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        keep_card = api.file_exists(repo_id, "README.md", revision=revision)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, **kwargs)
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=commit_message or f"Upload {type(self).__name__}",
                revision=revision,
                create_pr=create_pr,
                ignore_patterns=["README.md"] if keep_card else None,
            )
        return str(commit)

    def _default_card(self) -> ModelCard:
        tasks = "\n".join(
            f"- `{task.name}`: {task.problem_type}" + (f" ({', '.join(task.labels)})" if task.labels else "")
            for task in self.config.tasks
        )
        data = ModelCardData(
            library_name="transformers", tags=["multi-task", "sentence-similarity", "text-classification", "mtl"]
        )
        return ModelCard(
            f"---\n{data.to_yaml()}\n---\n\n# Multi-task sentence transformer\n\n"
            f"One {self.config.text_config.model_type} encoder, one embedding, {len(self.config.tasks)} tasks:\n\n{tasks}"
            "\n\nNo figures were recorded with this checkpoint.\n\n```python\nfrom transformers import AutoModel\n\n"
            'model = AutoModel.from_pretrained("<this repository>", trust_remote_code=True)\n'
            'model.encode(["A sentence."])\nmodel.predict(["A sentence."])\n```\n',
            ignore_metadata_errors=False,
        )


def _has_tokenizer(name_or_path: str | os.PathLike[str], hub: dict[str, Any]) -> bool:
    file = cached_file(name_or_path, "tokenizer_config.json", _raise_exceptions_for_missing_entries=False, **hub)
    return file is not None


@contextlib.contextmanager
def _staged(target: Path) -> Iterator[Path]:
    """Gives a folder to write to; its files replace those of `target` only if the block ends without an error."""
    target.mkdir(parents=True, exist_ok=True)
    for leftover in target.glob(".saving-*"):  # Of a save that was killed.
        shutil.rmtree(leftover, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(prefix=".saving-", dir=target))
    try:
        yield staging
        written = {file.name for file in staging.iterdir()}
        for file in staging.iterdir():
            os.replace(file, target / file.name)
        for old in target.glob("model*.safetensors*"):  # Shards of an earlier save in another number of files.
            if old.name not in written:
                old.unlink()
    finally:
        shutil.rmtree(staging, ignore_errors=True)
