"""What a `publish` stage leaves behind: complete, valid, checkable by whoever has the folder."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from small_run import RECIPE, command, follow

from fedmr_merge.checkpoint.tensors import load_tensors
from fedmr_merge.errors import HubError
from fedmr_merge.federated.data.datasets.digits import Digits
from fedmr_merge.publish.checks import card_faults
from fedmr_merge.publish.hub import PushOptions, plan_push
from fedmr_merge.publish.load import load_model
from fedmr_merge.publish.push_plan import outgoing
from fedmr_merge.publish.staging import pushed_folder
from fedmr_merge.publish.write_card import write_card
from fedmr_merge.recipe.schema import read_recipe

FACTS = {"recipe.yaml", "environment.json", "task.json", "metrics.jsonl", "curves.png", "README.md"}
OF_CLIENTS = {"partition.json", "partition.png", "lineage.jsonl"}
MODEL = {"model.safetensors", "config.json"}
SLOTS = ["slot-00", "slot-01", "slot-02"]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def bash(card: str, heading: str) -> list[list[str]]:
    """The commands of a section's shell block."""
    section = card.split(f"## {heading}\n")[1].split("\n## ")[0]
    return [shlex.split(line) for line in re.findall(r"```sh\n(.*?)```", section, re.DOTALL)[0].splitlines()]


def test_files_of_both_kinds(trained: Path) -> None:
    assert names(trained / "global") == {*FACTS, *OF_CLIENTS, *MODEL, "evaluation.json", "slots.json", *SLOTS}
    assert names(trained / "cohort") == {*FACTS, *OF_CLIENTS, "slots.json", *SLOTS}
    assert all(names(trained / place / slot) == MODEL for place in ("global", "cohort") for slot in SLOTS)
    assert not [path for path in trained.iterdir() if path.name.startswith((".global", ".cohort"))]


def test_models_are_those_of_the_checkpoint(trained: Path) -> None:
    checkpoint = trained / "checkpoints" / "2-fedmr-0003"
    for slot in SLOTS:
        expected = load_tensors(checkpoint / slot / "model.safetensors")
        for place in ("global", "cohort"):
            found = load_tensors(trained / place / slot / "model.safetensors")
            assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("place", ["global", "cohort"])
def test_card_is_valid_and_its_metadata_is_read_by_the_hubs_own_class(trained: Path, place: str) -> None:
    text = (trained / place / "README.md").read_text()
    assert card_faults(text, names(trained / place)) == []
    data = ModelCard(text).data
    assert (data.library_name, data.pipeline_tag) == ("fedmr-merge", "image-classification")
    results = data.eval_results or []
    assert [result.metric_type for result in results] == (["accuracy", "loss"] if place == "global" else [])
    if results:
        evaluation = json.loads((trained / place / "evaluation.json").read_text())
        assert [result.metric_value for result in results] == [evaluation["accuracy"], evaluation["loss"]]


def test_accuracy_claimed_is_that_of_the_published_weights(trained: Path) -> None:
    data = Digits().load()
    with torch.no_grad():
        logits = load_model(trained / "global")(data.normalise(data.test_images))
    accuracy = (logits.argmax(1) == data.test_labels).sum().item() / len(data.test_labels)
    assert ModelCard((trained / "global" / "README.md").read_text()).data.eval_results[0].metric_value == accuracy


def test_two_methods_are_compared_and_one_is_not(run: Path) -> None:
    table = "| stage | method | rounds |"
    card = (run / "global" / "README.md").read_text()
    assert table in card
    assert "| 2 | fedmr | 2–3 | 4.53 MB | 4.53 MB |" in card, "2 rounds, 3 models of 188,810 float32 each way"
    metrics = run / "global" / "metrics.jsonl"
    metrics.write_text(metrics.read_text().splitlines()[0] + "\n")
    assert table not in write_card(run / "global").read_text()


def test_bytes_are_those_that_were_recorded(run: Path) -> None:
    """A method such as FedGen sends more than models; version 0.1.0 recorded nothing."""
    metrics = run / "global" / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    for line in lines:
        line |= {"bytes_down": 3_000_000, "bytes_up": 2_000_000}
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    card = write_card(run / "global").read_text()
    assert "| 2 | fedmr | 2–3 | 6.00 MB | 4.00 MB |" in card
    assert "sent 9.00 MB to its clients, and they sent 6.00 MB back" in card
    del lines[1]["bytes_down"]
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    card = write_card(run / "global").read_text()
    assert "| 2 | fedmr | 2–3 | not recorded | 4.00 MB |" in card
    assert "to its clients, and they sent" not in card


