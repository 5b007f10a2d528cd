"""LoRA in a federation: the cohort holds adapters alone, both engines train them, PEFT loads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_federation import make_partition
from small_tasks import make_tokens

# transformers imports torchvision where it is installed: this import of it works beside any torch.
from fedmr_merge.federated.models._torchvision import torchvision  # noqa: F401

transformers = pytest.importorskip("transformers", reason="needs the extra transformers")
peft = pytest.importorskip("peft", reason="needs the extra adapters")

from fedmr_merge.errors import TrainingError  # noqa: E402
from fedmr_merge.federated.catalogue import ALGORITHMS, ARCHITECTURES, TASKS  # noqa: E402
from fedmr_merge.federated.cohort import Cohort  # noqa: E402
from fedmr_merge.federated.federation import Federation, open_federation  # noqa: E402
from fedmr_merge.federated.models._adapted import Lora  # noqa: E402
from fedmr_merge.federated.models._layout import write_model  # noqa: E402
from fedmr_merge.federated.protocol import State, Trained, initial_state  # noqa: E402
from fedmr_merge.federated.rounds import RoundResult, begin_stage, run_rounds  # noqa: E402
from fedmr_merge.federated.training.gpu_memory import client_bytes  # noqa: E402
from fedmr_merge.federated.training.options import Training  # noqa: E402
from fedmr_merge.federated.training.privacy import Privacy  # noqa: E402
from fedmr_merge.publish.load import load_model  # noqa: E402

TINY = {"vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
FROZEN = "bert.embeddings.word_embeddings.weight"


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "bert"
    torch.manual_seed(1)
    transformers.BertModel(transformers.BertConfig(**TINY, max_position_embeddings=16)).save_pretrained(folder)
    return folder


def federation_of(folder: Path, task: str = "text-classification", **training: Any) -> Federation:
    adapter = training.pop("adapter", Lora(r=2, alpha=4.0))
    model = ARCHITECTURES.find(f"transformers:{folder}")(adapter=adapter)
    options = {"clients_per_round": 3, "local_epochs": 1, "batch_size": 4, "lr": 0.2} | training
    data = make_tokens(classes=task == "text-classification")
    return open_federation(model, data, make_partition(), Training(**options), seed=3, task=TASKS.find(task)())


def run(federation: Federation, method: str, rounds: int = 1) -> RoundResult:
    algorithm = ALGORITHMS.find(method)()
    state = begin_stage(federation, algorithm, initial_state(federation))
    return list(run_rounds(federation, algorithm, state, first_round=1, rounds=rounds))[-1]


def test_the_cohort_holds_adapters_and_the_head_alone_and_copies_share_the_rest(bert):
    federation = federation_of(bert)
    result = run(federation, "fedmr")
    shapes = {name.removeprefix("base_model.model."): shape for name, shape in result.state.cohort.shapes.items()}
    factors = {f"bert.encoder.layer.{i}.attention.self.{part}" for i in (0, 1) for part in ("query", "value")}
    assert shapes == {
        **{f"{name}.lora_A.weight": (2, 8) for name in factors},
        **{f"{name}.lora_B.weight": (8, 2) for name in factors},
        "classifier.weight": (2, 8),
        "classifier.bias": (2,),
    }
    count = 4 * 2 * (2 * 8) + 2 * 8 + 2
    assert result.metrics["bytes_up"] == result.metrics["bytes_down"] == 3 * 4 * count
    networks = [
        forward._module.network.get_base_model()
        for forward in (federation.training_forward, federation.new_training_forward(), federation.evaluation_forward)
    ]
    assert len({network.get_parameter(FROZEN).data_ptr() for network in networks}) == 1
    assert client_bytes(federation) > 4 * 4 * count
    theirs = transformers.BertModel.from_pretrained(bert)
    assert torch.equal(networks[0].get_parameter(FROZEN), theirs.embeddings.word_embeddings.weight)


@pytest.mark.parametrize("task", ["text-classification", "causal-lm"])
def test_engines_agree(bert, task, tmp_path):
    if task == "causal-lm":
        bert = tmp_path / "llama"
        transformers.LlamaForCausalLM(transformers.LlamaConfig(**TINY)).save_pretrained(bert)
    one, other = (run(federation_of(bert, task, engine=engine), "fedmr", rounds=2) for engine in ("loop", "vmap"))
    assert one.metrics == pytest.approx(other.metrics, rel=1e-4)
    for name, tensor in one.state.cohort.tensors.items():
        torch.testing.assert_close(tensor, other.state.cohort.tensors[name], rtol=1e-4, atol=1e-6)


def test_both_factors_of_a_layer_move_together(bert):
    federation = federation_of(bert)
    assert len(set(federation.layers.values())) == 5
    for name, layer in federation.layers.items():
        assert name.startswith(f"{layer}.")


@pytest.mark.parametrize(("method", "rank"), [("fedavg", 2), ("fedmr", 6)])
def test_peft_loads_what_is_written_and_computes_the_same(bert, tmp_path, method, rank):
    federation = federation_of(bert)
    weights = run(federation, method).state.global_weights
    (tmp_path / "out").mkdir()
    write_model(tmp_path / "out", federation.architecture, federation.module, weights, federation.config)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "config.json",
    ]
    inputs = federation.data.inputs("test", slice(0, 6))
    ours = federation.evaluation_forward(weights, inputs)
    base = transformers.AutoModelForSequenceClassification.from_pretrained(bert, num_labels=2)
    for theirs in (
        peft.PeftModel.from_pretrained(base, tmp_path / "out").eval(),
        peft.AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "out", num_labels=2).eval(),
    ):
        with torch.no_grad():
            torch.testing.assert_close(theirs(**inputs).logits, ours, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(load_model(tmp_path / "out")(**inputs), ours)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["arch_args"]["adapter"]["r"] == rank
    assert config["arch_args"]["adapter"]["target_modules"] == ["query", "value"]


def products(weights: Any) -> dict[str, torch.Tensor]:
    """Return B A of every adapted layer, [..., out, in]."""
    firsts = [name for name in weights if name.endswith("lora_A.weight")]
    return {name: weights[name.replace("lora_A", "lora_B")] @ weights[name] for name in firsts}


def trained(federation: Federation) -> Trained:
    """Return a cohort of unlike adapters, as if it had been trained by clients of 1, 2 and 3 examples."""
    start = initial_state(federation).cohort.expand(3)
    rng = torch.Generator().manual_seed(0)
    tensors = {name: tensor + torch.randn(tensor.shape, generator=rng) for name, tensor in start.tensors.items()}
    return Trained(Cohort(tensors), (0, 1, 2), (1, 2, 3), (1,) * 3, (0.5,) * 3, 0.1)


def aggregated(federation: Federation, method: str) -> State:
    algorithm = ALGORITHMS.find(method)()
    state = begin_stage(federation, algorithm, initial_state(federation))
    return algorithm.aggregate(federation, state, trained(federation), 1)


def test_the_global_model_is_the_exact_mean_and_recombination_leaves_it_as_it_is(bert):
    federation = federation_of(bert)
    state, cohort = aggregated(federation, "fedmr"), trained(federation).cohort
    expected = {name: product.mean(dim=0) for name, product in products(cohort.tensors).items()}
    for found in (products(state.global_weights), products(federation.mean(state.cohort).weights)):
        torch.testing.assert_close(found, expected)
    assert {len(tensor) for name, tensor in state.global_weights.items() if "lora_A" in name} == {6}
    head = "base_model.model.classifier.weight"
    torch.testing.assert_close(state.global_weights[head], cohort.tensors[head].mean(dim=0))
    smaller = aggregated(federation_of(bert, adapter=Lora(r=2, rank=4)), "fedmr")
    assert {len(tensor) for name, tensor in smaller.global_weights.items() if "lora_A" in name} == {4}
    assert 0 < smaller.metrics["adapter_lost"] < 1
    # A stage that sends its global model to clients begins with one of their rank.
    begun = begin_stage(federation, ALGORITHMS.find("fedavg")(), state)
    assert begun.cohort.shapes == initial_state(federation).cohort.shapes


def test_what_a_stage_loses_at_its_start_is_recorded_with_its_first_round(bert):
    federation = federation_of(bert)
    state = aggregated(federation, "fedmr")
    fedavg, fedmr = (ALGORITHMS.find(name)() for name in ("fedavg", "fedmr"))
    begun = begin_stage(federation, fedavg, state)
    lost = norm = 0.0
    for name, product in products(state.global_weights).items():
        away = (product - products(begun.global_weights)[name]).square().sum()
        lost, norm = lost + float(away), norm + float(product.square().sum())
    first, second = run_rounds(federation, fedavg, begun, first_round=1, rounds=2)
    assert first.metrics["adapter_lost_at_start"] == pytest.approx((lost / norm) ** 0.5, rel=1e-4)
    assert first.metrics["adapter_lost_at_start"] > 0.1
    assert "adapter_lost_at_start" not in second.metrics
    # Nothing is lost where clients get the models of clients, or a global model that has their rank already.
    for before, method in ((state, fedmr), (second.state, fedmr), (second.state, fedavg)):
        [result] = run_rounds(federation, method, begin_stage(federation, method, before), first_round=3, rounds=1)
        assert "adapter_lost_at_start" not in result.metrics


def test_a_diverged_client_has_no_model_of_its_rank_to_stand_for_it(bert):
    """The others' exact mean has the sum of their ranks, and a smaller one would move the mean of all."""
    options = {"on_divergence": "drop", "divergence_loss": 100.0}
    federation = federation_of(bert, **options)
    for method in ("fedmr", "independent", "fedcross"):
        with pytest.raises(
            TrainingError, match=rf"^training\.on_divergence drop with {method} needs the mean of weights"
        ):
            begin_stage(federation, ALGORITHMS.find(method)(), initial_state(federation))
    run(federation, "fedavg")
    run(federation_of(bert, adapter=Lora(r=2, mean="factors"), **options), "fedmr")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["loop", "vmap"])
