"""Texts with a tokenizer of transformers: what it makes of them, and that it is kept with the model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

from fedmr_merge import load_model, run_recipe  # noqa: E402
from fedmr_merge.errors import AbsentDataError, CheckpointError  # noqa: E402
from fedmr_merge.federated.data.tokenizers import open_tokenizer  # noqa: E402

WORDS = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "sun", "sea", "snow", "ice")
_, CLS, SEP, PAD, SUN, SEA, *_ = range(len(WORDS))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tokenizer of eight words, as transformers saves it."""
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, **names).save_pretrained(tmp_path / "words")
    return tmp_path / "words"


def test_its_numbers_and_marks_are_those_of_transformers(folder: Path) -> None:
    found = open_tokenizer(str(folder))
    assert (found.vocabulary, found.end, found.padding) == (8, SEP, PAD)
    assert [tokens.tolist() for tokens in found.encode(["sun sea", ""])] == [[SUN, SEA], []]
    whole, cut = found.encode_whole(["sun sea", ""], 4)
    assert ([tokens.tolist() for tokens in whole], cut) == ([[CLS, SUN, SEA, SEP], [CLS, SEP]], 0)


def test_a_text_that_is_too_long_keeps_the_mark_of_its_end(folder: Path, tmp_path: Path) -> None:
    found = open_tokenizer(str(folder))
    found.save(tmp_path / "before")
    whole, cut = found.encode_whole(["sun sea sun", "", "sea", "sea sea sea sea"], 3)
    assert [tokens.tolist() for tokens in whole] == [[CLS, SUN, SEP], [CLS, SEP], [CLS, SEA, SEP], [CLS, SEA, SEP]]
    assert cut == 2
    found.save(tmp_path / "after")
    for file in (tmp_path / "before").iterdir():
        assert file.read_bytes() == (tmp_path / "after" / file.name).read_bytes()


def test_one_that_is_not_there_is_reported_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(AbsentDataError, match="cannot be loaded") as caught:
        open_tokenizer(str(tmp_path / "nothing"))
    assert "\n" not in str(caught.value)


def test_it_is_kept_with_the_model_and_used_where_that_is_loaded(folder: Path, tmp_path: Path) -> None:
    texts = [{"text": text, "label": text.startswith("s")} for text in ("sun sea", "ice", "snow ice", "ice sea") * 5]
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    data = {"name": "text", "path": str(tmp_path), "label_column": "label", "tokenizer": str(folder), "length": 6}
    recipe = {
        "name": "words",
        "data": data | {"partition": {"kind": "iid", "clients": 3}},
        "model": {"name": "text-classifier", "width": 8, "depth": 1, "heads": 2},
        "training": {"clients_per_round": 2, "local_epochs": 1, "batch_size": 4},
        "stages": [{"fedmr": {"rounds": 1}}, {"publish": {}}],
    }
    published = run_recipe(recipe, tmp_path / "run").model
    assert published is not None
    assert (published / "tokenizer.json").is_file()
    for name in ("config.json", "recipe.yaml", "README.md"):
        assert str(tmp_path) not in (published / name).read_text()
    model = load_model(published)
    found = model.preprocess(["sun sea", "ice"])
    assert found["input_ids"].tolist() == [[CLS, SUN, SEA, SEP], [CLS, 7, SEP, PAD]]
    assert model(**found).shape == (2, 2)
    assert model.preprocess("sun " * 9)["input_ids"].tolist() == [[CLS, SUN, SUN, SUN, SUN, SEP]]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (published / name).unlink()
    with pytest.raises(CheckpointError, match="the files of its tokenizer are not there"):
        load_model(published).preprocess("sun")
