"""`push` and `card` as they are typed."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from hub_models import write_cohort, write_model
from hub_server import HubServer
from small_run import command

REPO = "alice/digits"


@pytest.fixture
def here(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    return hub


def test_dry_run_lists_files_sizes_target_and_card_and_needs_no_token(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("offline, a dry run went to the network"))
    options = ["--private", "--revision", "next", "--tag", "v1", "--license", "mit", "--message", "a b"]
    assert command("push", trained, REPO, *options, "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(f"/{REPO}, branch next, private")
    assert lines[1].split() == ["file", "size"]
    files = {line.split()[0] for line in lines[2:] if line.startswith(("README", "model", "slot-00/model"))}
    assert files == {"README.md", "model.safetensors", "slot-00/model.safetensors"}
    assert "its card is valid" in lines[-3]
    assert lines[-2] == "not compared with the Hub: offline mode is on"
    assert lines[-1].endswith(
        f"fedmr-merge push {trained} {REPO} --private --revision next --message 'a b' --tag v1 --license mit"
    )


def test_dry_run_names_every_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_model(tmp_path / "model", card="# bare\n")
    (model / "notes.txt").write_text("/home/me/x")
    assert command("push", model, REPO, "--dry-run") == 2
    told = capsys.readouterr()
    assert "notes.txt" in told.out
    assert "notes.txt: line 1 holds a path of this machine" in told.err
    assert "README.md: the card has no metadata" in told.err


def test_push_prints_the_address_of_the_commit_and_makes_one(
    here: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cohort = write_cohort(tmp_path / "out", 2)
    assert command("push", cohort, REPO, "--endpoint", here.endpoint, "--tag", "v1") == 0
    first = capsys.readouterr().out.splitlines()
    commit = here.repos[REPO].refs["refs/heads/main"]
    assert first == ["pushed 7 files", f"{here.endpoint}/{REPO}/commit/{commit}"]
    assert command("push", cohort, REPO, "--endpoint", here.endpoint, "--tag", "v1") == 0
    assert capsys.readouterr().out.splitlines() == ["the Hub has all of it already; no commit was made", first[1]]
    (cohort / "slot-00" / "config.json").write_text("{}")
    assert command("push", cohort, REPO, "--endpoint", here.endpoint, "--create-pr", "--message", "better") == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{here.endpoint}/{REPO}/discussions/1"
    for slot in ("slot-01",):
        for path in (cohort / slot).iterdir():
            path.unlink()
        (cohort / slot).rmdir()
    assert command("push", cohort, REPO, "--endpoint", here.endpoint) == 0
    assert "removed there: slot-01/model.safetensors" in capsys.readouterr().out


def test_dry_run_shows_what_would_change_there(
    here: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cohort = write_cohort(tmp_path / "out", 3)
    arguments = ["push", cohort, REPO, "--endpoint", here.endpoint]
    assert command(*arguments, "--dry-run") == 0
    assert "the repository is not there yet" in capsys.readouterr().out
    assert command(*arguments, "--quiet") == 0
    shutil.rmtree(cohort / "slot-02")
    (cohort / "slot-00" / "config.json").write_text("{}")
    (cohort / "notes.txt").write_text("x")
    capsys.readouterr()
    before = dict(here.repos[REPO].refs)
    assert command(*arguments, "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("on the Hub: 1 new, 1 changed, 6 the same")
    assert lines[start + 1 : -1] == [
        "  would add notes.txt",
        "  would replace slot-00/config.json",
        "  would delete slot-02/model.safetensors",
    ]
    assert here.repos[REPO].refs == before


def test_push_that_breaks_off_ends_with_3_and_the_command(
    here: HubServer, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here.fail("POST", "/commit/", "answer", status=412)
    assert command("push", trained, REPO, "--endpoint", here.endpoint, "--private") == 3
    told = capsys.readouterr()
    assert told.out == ""
    error, hint = told.err.splitlines()
    assert error.startswith("error: the push is not finished: ")
    assert hint.endswith(f"fedmr-merge push {trained} {REPO} --private --endpoint {here.endpoint}")


def test_card_is_written_anew_with_a_preview_beside_the_folder(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "global" / "README.md").unlink()
    mine = tmp_path / "mine.md.j2"
    mine.write_text('{% extends "global.md.j2" %}{% block citation %}Cite me.{% endblock %}')
    assert command("card", run, "--card-template", mine, "--preview") == 0
    told = capsys.readouterr().out
    assert f"card     {run / 'global' / 'README.md'}\n" in told
    assert "Cite me." in (run / "global" / "README.md").read_text()
    assert "Cite me." in (run / "global.card.html").read_text()
    assert not list((run / "global").glob("*.html")), "it would be pushed"
    assert command("push", run, REPO, "--dry-run", "--quiet") == 0


def test_a_card_that_is_not_utf_8_is_left_alone(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = run / "global" / "README.md"
    card.write_bytes(card.read_bytes() + "Schöne Ziffern".encode("latin-1"))
    before = card.read_bytes()
    assert command("card", run) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error == f"error: {card}: is not UTF-8, so that what people wrote into it cannot be kept"
    assert hint == "hint: save it in UTF-8, or move it away to have a new one written"
    assert card.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("slots.json", "[" * 30_000, "slots.json: damaged: it is nested too deeply"),
        ("config.json", "{", "config.json: damaged: not JSON: Expecting property name"),
    ],
)
def test_a_damaged_file_that_a_card_is_made_from_is_named(
    name: str, text: str, words: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "global" / name).write_text(text)
    before = (run / "global" / "README.md").read_bytes()
    assert command("card", run) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert words in error
    assert hint == "hint: name a run folder, or what its `publish` stage wrote"
    assert (run / "global" / "README.md").read_bytes() == before


def test_card_of_a_recombination_and_of_what_is_none(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert command("recombine", trained / "cohort" / "slot-*", "-o", out, "--quiet") == 0
    assert command("card", out) == 0
    card = (out / "README.md").read_text()
    assert 'load_model("ORG/NAME/global")' in card, "the models are ours, so that the card tells how to load them"
    assert "pipeline_tag: image-classification" in card
    for config in (trained / "cohort").glob("slot-*/config.json"):
        slot = tmp_path / "rows" / config.parent.name
        shutil.copytree(config.parent, slot)
        (slot / "config.json").write_text(json.dumps(json.loads(config.read_text()) | {"task": "regression"}))
    assert command("recombine", tmp_path / "rows" / "slot-*", "-o", tmp_path / "of-rows", "--quiet") == 0
    assert command("card", tmp_path / "of-rows") == 0
    assert "pipeline_tag: tabular-regression" in (tmp_path / "of-rows" / "README.md").read_text()
    capsys.readouterr()
    assert command("card", write_model(tmp_path / "model", card=None)) == 2
    assert "no file in it records how it was made" in capsys.readouterr().err
    assert command("card", tmp_path / "absent") == 2
    assert command("card", out, "--card-template", tmp_path / "absent.j2") == 2


def test_every_command_on_a_card_is_one_that_exists(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command("recombine", trained / "cohort" / "slot-*", "-o", tmp_path / "out", "--quiet")
    command("card", tmp_path / "out", "--quiet")
    cards = [path / "README.md" for path in (trained / "global", trained / "cohort", tmp_path / "out")]
    typed = {
        tuple(line.split()[1:2]) for card in cards for line in re.findall(r"^fedmr-merge .*", card.read_text(), re.M)
    }
    assert typed == {("run",), ("recombine",), ("average",), ("verify",), ("undo",)}
    for (name,) in typed:
        assert command(name, "--help") == 0
