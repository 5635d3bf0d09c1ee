"""What `TrainingArguments` takes as it comes, and would fail on later, or pass over in silence."""

import json
from dataclasses import fields
from typing import Any

import torch
from transformers import TrainingArguments, get_scheduler
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.trainer_utils import SchedulerType

_MAPPINGS: tuple[str, ...] = tuple(TrainingArguments._VALID_DICT_FIELDS)
_NEVER_FILES = ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs", "lr_scheduler_kwargs")
"""Those of the mappings of which a string is JSON, and not the path of a JSON file."""

# Whether they can be used is not told by their package alone.
_SEEN_LATER = ("azure_ml", "flyte", "kubeflow")
_OF_EXTRA = ("tensorboard", "trackio")


def check_given(args: TrainingArguments) -> None:
    """Checks settings as they are given, before the base class reads them.

    Raises:
        ImportError: If `report_to` names a service whose package is not installed.
        ValueError: If a setting is none of its choices, a mapping cannot be read, or fp16 is asked for on a CPU.
    """
    for field in fields(args):
        choices, value = field.metadata.get("choices"), getattr(args, field.name)
        if choices is not None and value is not None and value not in list(choices):
            raise ValueError(f"{field.name} {value!r} is unknown. Use one of {list(choices)}.")
    for name in _MAPPINGS:
        _check_mapping(name, getattr(args, name))
    _check_report_to(args.report_to)
    # Without a word accelerate would train in fp32 (`Accelerator.__init__`, 1.15).
    if args.fp16 and (args.use_cpu or not torch.accelerator.is_available()):
        raise ValueError(
            "fp16=True has no effect on a CPU, which would train in fp32. Leave it out, or set `precision: bf16`."
        )


def check_scheduler(args: TrainingArguments) -> None:
    """Checks that the scheduler can be made, which is else tried when training begins.

    Args:
        args: The settings, as the base class has read them.

    Raises:
        ValueError: If `lr_scheduler_kwargs` has what the scheduler does not take, or lacks what it needs.
    """
    given: Any = args.lr_scheduler_kwargs
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=args.learning_rate or 1.0)
    try:
        get_scheduler(
            args.lr_scheduler_type,
            optimizer,
            num_warmup_steps=1,
            num_training_steps=10,
            scheduler_specific_kwargs={**(given or {})},
        )
    except (TypeError, ValueError) as error:
        kind = SchedulerType(args.lr_scheduler_type).value
        raise ValueError(
            f"lr_scheduler_kwargs={given!r} does not fit lr_scheduler_type={kind!r}: {error}. Correct one of them."
        ) from error


def _check_mapping(name: str, value: Any) -> None:
    if isinstance(value, str) and (value.startswith("{") or name in _NEVER_FILES):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(
                f'{name}={value!r} is no JSON, such as {{"key": 1}}, names in double quotes: {error}.'
            ) from error
        if not isinstance(value, dict):
            raise ValueError(f"{name} must be a mapping, found {value!r}.")
    if name == "accelerator_config" and isinstance(value, dict):
        try:
            AcceleratorConfig(**value)
        except (TypeError, ValueError) as error:
            known = [field.name for field in fields(AcceleratorConfig)]
            raise ValueError(f"accelerator_config={value!r} does not fit: {error}. Its keys are {known}.") from error


def _check_report_to(value: Any) -> None:
    names = value if isinstance(value, list) else [value]
    if names in (["all"], ["none"]):
        return
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            known = ["none", "all", *INTEGRATION_TO_CALLBACK]
            raise ValueError(f"report_to {name!r} is unknown. Use one of {known}.")
        if name not in (*_SEEN_LATER, *get_available_reporting_integrations()):
            package = '"mtl-sentence-transformers[tracking]"' if name in _OF_EXTRA else name
            raise ImportError(
                f"report_to={name!r} needs `pip install {package}`. Install it, or set `report_to: none`."
            )
