"""The metrics of a run as TensorBoard, MLflow and Weights & Biases read them: real files, written and read back."""

from __future__ import annotations

import json
import shutil
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from small_runs import RECIPE, follow, models, recipe, stages

from fedmr_merge.errors import RecipeError, RunError
from fedmr_merge.recipe.identity import identity
from fedmr_merge.recipe.json_schema import recipe_schema
from fedmr_merge.runs.trackers import Trackers

Logged = list[tuple[str, int, float]]  # every value that a log holds: name, step, value


def tensorboard(run: Path) -> tuple[Logged, dict[str, Any]]:
    """Every value of all event files, read one by one, and the recipe's options as the HPARAMS page shows them."""
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    logged, options = Logged(), dict[str, Any]()
    for file in sorted((run / "tensorboard").iterdir()):
        for event in loader.EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "hparams":
                    content = HParamsPluginData.FromString(value.metadata.plugin_data.content)
                    for key, found in content.session_start_info.hparams.items():
                        assert key not in options
                        options[key] = getattr(found, found.WhichOneof("kind"))
                elif not value.tag.startswith("recipe"):
                    logged.append((value.tag, event.step, value.tensor.float_val[0]))
    return logged, options


def mlflow(run: Path) -> tuple[Logged, dict[str, Any]]:
    """Every value of the only run, and its parameters."""
    pytest.importorskip("sqlalchemy")
    client = pytest.importorskip("mlflow").MlflowClient(f"sqlite:///{run / 'mlflow' / 'mlflow.db'}")
    [experiment] = [found for found in client.search_experiments() if found.name != "Default"]
    [found] = client.search_runs([experiment.experiment_id])
    history = [client.get_metric_history(found.info.run_id, name) for name in found.data.metrics]
    assert found.info.status == "FINISHED"
    return [(point.key, point.step, point.value) for points in history for point in points], found.data.params


def leveldb_records(content: bytes, start: int) -> Iterator[bytes]:
    """The records of a log in LevelDB's format: blocks of 32 KiB, parts with checksum, length and kind in front."""
    place, record = start, b""
    while place + 7 <= len(content):
        if (left := -place % 32768) and left < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def wandb(run: Path) -> tuple[Logged, dict[str, Any]]:
    """Every value of the only run, and its configuration."""
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    [file] = (run / "wandb").glob("offline-run-*/run-*.wandb")
    logged, options = Logged(), dict[str, Any]()
    deadline, records = time.monotonic() + 60, list[Any]()
    while not any(record.HasField("exit") for record in records):  # the service of wandb closes the file by itself
        assert time.monotonic() < deadline
        time.sleep(0.01)
        records = [Record.FromString(data) for data in leveldb_records(file.read_bytes(), start=7)]
    for record in records:
        for item in record.run.config.update:
            options[item.key] = json.loads(item.value_json)
        values = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
        step = int(values["_step"]) if values else 0
        logged += [(name, step, json.loads(value)) for name, value in values.items() if not name.startswith("_")]
    return logged, options


READERS: dict[str, Callable[[Path], tuple[Logged, dict[str, Any]]]] = {
    reader.__name__: reader for reader in (tensorboard, mlflow, wandb)
}
every_tracker = pytest.mark.parametrize("name", READERS)


def training(log: Any) -> dict[str, Any]:
    return {"training": RECIPE["training"] | {"log": log}}


def require(name: str) -> None:
    pytest.importorskip(name)
    if name == "mlflow":
        pytest.importorskip("sqlalchemy")


