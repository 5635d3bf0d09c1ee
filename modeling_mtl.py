"""Multi-task sentence transformer: one encoder, one pooled embedding, a head for each task.

The file travels with every saved model: loaded by `AutoModel.from_pretrained(..., trust_remote_code=True)` it encodes
and predicts with nothing installed but transformers and torch.
"""

import inspect
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput, can_return_tuple

try:
    if not TYPE_CHECKING:  # To a type checker these are top-level modules.
        from .configuration_mtl import MTLConfig, TaskConfig
        from .heads_mtl import TaskHead, task_loss
        from .inference_mtl import InferenceMixin
        from .interop_mtl import InteropMixin
        from .sharing_mtl import SharingMixin
        from .similarity_mtl import ComparedTexts, similarity_outputs, text_identity
        from .tasks_mtl import valid_labels
except ImportError:
    # As an installed top-level module there is no parent package; inside one, a failed import is a real fault.
    if __package__:
        raise
    from configuration_mtl import MTLConfig, TaskConfig
    from heads_mtl import TaskHead, task_loss
    from inference_mtl import InferenceMixin
    from interop_mtl import InteropMixin
    from sharing_mtl import SharingMixin
    from similarity_mtl import ComparedTexts, similarity_outputs, text_identity
    from tasks_mtl import valid_labels

DEFAULT_BACKBONE = "distilbert/distilbert-base-uncased"


