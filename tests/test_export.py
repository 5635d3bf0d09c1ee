"""Exported graphs: they agree with the model, and answer without torch as the model does."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import MakeModel, SaveBackbone

from modeling_mtl import MTLModel
from mtl.content_keys import key_of_model
from mtl.export import TOLERANCE, export
from predictor_mtl import MANIFEST, MTLPredictor
from tasks_mtl import MULTI_LABEL, ORDINAL, REGRESSION, TaskConfig

TASKS = (
    TaskConfig("topic", labels=("sport", "film", "shop"), calibration_temperature=0.2, abstention_threshold=0.4),
    TaskConfig("in-tent", labels=("buy", "sell"), out_of_scope_label="oos", rejection_threshold=0.7, hidden_size=8),
    TaskConfig("stars", ORDINAL, labels=("one", "two", "three"), calibration_temperature=3.0),
    TaskConfig("tags", MULTI_LABEL, labels=("urgent", "thanks"), label_thresholds=(0.49, 0.51)),
    TaskConfig("valence", REGRESSION),
    TaskConfig("emotion", REGRESSION, labels=("joy", "fear")),
)
SENTENCES = ["match team goal now", "price", "", "why " * 300, "a plain usual average scene, actor plot and a website"]
WITHOUT_TORCH = """
import json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "mtl", "modeling_mtl", "configuration_mtl"):
            raise ImportError(f"{name} is not there")

sys.meta_path.insert(0, Blocked())
sys.path.insert(0, sys.argv[1])
from predictor_mtl import MTLPredictor