def recorded(run: Path) -> Logged:
    """The numbers of `metrics.jsonl`."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    head = ("round", "stage", "method")
    return [(key, line["round"], value) for line in lines for key, value in line.items() if key not in head]


def assert_same(logged: Logged, expected: Logged) -> None:
    assert sorted(entry[:2] for entry in logged) == sorted(entry[:2] for entry in expected)
    values = {entry[:2]: entry[2] for entry in logged}
    for *place, value in expected:
        assert values[tuple(place)] == pytest.approx(value, rel=1e-6)  # event files hold float32


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run without a tracker."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    follow(folder, recipe(**stages(1, 2)))
    return folder


@every_tracker
def test_every_round_stands_in_the_log_once_even_if_it_was_trained_twice(name: str, tmp_path: Path) -> None:
    require(name)
    logged_run = recipe(**stages(1, 2), **training(name))
    assert follow(tmp_path / "run", logged_run) == [1, 2, 3]
    values, options = READERS[name](tmp_path / "run")
    assert_same(values, recorded(tmp_path / "run"))
    assert {"test_accuracy", "train_loss", "seconds"} <= {name for name, *_ in values}
    assert str(options["seed"]).startswith("1")
    assert options["name"] == "tiny"
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "2-fedmr-0003")  # as if killed before it was written
    assert follow(tmp_path / "run", logged_run) == [3]
    assert_same(READERS[name](tmp_path / "run")[0], recorded(tmp_path / "run"))


@every_tracker
def test_a_finished_run_gets_its_log_and_keeps_its_bytes(name: str, plain: Path, tmp_path: Path) -> None:
    require(name)
    run = shutil.copytree(plain, tmp_path / "run")
    assert follow(run, recipe(**stages(1, 2), **training([name]))) == []
    assert_same(READERS[name](run)[0], recorded(plain))
    assert models(run) == models(plain)
    assert (run / "metrics.jsonl").read_bytes() == (plain / "metrics.jsonl").read_bytes()


def test_it_is_no_part_of_what_is_published_or_of_what_decides_the_bytes(tmp_path: Path) -> None:
    require("tensorboard")
    folders = []
    for log in ([], ["tensorboard"]):
        checked = recipe(stages=[{"fedmr": {"rounds": 1}}, {"publish": {}}], **training(log))
        folders.append(tmp_path / f"run{len(log)}")
        follow(folders[-1], checked)
        assert identity(checked) == identity(recipe(stages=[{"fedmr": {"rounds": 1}}]))
    published = [{path.name: path.read_bytes() for path in (run / "global").iterdir()} for run in folders]
    assert published[0].keys() == published[1].keys()
    same = published[0].keys() - {"metrics.jsonl"}  # it holds seconds
    assert {name: published[0][name] for name in same} == {name: published[1][name] for name in same}
    assert b"tensorboard" not in b"".join(published[1].values())
    follow(folders[1], recipe(stages=[{"fedmr": {"rounds": 1}}]), fresh=True)  # a log is no stranger's file


def test_what_noise_does_not_cover_and_the_key_are_left_out(tmp_path: Path) -> None:
    require("tensorboard")
    content = recipe().to_json()
    content["training"]["privacy"] = {"clip": 1.0, "key_file": "/home/somebody/key"}
    trackers = Trackers(("tensorboard",), tmp_path, private=True)
    trackers.fill(content, [{"round": 1, "stage": 1, "method": "fedmr", "train_loss": 0.5, "epsilon": 2.5}])
    trackers.add({"round": 2, "stage": 1, "method": "fedmr", "train_loss": 0.5, "epsilon": 3.5, "missing": {"1": "?"}})
    trackers.close()
    values, options = tensorboard(tmp_path)
    assert values == [("epsilon", 1, 2.5), ("epsilon", 2, 3.5)]
    assert options["training.privacy.clip"] == 1.0
    assert options["stages.0.fedmr.rounds"] == 3
    assert not [key for key in options if "key_file" in key or key.startswith("training.log")]


@every_tracker
def test_a_missing_package_is_reported_before_anything_is_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (name, "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(RunError, match=f"training.log: {name} cannot be imported") as caught:
        follow(tmp_path / "run", recipe(**training(name)))
    assert caught.value.hint == f"pip install 'fedmr-merge[{name}]'"
    assert not (tmp_path / "run").exists()


def test_a_tracking_server_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://example.org")
    with pytest.raises(RunError, match=r"MLFLOW_TRACKING_URI names another place") as caught:
        follow(tmp_path / "run", recipe(**training("mlflow")))
    assert "unset" in str(caught.value.hint)
    assert not (tmp_path / "run").exists()


def test_a_log_that_cannot_be_written_is_one_line_and_the_run_can_be_resumed(plain: Path, tmp_path: Path) -> None:
    require("tensorboard")
    run = shutil.copytree(plain, tmp_path / "run")
    (run / "tensorboard").write_text("a file where a folder should be")
    with pytest.raises(RunError, match=r"tensorboard could not write what training\.log asks for: .*Not a directory"):
        follow(run, recipe(**stages(1, 2), **training("tensorboard")))
    assert follow(run, recipe(**stages(1, 2))) == []


@pytest.mark.parametrize(
    ("log", "names", "fault"),
    [
        ([], (), None),
        ("wandb", ("wandb",), None),
        (["tensorboard", "wandb"], ("tensorboard", "wandb"), None),
        ("tensorbord", (), "training.log"),
        (["mlflow", "comet"], (), "training.log"),
        (["mlflow", "mlflow"], (), "names one of them twice"),
        (3, (), "training.log"),
        ({"mlflow": True}, (), "training.log"),
    ],
)
def test_a_recipe_names_one_or_several(log: Any, names: tuple[str, ...], fault: str | None) -> None:
    raw = RECIPE | training(log)
    assert Draft202012Validator(recipe_schema()).is_valid(raw) == (fault is None)
    if fault is None:
        assert recipe(**training(log)).running.log == names
        return
    with pytest.raises(RecipeError, match=fault):
        recipe(**training(log))
