"""Fill the tables of docs/reliability.md with the figures of `pytest -m torture`.

    FEDMR_MERGE_TORTURE_RESULTS=torture pytest -m torture
    python benchmarks/reliability.py torture

The tests may have been run in parts (`-k`, `FEDMR_MERGE_TORTURE=100:200`), on one machine or on many: the figures of
all parts are added up. The same attempt in two of them counts once, as it is drawn from its kind and its number alone.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from generated import fill

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
KILLS = ("kill", "torn", "late")
_PACKAGES = ("torch", "safetensors", "pydantic")


@dataclass
class Figures:
    """What became of the attempts of a kind."""

    numbers: set[int] = field(default_factory=set)
    accepted: int = 0  #: with exit code 0, or killed
    refused: int = 0
    failures: list[str] = field(default_factory=list)
    slowest_seconds: float = 0.0
    processor_seconds: float = 0.0

    @property
    def attempts(self) -> int:
        return self.accepted + self.refused + len(self.failures)


def read(folders: Iterable[Path]) -> dict[tuple[str, str], Figures]:
    """Return (section, kind) → its figures, from the files of all folders."""
    found: dict[tuple[str, str], Figures] = {}
    for path in sorted(path for folder in folders for path in folder.glob("*.json")):
        part = json.loads(path.read_text(encoding="utf-8"))
        figures = found.setdefault((part["section"], part["kind"]), Figures())
        numbers = set(part["numbers"])
        if numbers & figures.numbers:
            if numbers <= figures.numbers:
                continue
            raise SystemExit(f"{path}: some of its attempts are in another file, and some are not: remove one of them")
        figures.numbers |= numbers
        figures.accepted += part["accepted"]
        figures.refused += part["refused"]
        figures.failures += part["failures"]
        figures.slowest_seconds = max(figures.slowest_seconds, part["slowest_seconds"])
        figures.processor_seconds += part["processor_seconds"]
    return found


def table(found: dict[tuple[str, str], Figures], section: str) -> str:
    """Return the table of one section: its kinds, and their sum."""
    rows = [(kind, figures) for (of, kind), figures in found.items() if of == section]
    lines = [
        "| kind | attempts | accepted | refused | failures | slowest |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [_row(kind, [figures]) for kind, figures in rows]
    return "\n".join([*lines, _row("**all**", [figures for _, figures in rows])]) + "\n"


def _row(name: str, parts: Sequence[Figures]) -> str:
    sums = [sum(part.attempts for part in parts), sum(part.accepted for part in parts)]
    sums += [sum(part.refused for part in parts), sum(len(part.failures) for part in parts)]
    slowest = max((part.slowest_seconds for part in parts), default=0.0)
    return f"| {name} | {' | '.join(f'{number:,}' for number in sums)} | {slowest:.1f} s |"


def fault_table(found: dict[tuple[str, str], Figures]) -> str:
    """Return the table of faults: a row for each command, a column for each fault, `attempts (failures)`."""
    ways = list(dict.fromkeys(section.partition(": ")[2] for section, _ in found if section.startswith("faults: ")))
    commands = list(dict.fromkeys(kind for section, kind in found if section.startswith("faults: ")))
    lines = [f"| command | {' | '.join(ways)} |", f"| --- |{' ---: |' * len(ways)}"]
    for command in commands:
        cells = [found.get((f"faults: {way}", command), Figures()) for way in ways]
        lines.append(f"| `{command}` | {' | '.join(_cell([figures]) for figures in cells)} |")
    columns = [[figures for (section, _), figures in found.items() if section == f"faults: {way}"] for way in ways]
    lines.append(f"| **all** | {' | '.join(map(_cell, columns))} |")
    killed = sum(f.attempts for (section, _), f in found.items() if section.partition(": ")[2] in KILLS)
    return "\n".join(lines) + f"\n\n{killed:,} of these are kills by SIGKILL.\n"


def _cell(parts: Sequence[Figures]) -> str:
    return f"{sum(part.attempts for part in parts):,} ({sum(len(part.failures) for part in parts)})"


def machine(found: dict[tuple[str, str], Figures], when: str) -> str:
    """Return a sentence on where and when the figures were measured."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in _PACKAGES)
    minutes = sum(figures.processor_seconds for figures in found.values()) / 60
    return (
        f"Measured on {when} ({platform.system()} {platform.release().partition('-')[0]}, Python "
        f"{platform.python_version()}, {versions}) in {minutes:,.0f} minutes of the processor. A failure is "
        "counted even where it was fixed afterwards.\n"
    )


def main() -> None:
    """Read the folders and write the page; exit with 1 where there were failures, which are listed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--date", required=True, help="when the tests were run, for example 2026-11-26")
    options = parser.parse_args()
    found = read(options.folders)
    page = PAGE.read_text(encoding="utf-8")
    tables = {"mutated files": table(found, "mutated files"), "faults": fault_table(found)}
    for name, text in tables.items():
        parts = {key: figures for key, figures in found.items() if key[0].startswith(name)}
        if parts:  # the figures of a part that was not run again stay
            page = fill(page, name, f"{machine(parts, options.date)}\n{text}")
    PAGE.write_text(page, encoding="utf-8")
    failures = [failure for figures in found.values() for failure in figures.failures]
    print(f"{PAGE}: {sum(figures.attempts for figures in found.values()):,} attempts, {len(failures)} failures")
    print("\n".join(failures))
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