embeddings, predictions = MTLPredictor(sys.argv[1]).encode_and_predict(json.loads(sys.argv[2]))
print(json.dumps([embeddings.tolist(), predictions]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_graph_answers_as_the_model_does(backend: str, tmp_path: Path, backbone_dir: SaveBackbone) -> None:
    model = MTLModel.from_backbone(backbone_dir("bert"), tasks=TASKS)
    folder = tmp_path / "out"
    assert export(model, folder, backend, texts=SENTENCES).difference <= TOLERANCE
    embeddings, predictions = model.encode_and_predict(SENTENCES)
    command = [sys.executable, "-c", WITHOUT_TORCH, str(folder), json.dumps(SENTENCES)]
    alone = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    predictor = MTLPredictor(folder, backend=backend, precision="fp32", threads=1)
    side_by_side = MTLPredictor(folder, backend=backend, precision="fp32", threads=3, cache_dir=tmp_path / "cache")
    streamed = list(predictor.stream(SENTENCES, window_size=2))
    answers = (
        predictor.encode_and_predict(SENTENCES),
        side_by_side.encode_and_predict(SENTENCES, batch_size=1),
        side_by_side.encode_and_predict(SENTENCES),
        (np.array([embedding for embedding, _ in streamed]), [said for _, said in streamed]),
        (np.array(json.loads(alone)[0]), json.loads(alone)[1]),
    )
    for found, said in answers:
        np.testing.assert_allclose(found, embeddings, atol=1e-5)
        for left, right in zip(said, predictions, strict=True):
            for name in ("topic", "in-tent", "stars"):
                probabilities = left[name].pop("probabilities")
                assert probabilities == pytest.approx(right[name]["probabilities"], abs=1e-5)
                assert left[name].pop("score") == pytest.approx(right[name]["score"], abs=1e-5)
                assert left[name] == {key: right[name][key] for key in left[name]}
            assert left["tags"]["labels"] == right["tags"]["labels"]
            assert left["valence"] == pytest.approx(right["valence"], abs=1e-5)
            assert left["emotion"] == pytest.approx(right["emotion"], abs=1e-5)
    assert (tmp_path / "cache").is_dir() == (backend == "openvino")
    first, _ = next(side_by_side.stream(SENTENCES, batch_size=1))  # Of which nobody wants the rest.
    np.testing.assert_allclose(first, embeddings[0], atol=1e-5)
    assert predictor.encode("price").shape == (32,)
    assert predictor.encode([]).shape == (0, 32)
    assert predictor.predict("price")["topic"]["label"] == predictions[1]["topic"]["label"]
    with pytest.raises(TypeError, match=r"sentences\[1\] is 3 of type int"):
        predictor.encode(["a", 3])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="batch_size must be an int of at least 1, found 0"):
        predictor.encode(["a"], batch_size=0)
    with pytest.raises(FileNotFoundError, match=f"There is no graph of {backend} int8 here"):
        MTLPredictor(folder, backend=backend, precision="int8")
    with pytest.raises(FileNotFoundError, match=f"no {MANIFEST}"):
        MTLPredictor(tmp_path)


AFTER_THE_MAIN_THREAD = """
import atexit, sys, threading
from predictor_mtl import MTLPredictor

predictor = MTLPredictor(sys.argv[1], backend="onnx", threads=2)

def answer():
    print(predictor.encode(["match team", "price", "why"], batch_size=1).shape, flush=True)

def answer_late():
    threading.main_thread().join()
    answer()

threading.Thread(target=answer_late).start()
atexit.register(answer)
"""


@pytest.mark.slow
def test_onnx_runtime_answers_several_batches_after_what_may_come_between(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    export(model, tmp_path / "out", "onnx")
    command = [sys.executable, "-c", AFTER_THE_MAIN_THREAD, str(tmp_path / "out")]
    ran = subprocess.run(command, cwd=tmp_path / "out", check=True, capture_output=True, text=True)
    assert (ran.stdout.split("\n"), ran.stderr) == (["(3, 32)", "(3, 32)", ""], "")
    expected = model.encode(SENTENCES)
    monkeypatch.chdir(tmp_path)
    moved, replaced = (MTLPredictor("out", backend="onnx", threads=2) for _ in range(2))
    monkeypatch.chdir("/")
    np.testing.assert_allclose(moved.encode(SENTENCES, batch_size=1), expected, atol=1e-5)
    (tmp_path / "another").write_bytes(b"of other weights")
    os.replace(tmp_path / "another", tmp_path / "out" / "onnx" / "model.onnx")
    np.testing.assert_allclose(replaced.encode(SENTENCES, batch_size=1), expected, atol=1e-5)


@pytest.mark.slow
def test_openvino_compiles_anew_for_other_weights_in_files_of_the_same_times(
    make_model: MakeModel, tmp_path: Path
) -> None:
    model = make_model()
    export(model, tmp_path / "out", "openvino")
    cache, weights = tmp_path / "cache", tmp_path / "out" / "openvino" / "openvino_model.bin"

    def answered() -> np.ndarray:
        for file in weights.parent.iterdir():
            os.utime(file, (1e9, 1e9))
        return MTLPredictor(tmp_path / "out", backend="openvino", cache_dir=cache).encode(SENTENCES)

    np.testing.assert_allclose(answered(), model.encode(SENTENCES), atol=1e-5)
    table = model.get_parameter("backbone.embeddings.word_embeddings.weight")
    before, after = table.detach().numpy().tobytes(), (3 * table).detach().numpy().tobytes()
    content = weights.read_bytes()
    assert before in content
    weights.write_bytes(content.replace(before, after))
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text(encoding="utf-8"))
    (tmp_path / "out" / MANIFEST).write_text(json.dumps({**manifest, "weights": "others"}), encoding="utf-8")
    with torch.no_grad():
        table.mul_(3)
    np.testing.assert_allclose(answered(), model.encode(SENTENCES), atol=1e-5)
    shutil.rmtree(cache)
    cache.write_text("no folder")
    with pytest.raises(NotADirectoryError, match="cache"):
        answered()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_openvino_says_in_a_fork_that_it_is_none_of_its(make_model: MakeModel, tmp_path: Path) -> None:
    export(make_model(), tmp_path, "openvino")
    code = (
        "import os, sys; from predictor_mtl import MTLPredictor\n"
        "predictor = MTLPredictor(sys.argv[1], backend='openvino')\n"
        "if os.fork() == 0:\n"
        "    try: predictor.encode('price')\n"
        "    except RuntimeError as error: print(error, flush=True)\n"
        "    finally: os._exit(0)\n"
        "os.wait()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    ran = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=60)
    assert "Make the predictor in the new process" in ran.stdout


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_half_precision_are_computed_with_in_float32(
    dtype: torch.dtype, make_model: MakeModel, tmp_path: Path
) -> None:
    torch.nn.Module.to(made := make_model(), dtype)
    made.save_pretrained(tmp_path / "model")
    model = MTLModel.from_pretrained(tmp_path / "model")
    assert export(model, tmp_path / "model", "onnx").difference <= TOLERANCE
    assert model.dtype == dtype
    manifest = json.loads((tmp_path / "model" / MANIFEST).read_text(encoding="utf-8"))
    assert manifest["weights"] == key_of_model(MTLModel.from_pretrained(tmp_path / "model"))
    found = MTLPredictor(tmp_path / "model").encode(SENTENCES)
    np.testing.assert_allclose(found, model.float().encode(SENTENCES), rtol=0, atol=1e-5)
