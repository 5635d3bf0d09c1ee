"""Settings of a source: what they default to, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from mtl.sources import SourceConfig


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"path": "data/reviews.csv"}, "reviews"),
        ({"path": "user/some-data.v2"}, "some-data.v2"),
        ({"path": "data/reviews"}, "reviews"),
        ({"files": {"train": "reviews/train.csv", "dev": "reviews/dev.csv"}}, "reviews"),
        ({"files": {"train": "train.csv"}}, "train"),
        ({"files": {"train": "a/tweets-1.csv"}}, "tweets-1"),
        ({"path": "data/reviews.csv", "name": "mine"}, "mine"),
    ],
)
def test_name_follows_from_the_path(settings: dict[str, Any], name: str) -> None:
    assert SourceConfig(**settings).name == name


def test_split_names_are_brought_to_one_form() -> None:
    source = SourceConfig(files={"Train": "a.csv", "dev": Path("b.csv"), "test": "c.csv"})  # type: ignore[dict-item]
    assert source.files == {"train": "a.csv", "validation": "b.csv", "test": "c.csv"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "give `path` or `files`, and not both; found neither"),
        ({"path": "a.csv", "files": {"train": "a.csv"}}, "found both"),
        ({"path": ""}, "`path` must be a non-empty string, found ''"),
        ({"path": 3}, "`path` must be a non-empty string, found 3"),
        ({"path": "a.csv", "text": None}, "`text` must be a non-empty string, found None"),
        ({"path": "a.csv", "label_separator": ""}, "`label_separator` must be a non-empty string"),
        ({"path": "a.csv", "labels": ["topic"]}, r"`labels` must map tasks to columns, found \['topic'\]"),
        ({"path": "a.csv", "labels": {"topic": 3}}, "`labels` must map tasks to columns"),
        ({"files": {}}, "`files` must map splits to paths"),
        ({"files": "a.csv"}, "`files` must map splits to paths, found 'a.csv'"),
        ({"files": {"eval": "a.csv"}}, "`files` has split 'eval'; known are 'train', 'validation'"),
        ({"files": {"val": "a.csv", "dev": "b.csv"}}, "names split 'validation' twice"),
        ({"files": {"train": "a.csv"}, "split_column": "s"}, "`split_column` goes with `path`"),
        ({"files": {"train": "a.csv"}, "revision": "main"}, "`revision` goes with `path`"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SourceConfig(**settings)


def test_dict_with_misspelt_key_names_the_nearest() -> None:
    assert SourceConfig.from_dict({"path": "a.csv", "labels": {"topic": "y"}}).labels == {"topic": "y"}
    with pytest.raises(ValueError, match=r"'a' has no setting 'label_seperator'. Did you mean 'label_separator'?"):
        SourceConfig.from_dict({"name": "a", "path": "a.csv", "label_seperator": "|"})
    with pytest.raises(ValueError, match=r"no setting 'zzz'. Known are"):
        SourceConfig.from_dict({"path": "a.csv", "zzz": 1})
