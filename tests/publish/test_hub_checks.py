"""What must not leave this machine: found before anything is sent, all of it at once."""

from __future__ import annotations

import getpass
import os
import pickle
import socket
import tempfile
import zipfile
from pathlib import Path

import pytest
from hub_models import CARD, weights, write_cohort, write_model
from hub_push import REPO, push
from hub_server import HubServer

from fedmr_merge.errors import HubError
from fedmr_merge.publish.checks import Machine, card_faults
from fedmr_merge.publish.hub import PushOptions, plan_push
from fedmr_merge.publish.push_plan import decide, prepared
from fedmr_merge.publish.staging import stage


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


def faults(folder: Path, repo: str = REPO) -> tuple[str, ...]:
    return plan_push(folder, repo).faults


def only_fault(folder: Path) -> str:
    [fault] = faults(folder)
    return fault


def test_clean_folder_has_no_faults(model: Path) -> None:
    text = "ratio 1/2, see https://example.com/a/b and /usr/bin/env; and/or; a.b/c/d; ./curves/x.png; model: cnn"
    (model / "notes.txt").write_text(text)
    (model / "curves.png").write_bytes(b"\x89PNG\r\n\x1a\n/home/me/x")
    (model / "table.txt").write_bytes(b"\0/home/me/x")
    (model / "empty.txt").touch()
    assert faults(model) == ()


@pytest.mark.parametrize("name", ["weights.bin", "model.pt", "a/model.PTH", "x.pkl", "x.ckpt", "x.joblib"])
def test_pickles_by_name(model: Path, name: str) -> None:
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_bytes(b"0")
    assert only_fault(model) == f"{name}: can hold a pickle, which runs code when it is loaded"


