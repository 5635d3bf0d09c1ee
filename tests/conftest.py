"""Shared fixtures: a tiny tokenizer, tiny random backbones and models, four tasks, and rows to learn these from."""

import json
import logging
import os
import random
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

# Read when the libraries are imported, so set before: no test reaches the network or the user's cache.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Matrices of 32 columns are slower on several threads, on a busy machine many times. Tests' processes inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="mtl-tests-")
for _name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_MODULES_CACHE", "HF_ASSETS_CACHE", "HF_TOKEN"):
    os.environ.pop(_name, None)

import pytest  # noqa: E402
import torch  # noqa: E402
from datasets import DatasetDict, enable_progress_bars  # noqa: E402
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors  # noqa: E402
from transformers import AutoConfig, AutoModel, BatchEncoding, PreTrainedModel, PreTrainedTokenizerFast  # noqa: E402
from transformers.utils import logging as transformers_logging  # noqa: E402

# Before they are imported, so that an assert of theirs that fails shows its values.
pytest.register_assert_rewrite("checks", "saved_folders")

from configuration_mtl import MTLConfig, TaskConfig  # noqa: E402
from modeling_mtl import MTLModel  # noqa: E402
from mtl.data import SourceConfig, label_column, load_sources, tokenize_splits  # noqa: E402
from tasks_mtl import MULTI_LABEL, REGRESSION  # noqa: E402

TOPICS = {"sport": "match team goal", "film": "actor scene plot", "shop": "price order refund"}
SENTIMENTS = {"negative": "awful sad broken", "neutral": "plain usual average", "positive": "great happy lovely"}
TAGS = {"urgent": "now", "question": "why", "thanks": "grateful", "link": "website"}
VALENCES = {"negative": -2.0, "neutral": 0.0, "positive": 2.0}
SENTENCES = [
    "match team goal now",
    "price",
    "a plain usual average scene, actor plot and a website",
    "why refund order",
]

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
}
_OWN_SETTINGS: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {},
    "camembert": {},
    "xlm-roberta": {},
    "mpnet": {},
    "electra": {"embedding_size": 32},
    "albert": {"embedding_size": 16},
    # As DeBERTa v3 has it.
    "deberta-v2": {
        "relative_attention": True,
        "position_buckets": 16,
        "pos_att_type": ["p2c", "c2p"],
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "position_biased_input": False,
    },
    "modernbert": {"local_attention": 16, "global_attn_every_n_layers": 2},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "max_position_embeddings": 128},
    "nomic_bert": {},
    "gpt2": {},
    "gpt_neox": {},
    "bloom": {},
    "opt": {"word_embed_proj_dim": 32},
    "xlm": {"emb_dim": 32, "n_layers": 2, "n_heads": 2},
    "t5": {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2},
}


class MakeBackbone(Protocol):
    """Builds a tiny random backbone; keywords override its configuration."""

    def __call__(self, model_type: str = "bert", *, seed: int = 0, **overrides: Any) -> PreTrainedModel: ...


class SaveBackbone(Protocol):
    """Saves a tiny random backbone with the tiny tokenizer, and returns the folder."""

    def __call__(self, model_type: str = "bert", *, seed: int = 0, **overrides: Any) -> Path: ...


class WriteRows(Protocol):
    """Writes rows to a JSON file in the test's folder, and returns its path."""

    def __call__(self, rows: Sequence[Mapping[str, Any]], name: str = "rows.json") -> Path: ...


ToyRows = Callable[[int, int], list[dict[str, Any]]]


def pytest_unconfigure() -> None:
    """Removes the caches of this session."""
    shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)


