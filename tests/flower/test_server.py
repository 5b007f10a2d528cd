"""What a ServerApp reports, and what the command shows of it."""

from __future__ import annotations

from small_runs import recipe
from stand_in_grid import StandInGrid, everybody

from fedmr_merge.cli import console
from fedmr_merge.cli.flower import follow_events
from fedmr_merge.flower.events import event_line, read_event
from fedmr_merge.flower.server import ServerOptions, serve

TABLE = {
    "data": {"name": "diabetes", "partition": {"kind": "iid", "clients": 3}},
    "model": {"name": "mlp", "hidden": [4]},
    "training": {"clients_per_round": 2, "local_epochs": 1, "evaluate_every": 2},
    "stages": [{"fedavg": {"rounds": 2}}],
    "deployment": {"timeout_seconds": 0.2},
}


def events_of(folder, checked) -> list[dict]:
    """Return what the ServerApp of a recipe reports, as the command reads it from the log."""
    (folder / "recipe.yaml").write_text(checked.to_yaml())
    events: list[dict] = []
    grid = StandInGrid(everybody(checked, 3))
    serve(grid, folder / "recipe.yaml", ServerOptions(out=str(folder / "run")), events.append)
    return [read_event(event_line(event)) for event in events]


def test_the_metric_of_the_task_is_reported_and_none_of_a_round_that_is_not_evaluated(tmp_path, monkeypatch, capsys):
    checked = recipe(**TABLE)
    events = events_of(tmp_path, checked)
    first, second = (event for event in events if event["event"] == "round")
    assert first["decisive"] == {"name": "rmse", "value": None}
    assert second["decisive"] == {"name": "rmse", "value": second["metrics"]["test_rmse"]}
    monkeypatch.setattr(console, "quiet", False)
    follow_events(checked, (event for event in events), "fedmr-merge run x", None)
    shown = capsys.readouterr().err.splitlines()
    assert shown[0].startswith("tiny: round 1 of 2, fedavg: loss ")
    value, loss = second["metrics"]["test_rmse"], second["metrics"]["train_loss"]
    assert shown[-1] == f"tiny: round 2 of 2, fedavg: rmse {value:.4f}, loss {loss:.4f}"
