"""Every command that writes, killed at random operations and moments, on a disk that fills up, with errors of the disk.

The same command again ends with what there would have been; inputs stay as they were; nothing is left over.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import small_runs
import yaml
from attempts import contents, difference, numbers, torture
from faults import REMOVALS, WAYS, WRITES, Fault, Ran, forked
from small_checkpoints import model, write_sharded

pytestmark = pytest.mark.torture
SHARE = 40  #: attempts of a mutation for each of a fault
TINY = small_runs.RECIPE | {"stages": [{"fedmr": {"rounds": 2}}, {"evaluate": {}}, {"publish": {"what": "both"}}]}
MODELS = ["m0", "m1"]
REASONS = ("No space left on device", "Input/output error", "File too large", "the disk is full")
CHECKPOINTS = "run/checkpoints/"
STAGING = re.compile(r"(^|/)\.[^/]*staging-[^/]*$")


@dataclass(frozen=True)
class Command:
    """A command, and the commands before it."""

    words: Sequence[str]
    before: Sequence[Sequence[str]] = ()
    remove: Sequence[str] = ()  #: what is removed after these
    repeats: bool = False  #: whether the same command may be typed again after it has succeeded
    writes: Sequence[str] = ()  #: what it may change


RECOMBINE = ["recombine", *MODELS, "-o", "out"]
RUN = ["run", "tiny.yaml", "-o", "run"]
STORE = ["recombine", *MODELS, "--layout", "store", "--store", "store", "--no-global", "-o"]
COMMANDS = {
    "recombine": Command(RECOMBINE),
    "recombine --max-shard-size": Command([*RECOMBINE, "--max-shard-size", "400"]),
    "recombine --layout store": Command([*STORE, "out"]),
    "recombine into a store that is there": Command([*STORE, "more"], [[*STORE, "out", "--seed", "3"]]),
    "recombine --save-plan": Command([*RECOMBINE, "--dry-run", "--save-plan", "plan.json"]),
    "average": Command(["average", *MODELS, "-o", "mean"]),
    "undo": Command(["undo", "out", "-o", "back"], [RECOMBINE]),
    "verify": Command(["verify", "out"], [[*RECOMBINE, "--no-hash", "--no-global"]], repeats=True),
    "store gc": Command(["store", "gc", "store"], [[*STORE, "out"]], remove=["out"], repeats=True),
    "card": Command(["card", "out", "--preview"], [RECOMBINE], repeats=True),
    "run": Command(RUN, repeats=True),
    "run --fresh": Command([*RUN, "--fresh"], [[*RUN, "--seed", "7"]], repeats=True),
    "run --extend": Command([*RUN, "--extend"], [["run", "one.yaml", "-o", "run"]], repeats=True),
    "partition": Command(["partition", "tiny.yaml", "-o", "partition.png"]),
    "compare": Command(["compare", "run", "-o", "table"], [RUN]),
    "report": Command(["report", "run", "-o", "page"], [RUN]),
    "recipes copy": Command(["recipes", "copy", "digits", "-o", "mine.yaml"]),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults") / "base"
    for slot in range(2):
        write_sharded(folder / f"m{slot}", model(slot), 2, sidecars={"config.json": "{}", "tokenizer.json": "[]"})
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    (folder / "one.yaml").write_text(yaml.safe_dump(TINY | {"stages": [{"fedmr": {"rounds": 1}}]}))
    return folder


@dataclass(frozen=True)
class Known:
    """A command without faults."""

    start: Path  #: the folder before it
    before: dict[str, bytes]
    after: dict[str, bytes]
    stable: frozenset[str]  #: what two clean runs agree on
    operations: tuple[str, ...]
    seconds: float
    models: dict[str, bytes]  #: of the newest checkpoint of a run


def look(folder: Path) -> dict[str, bytes]:
    """Return the entries of a folder; of a run's metrics and card all but what the clock says."""
    found = contents(folder)
    for name in found:
        if name.endswith("metrics.jsonl"):
            lines = [json.loads(line) for line in found[name].splitlines()]
            found[name] = json.dumps([{k: v for k, v in line.items() if k != "seconds"} for line in lines]).encode()
        if name.endswith("README.md"):
            found[name] = re.sub(rb"\| training time .*", b"", found[name])
    # A run that was resumed keeps the checkpoint that it was resumed from.
    return {n: content for n, content in found.items() if not n.endswith("/.lock") and not n.startswith(CHECKPOINTS)}


