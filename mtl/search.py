"""Search over learning rates and task weights, and the picture of what one task costs another.

The search is `Trainer.hyperparameter_search` with optuna, whose objective is the score on validation, or the primary
metric of every task. Samples come from TPE: Bergstra et al., "Algorithms for Hyper-Parameter Optimization", NeurIPS
2011; for several objectives Ozaki et al., "Multiobjective Tree-Structured Parzen Estimator for Computationally
Expensive Optimization Problems", GECCO 2020.
"""

import contextlib
import dataclasses
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from transformers import Trainer
from transformers.trainer_utils import SaveStrategy

from configuration_mtl import TaskConfig
from modeling_mtl import MTLModel
from mtl.content_keys import key_of
from mtl.evaluation import json_number
from mtl.extras import require
from mtl.metrics import LOWER_IS_BETTER, PRIMARY_METRIC
from mtl.pareto import draw_fronts, pareto_front
from mtl.report import write_report
from mtl.search_space import RATES, SearchConfig
from mtl.search_summary import trial_line
from mtl.trainer_checks import encoder_learns

logger = logging.getLogger(__name__)

RESULTS, JOURNAL = "search.json", "search.journal"
_UNDEFINED = "undefined"  # Attribute of a study: numbers of the trials that ended without a value.
_OF_TRAINING = (
    *RATES, "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "optim",
    "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "layer_decay", "label_smoothing_factor",
    "weighting", "aggregation", "freeze", "freeze_schedule", "peft", "average_weights", "train_sampling_strategy",
    "mixture", "homogeneous_batches", "distillation_temperature", "teacher_annealing", "gold_share",
    "preserve_embeddings",
)  # fmt: skip
"""Settings of training without which the figures of two trials cannot be compared."""


def search(
    trainer: Trainer,
    make_model: Callable[[Sequence[TaskConfig]], MTLModel],
    config: SearchConfig,
    *,
    tasks: Sequence[TaskConfig] | None = None,
) -> dict[str, Any]:
    """Searches, and leaves `search.json` and the pictures in the trainer's `output_dir`.

    It goes on where an earlier search with the same settings in that folder ended: `search.journal` keeps the trials,
    and the sample of a trial depends on the seed and on the trials before it alone. No trial saves a model.

    Args:
        trainer: An `MTLTrainer` with data to train and to evaluate on. It has no model afterwards.
        make_model: Makes the model that a trial starts from, with the tasks it is given, which have their weights.
        config: What is searched.
        tasks: The tasks whose weights are sampled and whose metrics are the objectives; those of the model if not
            given. A task that the data has no labels of has no metric, without which a trial would fail.

    Returns:
        What `search.json` holds: settings, trials with their parameters and metrics, and the numbers of the best.

    Raises:
        ImportError: If optuna or matplotlib is not installed.
        ValueError: If there is nothing to evaluate on, several processes run, the folder has another search, or one
            with other settings of training, or weights are sampled that have no effect.
    """
    optuna, _ = check_search(trainer, config, tasks)
    args: Any = trainer.args
    run = _Search(trainer, make_model, config, _tasks_of(trainer, tasks))
    settings = run.settings()  # A trial leaves its learning rates in the trainer's.
    output_dir = Path(str(args.output_dir))
    output_dir.mkdir(parents=True, exist_ok=True)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(output_dir / JOURNAL)))
    where = {"study_name": "search", "storage": storage, "load_if_exists": True}
    study = optuna.create_study(directions=run.directions, **where)
    _check_same_search(study, settings, output_dir)
    with run.prepared_trainer(), _quiet(optuna):
        while (done := len(_finished(study))) < config.n_trials:
            # A study that goes on gets a fresh sampler; so does every trial, and both give the same samples.
            sampler = optuna.samplers.TPESampler(seed=args.seed + done)
            run.do_trial(study, sampler=sampler, pruner=optuna.pruners.NopPruner(), **where)
            results = _results(study, settings)
            write_report(results, output_dir / RESULTS)
            logger.info("%d of %d trials done: %s", done + 1, config.n_trials, trial_line(results["trials"][-1]))
    results = _results(study, settings)
    write_report(results, output_dir / RESULTS)
    draw_fronts(results, output_dir)
    return results


