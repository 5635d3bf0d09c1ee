"""`mtl verify`: what is wrong with files, how answers are compared, which loaders are run, and in what process."""

import json
import pickle
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MakeModel
from fresh_process import offline_env, run_fresh
from predictor_stand_in import PREDICTOR, write_graph
from safetensors.torch import load_file, save_file

import mtl.cli
import mtl.verification
from modeling_mtl import MTLModel
from mtl.publishing import publish
from mtl.verification import SENTENCES, Verification, clean_env, run_loader, verify
from mtl.verification_compare import Tolerance, compare
from mtl.verification_files import take_inventory
from mtl.verification_loaders import INSTALLED, REMOTE_CODE, known_loaders
from mtl.verification_tables import verification_tables

ST, ENCODER = "sentence-transformers", "transformers, backbone"


@pytest.fixture
def folder(model: MTLModel, tmp_path: Path) -> Path:
    """Gives a published tiny model."""
    return publish(model, tmp_path / "published")


def problems(folder: Path) -> list[str]:
    return list(take_inventory(folder).problems)


def states(found: Verification) -> dict[str, str]:
    return {check.name: check.state for check in found.checks}


def overwrite(file: Path, position: int, data: bytes) -> None:
    with file.open("r+b") as stream:
        stream.seek(position, 0 if position >= 0 else 2)
        stream.write(data)


def test_inventory_lists_files_and_code(folder: Path) -> None:
    inventory = take_inventory(folder)
    kinds = {file.path: file.kind for file in inventory.files}
    assert inventory.problems == ()
    assert kinds["backbone/model.safetensors"] == kinds["heads.safetensors"] == "weights"
    assert kinds["modeling_mtl.py"] == "code"
    assert kinds["tokenizer.json"] == "other"
    assert inventory.total_size == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    code = {file.path: file.packages for file in inventory.code}
    assert code["modeling_mtl.py"] == ("torch", "transformers")
    assert not any(file.unexpected for file in inventory.code)


def test_imports_of_code_are_told(folder: Path) -> None:
    (folder / "extra_mtl.py").write_text("def f():\n    import einops.layers, os\n    from requests import get\n")
    (extra,) = [file for file in take_inventory(folder).code if file.path == "extra_mtl.py"]
    assert extra.unexpected == ("einops", "requests")


@pytest.mark.parametrize("name", ["training_args.bin", "notes.txt", "old.safetensors"])
def test_pickles_are_told_by_content_or_name(name: str, folder: Path) -> None:
    (folder / name).write_bytes(pickle.dumps({"weights": [1, 2]}))
    assert f"{name} is a pickle: loading it can run any code." in problems(folder)


def test_files_of_torch_are_pickles_and_weights_of_a_graph_are_not(folder: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, folder / "optimizer.dat")
    (folder / "openvino").mkdir()
    (folder / "openvino" / "openvino_model.xml").write_text("<net/>")
    (folder / "openvino" / "openvino_model.bin").write_bytes(b"\1\2\3\4")
    (folder / "pytorch_model.bin").write_bytes(b"")
    found = problems(folder)
    assert [problem.split()[0] for problem in found] == ["optimizer.dat", "pytorch_model.bin"]
    kinds = {file.path: file.kind for file in take_inventory(folder).files}
    assert kinds["openvino/openvino_model.bin"] == "weights"


@pytest.mark.parametrize("length", [0x0280, 0x0380, 0x0480, 0x0580])
def test_weights_that_begin_like_a_pickle_are_none(length: int, folder: Path) -> None:
    # They begin with the length of their header, in two bytes here that are those of a pickle's protocol.
    header = json.dumps({"weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).ljust(length)
    data = length.to_bytes(8, "little") + header.encode() + bytes(4)
    assert data[0] == pickle.dumps(None)[0]
    (folder / "more.safetensors").write_bytes(data)
    assert problems(folder) == []


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda folder: overwrite(folder / "heads.safetensors", -4, b"\0\0\0\1"), "heads.safetensors is not as"),
        (lambda folder: overwrite(folder / "heads.safetensors", 0, b"\xff" * 8), "heads.safetensors is damaged: "),
        (
            lambda folder: (folder / "backbone/model.safetensors").unlink(),
            "backbone/model.safetensors is missing, whi",
        ),
        (
            lambda folder: (folder / "1_Pooling/config.json").unlink(),
            "1_Pooling/config.json is missing, which `mtl pu",
        ),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is damaged: "),
        (lambda folder: (folder / "tasks_mtl.py").write_text("def"), "tasks_mtl.py is damaged: "),
        (lambda folder: (folder / "mtl_published.json").write_text("{}"), "is damaged"),
    ],
)
def test_damage_is_told(spoil: Callable[[Path], Any], told: str, folder: Path) -> None:
    spoil(folder)
    assert any(told in problem for problem in problems(folder)), problems(folder)


def test_lost_tensor_and_damaged_index_of_a_saved_folder_are_told(model: MTLModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "saved", max_shard_size="20KB")
    assert problems(tmp_path / "saved") == []
    shard = sorted((tmp_path / "saved").glob("model-*.safetensors"))[0]
    weights = load_file(shard)
    lost = sorted(weights)[0]
    save_file({name: weight for name, weight in weights.items() if name != lost}, shard, metadata={"format": "pt"})
    index = "model.safetensors.index.json"
    assert problems(tmp_path / "saved") == [f"{shard.name} lacks '{lost}' (1 tensors in all), which {index} names."]
    (tmp_path / "saved" / index).write_text("[]")
    assert problems(tmp_path / "saved") == [f"{index} is no index of weights."]


