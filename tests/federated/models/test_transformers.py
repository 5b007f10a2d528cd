"""Models of transformers, tiny and random: they are trained like others, and transformers loads what comes out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_federation import make_data, make_partition
from small_tasks import LENGTH, make_tokens

# transformers imports torchvision where it is installed: this import of it works beside any torch.
from fedmr_merge.federated.models._torchvision import torchvision  # noqa: F401

transformers = pytest.importorskip("transformers", reason="needs the extra transformers")

from fedmr_merge.checkpoint.tensors import save_tensors  # noqa: E402
from fedmr_merge.errors import CheckpointError, FedmrMergeError, TrainingError  # noqa: E402
from fedmr_merge.federated.catalogue import ALGORITHMS, ARCHITECTURES, TASKS  # noqa: E402
from fedmr_merge.federated.cohort import weights_of  # noqa: E402
from fedmr_merge.federated.federation import Federation, open_federation  # noqa: E402
from fedmr_merge.federated.models.base import model_config  # noqa: E402
from fedmr_merge.federated.models.transformers import _without_folders  # noqa: E402
from fedmr_merge.federated.protocol import initial_state  # noqa: E402
from fedmr_merge.federated.rounds import RoundResult, begin_stage, run_rounds  # noqa: E402
from fedmr_merge.federated.training.options import Training  # noqa: E402

TINY = {
    "vocab_size": 13,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained encoder without a head, with dropout, as a folder of transformers."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(1)
    transformers.BertModel(transformers.BertConfig(**TINY)).save_pretrained(folder)
    return folder


def architecture(folder: Path | str, **options: Any) -> Any:
    return ARCHITECTURES.find(f"transformers:{folder}")(**options)


def federation_of(model: Any, task: str = "text-classification", data: Any = None, **training: Any) -> Federation:
    data = data or make_tokens(classes=task == "text-classification")
    options = {"clients_per_round": 3, "local_epochs": 1, "batch_size": 4, "lr": 0.05} | training
    return open_federation(model, data, make_partition(), Training(**options), seed=3, task=TASKS.find(task)())


def run(federation: Federation, method: str, rounds: int) -> RoundResult:
    algorithm = ALGORITHMS.find(method)()
    state = begin_stage(federation, algorithm, initial_state(federation))
    return list(run_rounds(federation, algorithm, state, first_round=1, rounds=rounds))[-1]


def test_starts_from_the_weights_of_the_folder_and_a_seeded_head(bert):
    federation = federation_of(architecture(bert))
    module, theirs = federation.module, transformers.BertModel.from_pretrained(bert)
    assert federation.architecture.head == "text-classification"
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(module.state_dict()[f"bert.{name}"], tensor)
    assert module.state_dict()["classifier.weight"].shape == (2, 8)
    again = federation_of(architecture(bert)).module.state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in module.state_dict().items())
    drawn = federation_of(architecture(bert, pretrained=False)).module.state_dict()
    assert not torch.equal(drawn["bert.embeddings.word_embeddings.weight"], theirs.embeddings.word_embeddings.weight)


@pytest.mark.parametrize("task", ["text-classification", "causal-lm"])
def test_engines_agree_on_padded_sequences(task, tmp_path):
    kinds = {"text-classification": transformers.BertConfig, "causal-lm": transformers.LlamaConfig}
    kinds[task](**TINY).save_pretrained(tmp_path)
    model = architecture(tmp_path, pretrained=False)
    one, other = (run(federation_of(model, task, engine=engine), "fedmr", rounds=2) for engine in ("loop", "vmap"))
    assert one.metrics == pytest.approx(other.metrics, rel=1e-4)
    for name, tensor in one.state.global_weights.items():
        torch.testing.assert_close(tensor, other.state.global_weights[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("end", [9, [9, 8]])
def test_a_decoder_without_a_token_for_padding_classifies_at_the_last_token_of_a_text(end, tmp_path):
    small = {"vocab_size": 13, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16}
    transformers.GPT2Config(**small, eos_token_id=end).save_pretrained(tmp_path)
    one, other = (federation_of(architecture(tmp_path, pretrained=False), engine=engine) for engine in ("loop", "vmap"))
    weights = run(one, "fedavg", rounds=1).state.global_weights
    torch.testing.assert_close(dict(weights), run(other, "fedavg", rounds=1).state.global_weights, rtol=1e-4, atol=1e-6)
    inputs = one.data.inputs("test", slice(0, 6))  # padded with 10
    together = one.evaluation_forward(weights, inputs)
    for row, length in enumerate(inputs["attention_mask"].sum(1)):
        alone = {"input_ids": inputs["input_ids"][row : row + 1, :length]}
        torch.testing.assert_close(one.evaluation_forward(weights, alone)[0], together[row], rtol=1e-5, atol=1e-6)
    assert model_config(one.architecture, one.module, one.config)["pad_token_id"] == 9


def test_transformers_loads_what_was_trained(bert, tmp_path):
    federation = federation_of(architecture(bert))
    weights = run(federation, "fedavg", rounds=1).state.global_weights
    save_tensors(tmp_path / "model.safetensors", weights, {"format": "pt"})
    config = model_config(federation.architecture, federation.module, federation.config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert theirs.config.id2label == {0: "even", 1: "odd"}
    assert theirs.config.hidden_dropout_prob == 0.1  # off in training here, and as it was for others
    inputs = federation.data.inputs("test", slice(0, 6))
    with torch.no_grad():
        ours = federation.evaluation_forward(weights, inputs)
        torch.testing.assert_close(theirs(**inputs).logits, ours, rtol=1e-5, atol=1e-6)
    rebuilt = federation.architecture.rebuild(config, (LENGTH, 11), 2)
    assert rebuilt.state_dict().keys() == federation.module.state_dict().keys()


@pytest.mark.parametrize("place", ["absolute", "relative"])
def test_the_folder_of_the_model_is_not_described(place, tmp_path, monkeypatch):
    """It is a place of this machine, or of its cache of the Hub: a push of `config.json` with it is refused."""
    transformers.LlamaConfig(**TINY).save_pretrained(tmp_path / "ours")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "ours" if place == "absolute" else Path("ours")
    federation = federation_of(architecture(folder, pretrained=False), "causal-lm")
    config = model_config(federation.architecture, federation.module, federation.config)
    assert config["model_type"] == "llama"
    # Its name within the run stays, from which `published` takes the folder.
    described = {key: value for key, value in config.items() if key != "architecture"}
    assert "ours" not in json.dumps(described)


def test_parts_of_a_model_do_not_name_their_folder():
    vision = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPConfig(vision_config=vision, name_or_path="/srv/clip")
    config.vision_config.name_or_path = "/srv/clip/vision"
    assert "/srv/clip" in json.dumps(config.to_dict())
    assert "/srv/clip" not in json.dumps(_without_folders(config.to_dict()))


def test_a_vocabulary_that_is_larger_than_that_of_the_data(tmp_path):
    transformers.GPT2Config(vocab_size=13, n_embd=8, n_layer=1, n_head=2, n_positions=16).save_pretrained(tmp_path)
    federation = federation_of(architecture(tmp_path, pretrained=False), "causal-lm")
    weights = weights_of(federation.module)  # the last layer is tied to the embedding
    outputs = federation.evaluation_forward(weights, federation.data.inputs("test", slice(0, 2)))
    assert outputs.shape == (2, LENGTH, 11)  # 13 in the model


def test_images_are_classified(tmp_path):
    small = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
    data = make_data()
    channels, height, _ = data.example_shape
    config = transformers.ViTConfig(**small, image_size=height, patch_size=height // 2, num_channels=channels)
    config.save_pretrained(tmp_path)
    federation = federation_of(architecture(tmp_path, pretrained=False), "image-classification", data, engine="vmap")
    assert run(federation, "fedavg", rounds=1).metrics["test_loss"] > 0


@pytest.mark.parametrize(
    ("change", "options", "task", "message"),
    [
        ({"vocab_size": 10}, {}, "text-classification", "knows 10 tokens, and the tokenizer of the data has 11"),
        ({"max_position_embeddings": 5}, {}, "text-classification", "takes 5 tokens at most, and these sequences"),
        ({"model_type": "resnet"}, {}, "causal-lm", "is a resnet, for which transformers has no head for causal-lm"),
        ({"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}, {}, "causal-lm", "cannot be read"),
        ({}, {}, "regression", "has no head for task regression"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(change, options, task, message, tmp_path):
    config = transformers.BertConfig(**TINY).to_dict() | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text("raise SystemExit('code of a folder was run')")
    data = make_tokens(classes=task != "causal-lm")
    model = architecture(tmp_path, pretrained=False, **options)
    with pytest.raises(TrainingError, match=message) as caught:
        model.for_task(task).initialise(data.example_shape, 2, 0)
    assert "\n" not in str(caught.value)


def test_only_safetensors_are_read(tmp_path):
    transformers.BertConfig(**TINY).save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match="pickle"):
        federation_of(architecture(tmp_path))
    with pytest.raises(FedmrMergeError, match="no such file or folder"):
        federation_of(architecture(tmp_path / "absent"))