def check_search(
    trainer: Trainer, config: SearchConfig, tasks: Sequence[TaskConfig] | None = None
) -> tuple[ModuleType, ModuleType]:
    """Checks that a search can begin; the arguments are those of [`search`]. Returns optuna and matplotlib.

    Raises:
        ImportError: If one of these is not installed.
        ValueError: If there is nothing to evaluate on, several processes run, what is sampled has no effect, or the
            journal of an earlier search cannot be read.
    """
    words: dict[str, Any] = {"extra": "search", "what": "A search"}
    modules = require("optuna", **words), require("matplotlib", **words)
    args: Any = trainer.args
    if trainer.eval_dataset is None or args.world_size > 1:
        raise ValueError(
            f"A search needs rows of validation (found {trainer.eval_dataset is not None}) and one process (found "
            f"{args.world_size}). Give an `eval_dataset`, and start it without torchrun."
        )
    weights = [name for name in _ranges(trainer, config, _tasks_of(trainer, tasks)) if name not in RATES]
    if weights and args.weighting == "equal":
        raise ValueError(
            f"search: {weights} are sampled, but weighting='equal' gives the weights of the tasks no effect. "
            "Leave them out of `space`, or choose another weighting, such as 'fixed'."
        )
    _check_journal(Path(str(args.output_dir), JOURNAL))
    return modules


def _check_journal(path: Path) -> None:
    """Refuses a journal with a line that is not whole, which optuna would stop at, or glue the next one to."""
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    for number, line in enumerate(lines, 1):
        try:
            is_whole = line.endswith(b"\n") and isinstance(json.loads(line), dict)
        except ValueError:
            is_whole = False
        if not is_whole:
            raise ValueError(
                f"{str(path)!r}: line {number} of {len(lines)} is cut off or damaged, as when a process or the disk "
                "fails while it is written. Delete it and all lines after it, and the search goes on with the trials "
                "before it; or give another `output_dir`."
            )


def _tasks_of(trainer: Any, tasks: Sequence[TaskConfig] | None) -> tuple[TaskConfig, ...]:
    return tuple(trainer.model.config.tasks if tasks is None else tasks)


def _ranges(trainer: Any, config: SearchConfig, tasks: Sequence[TaskConfig]) -> dict[str, tuple[float, float]]:
    return config.ranges(tasks, is_frozen=not encoder_learns(trainer.model, trainer.args))


@contextlib.contextmanager
def _quiet(optuna: ModuleType) -> Iterator[None]:
    # It announces that the study exists before every trial, and counts the trials in another way than the log here.
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


