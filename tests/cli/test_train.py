"""`run` and `partition`, seen from outside."""

import json
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from program import Program, fedmr_merge

from fedmr_merge.cli.run_view import memory_line
from fedmr_merge.federated.training import precision
from fedmr_merge.federated.training.gpu_memory import MemoryForecast
from fedmr_merge.recipe import prepare

RECIPE = """
name: small
data: {name: digits, partition: {kind: dirichlet, clients: 8}}
model: {name: cnn}
training: {clients_per_round: 2, local_epochs: 1}
stages: [fedmr: {rounds: 3}, evaluate: {}, publish: {}]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "small.yaml").write_text(RECIPE)
    return tmp_path


def test_run_says_what_it_made_and_what_to_type_next(folder: Path) -> None:
    done = fedmr_merge("run", "small.yaml", "--seed", 5, "--set", "training.lr=0.02", cwd=folder)
    assert done.returncode == 0, done.stderr
    for made in ("model.safetensors", "README.md", "curves.png"):
        path = f"runs/small/global/{made}"
        assert path in done.stdout
        assert (folder / path).exists()
    assert "fedmr-merge run small.yaml --set training.lr=0.02 --seed 5" in done.stdout
    assert "round 3 of 3, fedmr: accuracy" in done.stderr
    resolved = (folder / "runs" / "small" / "recipe.yaml").read_text()
    assert "seed: 5" in resolved
    assert "lr: 0.02" in resolved

    again = fedmr_merge("run", "small.yaml", "--seed", 5, "--set", "training.lr=0.02", cwd=folder)
    assert again.returncode == 0
    assert "resumed after round 3" in again.stdout

    changed = fedmr_merge("run", "small.yaml", "--seed", 6, "--set", "training.lr=0.02", cwd=folder)
    assert changed.returncode == 2
    assert "another recipe: seed: 5 → 6" in changed.stderr


def test_a_dry_run_writes_nothing(folder: Path) -> None:
    done = fedmr_merge("run", "small.yaml", "--dry-run", cwd=folder)
    assert done.returncode == 0
    assert "188,810 parameters in 4 layers" in done.stdout
    assert "8 clients with" in done.stdout
    assert "fedmr: 1.5 MB sent to the clients in a round, 1.5 MB sent back" in done.stdout  # 2 clients, 755 kB each
    assert [path.name for path in folder.iterdir()] == ["small.yaml"]


def test_a_dry_run_reports_who_must_be_trusted_and_a_processor_without_bfloat16(
    folder: Path, run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("dp_accounting")
    monkeypatch.setattr(precision, "describe_slow_bf16", lambda: "no instructions for bfloat16")
    privacy = "training.privacy={kind: central, clip: 2.0, noise_multiplier: 1.5}"
    settings = ["--set", privacy, "--set", "stages=[{fedavg: {rounds: 1}}]", "--dry-run"]
    code, output, errors = run("run", "small.yaml", *settings, "--set", "training.precision=bf16")
    assert code == 0, errors
    assert "noise of standard deviation 3 once to the sum of 2 updates" in output
    assert "epsilon assumes that the server is trusted" in output
    assert "warning: no instructions for bfloat16" in errors
    code, _, errors = run("run", "small.yaml", *settings)
    assert code == 0
    assert "bfloat16" not in errors


def test_a_dry_run_offers_bfloat16_where_a_model_may_gain_from_it(
    folder: Path, run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "describe_unused_bf16", lambda: "has instructions for bfloat16")
    monkeypatch.setattr(precision, "describe_slow_bf16", lambda: None)
    monkeypatch.setattr(prepare, "_LARGE_BATCH", 1.0)
    assert "note: has instructions for bfloat16" in run("run", "small.yaml", "--dry-run")[2]
    assert "bfloat16" not in run("run", "small.yaml", "--dry-run", "--set", "training.precision=bf16")[2]
    monkeypatch.setattr(prepare, "_LARGE_BATCH", 1e18)  # of a small model, other things take the time
    assert "bfloat16" not in run("run", "small.yaml", "--dry-run")[2]


def test_a_dry_run_reports_what_is_decided_for_last_batches_and_what_each_method_sends(
    folder: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    """In this process, which torchvision is imported into already."""
    settings = ["--set", "model.name=torchvision:resnet18", "--set", "training.batch_size=10"]
    settings += ["--set", "data.partition.clients=20"]
    stages = ["--set", "stages=[{fedavg: {rounds: 1}}, {fedgen: {rounds: 1}}]"]
    code, output, errors = run("run", "small.yaml", *settings, *stages, "--dry-run")
    assert code == 0, errors
    assert "last batches: the epochs of 4 clients (4, 5, 17, 18) end with one example" in output
    assert "it is added to the batch before (training.last_batch: merge)" in output
    sent = dict(re.findall(r"(\w+): ([\d.]+) MB sent to the clients in a round, [\d.]+ MB sent back", output))
    assert float(sent["fedgen"]) > float(sent["fedavg"])  # the generator
    code, _, errors = run("run", "small.yaml", *settings, "--set", "training.last_batch=keep")
    assert code == 2
    assert errors.count("\n") == 2
    assert "hint: set training.last_batch to merge or drop" in errors
    assert not (folder / "runs").exists()


def test_a_dry_run_reports_what_was_decided_about_the_data(folder: Path) -> None:
    partition = [[0, 1, 2], [3, 4, 5]]
    (folder / "few.json").write_text(json.dumps(partition))
    settings = ("--set", "data.partition={kind: file, path: few.json}", "--set", "training.clients_per_round=2")
    done = fedmr_merge("run", "small.yaml", *settings, "--dry-run", cwd=folder)
    assert re.search(r"no client has an example of \d+ classes: no model will learn \d, ", done.stderr)


def test_a_dry_run_fetches_nothing(folder: Path) -> None:
    pytest.importorskip("datasets")
    settings = ("--set", "data.name=hub:nobody/nothing")
    done = fedmr_merge("run", "small.yaml", *settings, "--dry-run", cwd=folder, HF_ENDPOINT="http://127.0.0.1:9")
    assert (done.returncode, done.stderr) == (0, "")
    assert "name: hub:nobody/nothing" in done.stdout
    assert "as a dry run fetches nothing: the Hub's data set nobody/nothing cannot be loaded" in done.stdout
    assert [path.name for path in folder.iterdir()] == ["small.yaml"]


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_and_a_batch_system_that_says_stop_save_and_say_how_to_go_on(
    folder: Path, stop: signal.Signals, code: int
) -> None:
    arguments = ("run", "small.yaml", "--set", "stages[0].fedmr.rounds=500", "--set", "training.checkpoint_every=400")
    process = Program(*arguments, cwd=folder)
    metrics = folder / "runs" / "small" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (metrics.exists() and metrics.read_text().count("\n") >= 3):
        time.sleep(0.02)
    process.send_signal(stop)
    done = process.wait()
    errors = done.stderr
    assert done.returncode == code
    assert "Traceback" not in errors
    stopped = [line for line in errors.splitlines() if line.startswith("stopped: ")]
    again = "fedmr-merge run small.yaml --set 'stages[0].fedmr.rounds=500' --set training.checkpoint_every=400"
    assert len(stopped) == 1
    assert stopped[0].endswith(f" of 500; this command resumes with the next round: {again}")
    saved = [path.name for path in (folder / "runs" / "small" / "checkpoints").iterdir()]
    assert len(saved) == 1, "the rounds that were done are saved, though no checkpoint was due"
    last_round = [json.loads(line) for line in metrics.read_text().splitlines()][-1]["round"]
    # A round that was just written down when the signal came is run again.
    assert saved[0] in (f"1-fedmr-{last_round:04d}", f"1-fedmr-{last_round - 1:04d}")


def test_partition_shows_a_table_and_draws_a_plot(folder: Path) -> None:
    done = fedmr_merge("partition", "small.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["client", "examples", "classes", *map(str, range(10))]
    sizes = [int(line.split()[1]) for line in lines[1:9]]
    assert f"8 clients with {min(sizes)} to {max(sizes)} of {sum(sizes):,} training examples" in done.stdout
    assert (folder / "small-partition.png").read_bytes().startswith(b"\x89PNG")
    drawn = (folder / "small-partition.png").read_bytes()
    other = fedmr_merge("partition", "small.yaml", "--set", "data.partition.clients=3", cwd=folder)
    assert (other.returncode, len(other.stdout.splitlines())) == (0, 6)
    assert "note: small-partition.png exists already and was left as it is; -o FILE" in other.stderr
    assert (folder / "small-partition.png").read_bytes() == drawn


def test_partition_needs_neither_the_device_nor_the_model(
    folder: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    """So that it is shown, on any machine, before the number of clients and the model are decided."""
    training = "training={device: cuda, precision: tf32, cohort_chunk: 2, clients_per_round: 9, validation_share: 0.1}"
    settings = ("--set", training, "--set", "model={name: cnn, init: absent.safetensors}")
    code, out, errors = run("partition", "small.yaml", *settings, "-o", "plot.png")
    assert code == 0, errors
    assert out.splitlines()[-2] == "plot: plot.png"
    assert "examples are held out of training for validation" in errors


def test_a_partition_is_plotted_as_a_new_png(folder: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    (folder / "old.png").touch()
    for place, message in (("plot.pdf", "plot.pdf: the plot is a PNG image"), ("old.png", "old.png: exists already")):
        code, out, errors = run("partition", "small.yaml", "-o", place)
        assert (code, out) == (2, "")
        assert message in errors
    assert {path.name for path in folder.iterdir()} == {"small.yaml", "old.png"}


def test_a_class_that_no_client_has_is_told(folder: Path) -> None:
    (folder / "clients.json").write_text(json.dumps([list(range(5)), list(range(5, 10))]))
    done = fedmr_merge(
        "partition", "small.yaml", "--set", "data.partition={kind: file, path: clients.json}", cwd=folder
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"warning: no client has an example of \d+ classes: no model will learn \d", done.stderr)


@pytest.mark.parametrize(("free", "fitting"), [(79_100_000_000, 10), (60_000_000, 2), (1_000_000, 0)])
def test_a_dry_run_on_a_gpu_reports_how_many_clients_fit(free: int, fitting: int) -> None:
    line = memory_line(MemoryForecast(client_bytes=26_000_000, free_bytes=free, clients=10))
    assert line.startswith("memory: a client needs at least 26.0 MB while it trains, and ")
    assert line.endswith(f"are free: at most {fitting} of the 10 clients of a round fit at once")