@pytest.fixture(scope="module")
def known(base: Path) -> Callable[[str], Known]:
    found: dict[str, Known] = {}

    def find(name: str) -> Known:
        if name not in found:
            command = COMMANDS[name]
            start = Path(shutil.copytree(base, Path(tempfile.mkdtemp(dir=base.parent)) / "start"))
            for words in command.before:
                ran = forked(words, start, base.parent / "notes")
                assert ran.code == 0, ran.errors
            for entry in command.remove:
                shutil.rmtree(start / entry) if (start / entry).is_dir() else (start / entry).unlink()
            ends = []
            for _ in range(2):
                folder = Path(shutil.copytree(start, Path(tempfile.mkdtemp(dir=base.parent)) / "end"))
                ran = forked(command.words, folder, base.parent / "notes")
                assert ran.code == 0, ran.errors
                ends.append(look(folder))
                models = small_runs.models(folder / "run") if (folder / "run").exists() else {}
                shutil.rmtree(folder)
            assert ends[0].keys() == ends[1].keys()
            stable = frozenset(name for name in ends[0] if ends[0][name] == ends[1][name])
            found[name] = Known(start, look(start), ends[0], stable, ran.operations, ran.seconds, models)
        return found[name]

    return find


def ended(known: Known, folder: Path, staging: bool = False) -> str | None:
    """Say how a folder differs from how the command leaves it; staging folders may be left over."""
    found = look(folder)
    if others := [name for name in found.keys() ^ known.after.keys() if not (staging and STAGING.search(name))]:
        return f"left over or missing: {sorted(others)[:8]}"
    if known.models and known.models != small_runs.models(folder / "run"):
        return "the models of the run are others"
    return difference({n: known.after[n] for n in known.stable}, {n: found[n] for n in known.stable})


def again(command: Command, known: Known, folder: Path, notes: Path) -> str | None:
    """Say what is wrong with the same command, typed again."""
    second = forked(command.words, folder, notes)
    done = second.code == 2 and "exists already" in second.errors and not command.repeats
    if second.code != 0 and not done:
        return f"the same command again ends with {second.code}: {second.errors[-900:]}"
    # An empty staging folder stays beside an output that is complete until this output is written anew.
    return (fault := ended(known, folder, staging=done)) and f"after the same command again: {fault}"


def complaint(ran: Ran, known: Known, folder: Path, in_place: bool) -> str | None:
    """Say what is wrong with how a command met an error of the disk."""
    if ran.fault:
        return ran.fault
    if ran.code == 0 and any(reason in ran.errors for reason in REASONS):
        return None  # a warning: what the command was asked for is done
    if ran.code == 0:
        return (fault := ended(known, folder, ran.failed in REMOVALS)) and f"exit code 0, and yet: {fault}"
    lines = ran.errors.splitlines()
    if not any(line.startswith("error: ") and any(reason in line for reason in REASONS) for line in lines):
        return f"the error does not say what the disk said: {ran.errors[-600:]}"
    if not any(line.startswith("hint: ") for line in lines):
        return f"no hint: {ran.errors[-600:]}"
    if not in_place and ran.failed not in REMOVALS:
        kept = {name: content for name, content in look(folder).items() if not name.startswith("store")}
        expected = {name: content for name, content in known.before.items() if not name.startswith("store")}
        if changed := difference(expected, kept):
            return f"exit code {ran.code}, and yet {changed}: {ran.errors[-300:]}"
    return None


@pytest.mark.parametrize("way", [*WAYS, "late", "limit"])
@pytest.mark.parametrize("name", COMMANDS)
def test_the_same_command_again_ends_as_if_nothing_had_been(
    name: str,
    way: str,
    known: Callable[[str], Known],
    tmp_path: Path,
) -> None:
    command, clean = COMMANDS[name], known(name)
    if way == "short" and not set(clean.operations) & set(WRITES):
        pytest.skip(f"{name} writes nothing")

    def one(draw: random.Random) -> str | Ran:
        folder = Path(shutil.copytree(clean.start, tmp_path / "here"))
        inputs = {n: c for n, c in clean.before.items() if n.startswith(("m0", "m1", "tiny", "one"))}
        match way:
            case "late":
                fault = Fault(way, draw.uniform(0, clean.seconds))
            case "limit":
                fault = Fault(way, draw.choice((0, 1, 100, 400, 1000, 4096, 10_000, 50_000)))
            case "short":
                writes = [number for number, name in enumerate(clean.operations, start=1) if name in WRITES]
                fault = Fault(way, draw.choice(writes))
            case _:
                fault = Fault(way, draw.randint(1, len(clean.operations)))
        try:
            first = forked(command.words, folder, tmp_path / "notes", fault)
            found = None
            if way in ("short", "full", "error", "limit"):
                found = complaint(first, clean, folder, command.repeats)
            found = found or again(command, clean, folder, tmp_path / "notes")
            found = found or difference(inputs, {n: c for n, c in look(folder).items() if n in inputs})
            if first.code is None:  # killed, as it had to be
                first = replace(first, code=0, errors="")
            return f"{fault}, {first.failed}: {found}" if found else first
        finally:
            shutil.rmtree(folder)

    torture(f"faults: {way}", name, numbers(share=SHARE), one)
