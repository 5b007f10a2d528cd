"""A sweep file: a base recipe, axes along which it varies, and seeds. It stands for many runs.

    name: table1
    recipe: authors/{model}-{data}.yaml    # a recipe file, from here; {axis} stands for the choice on it
    seeds: [0, 1, 2]
    axes:                                     # axis → choice → the settings that make it
      model: {cnn: {}, resnet20: {}}
      data: {cifar10: {}, femnist: {}}
      data.partition.alpha: [0.1, 0.5]        # short for {alpha=0.1: {data.partition.alpha: 0.1}, …}
      method:
        FedAvg: {stages: [{fedavg: {rounds: 500}}, {evaluate: {}}]}
        FedProx: {stages: [{fedprox: {rounds: 500, mu: 0.01}}, {evaluate: {}}]}
    when:                                     # settings for some combinations alone, applied last
      - {if: {data: cifar100, method: FedProx}, set: {'stages[0].fedprox.mu': 0.001}}
    exclude:                                  # combinations that are not run
      - {data: femnist, alpha: alpha=0.1}
    reference: {file: table1.csv, choices: {cnn: CNN}}      # published numbers, to be compared with

A run's recipe is the base recipe, changed first by the settings of the command line, then by those of its choices in
the order of the axes, then by those of `when`, then by its seed. `recipe` among the settings of a choice replaces the
base recipe.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, MinLen

from fedmr_merge.errors import RecipeError
from fedmr_merge.options import Faults, check_options, mapping
from fedmr_merge.recipe.ready_made import Located
from fedmr_merge.recipe.text import apply_value, read_recipe_text

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True)
class Reference:
    """Published numbers that the runs of a sweep are compared with."""

    file: str  #: a CSV file beside the sweep file: a column for each axis, then `accuracy_mean` and `accuracy_std` in %
    choices: dict[str, str] = field(default_factory=dict)  #: choice → what the file calls it, where that differs
    where: dict[str, str] = field(default_factory=dict)  #: column → value, for the rows of the file that count


@dataclass(frozen=True)
class When:
    """Settings for the combinations that have these choices."""

    choices: Mapping[str, str]  #: axis → choice
    settings: Mapping[str, Any]  #: path in the recipe → value


@dataclass(frozen=True)
class _Plain:
    """The parts of a sweep file that are checked by their types alone."""

    seeds: Annotated[tuple[Annotated[int, Ge(0)], ...], MinLen(1)] = (0,)
    reference: Reference | None = None


@dataclass(frozen=True)
class SweepFile:
    """A checked sweep file."""

    name: str
    folder: Path  #: where the file lies: paths in it start here
    recipe: str
    seeds: tuple[int, ...]
    axes: Mapping[str, Mapping[str, Mapping[str, Any]]]  #: axis → choice → settings
    when: tuple[When, ...]
    exclude: tuple[Mapping[str, str], ...]  #: each: axis → choice
    reference: Reference | None

    @property
    def reference_file(self) -> Path | None:
        """The file of published numbers, if the sweep names one."""
        return self.folder / self.reference.file if self.reference else None


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep: a combination of choices and a seed."""

    name: str  #: of its folder, unique in the sweep
    choices: Mapping[str, str]  #: axis → choice
    seed: int
    recipe: Mapping[str, Any]  #: as its YAML file says it, unchecked
    code_folders: tuple[Path, ...] = ()  #: where modules are looked for that the recipe names; none: the current one


def read_sweep(path: Path) -> SweepFile:
    """Read a sweep file. Raises RecipeError with every fault."""
    faults = Faults()
    top = mapping(read_recipe_text(path), "", faults)
    known = ("name", "recipe", "seeds", "axes", "when", "exclude", "reference")
    for key in [key for key in top if key not in known]:
        faults.unknown(key, key, known, "key of a sweep file")
        del top[key]
    name, recipe = top.get("name", path.stem), top.get("recipe")
    if not (isinstance(name, str) and _NAME.match(name)):
        faults.add("name", "expected letters, digits, '.', '_' and '-'")
    if not isinstance(recipe, str):
        faults.add("recipe", "expected the path of a recipe, from the folder of this file")
    axes = _axes(top.get("axes"), faults)
    values = check_options(_Plain, {key: top[key] for key in ("seeds", "reference") if key in top}, "", faults)
    when = tuple(_when(raw, f"when[{i}]", axes, faults) for i, raw in enumerate(_items(top, "when", faults)))
    exclude = tuple(
        _choices(raw, f"exclude[{i}]", axes, faults) for i, raw in enumerate(_items(top, "exclude", faults))
    )
    if not faults:
        sweep = SweepFile(name, path.parent, str(recipe), values["seeds"], axes, when, exclude, values["reference"])
        _refuse_shared_folders(sweep, faults)
    if faults:
        raise RecipeError(path, faults, hint="the documentation of sweeps shows what such a file may say")
    return sweep