class _Search:
    """What a trial takes from the space, and what it gives back."""

    def __init__(
        self,
        trainer: Trainer,
        make_model: Callable[[Sequence[TaskConfig]], MTLModel],
        config: SearchConfig,
        tasks: Sequence[TaskConfig],
    ) -> None:
        self.trainer, self.make_model, self.config, self.tasks = trainer, make_model, config, tasks
        self.ranges = _ranges(trainer, config, tasks)
        self.metrics = {task.name: PRIMARY_METRIC[task.problem_type] for task in tasks}
        names = ["score"] if config.objectives == "score" else list(self.metrics.values())
        self.directions = ["minimize" if name in LOWER_IS_BETTER else "maximize" for name in names]
        self.trial: Any = None
        self.is_undefined = False

    def settings(self) -> dict[str, Any]:
        """Returns what makes trials comparable, as JSON-ready values."""
        trainer: Any = self.trainer
        training = json.loads(trainer.args.to_json_string())
        model = trainer.model.config.to_dict()
        for config in (model, model["text_config"]):
            config.pop("_name_or_path", None)
        return {
            "objectives": self.config.objectives,
            "directions": self.directions,
            "ranges": {name: list(given) for name, given in self.ranges.items()},
            "metrics": self.metrics,
            "seed": trainer.args.seed,
            "training": {key: training.get(key) for key in _OF_TRAINING if key not in self.ranges},
            "model": key_of(model),
            "rows": [len(trainer.train_dataset), len(trainer.eval_dataset)],
        }

    def do_trial(self, study: Any, **options: Any) -> None:
        """Trains and measures once; `options` go to optuna. Afterwards the study has one finished trial more."""
        self.is_undefined = False
        try:
            self.trainer.hyperparameter_search(
                hp_space=self.rates,
                compute_objective=self.objective,
                n_trials=1,
                direction=self.directions if len(self.directions) > 1 else self.directions[0],
                backend="optuna",
                **options,
            )
        except ValueError as error:
            # After an undefined first trial the Trainer asks for the best of none.
            if not self.is_undefined or "No trials are completed" not in str(error):
                raise
        if self.is_undefined:
            study.set_user_attr(_UNDEFINED, [*study.user_attrs.get(_UNDEFINED, []), self.trial.number])

    @contextlib.contextmanager
    def prepared_trainer(self) -> Iterator[None]:
        """Lets the trainer make a model for each trial and save none, and gives it its settings back."""
        args: Any = self.trainer.args
        quiet = {"save_strategy": SaveStrategy.NO, "load_best_model_at_end": False, "push_to_hub": False}
        kept = {name: getattr(args, name) for name in (*quiet, *RATES)}
        vars(args).update(quiet)
        settings = vars(self.trainer)
        settings["model_init"] = self.model
        try:
            yield
        finally:
            vars(args).update(kept)
            settings["model_init"] = None

    def model(self, trial: Any) -> MTLModel:
        """Makes the model of a trial, whose tasks bear the weights that the trial samples."""
        self.trial = trial
        return self.make_model(
            [
                dataclasses.replace(task, weight=self._sample(trial, f"weight_{task.name}", task.weight))
                for task in self.tasks
            ]
        )

    def rates(self, trial: Any) -> dict[str, float]:
        """Samples the learning rates of a trial; those that are not searched stay out."""
        return {name: self._sample(trial, name, 0.0) for name in RATES if name in self.ranges}

    def _sample(self, trial: Any, name: str, default: float) -> float:
        # Sampled again, a name gives the value that it has in this trial.
        return trial.suggest_float(name, *self.ranges[name], log=True) if name in self.ranges else default

    def objective(self, metrics: Mapping[str, float]) -> Any:
        """Returns the value, or values, of an evaluation; keeps the metrics with the trial."""
        found = {name: metrics.get(f"eval_{name}_{metric}", math.nan) for name, metric in self.metrics.items()}
        self.trial.set_user_attr("metrics", {"score": metrics["eval_score"], **found})
        values = [metrics["eval_score"]] if self.config.objectives == "score" else list(found.values())
        self.is_undefined = any(map(math.isnan, values))
        return values if len(values) > 1 else values[0]


def _finished(study: Any) -> list[Any]:
    """Returns the trials that were trained to their end; one that was interrupted has failed, and is made again."""
    undefined = study.user_attrs.get(_UNDEFINED, [])
    trials = study.get_trials(deepcopy=False)
    return [trial for trial in trials if trial.state.name == "COMPLETE" or trial.number in undefined]


def _check_same_search(study: Any, settings: dict[str, Any], folder: Path) -> None:
    before = study.user_attrs.get("settings")
    if before is None:
        study.set_user_attr("settings", settings)
    elif before != settings:
        then, now = ({**some, **some.get("training", {}), "training": None} for some in (before, settings))
        changed = [key for key in now if then.get(key) != now[key]]
        raise ValueError(
            f"{str(folder / JOURNAL)!r} is of a search with another {changed[0]}: {then.get(changed[0])}, now "
            f"{now[changed[0]]}. Give another `output_dir`, or set it alike."
        )


def _results(study: Any, settings: dict[str, Any]) -> dict[str, Any]:
    trials = [
        {
            "number": number,
            "state": trial.state.name.lower(),
            "params": trial.params,
            "metrics": {name: json_number(value) for name, value in trial.user_attrs.get("metrics", {}).items()},
        }
        for number, trial in enumerate(_finished(study))
    ]
    complete = [trial for trial in trials if trial["state"] == "complete"]
    names = ["score"] if settings["objectives"] == "score" else list(settings["metrics"])
    points = [[trial["metrics"][name] for name in names] for trial in complete]
    best = [complete[index]["number"] for index in pareto_front(points, settings["directions"])]
    return {"settings": settings, "trials": trials, "best": best}