PREDICTED: Mapping[str, Any] = {"topic": {"label": "a", "probabilities": {"a": 0.75, "b": 0.25}}, "valence": 4.0}


def changed(**fields: Any) -> dict[str, Any]:
    return {"embeddings": [[0.6, 0.8]], "predictions": [{**PREDICTED, **fields}]}


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        (changed(), 0.0),
        ({"embeddings": [[0.6, 0.8 + 5e-7]]}, 5e-7),
        (changed(valence=4.0 + 8e-6), 2e-6),  # Relative to 4.
        (changed(topic={"label": "a", "probabilities": {"a": 0.75, "b": 0.25001}}), 1e-5),
        ({"embeddings": [[float("nan"), 0.8]]}, float("inf")),
    ],
)
def test_difference_is_the_largest_of_all_numbers(answer: dict[str, Any], value: float) -> None:
    found = compare(answer, changed(), Tolerance(1e-6))
    assert found.value == pytest.approx(value, rel=1e-4)
    assert found.is_within == (value <= 1e-6)
    assert bool(found.told) != found.is_within


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (changed(topic={"label": "b", "probabilities": {"a": 0.75, "b": 0.25}}), r"\['label'\] is 'b', that of the r"),
        ({"predictions": [{"topic": PREDICTED["topic"]}]}, r"predictions\[0\] are .*those of the reference"),
        ({"embeddings": [[0.6]]}, r"have shape \(1, 1\), those of the reference \(1, 2\)"),
        ({"predictions": []}, "predictions are "),
    ],
)
def test_other_decisions_and_shapes_are_told(answer: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        compare(answer, changed(), Tolerance(1.0))


def test_cosine_is_the_mean_over_sentences() -> None:
    expected = {"embeddings": [[1.0, 0.0], [0.0, 2.0]]}
    found = compare({"embeddings": [[3.0, 0.0], [1.0, 1.0]]}, expected, Tolerance(0.9, is_cosine=True))
    assert found.value == pytest.approx((1 + 0.5**0.5) / 2)
    assert not found.is_within


def test_scores_of_one_task_are_compared_with_its_predictions() -> None:
    scores = {"scores": [{"a": 0.75, "b": 0.25}]}
    assert compare(scores, changed(), Tolerance(1e-6), task="topic").value == 0.0
    with pytest.raises(ValueError, match="the model has no such task"):
        compare(scores, changed(), Tolerance(1e-6), task="mood")


def test_process_gets_no_tokens_and_no_settings() -> None:
    env = {"PATH": "/bin", "OMP_NUM_THREADS": "1", "HF_TOKEN": "x", "MY_API_KEY": "x", "GH_TOKEN": "x"}
    env |= {"PYTHONPATH": "/house", "AWS_SECRET_ACCESS_KEY": "x", "HF_ENDPOINT": "http://x", "HF_HUB_OFFLINE": "0"}
    got = clean_env(env, home="/home")
    assert "x" not in got.values()
    assert (got["PATH"], got["OMP_NUM_THREADS"], got["HF_HUB_OFFLINE"], got["HF_HOME"]) == ("/bin", "1", "1", "/home")
    assert not {"PYTHONPATH", "HF_ENDPOINT"} & got.keys()


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Gives what loaders are made to answer, by name; a loader that has none answers as the reference."""
    given: dict[str, Any] = {}

    def answer(loader: Any, folder: Path, *_: Any) -> dict[str, Any]:
        return given.get(loader.name, changed())

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
        (["--strict", "--trust-remote-code"], {}, None),
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
    write_graph(model, source / "onnx" / "model.onnx")
    (source / "predictor_mtl.py").write_text(PREDICTOR)
    (source / "mtl_inference.json").write_text(json.dumps({"max_tokens": 20, "topic": model.config.tasks[0].labels}))
    folder = publish(model, tmp_path / "published", source=source)
    found = verify(folder, trust_remote_code=True)
    assert states(found) | {"ONNX Runtime, fp32": "failed"} == {
        INSTALLED: "ok",
        REMOTE_CODE: "ok",
        ST: "ok",
        ENCODER: "ok",
        "ONNX Runtime, fp32": "failed",
        "ONNX Runtime, int8": "not there",
        "OpenVINO, fp32": "not there",
        "OpenVINO, int8": "not there",
        "pipeline multi-task-classification": "not there",
    }
    # The stand-in predicts one task, which is told as a difference; its embeddings are those of the model.
    (told,) = [check.message for check in found.checks if check.name == "ONNX Runtime, fp32"]
    assert "those of the reference {'topic'" in told
    (onnx,) = [loader for loader in known_loaders(folder) if loader.name == "ONNX Runtime, fp32"]
    answer = run_loader(onnx, folder, SENTENCES)
    np.testing.assert_allclose(answer["embeddings"], model.encode(SENTENCES), rtol=0, atol=1e-5)
    (block,) = [
        code for code in re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S) if "sys" in code
    ]
    script = (
        block.replace("<this folder>", str(folder)) + "\nreport(shape=embeddings.shape, tasks=list(predictions[0]))\n"
    )
    got = run_fresh(script, env=offline_env(tmp_path / "home"), cwd=tmp_path / "empty")
    assert got == {"shape": [2, 32], "tasks": ["topic"]}


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
