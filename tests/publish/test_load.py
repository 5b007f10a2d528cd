"""Published models come back, in one line; what is not one of ours is refused by name, before it costs anything."""

from __future__ import annotations

import copy
import json
import os
import pickle
import re
import resource
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_push import REPO, push
from hub_server import HubServer
from PIL import Image
from safetensors.torch import load_file, save_file

from fedmr_merge import load_model
from fedmr_merge.errors import CheckpointError, HubError
from fedmr_merge.federated.data.datasets.digits import Digits
from fedmr_merge.federated.models.torchvision import Torchvision
from fedmr_merge.publish.preprocess import Preprocess

ROOT = Path(__file__).parents[2]


@pytest.fixture
def model(trained: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(trained / "global" / name, folder / name)
    return folder


def change(model: Path, **changes: Any) -> None:
    config = json.loads((model / "config.json").read_text()) | changes
    (model / "config.json").write_text(json.dumps(config))


def refusal(model: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_model(model)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    return str(caught.value)


def test_model_of_a_folder_has_its_weights_and_is_in_evaluation_mode(model: Path) -> None:
    module = load_model(model)
    weights = load_file(model / "model.safetensors")
    assert module.state_dict().keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in module.state_dict().items())
    assert not module.training
    assert module(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_loading_draws_nothing_from_the_global_generator(model: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_model(str(model))
    assert torch.equal(torch.rand(3), expected)


def test_an_image_becomes_a_label_and_the_model_stays_an_ordinary_module(model: Path) -> None:
    module = load_model(model)
    data = Digits().load()
    expected = module(data.normalise(data.test_images[:20]))
    for number in range(20):
        image = data.test_images[number]
        found = module(module.preprocess(image))
        assert torch.equal(module.preprocess(image)[0], data.normalise(image)), "as in training, bit for bit"
        assert module.label_names[found.argmax()] == data.class_names[int(expected[number].argmax())]
    assert module.config == json.loads((model / "config.json").read_text())
    assert set(module.state_dict()) == set(load_file(model / "model.safetensors"))
    again = pickle.loads(pickle.dumps(copy.deepcopy(module)))
    assert again.label_names == module.label_names
    assert "preprocess" not in dict(module.named_modules())


def test_images_of_every_kind() -> None:
    grey = Preprocess([0.5], [0.25], [8, 8])
    pixels = torch.arange(64, dtype=torch.uint8).view(8, 8)
    expected = grey(pixels)
    assert expected.shape == (1, 1, 8, 8)
    for image in (pixels[None], pixels[None, None], pixels.numpy(), pixels.numpy()[..., None], pixels / 255):
        assert torch.allclose(grey(image), expected, atol=1e-6)
    picture = Image.fromarray(pixels.numpy())
    assert torch.equal(grey(picture), expected)
    assert torch.allclose(grey(picture.convert("RGB")), expected)
    assert grey(Image.new("RGBA", (31, 17))).shape == (1, 1, 8, 8)
    assert torch.allclose(
        grey(torch.full((3, 16, 20), 128, dtype=torch.uint8)), torch.full((1, 1, 8, 8), 0.0078), atol=1e-4
    )
    colour = Preprocess([0.5] * 3, [0.25] * 3, [8, 8])
    assert torch.equal(colour(picture)[:, 1:2], expected)
    assert colour(pixels).shape == (1, 3, 8, 8)
    for wrong in (torch.full((8, 8), 2.0), torch.zeros(8, 8, dtype=torch.int64), torch.zeros(2, 8, 8), torch.zeros(8)):
        with pytest.raises(ValueError, match=r"pixels must be|channels|is not \[channels"):
            colour(wrong)
    with pytest.raises(ValueError, match="name a PIL image"):
        grey("image.png")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "resnet1000"}, "unknown architecture 'resnet1000'"),
        ({"architecture": "../../evil"}, "unknown architecture"),
        ({"architecture": "os.system"}, "unknown architecture"),
        ({"architecture": ["cnn"]}, "unknown architecture"),
        ({"architecture": "x" * 100_000}, "unknown architecture"),
        ({"architecture": "torchvision:evil"}, "torchvision has no classifier 'evil'"),
        ({"architecture": "torchvision:"}, "unknown architecture"),
        ({"arch_args": {"width": 10**9}}, "arch_args.width: unknown option"),
        ({"arch_args": []}, "arch_args must be a mapping"),
        ({"arch_args": None}, "arch_args must be a mapping"),
        ({"architecture": "resnet20", "arch_args": {"shortcut": "evil"}}, "config.json: "),
        (
            {"num_classes": 11, "label_names": None},
            "does not fit the weights: fc2.bias: [11] by the config, [10] in the",
        ),
        ({"num_classes": 10**6, "label_names": None}, "does not fit the weights"),
        ({"num_classes": 10**12}, "num_classes must be a whole number"),
        ({"num_classes": 0}, "num_classes must be a whole number"),
        ({"num_classes": True}, "num_classes must be a whole number"),
        ({"num_classes": "10"}, "num_classes must be a whole number"),
        ({"label_names": ["a"]}, "label_names must be a list of 10 names"),
        ({"preprocess": None}, "preprocess must give"),
        ({"preprocess": {"mean": "abc", "std": [1], "size": [8, 8]}}, "preprocess must give"),
        ({"preprocess": {"mean": [0.5], "std": [0], "size": [8, 8]}}, "preprocess must give"),
        ({"preprocess": {"mean": [0.5], "std": [0.5, 0.5], "size": [8, 8]}}, "preprocess must give"),
        ({"preprocess": {"mean": [float("nan")], "std": [0.5], "size": [8, 8]}}, "preprocess must give"),
        ({"preprocess": {"mean": [0.5] * 2000, "std": [0.5] * 2000, "size": [8, 8]}}, "preprocess must give"),
        ({"preprocess": {"mean": [0.5], "std": [0.5], "size": [8.0, 8]}}, "preprocess must give"),
        ({"preprocess": {"mean": [0.5], "std": [0.5], "size": [10**9, 10**9]}}, "preprocess must give"),
        ({"preprocess": {"mean": [0.5], "std": [0.5], "size": [4096, 4096]}}, "does not fit the weights: fc1.weight"),
        ({"preprocess": {"mean": [0.5], "std": [0.5], "size": [2, 2]}}, "needs images of at least"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "'auto_map' asks for code"),
        ({"custom_pipelines": {"x": {}}}, "'custom_pipelines' asks for code"),
        ({"trust_remote_code": True}, "'trust_remote_code' asks for code"),
        ({"library_name": "transformers"}, "is not the config of a fedmr-merge model"),
        ({"format_version": 2}, "format version '2' is not known"),
        ({"format_version": "x" * 10_000}, "is not known"),
    ],
)
def test_hostile_configs(model: Path, changes: dict[str, Any], message: str) -> None:
    change(model, **changes)
    assert message in refusal(model)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"{", b"[" * 100_000, b"\xff", b'{"a": 1e999999}'])
