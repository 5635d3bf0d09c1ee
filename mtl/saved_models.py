"""A saved multi-task model as the start of a run: its tasks, those that are new, and those that are not named."""

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from configuration_mtl import MTLConfig, TaskConfig
from modeling_mtl import MTLModel, set_dropout
from mtl.arguments import JsonObject, MTLTrainingArguments
from mtl.checkpoints import head_meaning, last_complete_checkpoint
from mtl.settings import RunSettings

logger = logging.getLogger(__name__)


def load_model(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> MTLModel:
    """Loads a saved multi-task model as it is; arguments and errors as of [`load_config`]."""
    hub: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    model: MTLModel = MTLModel.from_pretrained(name, config=load_config(name, **hub), **hub)
    return model


def load_config(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> MTLConfig:
    """Loads the configuration of a saved multi-task model.

    Args:
        name: Its folder, or its name on the Hub.
        revision: Branch, tag or commit on the Hub.
        trust_remote_code: Whether code of the encoder's repository may run.

    Raises:
        OSError: If there is none.
        ValueError: If it is another kind of model.
    """
    try:
        # Not by AutoConfig: of a kind that it does not know it says that transformers is too old.
        kind = PreTrainedConfig.get_config_dict(name, revision=revision)[0].get("model_type")
    except (OSError, ValueError) as error:
        raise OSError(
            f"There is no model {name!r}: no such folder in {str(Path.cwd())!r} has a configuration that can be read, "
            f"and the Hub gave none. Give the folder of a saved model, or its name on the Hub. The cause: {error}"
        ) from error
    if kind is None and Path(name).is_dir() and (checkpoint := last_complete_checkpoint(name)) is not None:
        raise ValueError(
            f"{name!r} holds no model, but checkpoints of a training that did not end. Go on with that training "
            f"(`--resume_from_checkpoint last`), or give a checkpoint: {checkpoint!r}."
        )
    if kind != MTLConfig.model_type:
        static = " A static student is run by the predictor_mtl.py beside it." if kind == "model2vec" else ""
        found = f"is a {kind!r} model" if kind else "has no config.json that says what model it is"
        raise ValueError(f"{name!r} {found}. Give a multi-task model, as `train_trainer.py` saves it.{static}")
    config: MTLConfig = MTLConfig.from_pretrained(
        name, revision=revision or "main", trust_remote_code=trust_remote_code
    )
    return config


def config_fields(folder: Path) -> dict[str, Any] | None:
    """Returns what the `config.json` of a folder says, which may be of any model; None if there is none.

    One that cannot be read says nothing.
    """
    file = folder / "config.json"
    if not file.is_file():
        return None
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}


def load_saved(settings: RunSettings, path: str, tasks: Sequence[TaskConfig], config: Any) -> MTLModel:
    """Loads a saved model; the settings may change how it trains and add tasks, but not what its heads mean.

    Args:
        settings: The settings of the run; `other_tasks` says what becomes of the tasks that it does not name.
        path: Folder or repository of the model.
        tasks: The tasks of the run; a fresh head is added for those that the model lacks, after its own.
        config: The model's configuration; it is changed.

    Raises:
        ValueError: If a head, the pooling or the normalisation means something else in the settings, the model has
            tasks that they do not name, or weights are missing.
    """
    saved, wanted = {task.name: task for task in config.tasks}, {task.name: task for task in tasks}
    _check_meaning(settings, path, config, wanted)
    others = [task.name for task in config.tasks if task.has_head and task.name not in wanted]
    if others and settings.other_tasks == "error":
        raise ValueError(
            f"The model {path!r} also has the tasks {others}, which the settings do not name. Name them, with their "
            "data; or set `other_tasks: keep`, which leaves their heads as they are, or `other_tasks: remove`."
        )
    # What has no head is a setting of training alone.
    kept = [task for task in config.tasks if task.has_head or task.name in wanted]
    config.tasks = [_as_wanted(task, wanted.get(task.name, task)) for task in kept]
    config.head_dropout = settings.head_dropout
    if settings.max_length is not None:
        config.max_seq_length = settings.max_length
    if settings.backbone_dropout is not None:
        set_dropout(config.text_config, settings.backbone_dropout)
    model, loading = MTLModel.from_pretrained(
        path,
        config=config,
        revision=settings.backbone_revision or "main",
        trust_remote_code=settings.trust_remote_code,
        output_loading_info=True,
    )
    what = f"The model {path!r} names weights that it does not hold,"
    check_complete(what, loading, ", which would be drawn anew. Copy or download it again.")
    for name in wanted:
        if name not in saved:
            logger.info("%s has no task %r: it is added%s.", path, name, ", with a fresh head" * wanted[name].has_head)
            model.add_task(wanted[name])
    for name in others:
        logger.info("%s has a task %r that is not named: other_tasks=%s.", path, name, settings.other_tasks)
        if settings.other_tasks == "remove":
            model.remove_task(name)
    return model


def check_complete(what: str, loading: Mapping[str, Any], fix: str) -> None:
    """Checks that a model was loaded without drawing weights anew.

    Args:
        what: What the message says before the names of weights.
        loading: What `from_pretrained` tells with `output_loading_info`.
        fix: What it says after them.

    Raises:
        ValueError: If weights were missing.
    """
    if loading["missing_keys"]:
        raise ValueError(f"{what} {sorted(loading['missing_keys'])[:3]}{fix}")


def _as_wanted(saved: TaskConfig, wanted: TaskConfig) -> TaskConfig:
    """Returns a saved task as the settings want it trained; what was fitted stays unless it means another thing."""
    if not saved.has_head:
        return wanted
    keys = ("out_of_scope_label", "rejection_score")
    is_same = all(getattr(saved, key) == getattr(wanted, key) for key in keys)
    if wanted.rejection_threshold is None and is_same:
        wanted = dataclasses.replace(wanted, rejection_threshold=saved.rejection_threshold)
    fitted = ("calibration_temperature", "label_thresholds", "abstention_threshold")
    if wanted.calibration_temperature in (None, saved.calibration_temperature):
        kept = {key: getattr(saved, key) for key in fitted if getattr(wanted, key) is None}
        wanted = dataclasses.replace(wanted, **kept)
    settings = ("weight", "label_smoothing", *keys, "rejection_threshold", *fitted)
    return dataclasses.replace(saved, **{key: getattr(wanted, key) for key in settings})


def _check_meaning(settings: RunSettings, path: str, config: Any, wanted: Mapping[str, TaskConfig]) -> None:
    for task in config.tasks:
        if task.name in wanted and (task.has_head or wanted[task.name].has_head):
            saved_head, head = head_meaning(task.to_dict()), head_meaning(wanted[task.name].to_dict())
            if saved_head != head:
                outside, given = task.out_of_scope_label, wanted[task.name].out_of_scope_label
                hint = "" if outside == given else f" It has `out_of_scope_label: {outside}`, the settings {given!r}."
                raise ValueError(
                    f"The model {path!r} has the head {saved_head}, the settings ask for {head}. Set them alike, or "
                    f"give the new task another name.{hint}"
                )
    for name in ("pooling", "normalize_for_heads"):
        saved_value, value = getattr(config, name), getattr(settings, name)
        if saved_value != value:
            raise ValueError(
                f"The model {path!r} was trained with {name}={saved_value!r}, the settings ask for {value!r}. Set "
                f"`{name}: {saved_value}`."
            )


def freeze_other_heads(args: MTLTrainingArguments, names: Sequence[str]) -> None:
    """Adds to what the settings freeze the heads of tasks without labels, which would see nothing but weight decay."""
    heads = f"heads:{','.join(names)}"
    if args.freeze_schedule is not None:
        schedule = {epoch: f"{setting}+{heads}" for epoch, setting in args.freeze_schedule.items()}
        args.freeze_schedule = JsonObject(schedule)
    else:
        args.freeze = heads if args.freeze in (None, "none") else f"{args.freeze}+{heads}"