def test_compile_takes_the_step_of_an_adapter_as_a_whole(bert, engine, monkeypatch):
    """With torch's backend that compiles nothing: that the step has no break, and stays the same, is looked at."""
    real, asked = torch.compile, list[dict[str, Any]]()

    def compiled(function: Any, **options: Any) -> Any:
        asked.append(options)
        return real(function, backend="eager", **options)

    plain = run(federation_of(bert, engine=engine), "fedavg").state.global_weights
    monkeypatch.setattr(torch, "compile", compiled)
    found = run(federation_of(bert, engine=engine, compile=True), "fedavg").state.global_weights
    assert asked == [{"fullgraph": True}]
    for name, tensor in plain.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-7)


def test_what_is_sent_is_the_nearest_of_the_clients_rank(bert):
    federation = federation_of(bert)
    state, cohort = aggregated(federation, "fedavg"), trained(federation).cohort
    lost = norm = 0.0
    for name, product in products(cohort.tensors).items():
        exact = (product * torch.tensor([1, 2, 3]).view(3, 1, 1) / 6).sum(dim=0)
        u, values, v = torch.linalg.svd(exact)
        nearest = u[:, :2] * values[:2] @ v[:2]
        torch.testing.assert_close(products(state.global_weights)[name], nearest, rtol=1e-4, atol=1e-4)
        lost, norm = lost + float(values[2:].square().sum()), norm + float(values.square().sum())
    assert state.metrics["adapter_lost"] == pytest.approx((lost / norm) ** 0.5, rel=1e-4)


