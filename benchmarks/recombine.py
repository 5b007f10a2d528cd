"""What recombination and averaging cost, beside `cp`, a plain loop and mergekit: interleaved runs, medians.

    python benchmarks/recombine.py --folder /dev/shm                      copies, mean and start-up
    python benchmarks/recombine.py --only mean --mergekit VENV/bin/mergekit-yaml

A contender is a process of its own, whose CPU time and peak memory are what the kernel counted for it, or a call in
this process (`in one process`), which needs no interpreter to start. All contenders of a part run in turn, again and
again, in another order each time, so that whatever else the machine does hits all of them alike; what they write is
removed before and after each run, and the removing is not timed. Every copy ends with all bytes in the page cache;
`recombine` also flushes them to the disk, which costs nothing in a memory-backed folder. Point --folder at one, else
the disk is what is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedmr_merge.checkpoint.header import build_header
from fedmr_merge.recombination.options import OutputOptions
from fedmr_merge.recombination.recombine import recombine

MEGABYTE = 10**6
COMMAND = [sys.executable, "-m", "fedmr_merge", "--quiet"]
#: An installed package is compiled to byte code once; a process that may not keep it would compile it in every run.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
#: What people write by hand: all models open, one tensor after the other, the mean in float32.
PLAIN_LOOP = """
import sys, torch
from safetensors import safe_open
from safetensors.torch import save_file
*sources, out = sys.argv[1:]
models = [safe_open(source, "pt") for source in sources]
mean = {}
for name in models[0].keys():
    total = models[0].get_tensor(name).float()
    for model in models[1:]:
        total += model.get_tensor(name).float()
    mean[name] = (total / len(models)).bfloat16()
