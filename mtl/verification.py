"""Proof that a folder loads for others: every loader in a process of its own, held against one reference.

A loader's process is offline, cannot import this package, and has a cache of its own. Loaders that run code of the
folder are run only if it is trusted.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import modeling_mtl
from mtl import verification_worker
from mtl.verification_compare import Difference, compare
from mtl.verification_files import Inventory, inventory_dict, take_inventory
from mtl.verification_loaders import REFERENCES, Loader, known_loaders

OK, FAILED, NOT_THERE, NOT_RUN, MISSING = "ok", "failed", "not there", "not run", "package missing"
SENTENCES = (
    "The battery lasts all day.",
    "It broke after a week, and nobody answers my mails.",
    "What a wonderful film!",
    "why",
    "The senate rejected the bill on Tuesday, 42 to 58; its sponsors want to bring it back in spring.",
    "Ünïcödé, 日本語 and an emoji 🙂 in one line.",
    "a\ttab,  two spaces and a line\nbreak",
    "One word after the other, until no model has room for more of them. " * 60,
)
"""What every loader is asked: short and long, plain and odd, one longer than most models read."""
TIMEOUT = 600.0
"""Seconds that one loader may take."""
# Code of a folder has no business with these, even if it is trusted; and settings of the user may not help a loader.
_WITHHELD = re.compile(
    r"(HF|HUGGINGFACE|HUGGING_FACE|TRANSFORMERS|SENTENCE_TRANSFORMERS|AWS|GITHUB|PYTHON)_?.*|.*(TOKEN|SECRET|PASSWORD|"
    r"CREDENTIAL|API_?KEY).*",
    re.IGNORECASE,
)
_KEPT = ("PYTHONHASHSEED", "PYTHONUTF8")
_SHOWN_OF_ERROR = 600


@dataclass(frozen=True)
class LoaderCheck:
    """What became of one loader.

    Args:
        name: The loader.
        state: `ok`, `failed`, `not there` (the folder has nothing for it), `not run` (it runs code of the folder,
            which was not trusted) or `package missing`.
        difference: What was measured; None for what was not run, and for the reference.
        is_reference: Whether the others are held against it.
        message: What went wrong, or is missing.
    """

    name: str
    state: str
    difference: Difference | None = None
    is_reference: bool = False
    message: str = ""


@dataclass(frozen=True)
class Verification:
    """What is known of a folder after all loaders.

    Args:
        source: The folder, or the name of the repository.
        revision: Commit that was downloaded; None for a folder.
        inventory: Its files and code, and what is wrong with them.
        checks: The loaders.
    """

    source: str
    revision: str | None
    inventory: Inventory
    checks: tuple[LoaderCheck, ...]

    @property
    def is_ok(self) -> bool:
        """Whether nothing failed, nothing is wrong with the files, and some loader loads it."""
        states = [check.state for check in self.checks]
        return FAILED not in states and OK in states and not self.inventory.problems

    @property
    def is_complete(self) -> bool:
        """Whether all loaders that the folder is made for were run."""
        return not {NOT_RUN, MISSING} & {check.state for check in self.checks}

    def to_dict(self) -> dict[str, Any]:
        """Returns it as JSON-ready values."""
        return {
            "source": self.source,
            "revision": self.revision,
            "ok": self.is_ok,
            "complete": self.is_complete,
            "loaders": [asdict(check) for check in self.checks],
            **inventory_dict(self.inventory),
        }


def verify(
    folder: str | os.PathLike[str],
    *,
    trust_remote_code: bool = False,
    source: str | None = None,
    revision: str | None = None,
    sentences: Sequence[str] = SENTENCES,
    timeout: float = TIMEOUT,
) -> Verification:
    """Loads a folder in every way that it is made for, and compares what comes out.

    The reference is the model as its own code loads it, in float32; where that is not trusted or fails, as this
    package loads it.

    Args:
        folder: Published by `mtl publish`, or saved by `save_pretrained`.
        trust_remote_code: Whether loaders that run code of the folder are run.
        source: Name to report, such as that of the repository it is a copy of; the folder's path if not given.
        revision: Commit to report.
        sentences: What the loaders are asked.
        timeout: Seconds that one loader may take.

    Raises:
        ValueError: If the folder is not that of a multi-task model.
    """
    folder = Path(folder).resolve()
    if not (folder / "config.json").is_file() and not (folder / "mtl_published.json").is_file():
        raise ValueError(f"{folder} has no config.json. Give the folder of a saved or published multi-task model.")
    loaders = known_loaders(folder)
    states = {loader.name: _state(loader, folder, trust_remote_code) for loader in loaders}
    answers = {
        loader.name: run_loader(loader, folder, sentences, timeout) for loader in loaders if not states[loader.name]
    }
    reference = next((name for name in REFERENCES if "error" not in answers.get(name, {"error": ""})), None)
    checks = [
        states[loader.name] or _checked(loader, answers[loader.name], reference, answers.get(reference or ""))
        for loader in loaders
    ]
    return Verification(source or str(folder), revision, take_inventory(folder), tuple(checks))


def run_loader(loader: Loader, folder: Path, sentences: Sequence[str], timeout: float = TIMEOUT) -> dict[str, Any]:
    """Runs a loader in a fresh process; returns its answers, or `{"error": what went wrong}`.

    Args:
        loader: The loader.
        folder: The folder that it loads.
        sentences: What it is asked.
        timeout: Seconds that it may take.
    """
    with tempfile.TemporaryDirectory(prefix="mtl-verify-") as place:
        output = Path(place, "answer.json")
        request = {
            "loader": loader.kind,
            "folder": str(folder),
            "sentences": list(sentences),
            "output": str(output),
            "root": str(Path(modeling_mtl.__file__).parent),
            **loader.options,
        }
        try:
            done = subprocess.run(
                [sys.executable, "-P", str(verification_worker.__file__)],
                input=json.dumps(request),
                env=clean_env(os.environ, home=place),
                cwd=place,
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return {"error": f"It took longer than {timeout:.0f} s."}
        if not output.is_file():
            return {
                "error": f"Its process ended with code {done.returncode}: {done.stderr[-_SHOWN_OF_ERROR:].strip()}"
            }
        answer: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
        return answer


def clean_env(env: Mapping[str, str], *, home: str) -> dict[str, str]:
    """Returns the environment of a loader process: offline, with empty caches, and without anybody's tokens.

    Args:
        env: That of this process.
        home: Folder for its caches.
    """
    kept = {name: value for name, value in env.items() if name in _KEPT or not _WITHHELD.fullmatch(name)}
    switches = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"), "1")
    # What the predictor is compiled to would lie in the folder, as code that `mtl publish` did not write.
    switches["PYTHONDONTWRITEBYTECODE"] = "1"
    return {**kept, **switches, "HF_HOME": home, "TOKENIZERS_PARALLELISM": "false"}


def _state(loader: Loader, folder: Path, trusted: bool) -> LoaderCheck | None:
    """Returns why a loader is not run; None if it is."""
    if not loader.is_there(folder):
        return LoaderCheck(loader.name, NOT_THERE)
    if loader.runs_code and not trusted:
        return LoaderCheck(loader.name, NOT_RUN, message="It runs code of the folder: --trust_remote_code.")
    missing = [package for package in loader.packages if importlib.util.find_spec(package) is None]
    if missing:
        return LoaderCheck(loader.name, MISSING, message=f"It needs {', '.join(missing)}.")
    return None


def _checked(
    loader: Loader, answer: Mapping[str, Any], reference: str | None, expected: Mapping[str, Any] | None
) -> LoaderCheck:
    if "error" in answer:
        return LoaderCheck(loader.name, FAILED, message=answer["error"])
    if loader.name == reference:
        return LoaderCheck(loader.name, OK, is_reference=True)
    if expected is None:
        return LoaderCheck(loader.name, FAILED, message="It loads, but there is no reference to hold it against.")
    try:
        difference = compare(answer, expected, loader.tolerance, task=loader.options.get("task"))
    except ValueError as error:
        return LoaderCheck(loader.name, FAILED, message=str(error))
    return LoaderCheck(loader.name, OK if difference.is_within else FAILED, difference, message=difference.told)