def _refuse_shared_folders(sweep: SweepFile, faults: Faults) -> None:
    """Note combinations whose runs would have the same folders, as their names differ in special characters alone."""
    owners: dict[str, str] = {}
    for choices in _combinations(sweep, sweep.axes):
        spelled = ", ".join(choices.values())
        owner = owners.setdefault(_folder_name(sweep, choices), spelled)
        if owner != spelled:
            faults.add(
                "axes",
                f"{owner!r} and {spelled!r} would have the same folder: make their names differ in letters or digits",
            )


def _items(top: Mapping[str, Any], key: str, faults: Faults) -> list[Any]:
    raw = top.get(key) or []
    if isinstance(raw, list):
        return raw
    faults.add(key, "expected a list")
    return []


def _axes(raw: Any, faults: Faults) -> dict[str, dict[str, dict[str, Any]]]:
    axes: dict[str, dict[str, dict[str, Any]]] = {}
    owners: dict[str, str] = {}
    for key, choices in mapping(raw, "axes", faults).items():
        axis = key.rpartition(".")[2]
        if isinstance(choices, list):  # a setting, and the values that it takes
            choices = {f"{axis}={value}": {key: value} for value in choices}
        found = mapping(choices, f"axes.{key}", faults)
        if not found:
            faults.add(f"axes.{key}", "has no choices")
        if axis in axes:
            faults.add(
                f"axes.{key}", f"another axis is called {axis!r}: give this one a name, and each choice its settings"
            )
        axes[axis] = {name: mapping(settings, f"axes.{key}.{name}", faults) for name, settings in found.items()}
        for name in found:
            if name in owners:
                faults.add(f"axes.{key}.{name}", f"the axis {owners[name]} has a choice of this name, too")
            owners[name] = axis
    return axes


def _when(raw: Any, path: str, axes: Mapping[str, Any], faults: Faults) -> When:
    options = mapping(raw, path, faults)
    for key in options.keys() - {"if", "set"}:
        faults.unknown(f"{path}.{key}", key, ("if", "set"), "key")
    choices = _choices(options.get("if"), f"{path}.if", axes, faults)
    return When(choices, mapping(options.get("set"), f"{path}.set", faults))


def _choices(raw: Any, path: str, axes: Mapping[str, Any], faults: Faults) -> dict[str, str]:
    found = mapping(raw, path, faults)
    if not found:
        faults.add(path, "names no choice")
    for axis, choice in found.items():
        if axis not in axes:
            faults.unknown(f"{path}.{axis}", axis, axes, "axis")
        elif not isinstance(choice, str | int | float):
            faults.add(f"{path}.{axis}", f"expected the name of a choice, found {str(choice)[:60]!r}")
        elif choice not in axes[axis]:
            faults.unknown(f"{path}.{axis}", choice, axes[axis], f"choice {str(choice)[:60]!r}")
    return found


def sweep_runs(
    sweep: SweepFile,
    *,
    only: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    settings: Sequence[tuple[str, Any]] = (),
    rounds: int | None = None,
) -> tuple[SweepRun, ...]:
    """Return the runs that a sweep stands for, seed by seed, so that a sweep which is cut off has whole comparisons.

    Args:
        sweep: The sweep.
        only: Names of choices. On an axis with a choice among them, the others are left out.
        seeds: Seeds to run instead of the sweep's.
        settings: Changes of the base recipe, each a path in the recipe and a value.
        rounds: If given, the rounds of all training stages together, which keep their shares of it.

    Raises:
        RecipeError: If a name in `only` is not a choice, if no run is left, or if a base recipe cannot be read or
            changed.
    """
    kept = _kept(sweep, only)
    bases: dict[Path, Any] = {}
    found: list[SweepRun] = []
    for seed in dict.fromkeys(seeds if seeds is not None else sweep.seeds):
        for choices in _combinations(sweep, kept):
            base = _base(sweep, choices)
            recipe = _recipe(sweep, base, choices, settings, bases)
            if rounds is not None:
                _shorten(recipe, rounds)
            name = _folder_name(sweep, choices)
            recipe |= {"name": f"{sweep.name}-{name}", "seed": seed}
            folders = dict.fromkeys([*Located(base).code_folders, sweep.folder])
            found.append(SweepRun(f"{name}_seed{seed}", choices, seed, recipe, tuple(folders)))
    if not found:
        raise RecipeError(sweep.name, [], hint="`exclude` and --only leave no run")
    return tuple(found)