def test_the_means_of_the_factors_on_request(bert):
    federation = federation_of(bert, adapter=Lora(r=2, mean="factors"))
    state = aggregated(federation, "fedavg")
    torch.testing.assert_close(dict(state.global_weights), trained(federation).cohort.mean([1, 2, 3]))
    assert not state.metrics
    begin_stage(federation, ALGORITHMS.find("scaffold")(), initial_state(federation))


@pytest.mark.parametrize("method", ["scaffold", "fedmut", "clusamp"])
def test_methods_that_compute_with_weights_ask_for_the_means_of_the_factors(bert, method):
    with pytest.raises(TrainingError, match=f"^{method} needs the mean of weights") as caught:
        begin_stage(federation_of(bert), ALGORITHMS.find(method)(), initial_state(federation_of(bert)))
    assert caught.value.hint == "set model.adapter.mean to factors"


def test_central_privacy_asks_for_the_means_of_the_factors(bert):
    federation = federation_of(bert, privacy=Privacy(clip=1.0, noise_multiplier=1.0, kind="central"))
    with pytest.raises(TrainingError, match=r"^training\.privacy of kind central needs the mean of weights"):
        begin_stage(federation, ALGORITHMS.find("fedavg")(), initial_state(federation))


def test_layers_without_trained_weights_are_trained_whole(tmp_path):
    config = transformers.BertConfig(**TINY, max_position_embeddings=16)
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    found = federation_of(tmp_path).module.state_dict()
    assert "base_model.model.bert.pooler.dense.weight" in found
    with pytest.raises(TrainingError, match=r"has no trained weights for its layer bert\.pooler\.dense"):
        federation_of(tmp_path, adapter=Lora(modules_to_save=("classifier",)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_modules": ("query", "nothing")}, r"has no layer named nothing, which model\.adapter\.target_modules"),
        ({"modules_to_save": ("classifier", "nothing")}, "has no layer named nothing"),
    ],
)
def test_layers_that_are_not_there_are_refused(bert, options, message):
    with pytest.raises(TrainingError, match=message) as caught:
        federation_of(bert, adapter=Lora(**options))
    assert "\n" not in str(caught.value)


def test_random_weights_have_no_adapter(bert):
    model = ARCHITECTURES.find(f"transformers:{bert}")(adapter=Lora(), pretrained=False).for_task("text-classification")
    with pytest.raises(TrainingError, match="cannot have an adapter: its weights are random"):
        model.initialise((6, 11), 2, 0)
