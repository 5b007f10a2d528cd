"""The commands for several machines, as far as they need no SuperLink."""

from __future__ import annotations

import importlib.util

import pytest
from small_run import command
from small_runs import recipe

from fedmr_merge.cli import console
from fedmr_merge.cli.flower import _show_costs_if_known, follow_events

HAS_FLOWER = importlib.util.find_spec("flwr") is not None
needs_flower = pytest.mark.skipif(not HAS_FLOWER, reason="Flower is not installed: pip install 'fedmr-merge[flower]'")


@pytest.mark.parametrize("place", ["nowhere", "flower:", "flower-x", ""])
def test_a_place_where_nobody_trains_is_refused(tmp_path, monkeypatch, capsys, place):
    monkeypatch.chdir(tmp_path)
    assert command("run", "digits", "--on", place) == 2
    errors = capsys.readouterr().err.splitlines()
    assert errors[0].startswith(f"error: --on {place}: is not a place where clients train")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(HAS_FLOWER, reason="Flower is installed")
@pytest.mark.parametrize(
    "arguments", [("run", "digits", "--on", "flower"), ("flower", "nodes", "x"), ("flower", "doctor", "x")]
)
def test_without_flower_the_extra_is_named(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    assert command(*arguments) == 2
    assert "hint: pip install 'fedmr-merge[flower]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@needs_flower
def test_an_unknown_connection_is_reported_by_doctor_and_by_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert command("flower", "doctor", "nobody") == 2
    out, errors = capsys.readouterr()
    assert "no usable connection 'nobody'" in out
    assert "error: connection: a run with the SuperLink 'nobody' would fail" in errors
    assert command("run", "digits", "--on", "flower:nobody") == 2
    assert not (tmp_path / "runs").exists()


@needs_flower
def test_doctor_reports_an_address_where_nobody_listens(tmp_path, monkeypatch, capsys):
    (tmp_path / "config.toml").write_text('[superlink.here]\naddress = "127.0.0.1:9"\ninsecure = true\n')
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    assert command("flower", "doctor", "here") == 2
    out = capsys.readouterr().out
    assert "without TLS" in out
    assert "is the SuperLink running, and does its firewall let port 9 through?" in out


@pytest.mark.parametrize(
    ("events", "words"),
    [
        ([], "nothing was submitted, unless `flwr ls hospital` lists a new run; this command starts again: AGAIN"),
        (
            [{"event": "submitted", "run": "17"}],
            "the run continues at the SuperLink; `flwr stop 17 hospital` stops it, and this command resumes it: AGAIN",
        ),
    ],
)
@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(143)])
def test_what_is_said_of_a_stop_depends_on_whether_a_run_was_submitted(capsys, events, words, stop):
    def broken_off():
        yield from events
        raise stop

    with pytest.raises(type(stop)):
        follow_events(recipe(), broken_off(), "AGAIN", "hospital")
    assert capsys.readouterr().err.splitlines() == [f"stopped: {words}"]


def test_a_machine_without_a_gpu_shows_what_the_rounds_of_a_recipe_for_gpus_send(monkeypatch, capsys):
    monkeypatch.setattr(console, "quiet", False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    checked = recipe(training={"clients_per_round": 2, "local_epochs": 1, "device": "cuda"})
    assert _show_costs_if_known(checked) == 60
    assert " to each of 2 nodes in a round" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": {"name": "cnn", "init": "elsewhere.safetensors"}}, "elsewhere.safetensors"),
        ({"data": {"name": "digits", "partition": {"kind": "nodes", "clients": 60}}}, "on their own machines"),
    ],
)
def test_what_only_other_machines_have_does_not_stop_a_run_on_them(tmp_path, monkeypatch, capsys, changes, reason):
    monkeypatch.chdir(tmp_path)
    assert _show_costs_if_known(recipe(**changes)) == 60
    [note] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert note.startswith("note: the bytes of a round are not known here: ")
    assert reason in note