def test_configs_that_are_none(model: Path, content: bytes) -> None:
    (model / "config.json").write_bytes(content)
    assert "config.json: " in refusal(model)


def test_config_that_is_too_big_is_not_read(model: Path) -> None:
    with (model / "config.json").open("wb") as stream:
        stream.truncate(100 << 20)
    assert "is larger than" in refusal(model)


def test_config_cannot_ask_for_more_memory_than_its_weights(model: Path) -> None:
    """A gigabyte of weights by the config, none of it in the file: refused without the gigabyte."""
    change(model, preprocess={"mean": [0.5], "std": [0.5], "size": [4096, 4096]})  # fc1 would be 137 GB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "does not fit the weights" in refusal(model)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_weights_that_do_not_fit_are_told_tensor_by_tensor(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    weights["extra"] = weights.pop("conv1.bias")
    weights["fc1.weight"] = weights["fc1.weight"][:5].contiguous()
    save_file(weights, model / "model.safetensors")
    message = refusal(model)
    assert "conv1.bias: [32] by the config, absent in the weights" in message
    assert "extra: absent by the config, [32] in the weights" in message
    assert "fc1.weight" in message


def test_weights_of_other_kinds(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    save_file({name: tensor.to(torch.bfloat16) for name, tensor in weights.items()}, model / "model.safetensors")
    assert {tensor.dtype for tensor in load_model(model).state_dict().values()} == {torch.float32}
    save_file({name: tensor.to(torch.int64) for name, tensor in weights.items()}, model / "model.safetensors")
    assert "is torch.int64, the model has torch.float32 there" in refusal(model)


def test_pickles_and_damaged_weights(model: Path) -> None:
    whole = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(whole[:-1])
    assert "model.safetensors: " in refusal(model)
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    assert "pickled weights" in refusal(model)


def test_shards_are_read_together(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    weight_map = {}
    for number, names in enumerate((sorted(weights)[:3], sorted(weights)[3:]), start=1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: weights[name] for name in names}, model / file)
        weight_map |= dict.fromkeys(names, file)
    (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert all(torch.equal(tensor, weights[name]) for name, tensor in load_model(model).state_dict().items())


def test_trained_weights_to_start_from_are_not_fetched_again(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Torchvision, "_trained", lambda self: pytest.fail("weights were asked for"))
    module = Torchvision.build(_named("shufflenet_v2_x0_5"), (3, 32, 32), 10)
    save_file(module.state_dict(), model / "model.safetensors")
    size = {"mean": [0.5] * 3, "std": [0.5] * 3, "size": [32, 32]}
    change(
        model, architecture="torchvision:shufflenet_v2_x0_5", arch_args={"weights": "IMAGENET1K_V1"}, preprocess=size
    )
    assert load_model(model)(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def _named(name: str) -> Any:
    from fedmr_merge.federated.catalogue import ARCHITECTURES

    return ARCHITECTURES.find(f"torchvision:{name}")()


def test_places_that_are_no_model(model: Path, tmp_path: Path) -> None:
    for place in ("./absent", str(tmp_path / "absent"), "absent", "a//b", "~/x/y", "../a/b"):
        with pytest.raises(CheckpointError, match="no such folder"):
            load_model(place)
    with pytest.raises(CheckpointError, match="no such folder"):
        load_model(Path("org/name"))  # a path is never a Hub id
    with pytest.raises(CheckpointError, match="is a file; a model is a folder"):
        load_model(model / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be read"):
        load_model(tmp_path)


# From the Hub


@pytest.fixture
def here(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """The Hub, as the environment names it."""
    hub.become_default(monkeypatch)
    return hub


def test_model_of_the_hub_by_revision_and_subfolder(here: HubServer, trained: Path) -> None:
    push(here, trained, tag="v1")
    push(here, trained / "cohort", revision="round-000003")
    expected = {
        REPO: trained / "global",
        f"{REPO}@v1": trained / "global",
        f"{REPO}/slot-01": trained / "global" / "slot-01",
        f"{REPO}@round-000003/slot-02": trained / "cohort" / "slot-02",
    }
    for name, folder in expected.items():
        weights = load_file(folder / "model.safetensors")
        assert all(torch.equal(tensor, weights[key]) for key, tensor in load_model(name).state_dict().items()), name


def test_two_threads_load_from_two_endpoints(here: HubServer, trained: Path) -> None:
    import huggingface_hub
    from huggingface_hub.utils import _http as hf_http

    client, factory = huggingface_hub.get_session(), hf_http._GLOBAL_CLIENT_FACTORY
    with HubServer() as other, ThreadPoolExecutor(2) as pool:
        folders = {here.endpoint: trained / "cohort" / "slot-00", other.endpoint: trained / "cohort" / "slot-01"}
        for server in (here, other):
            names = ("config.json", "model.safetensors")
            server.add_repo(REPO, {name: (folders[server.endpoint] / name).read_bytes() for name in names})
        found = list(pool.map(lambda endpoint: load_model(REPO, endpoint=endpoint), folders))
        for module, folder in zip(found, folders.values(), strict=True):
            weights = load_file(folder / "model.safetensors")
            assert all(torch.equal(tensor, weights[key]) for key, tensor in module.state_dict().items())
    assert (huggingface_hub.get_session(), hf_http._GLOBAL_CLIENT_FACTORY) == (client, factory)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("alice/absent", "no such repository"),
        (f"{REPO}@absent", "absent"),
        (f"{REPO}/absent", "nothing of that name"),
        (f"{REPO}/slot-*", "names 3 models"),
    ],
)
def test_places_on_the_hub_that_are_no_model(here: HubServer, trained: Path, name: str, message: str) -> None:
    push(here, trained)
    with pytest.raises(HubError, match=re.escape(message)):
        load_model(name, token="hf_alice")


def test_hostile_config_on_the_hub(here: HubServer, trained: Path) -> None:
    config = json.loads((trained / "global" / "config.json").read_text())
    weights = (trained / "global" / "model.safetensors").read_bytes()
    hostile = {"auto_map": {"x": "y"}, "architecture": "evil", "num_classes": 10**7}
    for key, value in hostile.items():
        files = {"model.safetensors": weights, "config.json": json.dumps(config | {key: value}).encode()}
        here.add_repo(f"evil/{key}", files)
        with pytest.raises((CheckpointError, HubError), match=rf"config\.json: .*{key.split('_')[0]}"):
            load_model(f"evil/{key}")


def test_snippet_of_the_card_gives_the_accuracy_that_the_card_claims(
    hub: HubServer, trained: Path, tmp_path: Path
) -> None:
    """A stranger copies five lines off the page, in a process that knows nothing but the endpoint."""
    push(hub, trained)
    card = hub.content(REPO, "README.md").decode()
    [snippet] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    [claimed] = re.findall(r"type: accuracy\n *name: Test accuracy\n *value: (\S+)", card)
    data = Digits().load()
    Image.fromarray(data.test_images[0, 0].numpy()).save(tmp_path / "image.png")
    program = snippet + (
        "import torch\n"
        "from fedmr_merge.federated.data.datasets.digits import Digits\n"
        "data = Digits().load()\n"
        "images = torch.cat([model.preprocess(image) for image in data.test_images])\n"
        "with torch.no_grad(): right = (model(images).argmax(1) == data.test_labels).sum().item()\n"
        "print(repr(right / len(data.test_labels)))\n"
    )
    environment = os.environ | {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path / "fresh"),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    label, accuracy = done.stdout.split()
    assert label in data.class_names
    assert float(accuracy) == float(claimed)
