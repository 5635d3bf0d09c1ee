"""`mtl verify`: which loaders are run, in what process, what is held against what, and how the command ends."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TOPICS, MakeBackbone, MakeModel
from fresh_process import offline_env, run_fresh
from transformers import BertForSequenceClassification, PreTrainedTokenizerFast

import mtl.cli
import mtl.verification
from modeling_mtl import MTLModel
from mtl.export import export
from mtl.publishing import publish
from mtl.verification import SENTENCES, Verification, clean_env, run_loader, verify
from mtl.verification_loaders import INSTALLED, REMOTE_CODE, known_loaders
from mtl.verification_tables import verification_tables

ST, ENCODER = "sentence-transformers", "transformers, backbone"
ANSWER = {"embeddings": [[0.6, 0.8]], "predictions": [{"valence": 4.0}]}


@pytest.fixture
def folder(model: MTLModel, tmp_path: Path) -> Path:
    """Gives a published tiny model."""
    return publish(model, tmp_path / "published")


def states(found: Verification) -> dict[str, str]:
    return {check.name: check.state for check in found.checks}


def test_process_gets_no_tokens_and_no_settings() -> None:
    env = {"PATH": "/bin", "OMP_NUM_THREADS": "1", "HF_TOKEN": "x", "MY_API_KEY": "x", "GH_TOKEN": "x"}
    env |= {"PYTHONPATH": "/house", "AWS_SECRET_ACCESS_KEY": "x", "HF_ENDPOINT": "http://x", "HF_HUB_OFFLINE": "0"}
    got = clean_env(env, home="/home")
    assert "x" not in got.values()
    assert (got["PATH"], got["OMP_NUM_THREADS"], got["HF_HUB_OFFLINE"], got["HF_HOME"]) == ("/bin", "1", "1", "/home")
    assert not {"PYTHONPATH", "HF_ENDPOINT"} & got.keys()
    assert got["PYTHONDONTWRITEBYTECODE"] == "1"  # or a loader leaves code in the folder, which is then told as added


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Gives what loaders are made to answer, by name; a loader that has none answers as the reference."""
    given: dict[str, Any] = {}

    def answer(loader: Any, folder: Path, *_: Any) -> dict[str, Any]:
        return given.get(loader.name, ANSWER)

    monkeypatch.setattr(mtl.verification, "run_loader", answer)
    return given


def test_what_needs_trust_is_not_run_without(folder: Path, answers: dict[str, Any]) -> None:
    found = verify(folder)
    assert states(found)[REMOTE_CODE] == "not run"
    assert states(found)[ST] == states(found)[ENCODER] == states(found)[INSTALLED] == "ok"
    assert states(found)["ONNX Runtime, fp32"] == "not there"
    assert [check.name for check in found.checks if check.is_reference] == [INSTALLED]
    assert (found.is_ok, found.is_complete) == (True, False)
    trusted = verify(folder, trust_remote_code=True)
    assert [check.name for check in trusted.checks if check.is_reference] == [REMOTE_CODE]
    assert (trusted.is_ok, trusted.is_complete) == (True, True)
    assert verification_tables(trusted).endswith("All is well.")


def test_one_loader_that_differs_or_fails_is_enough(folder: Path, answers: dict[str, Any]) -> None:
    answers[ST] = {"embeddings": [[0.8, 0.6]]}
    answers[ENCODER] = {"error": "OSError: no file named model.safetensors"}
    found = verify(folder)
    assert (states(found)[ST], states(found)[ENCODER]) == ("failed", "failed")
    assert not found.is_ok
    told = verification_tables(found)
    assert "Its embeddings differ by 2.0e-01; 1e-06 is allowed." in told
    assert "OSError: no file named model.safetensors" in told
    assert told.endswith("FAILED: see above.")


def test_reference_that_fails_gives_way_to_the_package(folder: Path, answers: dict[str, Any]) -> None:
    answers[REMOTE_CODE] = {"error": "SyntaxError: invalid syntax"}
    found = verify(folder, trust_remote_code=True)
    assert [check.name for check in found.checks if check.is_reference] == [INSTALLED]
    assert (states(found)[REMOTE_CODE], states(found)[ST]) == ("failed", "ok")


def test_missing_package_is_told(folder: Path, answers: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "sentence_transformers" else True)
    found = verify(folder)
    assert states(found)[ST] == "package missing"
    assert "It needs sentence_transformers." in verification_tables(found)