def test_client_information_can_be_left_out(tmp_path: Path) -> None:
    stages = [{"fedmr": {"rounds": 1}}, {"publish": {"client_information": False}}]
    follow(tmp_path / "run", stages=stages)
    folder = tmp_path / "run" / "global"
    assert names(folder) == {*FACTS, *MODEL, "evaluation.json"}
    card = (folder / "README.md").read_text()
    for telling in ("partition.png", "lineage.jsonl", "Which clients trained it", "Where the layers come from"):
        assert telling not in card
    assert card_faults(card, names(folder)) == []


def test_reproduction_command_is_one_that_works(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = trained / "global"
    card = (folder / "README.md").read_text()
    [reproduce] = bash(card, "Reproduce it")
    assert "pip install" not in card, "no registry has the package"
    monkeypatch.chdir(folder)
    assert command(*reproduce[1:], "--dry-run", "--quiet") == 0
    mine = yaml.safe_load((trained / "recipe.yaml").read_text())
    assert read_recipe("recipe.yaml").to_json() == mine


def test_card_of_a_cohort_has_the_accuracy_of_every_slot(trained: Path) -> None:
    found = json.loads((trained / "cohort" / "slots.json").read_text())
    data = Digits().load()
    for place in ("global", "cohort"):
        card = (trained / place / "README.md").read_text()
        for slot, result in zip(SLOTS, found["slots"], strict=True):
            with torch.no_grad():
                predicted = load_model(trained / "cohort" / slot)(data.normalise(data.test_images)).argmax(1)
            accuracy = (predicted == data.test_labels).double().mean().item()
            assert accuracy == pytest.approx(result["accuracy"])
            assert f"| `{slot}` | {100 * accuracy:.2f} % |" in card


def test_card_says_what_the_model_and_its_data_are(trained: Path) -> None:
    card = (trained / "global" / "README.md").read_text()
    weights = load_tensors(trained / "global" / "model.safetensors")
    assert f"{sum(tensor.numel() for tensor in weights.values()):,} parameters" in card
    assert "The test part of the UCI optical recognition of handwritten digits" in card
    assert "https://arxiv.org/abs/2208.07677" in card
    assert "## Intended use" in card


def test_reproduced_run_gives_the_same_bytes(trained: Path, tmp_path: Path) -> None:
    shutil.copyfile(trained / "global" / "recipe.yaml", tmp_path / "recipe.yaml")
    assert command("run", tmp_path / "recipe.yaml", "--out", tmp_path / "again", "--quiet") == 0
    for name in ("global/model.safetensors", "global/slot-01/model.safetensors", "global/curves.png"):
        digests = {hashlib.sha256((place / name).read_bytes()).hexdigest() for place in (trained, tmp_path / "again")}
        assert len(digests) == 1, name


def test_edited_card_is_kept_when_the_run_publishes_again(run: Path) -> None:
    card = run / "global" / "README.md"
    text = card.read_text()
    card.write_text(
        text.replace("---\n<!--", "language: en\n---\nMy own words.\n<!--", 1).replace("# small", "# large")
    )
    follow(run)
    again = card.read_text()
    assert again == text.replace("---\n<!--", "language: en\n---\nMy own words.\n<!--", 1)


def test_preset_can_be_added_to_a_run_and_stands_in_its_card(run: Path) -> None:
    assert "| preset |" not in (run / "global" / "README.md").read_text()
    follow(run, preset="ours: rule layer | <b>momentum</b> 0.9")
    card = (run / "global" / "README.md").read_text()
    assert "| preset | ours: rule layer \\| &lt;b&gt;momentum&lt;/b&gt; 0.9 |" in card
    assert card_faults(card, names(run / "global")) == []


def test_run_killed_between_the_renames_loses_no_words_of_its_card(run: Path) -> None:
    (run / "global" / "README.md").write_text("by hand\n")
    (run / "global").rename(run / ".global-old")
    (run / ".global-new").mkdir()
    follow(run)
    assert (run / "global" / "README.md").read_text() == "by hand\n"
    assert not [path for path in run.iterdir() if path.name.startswith(".global")]


def test_card_is_written_from_the_folder_alone(trained: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(trained / "global", tmp_path / "elsewhere"))
    before = (copy / "README.md").read_bytes()
    for name in ("README.md", "curves.png", "partition.png"):
        (copy / name).unlink()
    write_card(copy)
    assert {path.name: path.read_bytes() for path in copy.glob("*.png")} == {
        path.name: path.read_bytes() for path in (trained / "global").glob("*.png")
    }
    assert (copy / "README.md").read_bytes() == before


def test_template_may_extend_ours(run: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.md.j2"
    mine.write_text('{% extends "global.md.j2" %}{% block limits %}None that {{ name }} knows.{% endblock %}')
    text = write_card(run / "global", str(mine)).read_text()
    assert "## Limits\n\nNone that small knows.\n\n## Privacy" in text
    assert card_faults(text, names(run / "global")) == []


def test_card_says_where_the_clients_were(run: Path) -> None:
    folder = run / "global"
    assert "Federated training was simulated" in write_card(folder).read_text()
    environment = json.loads((folder / "environment.json").read_text())
    environment["packages"]["flwr"] = "1.42.0"
    (folder / "environment.json").write_text(json.dumps(environment))
    text = write_card(folder).read_text()
    assert "The clients were nodes of Flower, among which one data set was divided" in text
    assert "| flwr | 1.42.0 |" in text
    assert "simulated" not in text
    environment["nodes"] = {"rounds": 2, "rounds_with_missing": 0}  # it was begun in one process
    (folder / "environment.json").write_text(json.dumps(environment))
    assert "In 2 of the 3 rounds the clients were nodes of Flower" in write_card(folder).read_text()


def test_push_names_the_place_in_the_card_that_is_sent_only(trained: Path) -> None:
    plan = plan_push(trained, "alice/digits", PushOptions(revision="round-000003"))
    assert not plan.faults
    sent = outgoing(plan, trained / "global", sorted(names(trained / "global")))["README.md"]
    assert 'load_model("alice/digits@round-000003")' in sent
    assert "'alice/digits@round-000003/slot-*'" in sent
    assert "ORG/NAME" not in sent
    assert 'load_model("ORG/NAME")' in (trained / "global" / "README.md").read_text()
    for options in (PushOptions(create_pr=True), PushOptions(revision="main"), PushOptions(revision="refs/pr/1")):
        plan = plan_push(trained, "alice/digits", options)
        assert 'load_model("alice/digits")' in outgoing(plan, trained / "global", ["README.md"])["README.md"]


def test_run_without_a_publication_is_not_pushed_whole(run: Path) -> None:
    assert pushed_folder(run) == run / "global"
    shutil.rmtree(run / "global")
    assert pushed_folder(run) == run / "cohort"
    shutil.rmtree(run / "cohort")
    with pytest.raises(HubError, match="the run has nothing to publish yet"):
        pushed_folder(run)


def test_a_checkpoint_is_not_pushed_whole(run: Path) -> None:
    """It may hold what a method keeps of each client, such as control variates."""
    checkpoint = run / "checkpoints" / "2-fedmr-0003"
    for folder in (checkpoint, checkpoint.parent):
        with pytest.raises(HubError, match=r"2-fedmr-0003|1-fedavg-0001: is a checkpoint of a run") as caught:
            pushed_folder(folder)
        assert caught.value.hint == "name a model in it, global or slot-00"
    for model in ("global", "slot-01"):
        assert pushed_folder(checkpoint / model) == checkpoint / model


def test_names_that_are_markup_do_no_harm(run: Path) -> None:
    folder = run / "global"
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["stages"][2]["publish"]["tags"] = ["a: b", "```", "<!-- end of what fedmr-merge generates -->", "'\""]
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    text = write_card(folder).read_text()
    assert card_faults(text, names(folder)) == []
    assert ModelCard(text).data.tags[4:8] == recipe["stages"][2]["publish"]["tags"]


def test_small_recipe_is_what_the_tests_think(trained: Path) -> None:
    assert [name for stage in RECIPE["stages"] for name in stage] == ["fedavg", "fedmr", "publish", "publish"]
    assert len((trained / "metrics.jsonl").read_text().splitlines()) == 3
