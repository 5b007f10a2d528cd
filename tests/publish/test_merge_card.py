"""Cards of recombinations: read off the lineage, telling nothing of the machine, still enough to verify and undo."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hub_models import write_model
from huggingface_hub import ModelCard
from safetensors.numpy import load_file

from fedmr_merge.checkpoint.header import build_header
from fedmr_merge.errors import HubError
from fedmr_merge.lineage.reader import read_lineage
from fedmr_merge.merging.average import average
from fedmr_merge.merging.options import MeanOptions
from fedmr_merge.publish.card_merge import addressed
from fedmr_merge.publish.checks import card_faults
from fedmr_merge.publish.hub import plan_push
from fedmr_merge.publish.merge_facts import find_lineage, merge_facts, published_lineage
from fedmr_merge.publish.push_plan import prepared
from fedmr_merge.publish.write_card import write_card
from fedmr_merge.recombination.options import OutputOptions, PlanOptions
from fedmr_merge.recombination.recombine import recombine
from fedmr_merge.recombination.undo import undo
from fedmr_merge.recombination.verify import verify

COMMIT = "5f0c" * 10
SECRET = "patients-of-st-mary"
RULE = "rules:\n  - {match: '**', group: all}\n"


@pytest.fixture
def sources(tmp_path: Path) -> list[Path]:
    return [write_model(tmp_path / SECRET / name, seed, card=None) for seed, name in enumerate("abc")]


@pytest.fixture
def out(sources: list[Path], tmp_path: Path) -> Path:
    recombine(sources, tmp_path / "out", PlanOptions(seed=7, round=3))
    return tmp_path / "out"


def from_hub(out: Path, licences: list[str | None], *, local: int = 0) -> dict[str, Any]:
    """Let the lineage say that the sources, but for the first `local`, came from the Hub."""
    path = out / "lineage.json"
    content: dict[str, Any] = json.loads(path.read_text())
    for source, licence in list(zip(content["sources"], licences, strict=True))[local:]:
        source["path"] = f"org/model-{source['slot']}@{COMMIT}/part"
        source["license"] = licence
    path.write_text(json.dumps(content))
    return content


def test_card_tells_how_the_models_were_made(out: Path) -> None:
    text = write_card(out).read_text()
    assert card_faults(text, ["README.md"]) == []
    for fact in (
        "# Recombination of 3 models",
        "| seed | 7 |",
        "| round | 3 |",
        "| layer rule | `layer`",
        "`a`, not on the",
    ):
        assert fact in text
    [row] = [line for line in text.splitlines() if line.startswith("| `layer` | 1 |")]
    plan = json.loads((out / "lineage.json").read_text())["plan"]["permutations"]
    assert row == f"| `layer` | 1 | {' '.join(map(str, plan['layer']))} |"
    data = ModelCard(text).data.to_dict()
    assert "base_model" not in data
    assert "license" not in data
    assert "pipeline_tag" not in data, "nothing says what these models do"


def test_card_of_one_slot_and_of_the_mean(out: Path) -> None:
    text = write_card(out / "slot-01").read_text()
    source = json.loads((out / "lineage.json").read_text())["plan"]["permutations"]["layer"][1]
    assert "# Slot 1 of a recombination of 3 models" in text
    assert f"| `layer` | 1 | {source} |" in text
    assert "Check it" not in text, "the lineage does not come along"
    assert "# Mean of 3 models" in write_card(out / "global").read_text()


def test_parents_on_the_hub_are_named_with_commit_and_licence(out: Path) -> None:
    from_hub(out, ["mit", "mit", "mit"])
    text = write_card(out).read_text()
    data = ModelCard(text).data.to_dict()
    assert data["base_model"] == ["org/model-0", "org/model-1", "org/model-2"]
    assert (data["base_model_relation"], data["license"]) == ("merge", "mit")
    assert (
        f"| 1 | [org/model-1/part](https://huggingface.co/org/model-1/tree/{COMMIT}/part) | `{COMMIT}` | mit |" in text
    )
    assert "differ" not in text
    assert "`unpublished" not in text


def test_licences_that_differ_are_told_and_none_is_claimed(out: Path) -> None:
    from_hub(out, ["mit", "gpl-3.0", None])
    text = write_card(out).read_text()
    assert (
        "**The licences of these models differ**: org/model-0 mit, org/model-1 gpl-3.0, org/model-2 states none" in text
    )
    assert "license" not in ModelCard(text).data.to_dict()


@pytest.mark.parametrize("licences", [["mit", "mit", None], [None, None, None]])
def test_no_licence_is_claimed_where_a_parent_states_none(out: Path, licences: list[str | None]) -> None:
    from_hub(out, licences)
    text = write_card(out).read_text()
    assert "license" not in ModelCard(text).data.to_dict()
    assert f"/part) | `{COMMIT}` | none stated |" in text


def test_card_of_an_average(sources: list[Path], tmp_path: Path) -> None:
    average(sources, tmp_path / "mean", options=MeanOptions(weights=(1, 2, 1)))
    from_hub(tmp_path / "mean", ["mit", "mit", "mit"])
    text = write_card(tmp_path / "mean").read_text()
    assert card_faults(text, ["README.md"]) == []
    data = ModelCard(text).data.to_dict()
    assert (data["license"], data["base_model_relation"]) == ("mit", "merge")
    assert "fedmr" not in data["tags"]
    weights = "| mean | weights 1, 2, 1, added up in float32 |"
    for fact in ("# Mean of 3 models", weights, "[org/model-1/part](https://", "fedmr-merge verify merged"):
        assert fact in text
    for absent in ("layer group", "undo", "bibtex", "None", "seed"):
        assert absent not in text
    assert not plan_push(tmp_path / "mean", "alice/mean").faults


def test_two_licences_without_an_identifier_are_not_one(out: Path) -> None:
    from_hub(out, ["other", "other", "other"])
    text = write_card(out).read_text()
    assert "license" not in ModelCard(text).data.to_dict()
    assert "**These models have licences without an identifier** (org/model-0, org/model-1, org/model-2)" in text


def test_card_of_some_slots_does_not_claim_that_all_are_here(sources: list[Path], tmp_path: Path) -> None:
    recombine(sources, tmp_path / "out", PlanOptions(), output=OutputOptions(slots=(0,)))
    text = write_card(tmp_path / "out").read_text()
    assert "exactly one" not in text
    assert "This is 1 model of the 3 that were made from 3 others" in text
    assert "The other 2 are not here." in text
    assert "fedmr-merge undo" not in text


def test_what_all_parents_say_is_passed_on(sources: list[Path], tmp_path: Path) -> None:
    head = "library_name: timm\npipeline_tag: image-classification\nlanguage: [en, de]\nbase_model: org/base\n"
    for number, source in enumerate(sources):
        (source / "README.md").write_text(f"---\n{head}license: mit\ntags: [x{number}]\n---\n# Mine\n")
    recombine(sources, tmp_path / "out", PlanOptions())
    whole = ModelCard(write_card(tmp_path / "out").read_text()).data.to_dict()
    assert (whole["language"], whole["base_model"]) == (["en", "de"], "org/base")
    assert "library_name" not in whole, "no library loads a folder of slots by the snippet that the Hub shows"
    slot = ModelCard(write_card(tmp_path / "out" / "slot-00").read_text()).data.to_dict()
    assert (slot["library_name"], slot["pipeline_tag"]) == ("timm", "image-classification")
    (sources[1] / "README.md").write_text("---\nlibrary_name: transformers\n---\n")
    (tmp_path / "out" / "slot-00" / "README.md").unlink()
    assert "library_name" not in ModelCard(write_card(tmp_path / "out" / "slot-00").read_text()).data.to_dict()


def test_models_of_transformers_show_the_subfolder(sources: list[Path], tmp_path: Path) -> None:
    for source in sources:
        config = {"model_type": "bert", "architectures": ["BertForSequenceClassification"]}
        (source / "config.json").write_text(json.dumps(config))
    recombine(sources, tmp_path / "out", PlanOptions())
    text = write_card(tmp_path / "out").read_text()
    assert 'BertForSequenceClassification.from_pretrained("ORG/NAME", subfolder="global")' in text
    assert 'from_pretrained("a/b", revision="v1", subfolder="global")' in addressed(text, "a/b", "v1")
    slot = write_card(tmp_path / "out" / "slot-00").read_text()
    assert 'BertForSequenceClassification.from_pretrained("ORG/NAME")' in slot
    assert ModelCard(slot).data.library_name == "transformers"


def test_licence_that_the_lineage_does_not_record_is_not_called_none(out: Path) -> None:
    content = from_hub(out, [None] * 3)
    for source in content["sources"]:
        del source["license"]
    (out / "lineage.json").write_text(json.dumps(content))
    assert "| not recorded |" in write_card(out).read_text()


def test_no_licence_is_claimed_for_sources_that_are_not_on_the_hub(out: Path) -> None:
    from_hub(out, ["mit", "mit", "mit"], local=1)
    data = ModelCard(write_card(out).read_text()).data.to_dict()
    assert data["base_model"] == ["org/model-1", "org/model-2"]
    assert "license" not in data


def test_what_is_sent_tells_no_folder_of_this_machine(out: Path) -> None:
    assert SECRET in (out / "lineage.json").read_text()
    plan = plan_push(out, "alice/merged")
    assert not plan.faults
    assert plan.has_card
    with prepared(plan) as (_, staging):
        for file in staging.files:
            assert SECRET.encode() not in (staging.folder / file.path).read_bytes(), file.path
        card = (staging.folder / "README.md").read_text()
    assert "hf download alice/merged --local-dir merged" in card
    assert not (out / "README.md").exists()
    assert SECRET in (out / "lineage.json").read_text()


def test_what_is_sent_can_be_verified_and_undone(out: Path, sources: list[Path], tmp_path: Path) -> None:
    with prepared(plan_push(out, "alice/merged")) as (_, staging):
        pulled = Path(shutil.copytree(staging.folder, tmp_path / "elsewhere" / "merged"))
    result = verify(pulled)
    assert not result.faults
    assert result.skipped, "the sources are not there"
    assert not verify(pulled, sources).faults
    for before, after in zip(sources, undo(pulled, tmp_path / "sources").paths, strict=True):
        assert after.name == before.name
        assert (after / "model.safetensors").read_bytes() == (before / "model.safetensors").read_bytes()


def published(path: Path) -> str:
    pieces = published_lineage(path)
    assert pieces is not None
    return "".join(pieces)


def test_published_lineage_keeps_everything_but_places(out: Path) -> None:
    path = out / "lineage.json"
    text = path.read_text()
    before, after = json.loads(text), json.loads(published(path))
    assert [source.pop("path") for source in after["sources"]] == [f"unpublished/0{i}/{n}" for i, n in enumerate("abc")]
    for source in before["sources"]:
        source.pop("path")
    assert after == before
    path.write_text(once := published(path))
    assert published(path) == once
    assert once.count("\n") == text.count("\n")
    path.write_text(json.dumps(json.loads(once), indent=1))
    assert published(path) == once, "however it is laid out"


def test_sources_on_the_hub_keep_their_place(out: Path) -> None:
    content = from_hub(out, [None] * 3)
    assert json.loads(published(out / "lineage.json"))["sources"] == content["sources"]


@pytest.mark.parametrize("place", ["ckpts/m0@v1", "/home/me/model", "..", "org/name", f"../x@{COMMIT}"])
def test_places_that_only_look_like_hub_ids_are_not_published(out: Path, place: str) -> None:
    path = out / "lineage.json"
    content = json.loads(path.read_text())
    content["sources"][0]["path"] = place
    path.write_text(json.dumps(content))
    shown = json.loads(published(path))["sources"][0]["path"]
    assert shown.startswith("unpublished/00/")
    assert "home" not in shown


def test_models_that_are_single_files_are_not_called_folders(sources: list[Path], tmp_path: Path) -> None:
    recombine([source / "model.safetensors" for source in sources], tmp_path / "files")
    text = write_card(tmp_path / "files").read_text()
    assert "Every model is a file of its own, `slot-00.safetensors`, `slot-01.safetensors`" in text
    assert "folder of its own" not in text


def test_rule_files_are_published_by_their_name_alone(sources: list[Path], tmp_path: Path) -> None:
    rule = tmp_path / SECRET / "mine.yaml"
    rule.write_text(RULE)
    recombine(sources, tmp_path / "out", PlanOptions(rule=str(rule)))
    text = write_card(tmp_path / "out").read_text()
    assert "| layer rule | `mine.yaml`" in text
    assert SECRET not in text
    assert SECRET not in published(tmp_path / "out" / "lineage.json")


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", '{"sources": [{}]}', '{"sources": 3, "rule": 1}', "[" * 10**5]
)
def test_a_file_that_is_not_a_lineage_is_sent_as_it_is(text: str, tmp_path: Path) -> None:
    (tmp_path / "lineage.json").write_text(text)
    assert published_lineage(tmp_path / "lineage.json") is None


def test_a_lineage_with_a_damaged_list_of_tensors_is_not_sent(out: Path) -> None:
    path = out / "lineage.json"
    path.write_text(path.read_text().replace('{"slot":1,"tensor"', '{"slot":x,"tensor"', 1))
    with pytest.raises(HubError, match=r"lineage\.json: damaged: "):
        plan_push(out, "alice/merged")
    assert not list(out.parent.glob(".*push-*"))


def test_headers_of_sources_are_searched_for_traces_although_they_are_packed(tmp_path: Path) -> None:
    sources = [write_model(tmp_path / name, seed, card=None) for seed, name in enumerate("ab")]
    for source in sources:
        header = build_header([("w", "F32", (1,), 4)], {"trained_at": "/home/me/secret"})
        (source / "model.safetensors").write_bytes(header + bytes(4))
    recombine(sources, tmp_path / "out", PlanOptions())
    faults = plan_push(tmp_path / "out", "alice/merged").faults
    assert "lineage.json: the metadata 'trained_at' of source 1 holds a path of this machine, /home/me/secret" in faults


def test_names_that_are_markup_do_no_harm(tmp_path: Path) -> None:
    name = "a|`b` <script>alert(1)</script> *c*"
    sources = [write_model(tmp_path / str(seed) / name.replace("/", "-"), seed, card=None) for seed in range(2)]
    recombine(sources, tmp_path / "out", PlanOptions())
    text = write_card(tmp_path / "out").read_text()
    [row] = [line for line in text.splitlines() if line.startswith("| 1 |")]
    assert "\\|``b" not in row
    assert row.count("|") - row.count("\\|") == 4


def test_folders_that_no_file_tells_of(out: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", card=None)
    inside = write_model(out / "other", card=None)
    for folder in (model, inside):
        assert find_lineage(folder) is None
        with pytest.raises(HubError, match="no file in it records how it was made"):
            write_card(folder)
        assert not (folder / "README.md").exists()


def test_part_is_found_by_a_relative_path(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(out / "slot-02")
    found = find_lineage(Path())
    assert found is not None
    assert merge_facts(*found)["slot"] == 2


def test_tensors_are_those_of_the_table(out: Path, sources: list[Path]) -> None:
    """The card's claim, checked on the bytes: slot i holds the layer of the source in its row."""
    facts = merge_facts(read_lineage(out), None)
    for slot, source in enumerate(facts["groups"][0]["sources"]):
        found = load_file(out / f"slot-{slot:02d}" / "model.safetensors")["layer.weight"]
        assert (found == load_file(sources[source] / "model.safetensors")["layer.weight"]).all()