@pytest.mark.parametrize(
    ("argv", "given", "code"),
    [
        ([], {}, None),
        (["--strict"], {}, 1),
        (["--strict", "--trust_remote_code"], {}, None),
        ([], {ST: {"error": "x"}}, 1),
        (["--revision", "main"], {}, 2),
        (["--fly"], {}, 2),
    ],
)
def test_command_ends_with_the_code_that_says_it(
    argv: list[str], given: dict[str, Any], code: int | None, folder: Path, answers: dict[str, Any], tmp_path: Path
) -> None:
    answers.update(given)
    command = ["verify", str(folder), *argv, "--json", str(tmp_path / "found.json")]
    if code is None:
        mtl.cli.main(command)
    else:
        with pytest.raises(SystemExit) as stop:
            mtl.cli.main(command)
        assert stop.value.code == code
    if code == 2:
        return
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["ok"] == (not given)
    assert found["loaders"][2] == {
        "name": ST,
        "state": "failed" if given else "ok",
        "difference": None
        if given
        else {"value": 0.0, "bound": 1e-6, "is_cosine": False, "is_within": True, "told": ""},
        "is_reference": False,
        "message": "x" if given else "",
    }
    assert {"path": "config.json", "size": (folder / "config.json").stat().st_size, "kind": "other"} in found["files"]


def test_wrong_use_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], no_network: None) -> None:
    for name in (str(tmp_path), str(tmp_path / "absent"), "owner/absent"):
        with pytest.raises(SystemExit) as stop:
            mtl.cli.main(["verify", name])
        assert stop.value.code == 2
    told = capsys.readouterr().err.splitlines()
    assert re.match("mtl verify: error: .* has no config.json", told[0])
    assert re.match("mtl verify: error: There is no folder '.*absent', and no such repository", told[1])


@pytest.mark.slow
def test_every_loader_of_a_published_folder(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model("distilbert", max_seq_length=20)
    source = tmp_path / "saved"
    model.save_pretrained(source)
    for backend in ("onnx", "openvino"):
        export(model, source, backend)
    model = MTLModel.from_pretrained(source)
    folder = publish(model, tmp_path / "published", source=source)
    found = verify(folder, trust_remote_code=True)
    assert states(found) == {
        INSTALLED: "ok",
        REMOTE_CODE: "ok",
        ST: "ok",
        ENCODER: "ok",
        "ONNX Runtime, fp32": "ok",
        "ONNX Runtime, int8": "not there",
        "OpenVINO, fp32": "ok",
        "OpenVINO, int8": "not there",
        "pipeline multi-task-classification": "ok",
    }
    (block,) = [
        code for code in re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S) if "sys" in code
    ]
    script = (
        block.replace("<this folder>", str(folder)) + "\nreport(shape=embeddings.shape, tasks=list(predictions[0]))\n"
    )
    got = run_fresh(script, env=offline_env(tmp_path / "home"), cwd=tmp_path / "empty", package=True)
    assert got == {"shape": [2, 32], "tasks": model.config.task_names}


@pytest.mark.slow
def test_other_weights_beside_the_index_are_found(folder: Path, make_model: MakeModel, tmp_path: Path) -> None:
    make_model(seed=1).save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", folder)  # A loader prefers it to the index.
    found = verify(folder)
    assert states(found)[INSTALLED] == "ok"
    assert states(found)[ST] == states(found)[ENCODER] == "failed"
    assert not found.is_ok


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import socket\nsocket.create_connection(('127.0.0.1', 9))\n", "ConnectionError: .* is verified offline"),
        ("import mtl\n", "ImportError: mtl cannot be imported here"),
        ("import os\nos._exit(3)\n", "Its process ended with code 3"),
        ("import time\ntime.sleep(600)\n", "It took longer than"),
    ],
)
def test_code_of_the_folder_is_held_to_what_a_stranger_has(code: str, told: str, folder: Path) -> None:
    file = folder / "tasks_mtl.py"
    file.write_text(
        f"{file.read_text()}\n\ntry:\n    pass\nfinally:\n    " + code.replace("\n", "\n    ").rstrip() + "\n"
    )
    loader = next(loader for loader in known_loaders(folder) if loader.name == REMOTE_CODE)
    answer = run_loader(loader, folder, SENTENCES[:1], timeout=20 if "sleep" in code else 300)
    assert re.match(told, answer["error"]), answer


@pytest.mark.slow
def test_plain_classifier_in_a_folder_of_its_task_is_asked(
    folder: Path, tiny_backbone: MakeBackbone, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    config: Any = tiny_backbone().config
    config.id2label = dict(enumerate(TOPICS))
    torch.manual_seed(0)
    classifier = BertForSequenceClassification(config).eval()
    classifier.save_pretrained(folder / "tasks" / "topic")
    tiny_tokenizer.save_pretrained(folder / "tasks" / "topic")
    (loader,) = [loader for loader in known_loaders(folder) if loader.name == "classifier tasks/topic"]
    assert loader.options["task"] == "topic"
    inputs = tiny_tokenizer(SENTENCES[:3], padding=True, return_tensors="pt")
    expected = classifier(**inputs).logits.softmax(dim=-1)
    scores = run_loader(loader, folder, SENTENCES[:3])["scores"]
    actual = [[row[label] for label in TOPICS] for row in scores]
    np.testing.assert_allclose(actual, expected.detach(), rtol=0, atol=1e-6)