@dataclass
class MTLOutput(ModelOutput):
    """What [`MTLModel`] returns.

    Args:
        loss: Sum of the task losses, each times its task's static weight. Shape ().
        last_hidden_state: Hidden states of the backbone's last layer. Shape (B, T, H).
        embeddings: Sentence embeddings, L2-normalised if the config says `normalize`. Shape (B, H).
        logits: Outputs of each task's head, float32, (B, C) each, for ordinal classification (B, C - 1); where labels
            are given also those of tasks without a head, see `similarity_mtl`.
        task_losses: Unweighted loss of each task. Shape () each.
        hidden_states: Hidden states of every layer, if asked for. Shape (B, T, H) each.
        attentions: Attention weights of every layer, if asked for.
    """

    loss: Tensor | None = None
    last_hidden_state: Tensor | None = None
    embeddings: Tensor | None = None
    logits: dict[str, Tensor] | None = None
    task_losses: dict[str, Tensor] | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class MTLModel(SharingMixin, InferenceMixin, InteropMixin):
    """Encoder with one pooled sentence embedding and a head for each task of its configuration.

    Args:
        config: The configuration.
        backbone: A live encoder to wrap, with its weights; built from `config.text_config` if not given.

    Raises:
        ValueError: If the backbone is an encoder-decoder.
    """

    config_class = MTLConfig
    base_model_prefix = "backbone"
    main_input_name = "input_ids"
    accepts_loss_kwargs = True
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True

    def __init__(self, config: MTLConfig, backbone: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        _check_backbone(config.text_config)
        if backbone is None:
            pooler = _without_pooler(config.text_config)
            backbone = AutoModel.from_config(config.text_config, trust_remote_code=False, **pooler)
        self.backbone = backbone
        self.supports_gradient_checkpointing = backbone.supports_gradient_checkpointing
        self.dropout = nn.Dropout(config.head_dropout)
        self.heads = nn.ModuleDict(
            {
                task.name: TaskHead(task, config.hidden_size, config.head_dropout)
                for task in config.tasks
                if task.has_head
            }
        )
        self.frozen_modules: tuple[str, ...] = ()
        self.tokenizer: Any = None
        self.post_init()

    @classmethod
    def from_backbone(
        cls,
        name_or_path: str | os.PathLike[str] = DEFAULT_BACKBONE,
        *,
        tasks: Sequence[TaskConfig | dict[str, Any]],
        trust_remote_code: bool = False,
        backbone_dropout: float | None = None,
        attn_implementation: str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        subfolder: str = "",
        **settings: Any,
    ) -> "MTLModel":
        """Puts fresh heads on a pretrained encoder and takes its tokenizer.

        Args:
            name_or_path: Name on the Hub, or folder, of any encoder that `AutoModel` loads.
            tasks: The tasks, each with its number of labels known.
            trust_remote_code: Whether code in the backbone's repository may run.
            backbone_dropout: Dropout inside the encoder while it trains; as it was pretrained if not given.
            attn_implementation: As in `AutoModel.from_pretrained`.
            revision: Branch, tag or commit of the backbone.
            token: Token for the Hub.
            subfolder: Folder in it that holds the encoder and its tokenizer.
            **settings: Further settings of [`MTLConfig`], such as `pooling` or `head_dropout`.

        Raises:
            TypeError: If a setting is unknown.
            ValueError: If the backbone is an encoder-decoder or a multi-task model, or a task is illegal.
        """
        hub = {"revision": revision, "token": token, "subfolder": subfolder, "trust_remote_code": trust_remote_code}
        text_config = AutoConfig.from_pretrained(name_or_path, **hub)
        _check_backbone(text_config)
        if backbone_dropout is not None:
            set_dropout(text_config, backbone_dropout)
        if "dtype" in settings or "torch_dtype" in settings:
            raise TypeError("The model is made in float32. For another dtype call `.to(dtype)` on the result.")
        MTLConfig(tasks=list(tasks), **settings)  # Bad settings are told before any weight is loaded.
        backbone = AutoModel.from_pretrained(
            name_or_path,
            config=text_config,
            dtype=torch.float32,
            attn_implementation=attn_implementation,
            **_without_pooler(text_config),
            **hub,
        )
        config = MTLConfig(text_config=backbone.config, tasks=list(tasks), **settings)
        model = cls(config, backbone=backbone)
        model.tokenizer = AutoTokenizer.from_pretrained(name_or_path, config=text_config, **hub)
        return model.eval()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: dict[str, Tensor] | None = None,
        num_items_in_batch: dict[str, Tensor] | None = None,
        others: dict[str, Tensor] | None = None,
        partners: Tensor | None = None,
        pooled: Tensor | None = None,
        smoothing: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> MTLOutput:
        """Encodes, pools, and applies every head; with labels, also each task's loss.

        Args:
            input_ids: Token ids. Shape (B, T).
            attention_mask: 1 for tokens, 0 for padding; all ones if not given. Shape (B, T).
            token_type_ids: Segment ids, for backbones that take them. Shape (B, T).
            position_ids: Positions, for backbones that take them. Shape (B, T).
            inputs_embeds: Token embeddings instead of `input_ids`. Shape (B, T, H).
            labels: Labels by task. Class ids, (B,), with -100 for missing and -1 for out of scope; for multi-label,
                (B, C), and regression, (B,) or (B, C), floats with nan for missing. A task may be left out; keys that
                are no task's are ignored.
            num_items_in_batch: Count of valid labels by task over the whole optimizer step; the summed losses are
                divided by it. The count in this batch if not given.
            others: Inputs of the further texts of the batch's pairs and triplets, for tasks that compare texts, which
                also need `input_ids` and labels. Shape (M, T') each; M may be 0.
            partners: Row in `others` of each example's second and third text, -1 for none. Shape (B, 2).
            pooled: What the backbone and `pool` gave for these sentences earlier, before any normalisation; the
                backbone is not run, and the output has no `last_hidden_state`. Shape (B, H).
            smoothing: Label smoothing, the share of the loss that goes to all classes alike, by single-label task; 0
                if not given. (The Trainer takes what has "label" in its name for labels.)
            **kwargs: Passed on to the backbone, such as `output_hidden_states`.
        """
        outputs: Any = MTLOutput()
        if pooled is None:
            inputs = {"input_ids": input_ids, "inputs_embeds": inputs_embeds}
            inputs |= {"token_type_ids": token_type_ids, "position_ids": position_ids}
            given = {name: tensor for name, tensor in inputs.items() if tensor is not None}
            if attention_mask is None:
                tokens = next(iter(given.values()))  # (B, T) or (B, T, H)
                attention_mask = torch.ones(tokens.shape[:2], dtype=torch.long, device=tokens.device)  # (B, T)
            outputs = self.backbone(**given, attention_mask=attention_mask, return_dict=True, **kwargs)
            pooled = self.pool(outputs.last_hidden_state, attention_mask)  # (B, H)
        unit = F.normalize(pooled, dim=-1)  # (B, H)
        features = self.dropout(unit if self.config.normalize_for_heads else pooled)  # (B, H)
        logits = {name: head(features) for name, head in self.heads.items()}  # (B, C) each
        loss, task_losses = None, None
        if labels is not None:
            logits |= self._similarity_outputs(unit, (input_ids, attention_mask), labels, others, partners)
            task_losses = self._task_losses(logits, labels, num_items_in_batch or {}, smoothing or {})
            loss = sum(task.weight * task_losses[task.name] for task in self.config.tasks)
        return MTLOutput(
            loss=loss,
            last_hidden_state=outputs.last_hidden_state,
            embeddings=unit if self.config.normalize else pooled,
            logits=logits,
            task_losses=task_losses,
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
        )

    def pool(self, last_hidden_state: Tensor, attention_mask: Tensor) -> Tensor:
        """Reduces token states, (B, T, H), to one float32 vector a sentence, (B, H), as the config says."""
        return pool(last_hidden_state, attention_mask, self.config.pooling)

    def _similarity_outputs(
        self,
        anchors: Tensor,
        tokens: tuple[Any, Any],
        labels: dict[str, Tensor],
        others: dict[str, Tensor] | None,
        partners: Tensor | None,
    ) -> dict[str, Tensor]:
        """Encodes the further texts of a batch, if there are any, and compares; nothing where all tasks have heads."""
        if all(task.has_head for task in self.config.tasks):
            return {}
        units, batches = anchors.new_zeros(0, anchors.shape[1]), [tokens]  # (M, H)
        if others is not None and len(others["input_ids"]):
            states = self.backbone(**others, return_dict=True).last_hidden_state  # (M, T', H)
            units = F.normalize(self.pool(states, others["attention_mask"]), dim=-1)  # (M, H)
            batches.append((others["input_ids"], others["attention_mask"]))
        if partners is None:
            partners = torch.full((len(anchors), 2), -1, device=anchors.device)  # (B, 2)
        texts = ComparedTexts(anchors, units, partners, text_identity(batches))
        return similarity_outputs(self.config.tasks, texts, labels)

    def _task_losses(
        self,
        logits: dict[str, Tensor],
        labels: dict[str, Tensor],
        num_items: dict[str, Tensor],
        smoothing: dict[str, float],
    ) -> dict[str, Tensor]:
        losses = {}
        for task in self.config.tasks:
            outputs, targets = logits[task.name], labels.get(task.name)
            if targets is None:
                losses[task.name] = 0.0 * outputs.nansum()  # Keeps the head in the graph, which DDP needs.
                continue
            count = num_items.get(task.name)
            count = valid_labels(targets).sum() if count is None else count
            total = task_loss(task, outputs, targets, smoothing.get(task.name, 0.0))  # ()
            losses[task.name] = total / count.clamp(min=1)
        return losses

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: dict[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Enables it without a backward pass through frozen lower layers; see `PreTrainedModel`."""
        super().activation_checkpointing_enable(activation_checkpointing_kwargs, every_n_layers, offload)
        if (activation_checkpointing_kwargs or {"use_reentrant": False}).get("use_reentrant") is False:
            # Input embeddings that require gradients are what adapters need with reentrant checkpointing, nobody else.
            self.disable_input_require_grads()

    def add_task(self, task: TaskConfig | dict[str, Any]) -> None:
        """Adds a task, with a fresh head if it has one; encoder, other heads and all that they give stay as they are.

        A trainer learns of tasks when it is made: add them before.

        Args:
            task: The task, with its number of labels known.

        Raises:
            TypeError: If it has a setting that is unknown.
            ValueError: If it is illegal, or a task of that name is there already.
        """
        self.config.set_tasks([*self.config.tasks, task])
        added = self.config.tasks[-1]
        if added.has_head:
            head = TaskHead(added, self.config.hidden_size, self.config.head_dropout).apply(self._init_weights)
            self.heads[added.name] = head.to(device=self.device, dtype=self.dtype).train(self.training)

    def remove_task(self, name: str) -> None:
        """Removes a task with its head; encoder and other heads stay as they are.

        Raises:
            KeyError: If there is no such task; the message lists those there are.
            ValueError: If it is the only one.
        """
        removed = self.config.task(name)
        if len(self.config.tasks) == 1:
            raise ValueError(f"Task {name!r} is the only one. Add another first: `model.add_task(...)`.")
        self.config.set_tasks([task for task in self.config.tasks if task.name != removed.name])
        if removed.has_head:
            del self.heads[name]
        self.frozen_modules = tuple(module for module in self.frozen_modules if module != f"heads.{name}")

    def train(self, mode: bool = True) -> "MTLModel":
        """Sets training mode, except in the modules named by `frozen_modules`: those stay in evaluation mode."""
        super().train(mode)
        for name in self.frozen_modules:
            self.get_submodule(name).eval()
        return self


MTLModel.register_for_auto_class("AutoModel")


def pool(last_hidden_state: Tensor, attention_mask: Tensor, pooling: str) -> Tensor:
    """Reduces token states, (B, T, H), to one float32 vector a sentence, (B, H), leaving out padding.

    Of no tokens at all mean and max are 0.

    Args:
        last_hidden_state: Token states. Shape (B, T, H).
        attention_mask: 1 for tokens, 0 for padding, on either side. Shape (B, T).
        pooling: `"mean"`, `"max"`, or `"cls"` for the first token that is not padding.
    """
    states = last_hidden_state.float()  # (B, T, H)
    if pooling == "cls":
        first = attention_mask.argmax(dim=1)  # (B,)
        return states[torch.arange(states.shape[0], device=states.device), first]  # (B, H)
    mask = attention_mask.unsqueeze(-1)  # (B, T, 1)
    if pooling == "max":
        largest = states.masked_fill(mask == 0, torch.finfo(states.dtype).min).amax(dim=1)  # (B, H)
        return largest.masked_fill(mask.amax(dim=1) == 0, 0.0)  # (B, H)
    return (states * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)  # (B, H)


def _check_backbone(text_config: PreTrainedConfig) -> None:
    if text_config.model_type == MTLConfig.model_type:
        raise ValueError(
            "The backbone is itself a multi-task model. Load it by `MTLModel.from_pretrained`, or save its encoder by "
            "`model.backbone.save_pretrained(folder)`, its tokenizer too, and take that folder."
        )
    if text_config.is_encoder_decoder:
        raise ValueError(
            f"Backbone of type {text_config.model_type!r} is an encoder-decoder, whose forward pass needs decoder "
            "inputs. Use an encoder, such as 'distilbert/distilbert-base-uncased'."
        )


def set_dropout(text_config: PreTrainedConfig, probability: float) -> None:
    """Sets every dropout of an encoder's configuration to a probability."""
    # Each architecture has names of its own (hidden_dropout_prob, attention_dropout, mlp_dropout ...).
    for name, value in text_config.to_dict().items():
        if "dropout" in name and isinstance(value, int | float) and not isinstance(value, bool):
            setattr(text_config, name, float(probability))


def _without_pooler(text_config: PreTrainedConfig) -> dict[str, bool]:
    # An unused pooler would be parameters without gradients, which DistributedDataParallel refuses.
    # Code from a repository is taken as it is: transformers learns of its class only with the first load.
    is_known = not text_config.is_remote_code()
    backbone_class: Any = AutoModel._model_mapping.get(type(text_config), None) if is_known else None
    takes = backbone_class is not None and "add_pooling_layer" in inspect.signature(backbone_class.__init__).parameters
    return {"add_pooling_layer": False} if takes else {}
