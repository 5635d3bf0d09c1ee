"""Training with an adapter: it is there for the time of a training, and checkpoints hold it without the encoder."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer_utils import TrainOutput

from modeling_mtl import MTLModel
from mtl.adapters import (
    adapter_parameters,
    add_adapter,
    has_adapter,
    load_adapter_weights,
    merge_adapter,
    remove_adapter_files,
    save_adapter,
)
from mtl.arguments import MTLTrainingArguments
from mtl.freezing import Freezing

ADAPTER_FOLDER = "adapter"
"""Folder, beside the merged model, of the adapter alone."""


class AdapterTrainer(Trainer):
    """A `Trainer` whose setting `peft` puts an adapter into the model for the time of a training.

    While there is an adapter, checkpoints hold it and the heads, without the encoder; at the end it is merged. An
    adapter that was added by [`add_adapter`] before is trained alike, and stays.
    """

    args: MTLTrainingArguments
    freezing: Freezing
    _has_trained = False

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Adds the adapter, trains, and merges it; see `Trainer.train`."""
        self._has_trained = True
        if self.args.peft is None:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        if self.model_init is None:  # Else the model is made in the call below.
            self._begin_adapter(self._multi_task_model())
        output = super().train(resume_from_checkpoint, *args, **kwargs)
        model = self._multi_task_model()
        if self.args.save_adapter and self.args.should_save:
            save_adapter(model, Path(str(self.args.output_dir), ADAPTER_FOLDER))
        merge_adapter(model)
        # Both hold the weights of the adapter, which is no more.
        self.model_wrapped, self.optimizer = model, None
        return output

    def _begin_adapter(self, model: MTLModel) -> None:
        """Puts the adapter of the settings, if there is one, into a model that is about to train."""
        settings = self.args.peft
        if settings is None:
            return
        if not has_adapter(model):  # A training that was interrupted has left its own.
            add_adapter(model, settings)
        self.freezing = adapter_parameters(model, str(settings["peft_type"]))

    def _multi_task_model(self) -> MTLModel:
        model: Any = self.model
        return model

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        model, folder = self._multi_task_model(), Path(output_dir or str(self.args.output_dir))
        if not has_adapter(model):
            super()._save(output_dir, state_dict)
            if self.args.should_save:  # Only now: a save that fails leaves the earlier one as it was.
                self._remove_earlier_adapters(folder)
        elif self.args.should_save:
            save_adapter(model, folder)
            model.config.save_pretrained(folder)  # By which a run that goes on knows its tasks.

    def _remove_earlier_adapters(self, folder: Path) -> None:
        """Removes adapters that do not belong to the model that a folder now holds."""
        remove_adapter_files(folder)  # Beside a model, loaders would take it for one of that model.
        if self._has_trained and not self.args.save_adapter:
            remove_adapter_files(folder / ADAPTER_FOLDER)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if has_adapter(self._multi_task_model()):
            load_adapter_weights(self._multi_task_model(), resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if has_adapter(self._multi_task_model()):
            load_adapter_weights(self._multi_task_model(), str(self.state.best_model_checkpoint))
        else:
            super()._load_best_model()
