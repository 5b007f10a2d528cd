"""Mutated weight files, indexes, configurations, lineages, plans and rule files, under every command that reads one."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from attempts import BATCHES, Outcome, attempt, contents, difference, numbers, torture
from mutation import mutated_bytes, mutated_json, mutated_yaml
from safetensors import SafetensorError
from small_checkpoints import model, read, write, write_folder, write_sharded
from small_run import command

pytestmark = [pytest.mark.torture, pytest.mark.parametrize("batch", range(BATCHES))]
CONFIG = {
    "architectures": ["Tiny"],
    "model_type": "tiny",
    "torch_dtype": "float32",
    "tie_word_embeddings": False,
    "id2label": {"0": "no", "1": "yes"},
    "hidden_size": 8,
}
RULES = {
    "description": "a convolution with its normalisation",
    "detect": ["bn1.*"],
    "rules": [
        {"match": "{re:bn|conv}{n:re:[0-9]+}.*", "group": "conv{n}"},
        {"match": "re:block\\.(?P<i>\\d+)\\..*", "group": "block{i}"},
        {"match": "{m:**}.*", "group": "{m}"},
        {"match": "**", "group": "rest", "recombine": "pin"},
    ],
    "ties": [["block.0.weight", "head.weight"]],
    "require_equal": {"config.json": ["hidden_size"]},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two of each: a file, a folder with a configuration, a sharded folder; a recombination, a plan, a rule file."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for slot in range(2):
        write(folder / f"{slot}.safetensors", model(slot), {"format": "pt"})
        write_folder(folder / f"folder{slot}", model(slot), {"config.json": json.dumps(CONFIG), "tokenizer.json": "{}"})
        write_sharded(folder / f"shards{slot}", model(slot), 2, sidecars={"config.json": json.dumps(CONFIG)})
    files = [folder / f"{slot}.safetensors" for slot in range(2)]
    (folder / "rules.yaml").write_text(yaml.safe_dump(RULES))
    assert command("--quiet", "inspect", files[0], "--rule", folder / "rules.yaml") == 0
    assert command("--quiet", "recombine", *files, "-o", folder / "out") == 0
    assert command("--quiet", "recombine", *files, "-o", folder / "unhashed", "--no-hash", "--no-global") == 0
    assert command("--quiet", "average", *files, "-o", folder / "mean") == 0
    assert command("--quiet", "recombine", *files, "--dry-run", "--save-plan", folder / "plan.json") == 0
    return folder


def tensors(*paths: Path) -> Counter[tuple[str, str, tuple[int, ...], bytes]]:
    """Count every tensor of some models, as the safetensors library reads them."""
    return Counter((name, *raw) for path in paths for name, raw in read(path).items())


def ways(draw: random.Random, inputs: list[Path], out: Path) -> list[object]:
    """Draw a command that reads checkpoints."""
    choices: list[list[object]] = [
        ["inspect", inputs[-1]],
        ["inspect", inputs[-1], "--rule", "auto"],
        ["plan", *inputs],
        ["average", *inputs, "-o", out],
        *[["recombine", *inputs, "-o", out]] * 3,
        ["recombine", *inputs, "-o", out, "--max-shard-size", "500", "--no-global"],
        ["recombine", *inputs, "-o", out, "--layout", "store", "--store", out.parent / "store"],
    ]
    return draw.choice(choices)


def merged(words: list[object], inputs: list[Path], out: Path) -> str | Outcome:
    """Run the command on inputs that have been mutated, and look at what it wrote."""
    before = contents(out.parent)
    outcome = attempt(words)
    if outcome.fault is None and out.exists():
        if outcome.code:
            return f"exit code {outcome.code}, and yet it wrote {out.name}: {outcome.errors}"
        try:
            expected = tensors(*inputs)
            found = tensors(*(path for path in out.iterdir() if path.name.startswith("slot-")))
        except SafetensorError as error:
            return f"exit code 0, but the safetensors library refuses: {error}"
        if words[0] == "recombine" and found != expected:
            return f"exit code 0, but {len(expected - found)} tensors are lost and {len(found - expected)} are new"
        if words[0] == "recombine" and (proof := attempt(["verify", out])).code != 0:
            return f"exit code 0, but it is not verified: {proof.errors}"
    shutil.rmtree(out, ignore_errors=True)
    shutil.rmtree(out.parent / "store", ignore_errors=True)
    return difference(before, contents(out.parent)) or outcome


def of_inputs(
    name: str, inside: str, mutate: Callable[[bytes, random.Random], bytes]
) -> Callable[[Path, Path, random.Random], str | Outcome]:
    """Return an attempt on inputs of which one, or each in the same way, is mutated."""

    def one(place: Path, scratch: Path, draw: random.Random) -> str | Outcome:
        inputs = [scratch / name.format(slot) for slot in range(2)]
        seed, both = draw.random(), draw.random() < 0.5
        for slot, path in enumerate(inputs):
            source = place / path.name
            shutil.copytree(source, path) if source.is_dir() else shutil.copyfile(source, path)
            if slot or both:
                target = path / inside if inside else path
                target.write_bytes(mutate(target.read_bytes(), random.Random(seed)))
        return merged([*map(str, ways(draw, inputs, scratch / "out"))], inputs, scratch / "out")

    return one


def header(content: bytes, draw: random.Random) -> bytes:
    """Mutate the header of a weight file, with a length that fits it or with that of before."""
    length = int.from_bytes(content[:8], "little")
    text, data = content[8 : 8 + length], content[8 + length :]
    match draw.randrange(4):
        case 0:
            return mutated_bytes(content[: 8 + length], draw) + data
        case 1:
            size = draw.choice((0, 1, 7, length - 1, length + 1, length + 8, 2**31, 2**63 - 1, 2**64 - 1, 100_000_001))
            return size.to_bytes(8, "little") + text + data
        case _:
            text = mutated_json(text, draw)
            return len(text).to_bytes(8, "little") + text + data


def lineage(place: Path, scratch: Path, draw: random.Random) -> str | Outcome:
    name = draw.choice(("out", "out", "out", "unhashed", "mean"))
    out = Path(shutil.copytree(place / name, scratch / name))
    file = out / "lineage.json"
    file.write_bytes(mutated_json(file.read_bytes(), draw))
    originals = [place / f"{slot}.safetensors" for slot in range(2)]
    words: list[object] = draw.choice(
        [
            ["verify", out],
            ["verify", out, *(word for path in originals for word in ("--against", path))],
            ["undo", out, "-o", scratch / "back"],
            ["lineage", out, "block.0.weight"],
            ["lineage", out, "head.weight", "--slot", "1"],
            ["recombine", out / "*", "-o", scratch / "again"],
            ["inspect", out / ("global" if name == "out" else "slot-00")],
            ["card", out],
            ["push", out, "alice/x", "--dry-run"],
        ]
    )
    before = contents(out)
    outcome = attempt(words)
    if outcome.code == 0 and words[0] == "undo" and tensors(*(scratch / "back").iterdir()) != tensors(*originals):
        return "exit code 0, but what is undone is not what there was"
    may_change = {"verify": {"lineage.json"}, "card": {"README.md"}}.get(str(words[0]), set())
    after = contents(out) | {name: before[name] for name in may_change & before.keys()}
    return (
        difference(before, {name: after[name] for name in after if name not in may_change - before.keys()}) or outcome
    )


def plan(place: Path, scratch: Path, draw: random.Random) -> str | Outcome:
    file, out = scratch / "plan.json", scratch / "out"
    content = (place / draw.choice(("plan.json", "plan.json", "out/lineage.json"))).read_bytes()
    file.write_bytes(mutated_json(content, draw))
    inputs = [place / f"{slot}.safetensors" for slot in range(2)]
    words = ["recombine", *inputs, "--plan", file, "-o", out, *draw.choice(([], ["--dry-run"], ["--pin", "head.*"]))]
    return merged(words, inputs, out)


def rules(place: Path, scratch: Path, draw: random.Random) -> str | Outcome:
    file, out = scratch / "rules.yaml", scratch / "out"
    file.write_bytes(mutated_yaml((place / "rules.yaml").read_bytes(), draw))
    inputs = [place / f"{slot}.safetensors" for slot in range(2)]
    words = draw.choice(
        [
            ["rules", "check", file, *inputs],
            ["rules", "explain", file, inputs[0]],
            ["inspect", inputs[0], "--rule", file],
            ["plan", *inputs, "--rule", file],
            ["recombine", *inputs, "--rule", file, "-o", out],
        ]
    )
    return merged(words, inputs, out)


KINDS = {
    "headers": of_inputs("{}.safetensors", "", header),
    "weight files": of_inputs("{}.safetensors", "", mutated_bytes),
    "indexes": of_inputs("shards{}", "model.safetensors.index.json", mutated_json),
    "configurations": of_inputs("folder{}", "config.json", mutated_json),
    "lineages": lineage,
    "plans": plan,
    "rule files": rules,
}


@pytest.mark.parametrize("kind", KINDS)
def test_mutated(kind: str, batch: int, place: Path, tmp_path: Path) -> None:
    """A command ends with 0 and what is right, or with 2 and what is wrong; nothing is half-written or changed."""
    before = contents(place)

    def one(draw: random.Random) -> str | Outcome:
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        try:
            return KINDS[kind](place, scratch, draw)
        finally:
            shutil.rmtree(scratch)

    torture("mutated files", kind, numbers(batch, BATCHES), one)
    assert difference(before, contents(place)) is None