save_file(mean, out)
"""


@dataclass(frozen=True)
class Contender:
    """One command, or a call in this process, to time. `out` is removed before every run."""

    name: str
    command: Sequence[str] | Callable[[], object]
    out: Path


@dataclass(frozen=True)
class Cost:
    wall_seconds: float
    cpu_seconds: float
    peak_megabytes: float | None  #: None for a call: this process holds other things too


def main() -> None:
    options = _options()
    for part in options.only or ("copy", "mean", "start"):
        for megabytes in (0,) if part == "start" else options.megabytes[:1] if part == "copy" else options.megabytes:
            with tempfile.TemporaryDirectory(prefix="recombine-benchmark-", dir=options.folder) as folder:
                contenders = _contenders(part, Path(folder), options, megabytes)
                size = f", {options.models} models of {megabytes} MB" if megabytes else ""
                print(f"\n{part}{size}: {options.repeat} interleaved runs, medians (least to most wall seconds)")
                _show(contenders, _measure(contenders, options.repeat))


def _contenders(part: str, folder: Path, options: argparse.Namespace, megabytes: int) -> list[Contender]:
    if part == "start":
        return _start(folder)
    sources = [_model_folder(folder, slot, megabytes) for slot in range(options.models)]
    return _copy(folder, sources) if part == "copy" else _mean(folder, sources, options.mergekit)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default=None, help="where to work; the system's temporary folder if not given")
    parser.add_argument(
        "--megabytes",
        type=int,
        nargs="+",
        default=[150, 600],
        help="sizes of one model (default 150 600); copies are measured with the first",
    )
    parser.add_argument("--models", type=int, default=4, help="K (default 4)")
    parser.add_argument("--repeat", type=int, default=7, help="runs of every contender (default 7)")
    parser.add_argument("--only", nargs="*", choices=["copy", "mean", "start"], help="parts to run")
    parser.add_argument("--mergekit", help="path of mergekit-yaml in an environment of its own")
    return parser.parse_args()


def _copy(folder: Path, models: Sequence[Path]) -> list[Contender]:
    sources = list(map(str, models))
    out = folder / "out"
    stored = folder / "stored"
    _run([*COMMAND, "recombine", *sources, "-o", str(stored), "--layout", "store", "--no-global"])
    command = [*COMMAND, "recombine", *sources, "-o", str(out)]
    in_store = [*COMMAND, "recombine", *map(str, sorted(stored.glob("slot-*"))), "-o", str(out), "--layout", "store"]
    return [
        Contender("cp -r", ["cp", "-r", *sources, str(out)], out),
        Contender("recombine --no-global --no-hash", [*command, "--no-global", "--no-hash"], out),
        Contender("recombine --no-global --hash", [*command, "--no-global", "--hash"], out),
        Contender("recombine --hash", [*command, "--hash"], out),
        Contender("in one process: copy_file_range, file by file", lambda: _plain_copy(sources, out), out),
        Contender("in one process: recombine --no-global --no-hash", _function(sources, out, hash=False), out),
        Contender("in one process: recombine --no-global --hash", _function(sources, out, hash=True), out),
        Contender("recombine --layout store --no-global, inputs in a store", [*in_store, "--no-global"], out),
    ]


def _function(sources: Sequence[str], out: Path, *, hash: bool) -> Callable[[], object]:
    return lambda: recombine(sources, out, output=OutputOptions(mean=None, hash=hash))


def _plain_copy(sources: Sequence[str], out: Path) -> None:
    for source in map(Path, sources):
        (out / source.name).mkdir(parents=True)
        for path in source.iterdir():
            with path.open("rb") as before, (out / source.name / path.name).open("wb") as after:
                while os.copy_file_range(before.fileno(), after.fileno(), 1 << 30):
                    pass


def _mean(folder: Path, sources: Sequence[Path], mergekit: str | None) -> list[Contender]:
    files = [str(source / "model.safetensors") for source in sources]
    out = folder / "mean.safetensors"
    contenders = [
        Contender("average", [*COMMAND, "average", *files, "-o", str(out)], out),
        Contender("safe_open and torch, a plain loop", [sys.executable, "-c", PLAIN_LOOP, *files, str(out)], out),
    ]
    if mergekit:
        recipe = folder / "linear.yaml"
        models = [{"model": str(source), "parameters": {"weight": 1.0}} for source in sources]
        recipe.write_text(json.dumps({"merge_method": "linear", "models": models, "dtype": "bfloat16"}))
        merged = folder / "merged"
        arguments = [mergekit, str(recipe), str(merged), "--no-copy-tokenizer", "--quiet"]
        contenders.append(Contender("mergekit linear", arguments, merged))
    return contenders


def _start(folder: Path) -> list[Contender]:
    sources = []
    for slot in range(10):
        path = folder / f"{slot}.safetensors"
        _write(path, [(f"layer{i}.weight", (125, 100)) for i in range(10)], slot)
        sources.append(str(path))
    out = folder / "out"
    return [
        Contender("fedmr-merge --help", [*COMMAND, "--help"], out),
        Contender("recombine ten models of 250 kB", [*COMMAND, "recombine", *sources, "-o", str(out)], out),
    ]


def _model_folder(folder: Path, slot: int, megabytes: int) -> Path:
    """A Llama-shaped bf16 model of about this size, as transformers saves it."""
    hidden, inner, vocabulary = 1024, 2816, 16000
    of_layer = 4 * hidden**2 + 3 * hidden * inner
    layers = max(1, round((megabytes * MEGABYTE / 2 - 2 * vocabulary * hidden) / of_layer))
    tensors = [("lm_head.weight", (vocabulary, hidden)), ("model.embed_tokens.weight", (vocabulary, hidden))]
    for layer in range(layers):
        place = f"model.layers.{layer}"
        tensors += [(f"{place}.self_attn.{part}_proj.weight", (hidden, hidden)) for part in "kqvo"]
        tensors += [(f"{place}.mlp.{part}_proj.weight", (inner, hidden)) for part in ("gate", "up")]
        tensors += [(f"{place}.mlp.down_proj.weight", (hidden, inner))]
        tensors += [(f"{place}.{part}_layernorm.weight", (hidden,)) for part in ("input", "post_attention")]
    tensors += [("model.norm.weight", (hidden,))]
    target = folder / f"model-{slot}"
    target.mkdir()
    _write(target / "model.safetensors", tensors, slot)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "vocab_size": vocabulary,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    (target / "config.json").write_text(json.dumps(config))
    return target


def _write(path: Path, tensors: Sequence[tuple[str, tuple[int, ...]]], seed: int) -> None:
    """Write a bf16 file of normal numbers with a deviation of 0.02, as weights have."""
    generator = np.random.default_rng(seed)
    with path.open("wb") as stream:
        stream.write(build_header([(n, "BF16", s, 2 * int(np.prod(s))) for n, s in tensors], {"format": "pt"}))
        for _, shape in tensors:
            for _ in range(shape[0]):
                row = generator.standard_normal(int(np.prod(shape[1:])), np.float32) * np.float32(0.02)
                stream.write((row.view(np.uint32) >> 16).astype("<u2").tobytes())


def _measure(contenders: Sequence[Contender], repeat: int) -> list[list[Cost]]:
    costs: list[list[Cost]] = [[] for _ in contenders]
    for turn in range(repeat + 1):
        pairs = list(zip(contenders, costs, strict=True))
        random.Random(turn).shuffle(pairs)
        for contender, found in pairs:
            _remove(contender.out)
            if not callable(contender.command) and contender.command[0] == "cp":
                contender.out.mkdir()
            cost = _call(contender.command) if callable(contender.command) else _run(contender.command)
            if turn:  # the first run warms the caches
                found.append(cost)
            _remove(contender.out)
    return costs


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _run(command: Sequence[str]) -> Cost:
    start = time.perf_counter()
    devnull = os.open(os.devnull, os.O_WRONLY)
    silent = [(os.POSIX_SPAWN_DUP2, devnull, 1), (os.POSIX_SPAWN_DUP2, devnull, 2)]
    process = os.posix_spawnp(command[0], list(command), ENVIRONMENT, file_actions=silent)
    os.close(devnull)
    _, status, usage = os.wait4(process, 0)
    wall = time.perf_counter() - start
    if status:
        raise SystemExit(f"failed ({status}): {' '.join(command)}")
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / MEGABYTE)


def _call(function: Callable[[], object]) -> Cost:
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return Cost(time.perf_counter() - wall, time.process_time() - cpu, None)


def _show(contenders: Sequence[Contender], costs: Sequence[Sequence[Cost]]) -> None:
    first = statistics.median(cost.wall_seconds for cost in costs[0])
    first_cpu = statistics.median(cost.cpu_seconds for cost in costs[0])
    print(f"{'':56} {'wall s':>8} {'':15} {'x':>6} {'CPU s':>8} {'x':>6} {'peak MB':>8}")
    for contender, found in zip(contenders, costs, strict=True):
        wall = sorted(cost.wall_seconds for cost in found)
        middle = statistics.median(wall)
        cpu = statistics.median(cost.cpu_seconds for cost in found)
        peaks = [cost.peak_megabytes for cost in found if cost.peak_megabytes is not None]
        peak = f"{max(peaks):8.0f}" if peaks else ""
        spread = f"({wall[0]:.2f} to {wall[-1]:.2f})"
        ratios = f"{middle / first:6.2f} {cpu:8.2f} {cpu / first_cpu:6.2f}"
        print(f"{contender.name:56} {middle:8.2f} {spread:>15} {ratios} {peak}")


if __name__ == "__main__":
    main()