def make_toy_rows(n: int, seed: int = 0) -> list[dict[str, Any]]:
    """Returns rows with columns `text`, `topic`, `sentiment`, `tags` and `valence`; about one label in five is None.

    A text is made of words of its labels, so every task can be learned; it ends in its number, so no two are equal.
    """
    rng = random.Random(seed)
    rows = []
    for number in range(n):
        topic, sentiment = rng.choice(list(TOPICS)), rng.choice(list(SENTIMENTS))
        tags = [tag for tag in TAGS if rng.random() < 0.3]
        words = [*rng.sample(TOPICS[topic].split(), 2), *rng.sample(SENTIMENTS[sentiment].split(), 2)]
        words += [TAGS[tag] for tag in tags]
        rng.shuffle(words)
        labels = {"topic": topic, "sentiment": sentiment, "tags": tags, "valence": VALENCES[sentiment]}
        kept = {name: label if rng.random() < 0.8 else None for name, label in labels.items()}
        rows.append({"text": f"{' '.join(words)} {number}", **kept})
    return rows


@pytest.fixture(autouse=True)
def log_levels() -> Iterator[None]:
    """Takes back what a program sets for its own process; `TrainingArguments` goes by the levels too."""
    loggers = [logging.getLogger(name) for name in ("mtl", "merge_models", "train_setup", "train_trainer")]
    before, verbosity = [logger.level for logger in loggers], transformers_logging.get_verbosity()
    yield
    transformers_logging.enable_progress_bar()  # What `--quiet` switches off is off for the process.
    enable_progress_bars()
    transformers_logging.set_verbosity(verbosity)
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)


@pytest.fixture(scope="session")
def toy_rows() -> ToyRows:
    """Gives [`make_toy_rows`]: `toy_rows(n, seed)`."""
    return make_toy_rows


@pytest.fixture
def write(tmp_path: Path) -> WriteRows:
    """Gives a function that writes rows to a JSON file, and returns its path."""

    def write_rows(rows: Sequence[Mapping[str, Any]], name: str = "rows.json") -> Path:
        (tmp_path / name).write_text(json.dumps(rows))
        return tmp_path / name

    return write_rows


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets every connection fail."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError(f"a test opened a connection: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="session")
def tasks() -> tuple[TaskConfig, ...]:
    """Gives the four tasks of the toy rows, with their labels."""
    return (
        TaskConfig("topic", labels=tuple(TOPICS)),
        TaskConfig("sentiment", labels=tuple(SENTIMENTS)),
        TaskConfig("tags", MULTI_LABEL, labels=tuple(TAGS)),
        TaskConfig("valence", REGRESSION),
    )


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Gives a BERT-like WordPiece tokenizer of the toy texts' words; `[PAD]` is 0."""
    normalizer, pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    texts = [*TOPICS.values(), *SENTIMENTS.values(), *TAGS.values(), "The quick brown fox, a lazy dog. 0123456789"]
    found = pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(" ".join(texts)))
    words = sorted({word for word, _ in found})
    letters = sorted(set("".join(words)))
    # Not by a trainer: it numbers the tokens, and by that the random embeddings, differently in every process.
    tokens = dict.fromkeys([*SPECIAL_TOKENS, *letters, *(f"##{letter}" for letter in letters), *words])
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    ids = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=64,
        model_input_names=["input_ids", "attention_mask"],
        **{f"{token[1:-1].lower()}_token": token for token in SPECIAL_TOKENS},
    )


@pytest.fixture(scope="session")
def tiny_backbone(tiny_tokenizer: PreTrainedTokenizerFast) -> MakeBackbone:
    """Gives a function that builds a tiny random backbone of a model type, the same one for the same seed."""
    ids = {"pad": "[PAD]", "cls": "[CLS]", "bos": "[CLS]", "sep": "[SEP]", "eos": "[SEP]"}
    vocabulary = {
        "vocab_size": len(tiny_tokenizer),
        **{f"{name}_token_id": tiny_tokenizer.convert_tokens_to_ids(token) for name, token in ids.items()},
    }

    def make_backbone(model_type: str = "bert", *, seed: int = 0, **overrides: Any) -> PreTrainedModel:
        own = _OWN_SETTINGS[model_type]
        sizes = {} if model_type in ("distilbert", "t5") else _SIZES
        config = AutoConfig.for_model(model_type, **{**vocabulary, **sizes, **own, **overrides})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return AutoModel.from_config(config).eval()

    return make_backbone


