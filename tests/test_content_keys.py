"""Keys of contents: the same however something was loaded, others for other contents."""

from pathlib import Path

from conftest import SaveBackbone
from transformers import AutoTokenizer

from mtl.content_keys import key_of_tokenizer


def test_key_of_a_tokenizer_is_of_what_it_does(backbone_dir: SaveBackbone, tmp_path: Path) -> None:
    folder = backbone_dir("bert")
    first, second = (AutoTokenizer.from_pretrained(folder, local_files_only=offline) for offline in (True, False))
    key = key_of_tokenizer(first)
    assert key_of_tokenizer(second) == key
    copy = tmp_path / "copy"
    first(["a sentence that is cut"], truncation=True, max_length=3, padding="max_length")
    first.save_pretrained(copy)
    assert key_of_tokenizer(AutoTokenizer.from_pretrained(copy)) == key
    second.truncation_side = "left"
    assert key_of_tokenizer(second) != key
    second.truncation_side = "right"
    second.add_tokens(["unheard-of"])
    assert key_of_tokenizer(second) != key
