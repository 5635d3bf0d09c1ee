"""What a training leaves in a checkpoint beside the model, and takes up again when it is resumed."""

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import EarlyStoppingCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, has_length

from mtl.adapter_training import AdapterTrainer
from mtl.averaging import AveragingCallback
from mtl.checkpoints import NUM_TRAIN_ROWS, TRAINING_ARGS_JSON
from mtl.loss_weighting import LossWeighting
from mtl.preservation import Preservation
from mtl.sharded import own_class

logger = logging.getLogger(__name__)

WEIGHTING_NAME = "weighting.safetensors"


class EarlyStopping(EarlyStoppingCallback):
    """Counts on from a checkpoint, where the base class would begin anew, and train longer than the unbroken run."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Takes up the count of evaluations without a better score; a run that it has stopped stays so."""
        super().on_train_begin(args, state, control, **kwargs)
        states: Any = state.stateful_callbacks if state.global_step else {}
        saved = states.get(type(self).__name__, {})
        self.early_stopping_patience_counter = saved.get("attributes", {}).get("early_stopping_patience_counter", 0)
        if self.early_stopping_patience_counter >= self.early_stopping_patience:
            logger.info("The checkpoint is of a run that stopped early. A larger early_stopping_patience goes on.")
            control.should_training_stop = True


class StateTrainer(AdapterTrainer):
    """A `Trainer` that saves and loads its weighting, its averaged weights and the key of the original encoder."""

    weighting: LossWeighting
    averaging: AveragingCallback
    preservation: Preservation

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Refuses a checkpoint of other weights, of which the base class loads what fits, and warns."""
        state, missing = self._multi_task_model().state_dict(), set(load_result.missing_keys)
        # A tensor under two names is saved under one of them.
        loaded = {tensor.data_ptr() for name, tensor in state.items() if name not in missing}
        missing = {name for name in missing if state[name].data_ptr() not in loaded}
        if missing or load_result.unexpected_keys:
            raise ValueError(
                f"The checkpoint does not fit the model: {sorted(missing)[:3]} are missing, "
                f"{load_result.unexpected_keys[:3]} are not of the model. Go on from it by "
                "`MTLModel.from_pretrained(<checkpoint>)`, or train anew in another `output_dir`."
            )

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # A callback may say so before the first step. The base class looks after steps alone, and so would make one
        # more from the checkpoint of the last step, where that is amid an epoch.
        is_over = self.control.should_training_stop or self.state.global_step >= self.state.max_steps
        if not is_over:
            super()._run_epoch(*args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # What an earlier run has left under this name would pass for a part of this one: its average if this run has
        # none yet, and, after a save that is cut off, its optimizer beside new weights.
        folder = Path(self._get_output_dir(trial=trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        if self.args.should_save and folder.is_dir():
            shutil.rmtree(folder)
        self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        state = self.weighting.state_dict()
        if self.args.should_save and state:
            save_file(state, os.path.join(output_dir, WEIGHTING_NAME))
        if self.args.should_save:
            self.preservation.save(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.weighting.state_dict():
            self.weighting.load_state_dict(load_file(os.path.join(checkpoint, WEIGHTING_NAME)))
        if checkpoint is not None:
            self.averaging.load(checkpoint, self.args.device)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        with own_class(self.accelerator.unwrap_model(self.model)):
            super()._save(output_dir, state_dict)
        if self.args.should_save:
            folder = Path(output_dir or str(self.args.output_dir))
            # The base class pickles the settings; a shared folder is to hold nothing that runs when it is read.
            (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
            settings = {**json.loads(self.args.to_json_string()), NUM_TRAIN_ROWS: self._num_train_rows()}
            (folder / TRAINING_ARGS_JSON).write_text(json.dumps(settings, indent=2) + "\n")
            self.averaging.save(folder)

    def _num_train_rows(self) -> int | None:
        return len(self.train_dataset) if has_length(self.train_dataset) else None

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Keeps the card that was saved with the model, where the base class would write over it."""
        if not (Path(str(self.args.output_dir)) / "README.md").exists():
            super().create_model_card(*args, **kwargs)