def test_pickles_by_what_is_in_them(model: Path) -> None:
    (model / "a.json").write_bytes(pickle.dumps({"a": 1}))
    with zipfile.ZipFile(model / "b.txt", "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    assert [fault.split(",")[0] for fault in faults(model)] == ["a.json: is a pickle", "b.txt: holds a pickle"]


def test_links_dot_files_and_others_are_named_and_not_gathered(model: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inner.txt").write_text("secret")
    (model / "link.txt").symlink_to(secret)
    (model / "folder").symlink_to(tmp_path / "folder")
    (model / ".env").write_text("secret")
    (model / ".git").mkdir()
    (model / ".git" / "config").write_text("secret")
    (model / "a\nb.txt").write_text("x")
    os.mkfifo(model / "pipe")
    with stage(model) as staging:
        assert [file.path for file in staging.files] == ["README.md", "config.json", "model.safetensors"]
        staged = sorted(path.relative_to(staging.folder).as_posix() for path in staging.folder.rglob("*"))
        assert staged == [file.path for file in staging.files]
        assert [fault.split(": ")[0] for fault in staging.faults] == [
            ".env",
            ".git",
            "a\nb.txt",
            "folder",
            "link.txt",
            "pipe",
        ]
    assert not staging.folder.exists()


@pytest.mark.parametrize("place", ["README.md", "recipe.yaml", "lineage.jsonl", "deep/er/x.json"])
def test_paths_of_this_machine(model: Path, tmp_path: Path, place: str) -> None:
    (model / place).parent.mkdir(parents=True, exist_ok=True)
    text = CARD if place == "README.md" else ""
    (model / place).write_text(f'{text}{{"path": "{tmp_path}/data"}}\n')
    line = len(text.splitlines()) + 1
    assert only_fault(model) == f"{place}: line {line} holds a path of this machine, {tmp_path}/data"


@pytest.mark.parametrize(
    "path",
    [
        "/home/somebody/x",
        "/Users/somebody/x",
        "/root/x",
        str(Path.cwd() / "x"),
        "file:///home/me/x",
        "C:\\Users\\me\\x",
    ],
)
def test_paths_in_every_form(model: Path, path: str) -> None:
    (model / "notes.txt").write_text(f"see ({path})")
    assert "holds a path of" in only_fault(model)


def test_paths_in_the_metadata_of_weights(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").write_bytes(weights(0, metadata={"from": f"{tmp_path}/other"}))
    fault = f"model.safetensors: its metadata 'from' holds a path of this machine, {tmp_path}/other"
    assert only_fault(model) == fault


def test_names_of_user_and_host(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: "jdoe")
    monkeypatch.setattr(socket, "gethostname", lambda: "gpu7.lab.example")
    (model / "notes.txt").write_text("by jdoe\non gpu7.lab.example\nnot jdoes, gpu70 or x-jdoe\n")
    told = [fault.split("user, ")[-1] for fault in faults(model)]
    assert told == ["jdoe", "gpu7", "gpu7.lab.example"]
    # The push makes the name of the repository known anyway.
    assert [fault.split("user, ")[-1] for fault in faults(model, "jdoe/digits")] == ["gpu7", "gpu7.lab.example"]


@pytest.mark.parametrize("name", ["root", "user", "ab", ""])
def test_names_that_tell_nothing(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: name)
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
    assert Machine.here(Path.cwd()).names == ()


def test_user_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> str:
        raise KeyError("getpwuid(): uid not found: 1234")

    monkeypatch.setattr(getpass, "getuser", fail)
    assert isinstance(Machine.here(Path.cwd()).names, tuple)


def test_many_traces_of_one_file_are_counted(model: Path) -> None:
    (model / "log.txt").write_text("/home/me/x\n" * 10)
    assert faults(model)[3:] == ("log.txt: and 7 more",)


@pytest.mark.parametrize("content", [b"", b"no safetensors", weights(0)[:-1], weights(0) + b"x"])
def test_weights_that_are_damaged(model: Path, content: bytes) -> None:
    (model / "model.safetensors").write_bytes(content)
    assert only_fault(model).startswith("model.safetensors: ")


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ("# no metadata\n", "no metadata between ---"),
        ("---\n- a\n---\n", "not a mapping"),
        ("---\na: [\n---\n", "not valid"),
        ("---\nx: !!python/object/apply:os.getcwd []\n---\n", "not valid"),
        ("---\nlicense: [mit]\n---\n", "not an identifier of the Hub"),
        ("---\nmodel-index:\n- name: x\n  results:\n  - task: {type: t}\n---\n", "not valid"),
        ("---\nvalue: {accuracy: [1.0, .nan]}\n---\n", "number that is not finite, at value.accuracy[1]"),
        ("---\nlicense: mit\n---\n![curve](curves.png)", "shows curves.png, which is not among the files"),
        ('---\nlicense: mit\n---\n<img width=1 src="a/b.png">', "shows a/b.png"),
    ],
)
def test_cards_that_are_not_valid(card: str, message: str) -> None:
    [fault] = card_faults(card, {"README.md"})
    assert message in fault


def test_cards_that_are_valid() -> None:
    assert card_faults(CARD, set()) == []
    pictures = "![a](./a.png) ![b](https://x/b.png) ![c](data:image/png;base64,xx)"
    assert card_faults(f"{CARD}{pictures}", {"a.png"}) == []
    result = (
        "{task: {type: image-classification}, dataset: {name: d, type: d}, metrics: [{type: accuracy, value: 0.9}]}"
    )
    assert card_faults(f"---\nmodel-index:\n- name: x\n  results: [{result}]\n---\n", set()) == []


def test_every_fault_is_told_and_nothing_is_sent(hub: HubServer, model: Path) -> None:
    for number in range(12):
        (model / f"{number:02d}.bin").touch()
    with pytest.raises(HubError, match="cannot be published") as caught:
        push(hub, model)
    assert "00.bin" in str(caught.value)
    assert str(caught.value).endswith("and 4 more")
    assert not hub.log


def test_model_without_a_card_may_be_pushed_but_not_licensed(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "bare", card=None)
    assert not plan_push(folder, REPO).has_card
    assert faults(folder) == ()
    assert plan_push(folder, REPO, PushOptions(license="mit")).faults == (
        "there is no README.md that could name the licence",
    )


def test_licence_of_ones_own_needs_a_name(tmp_path: Path) -> None:
    unnamed = write_model(tmp_path / "unnamed", card="---\ntags: [a]\n---\nlicense_name: in the text\n")
    assert "`other` needs a license_name" in plan_push(unnamed, REPO, PushOptions(license="other")).faults[0]
    named = write_model(tmp_path / "named", card="---\nlicense_name: mine\n---\n")
    assert plan_push(named, REPO, PushOptions(license="other")).faults == ()


def test_licence_is_put_into_any_card(tmp_path: Path) -> None:
    cards = {
        "# bare\n": "---\nlicense: mit\n---\n# bare\n",
        "---\ntags: [a]\n---\n# x\n": "---\nlicense: mit\ntags: [a]\n---\n# x\n",
        "---\ntags: [a]\nlicense:\n  - b\n  - c\nx: 1\n---\n": "---\nlicense: mit\ntags: [a]\nx: 1\n---\n",
    }
    for card, expected in cards.items():
        folder = write_model(tmp_path / str(len(card)), card=card)
        with prepared(decide(folder, REPO, PushOptions(license="mit"))) as (_, staging):
            assert (staging.folder / "README.md").read_text() == expected


@pytest.mark.parametrize("path", ["missing", "model/model.safetensors", "empty"])
def test_paths_that_hold_no_model(tmp_path: Path, model: Path, path: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(HubError, match=path):
        plan_push(tmp_path / path, REPO)


def test_big_files_are_linked_not_copied(model: Path) -> None:
    with stage(model) as staging:
        assert (staging.folder / "model.safetensors").samefile(model / "model.safetensors")


def test_folder_that_cannot_be_written_beside_is_copied(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(18, "another file system")

    monkeypatch.setattr(os, "link", refuse)
    with stage(model) as staging:
        assert (staging.folder / "model.safetensors").read_bytes() == weights(0)
        assert not (staging.folder / "model.safetensors").samefile(model / "model.safetensors")


def test_folder_without_a_writable_neighbour_is_gathered_elsewhere(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = tempfile.mkdtemp

    def refuse(prefix: str, dir: Path | None = None) -> str:
        if dir == model.parent:
            raise PermissionError(13, "Permission denied")
        return make(prefix=prefix, dir=dir)

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with stage(model) as staging:
        assert staging.folder.parent == Path(tempfile.gettempdir())
        assert len(staging.files) == 3
    assert not staging.folder.exists()


def test_leftovers_of_killed_pushes_are_removed_and_those_in_use_stay(model: Path) -> None:
    leftover = model.parent / ".model.push-abc"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"x")
    with stage(model) as one, stage(model) as other:
        assert not leftover.exists()
        assert one.folder.exists()
        assert other.folder.exists()


def test_leftovers_inside_a_folder_never_block_its_push(tmp_path: Path) -> None:
    """`push out/slot-00` was killed, and `out` is pushed."""
    out = write_cohort(tmp_path / "out", 2)
    for name in (".slot-00.push-x1_y2z3a", ".global.staging-0123456789abcdef"):
        (out / name).mkdir()
        (out / name / "model.safetensors").write_bytes(b"half")
    (out / "slot-00" / ".staging-ab12cd_x").mkdir()  # of a store of version 0.1.0
    (out / ".lineage.json.ab12cd_x").write_bytes(b"half")  # of its `verify`
    (out / ".README.md.staging-0123456789abcdef").write_bytes(b"half")  # of `card`
    plan = plan_push(out, REPO)
    assert plan.faults == ()
    assert plan.passed_over == (
        ".README.md.staging-0123456789abcdef",
        ".global.staging-0123456789abcdef",
        ".lineage.json.ab12cd_x",
        ".slot-00.push-x1_y2z3a",
        "slot-00/.staging-ab12cd_x",
    )
    assert list(out.rglob(".*")) == []


def test_a_dot_file_of_the_users_is_refused_though_its_name_is_like_a_leftovers(model: Path) -> None:
    (model / ".env.template").write_text("KEY=")
    assert plan_push(model, REPO).faults == (".env.template: a dot file",)
    assert (model / ".env.template").exists()


def test_what_other_programs_leave_in_a_folder_is_passed_over(model: Path, tmp_path: Path) -> None:
    """`hf download X --local-dir d`, then `push d`."""
    (model / ".cache" / "huggingface").mkdir(parents=True)
    (model / ".cache" / "huggingface" / "token.lock").write_text("/home/me/x")
    for name in (".gitattributes", ".DS_Store"):
        (model / name).write_text("x")
    plan = plan_push(model, REPO)
    assert plan.faults == ()
    assert plan.passed_over == (".DS_Store", ".cache", ".gitattributes")
    assert [file.path for file in plan.files] == ["README.md", "config.json", "model.safetensors"]
    (model / ".env").write_text("secret")
    assert only_fault(model) == ".env: a dot file"


def test_leftovers_of_another_folder_are_left_alone(model: Path) -> None:
    """The name of a folder is no pattern."""
    named = model.rename(model.with_name("mode[l]"))
    own, other = model.parent / ".mode[l].push-old", model.parent / ".model.push-old"
    for leftover in (own, other):
        leftover.mkdir()
    with stage(named):
        assert not own.exists()
        assert other.exists()