def _folder_name(sweep: SweepFile, choices: Mapping[str, str]) -> str:
    """Return what the folders of a combination are called, without the seed."""
    return _NOT_IN_A_NAME.sub("-", "_".join(choices.values()).replace("=", "")).lstrip(".-") or sweep.name


def named_choices(sweep: SweepFile, text: str) -> list[str]:
    """Return the choices in a text that separates them by commas; where a name has commas, the longest one counts."""
    parts, known = text.split(","), {name for choices in sweep.axes.values() for name in choices}
    found = []
    while parts:
        names = [",".join(parts[:count]).strip() for count in range(len(parts), 0, -1)]
        name = next((name for name in names if name in known), names[-1])
        found.append(name)
        del parts[: name.count(",") + 1]
    return found


def _kept(sweep: SweepFile, only: Sequence[str]) -> dict[str, list[str]]:
    faults = Faults()
    every = {choice: axis for axis, choices in sweep.axes.items() for choice in choices}
    for name in only:
        if name not in every:
            faults.unknown("--only", name, every, f"choice {name[:60]!r}")
    if faults:
        raise RecipeError(sweep.name, faults)
    chosen = {every[name] for name in only}
    return {
        axis: [name for name in choices if axis not in chosen or name in only] for axis, choices in sweep.axes.items()
    }


def _combinations(sweep: SweepFile, kept: Mapping[str, Iterable[str]]) -> Iterator[dict[str, str]]:
    for combination in itertools.product(*kept.values()):
        choices = dict(zip(kept, combination, strict=True))
        if not any(excluded.items() <= choices.items() for excluded in sweep.exclude):
            yield choices


def _changes(sweep: SweepFile, choices: Mapping[str, str]) -> list[tuple[str, Any]]:
    return [item for axis, choice in choices.items() for item in sweep.axes[axis][choice].items()]


def _base(sweep: SweepFile, choices: Mapping[str, str]) -> Path:
    """Return the recipe that a combination starts from."""
    base = next((value for path, value in reversed(_changes(sweep, choices)) if path == "recipe"), sweep.recipe)
    for axis, choice in choices.items():
        base = str(base).replace(f"{{{axis}}}", choice)
    return sweep.folder / base


def _recipe(
    sweep: SweepFile,
    base: Path,
    choices: Mapping[str, str],
    settings: Sequence[tuple[str, Any]],
    bases: dict[Path, Any],
) -> dict[str, Any]:
    if base not in bases:
        bases[base] = mapping(read_recipe_text(base), "", Faults())
    recipe: dict[str, Any] = copy.deepcopy(bases[base])
    changes = _changes(sweep, choices)
    for when in sweep.when:
        if when.choices.items() <= choices.items():
            changes += when.settings.items()
    for path, value in (*settings, *(change for change in changes if change[0] != "recipe")):
        apply_value(recipe, path, copy.deepcopy(value))
    return recipe


def _shorten(recipe: dict[str, Any], rounds: int) -> None:
    """Change the rounds of the training stages so that they add up to `rounds`, in the shares that they have."""
    stages = recipe.get("stages")
    options = [inner for stage in stages if isinstance(stage, dict) for inner in stage.values()] if stages else []
    training = [inner for inner in options if isinstance(inner, dict) and type(inner.get("rounds")) is int]
    total, left = sum(inner["rounds"] for inner in training), rounds
    for position, inner in enumerate(training):
        last = position == len(training) - 1
        share = left if last else max(1, min(left - 1, round(rounds * inner["rounds"] / total)))
        inner["rounds"], left = max(1, share), left - share
