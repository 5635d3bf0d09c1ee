"""Settings of a run from a YAML file: read, and checked as the command line would."""

import argparse
import difflib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from transformers.hf_argparser import string_to_bool

NONE = "none"
"""What takes a setting back that may be left out."""

_NONE_IS_A_VALUE = ("freeze", "report_to")
_FLOAT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+")


def read_settings_file(
    path: Path, actions: Mapping[str, argparse.Action], hints: Mapping[str, Any], names: Sequence[str]
) -> dict[str, Any]:
    """Reads a YAML file of settings, each as what the command line would make of it.

    Args:
        path: The file.
        actions: The command line's argument of each setting.
        hints: The type of each setting.
        names: The settings that there are.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no YAML of settings, a key is unknown or stands twice, or a value does not fit.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no settings file {str(path)!r} (working directory {os.getcwd()!r}).")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_DistinctKeys)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected `key: value` lines, found {type(content).__name__}.")
    values = {}
    for key, value in content.items():
        if key not in names:
            raise ValueError(unknown_setting(f"in {path}", str(key), names))
        values[key] = _coerced(path, actions[key], hints[key], value)
    return values


def can_be_unset(name: str, hint: Any) -> bool:
    """Returns whether `none` takes a setting back: where it may be left out, and that is no value of its own."""
    return type(None) in get_args(hint) and name not in _NONE_IS_A_VALUE


def unknown_setting(where: str, key: str, names: Sequence[str]) -> str:
    """Says that there is no such setting, and which is the nearest that there is."""
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else " `python train_trainer.py --help` lists them all."
    return f"There is no setting {key!r} {where}.{hint}"


class _DistinctKeys(yaml.SafeLoader):
    """Refuses a mapping with a key twice, of which YAML would take the last one without a word."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Constructs a mapping; see `yaml.SafeLoader`."""
        keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for place, key in enumerate(keys):
            if key in keys[:place]:
                raise yaml.constructor.ConstructorError(
                    None,
                    None,
                    f"key {key[1]!r} stands twice in one mapping. Leave one out",
                    node.value[place][0].start_mark,
                )
        return super().construct_mapping(node, deep)


def _coerced(path: Path, action: argparse.Action, hint: Any, value: Any) -> Any:
    wanted, kinds = action.type, [get_origin(kind) or kind for kind in get_args(hint)]
    if value is None or (value == NONE and can_be_unset(action.dest, hint)):
        return _empty(path, action, is_optional=type(None) in kinds)
    if isinstance(value, list) and action.nargs == "+":
        return [_converted(path, action, item) for item in value] if wanted is str else value
    if type(value) in (dict, list) and type(value) in kinds:
        return _with_floats(value)  # The command line has it as JSON in a string.
    return _converted(path, action, value) if action.choices is None else _chosen(path, action, value)


def _converted(path: Path, action: argparse.Action, value: Any) -> Any:
    # YAML reads 2e-4 as a string, and an int where a float is meant; the parser knows the type that is wanted.
    wanted: Any = action.type
    if wanted is str and not isinstance(value, str):
        raise ValueError(f"{path}: {action.dest} must be text, found {value!r}. Put it in quotes.")
    try:
        if isinstance(value, str):
            return wanted(value)
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise ValueError(f"{path}: {action.dest}={value!r} does not fit: {error}.") from error
    if wanted is float and type(value) is int:
        return float(value)
    exact = {int: int, float: float, string_to_bool: bool}.get(wanted)
    if exact is not None and type(value) is not exact:
        raise ValueError(f"{path}: {action.dest} must be a {exact.__name__}, found {value!r}.")
    return value


def _empty(path: Path, action: argparse.Action, *, is_optional: bool) -> Any:
    if is_optional:
        return None
    if action.nargs == "+":
        return []
    raise ValueError(f"{path}: {action.dest} has no value. Give it one, or leave the line out.")


def _chosen(path: Path, action: argparse.Action, value: Any) -> Any:
    choices = list(action.choices or ())
    if isinstance(value, bool):  # YAML reads a plain `no` as false, and `true` as true.
        named = [word for word in ("no", "false", "true") if word in choices and (word == "true") is value]
        value = named[0] if named else value
    if value not in choices:
        raise ValueError(f"{path}: {action.dest} {value!r} is unknown. Use one of {choices}.")
    return value


def _with_floats(value: Any) -> Any:
    """Returns what YAML has read with numbers such as 1e-6 as numbers, as they are in JSON."""
    if isinstance(value, dict):
        return {key: _with_floats(item) for key, item in value.items()}
    return float(value) if isinstance(value, str) and _FLOAT.fullmatch(value) else value
