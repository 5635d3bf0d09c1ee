"""What the Hub refuses in the metadata of a model card, as its documentation of model cards has it (modelcard.md)."""

import re
from typing import Any

import yaml

_BLOCK = re.compile(r"\A\s*---\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_LANGUAGE = re.compile(r"[a-z]{2,3}(?:[-_][A-Za-z]+)*|multilingual|code")
_REPO = re.compile(r"[\w.-]{1,96}(?:/[\w.-]{1,96})?")


def metadata_errors(content: str) -> list[str]:
    """Returns what is wrong with the YAML block of a card; nothing for a card without one."""
    block = _BLOCK.match(content)
    if block is None:
        return []
    try:
        data = yaml.safe_load(block[1])
    except yaml.YAMLError as error:
        return [f"no YAML: {error}"]
    if not isinstance(data, dict):
        return ["the metadata is no mapping"]
    found = [
        f'"{key}" must be a string' for key in ("library_name", "pipeline_tag") if not _is_text_or_absent(data, key)
    ]
    for key, pattern in (("license", _LICENSE), ("language", _LANGUAGE), ("base_model", _REPO), ("tags", None)):
        found += [f'"{key}" cannot be {value!r}' for value in _listed(data.get(key)) if not _fits(value, pattern)]
    for model in data.get("model-index") or ():
        found += _of_model(model)
    return found


def _of_model(model: dict[str, Any]) -> list[str]:
    found = [] if _is_text(model.get("name")) else ['"model-index[].name" is required']
    for result in model.get("results") or [{}]:
        for part, keys in (("task", ("type",)), ("dataset", ("name", "type"))):
            given = result.get(part) or {}
            found += [f'"{part}.{key}" is required, a string' for key in keys if not _is_text(given.get(key))]
            found += [f'"{part}.{key}" must be a string' for key in given if not _is_text(given[key])]
        for metric in result.get("metrics") or [{}]:
            value = metric.get("value")
            if not _is_text(metric.get("type")) or value is None or value != value:
                found.append(f"a metric needs a type and a value, found {metric}")
    return found


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _fits(value: Any, pattern: re.Pattern[str] | None) -> bool:
    return _is_text(value) and (pattern is None or pattern.fullmatch(value) is not None)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_text_or_absent(data: dict[str, Any], key: str) -> bool:
    return key not in data or _is_text(data[key])