@pytest.fixture
def backbone_dir(tmp_path: Path, tiny_backbone: MakeBackbone, tiny_tokenizer: PreTrainedTokenizerFast) -> SaveBackbone:
    """Gives a function that saves a tiny backbone with its tokenizer, as a checkpoint on the Hub is laid out."""

    def save_backbone(model_type: str = "bert", *, seed: int = 0, **overrides: Any) -> Path:
        folder = tmp_path / f"backbone-{model_type}-{seed}"
        tiny_backbone(model_type, seed=seed, **overrides).save_pretrained(folder)
        tiny_tokenizer.save_pretrained(folder)
        return folder

    return save_backbone


UNCUT: dict[str, Any] = {"validation_fraction": 0.0, "test_fraction": 0.0}


def load_column(path: Path, task: TaskConfig, **settings: Any) -> tuple[list[Any], TaskConfig]:
    """Returns the labels and the task of a file of one task, whose column bears the task's name, without cuts."""
    source = SourceConfig(str(path), labels={task.name: task.name}, **settings)
    splits, (resolved,) = load_sources([source], [task], **UNCUT)
    return splits["train"][:][label_column(task.name)], resolved


class MakeModel(Protocol):
    """Builds a tiny model on the four tasks; keywords are settings of its configuration."""

    def __call__(
        self, model_type: str = "bert", *, tasks: Sequence[TaskConfig] | None = None, **settings: Any
    ) -> MTLModel: ...


@pytest.fixture
def tiny_model(
    tiny_backbone: MakeBackbone, tiny_tokenizer: PreTrainedTokenizerFast, tasks: tuple[TaskConfig, ...]
) -> MakeModel:
    """Gives a function that builds a tiny model, the same one each time."""
    default_tasks = tasks

    def make_model(
        model_type: str = "bert", *, tasks: Sequence[TaskConfig] | None = None, **settings: Any
    ) -> MTLModel:
        text_config = tiny_backbone(model_type).config
        config = MTLConfig(text_config=text_config, tasks=list(tasks or default_tasks), **settings)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = MTLModel(config)
        model.tokenizer = tiny_tokenizer
        return model

    return make_model


@pytest.fixture
def make_model(backbone_dir: SaveBackbone, tasks: tuple[TaskConfig, ...]) -> MakeModel:
    """Gives a function that puts heads on a saved tiny encoder, without dropout in them unless asked for.

    Another `seed` gives other weights.
    """

    def make(model_type: str = "bert", *, seed: int = 0, **settings: Any) -> MTLModel:
        torch.manual_seed(seed + 1)
        settings = {"tasks": tasks, "head_dropout": 0.0, **settings}
        return MTLModel.from_backbone(backbone_dir(model_type, seed=seed), **settings)

    return make


@pytest.fixture
def model(make_model: MakeModel) -> MTLModel:
    """Gives a tiny model."""
    return make_model()


@pytest.fixture
def inputs(tiny_tokenizer: PreTrainedTokenizerFast) -> BatchEncoding:
    """Gives the padded sentences."""
    return tiny_tokenizer(SENTENCES, padding=True, return_tensors="pt")


@pytest.fixture
def toy_splits(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, tasks: tuple[TaskConfig, ...]
) -> tuple[DatasetDict, tuple[TaskConfig, ...]]:
    """Gives tokenised toy rows, 64 for train and 40 for validation, and their tasks."""
    files = {}
    for split, count, seed in (("train", 64, 0), ("validation", 40, 1)):
        files[split] = str(tmp_path / f"{split}.jsonl")
        Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in make_toy_rows(count, seed)))
    source = SourceConfig(files=files, labels={task.name: task.name for task in tasks})
    splits, resolved = load_sources([source], tasks, test_fraction=0.0)
    tokenised, _ = tokenize_splits(splits, tiny_tokenizer, max_length=32)
    return tokenised, resolved
