"""The layer-rule language: YAML rules that put tensor names into layer groups.

    description: a residual block and its head               # what `fedmr-merge rules list` says of it
    rules:                                                   # the first that matches a tensor's name decides
      - {match: "layer{s}.{b}.{re:conv|bn}{n}.*", group: "layer{s}.{b}.{n}"}
      - {match: "fc.*", group: head, recombine: pin}         # `pin` keeps the group in its slot
    otherwise: layer                                         # the rule that groups what no rule matches
    ties: [[model.embed_tokens.weight, lm_head.weight]]      # tensors that are one: their groups become one
    require_equal: {adapter_config.json: [r, lora_alpha]}    # what else must agree between the models
    detect: ["**.lora_A.**"]                                 # `--rule auto` takes it if each of these matches

A pattern is a dotted name with wildcards:

    *               one part of the name, or a piece of one
    **              any number of parts
    {i}             one part, or a piece of one, which is kept for `group`
    {m:**}          one or more parts, kept
    {n:re:[0-9]+}   what a regular expression matches, kept; `{re:conv|bn}` is not kept
    re:...          at the start: the whole pattern is one regular expression

A name that is captured twice must be the same both times.

A rule is added by adding one file to `rulesets/`: its name is the name of the rule for `--rule`, and with `detect` the
rule `auto` can pick it. `module.yaml` is the shortest to look at. Users name their own files by path.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from fedmr_merge.checkpoint.header import open_regular
from fedmr_merge.errors import RuleError
from fedmr_merge.layers.patterns import Pattern, compile_pattern, shortened
from fedmr_merge.layers.rule_files import rule_file_names

_LONGEST_NAME = 300  #: of those that `detect` looks at
_MAX_SHOWN = 10  #: faults in one message
_FIELDS = {"match", "group", "recombine"}
_SECTIONS = {"description", "detect", "rules", "otherwise", "ties", "require_equal"}


@dataclass(frozen=True)
class Rule:
    """One line of a rule set: the tensors that match it, and the group they go to."""

    pattern: Pattern
    group: str
    pinned: bool
    line: int

    @property
    def is_fallback(self) -> bool:
        """Return whether it takes whatever the rules before it left."""
        return self.pattern.matches_anything

    def groups_of(self, names: Sequence[str]) -> list[str | None]:
        """Return for each tensor the group that this rule gives it, None where it does not match.

        Raises RuleError where matching takes too long.
        """
        return [None if kept is None else self.group.format_map(kept) for kept in self.pattern.match(names)]


@dataclass(frozen=True)
class RuleSet:
    """A rule file."""

    name: str
    description: str
    rules: tuple[Rule, ...]
    ties: tuple[tuple[str, ...], ...]
    require_equal: Mapping[str, tuple[str, ...]]
    detect: tuple[Pattern, ...]
    otherwise: str | None  #: the built-in rule that groups what no rule matches
    #: of ("ties", tensor), ("require_equal", file) and ("require_equal", file, key)
    lines: Mapping[tuple[str, ...], int]

    def detects(self, names: Sequence[str]) -> bool:
        """Return whether these names show the family that the rule set was written for."""
        usual = [name for name in names if len(name) <= _LONGEST_NAME]  # a longer one is from no family
        return bool(self.detect) and all(any(p.expression.fullmatch(name) for name in usual) for p in self.detect)


def read_rule_file(path: Path, name: str | None = None) -> RuleSet:
    """Read a rule file. Raises RuleError with every fault and its line."""
    try:
        with open_regular(path) as stream:
            text = stream.read().decode("utf-8")
    except OSError as error:
        raise RuleError(
            f"{path}: cannot be read: {error.strerror}",
            hint="`fedmr-merge rules list` shows the built-in layer rules",
            path=path,
        ) from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise RuleError(f"{path}: line {line}: not UTF-8", hint="save it as UTF-8", path=path) from error
    return parse_rules(text, str(path), name or path.stem)


def parse_rules(text: str, file: str, name: str) -> RuleSet:
    """Read a rule set from YAML; `file` is its name in messages."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}: " if mark else ""
        problem = "nested too deeply" if isinstance(error, RecursionError) else getattr(error, "problem", error)
        raise RuleError(
            f"{file}: {place}not valid YAML: {problem}",
            hint="`fedmr-merge docs recombine` explains the rule language",
        ) from error
    reader = _Reader(file)
    found = reader.rule_set(root, name)
    reader.finish()
    assert found is not None
    return found


class _Reader:
    """Walks the YAML nodes, which know their lines, and collects every fault."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.faults: list[str] = []
        self.lines: dict[tuple[str, ...], int] = {}

    def fault(self, node: yaml.Node | None, message: str) -> None:
        line = node.start_mark.line + 1 if node is not None else 1
        self.faults.append(f"line {line}: {message}")

    def finish(self) -> None:
        if self.faults:
            more = f"; and {len(self.faults) - _MAX_SHOWN} more" if len(self.faults) > _MAX_SHOWN else ""
            raise RuleError(
                f"{self.file}: {'; '.join(self.faults[:_MAX_SHOWN])}{more}",
                hint="`fedmr-merge docs recombine` explains the rule language",
                path=self.file,
                faults=self.faults,
            )

    def rule_set(self, root: yaml.Node | None, name: str) -> RuleSet | None:
        if not isinstance(root, yaml.MappingNode):
            self.fault(root, "a rule file is a mapping with `rules:`")
            return None
        sections = self.mapping(root, _SECTIONS, "section")
        if "rules" not in sections:
            self.fault(root, "there is no `rules:`")
        rules = [rule for node in self.sequence(sections.get("rules")) if (rule := self.rule(node))]
        ties = tuple(self.strings(node, "ties") for node in self.sequence(sections.get("ties")))
        for node, tie in zip(self.sequence(sections.get("ties")), ties, strict=True):
            if len(tie) < 2:
                self.fault(node, "a tie names two tensors or more")
        otherwise = sections.get("otherwise")
        others = ("layer", *rule_file_names())
        if otherwise is not None and self.string(otherwise) not in others:
            found = shortened(self.string(otherwise))
            self.fault(otherwise, f"otherwise is a built-in rule, one of {', '.join(others)}; found {found}")
        equal = sections.get("require_equal")
        files = self.mapping(equal, None, "file") if equal is not None else {}
        require_equal = {file: self.strings(node, "require_equal", file) for file, node in files.items()}
        self.lines |= {("require_equal", file): node.start_mark.line + 1 for file, node in files.items()}
        return RuleSet(
            name=name,
            description=self.string(sections["description"]) if "description" in sections else "",
            rules=tuple(rules),
            ties=ties,
            require_equal=require_equal,
            detect=tuple(p for node in self.sequence(sections.get("detect")) if (p := self.pattern(node))),
            otherwise=None if otherwise is None else self.string(otherwise),
            lines=self.lines,
        )

    def rule(self, node: yaml.Node) -> Rule | None:
        if not isinstance(node, yaml.MappingNode):
            self.fault(node, "a rule is a mapping with `match` and `group`")
            return None
        fields = self.mapping(node, _FIELDS, "key")
        missing = [key for key in ("match", "group") if key not in fields]
        if missing:
            self.fault(node, f"the rule lacks {' and '.join(missing)}")
            return None
        pattern = self.pattern(fields["match"])
        group = self.string(fields["group"])
        mode = self.string(fields["recombine"]) if "recombine" in fields else "shuffle"
        if mode not in ("shuffle", "pin"):
            self.fault(fields["recombine"], f"recombine is `shuffle` or `pin`, found {shortened(mode)}")
        if pattern is None:
            return None
        self.check_group(fields["group"], group, pattern)
        return Rule(pattern, group, mode == "pin", node.start_mark.line + 1)

    def check_group(self, node: yaml.Node, group: str, pattern: Pattern) -> None:
        captures = set(re.findall(r"\{([A-Za-z_][A-Za-z0-9_]*)\}", group))
        for capture in sorted(captures - pattern.captures):
            self.fault(node, f"{{{capture}}} is not captured by the pattern")
        if not group:
            self.fault(node, "the group's name is empty")
        elif set("{}") & set(re.sub(r"\{[A-Za-z_][A-Za-z0-9_]*\}", "", group)):
            self.fault(node, f"{shortened(group)} is not a name with {{captures}}")

    def pattern(self, node: yaml.Node) -> Pattern | None:
        try:
            return compile_pattern(self.string(node))
        except (ValueError, re.error) as error:
            self.fault(node, f"the pattern {shortened(self.string(node))} is malformed: {error}")
            return None

    def mapping(self, node: yaml.Node, known: set[str] | None, what: str) -> dict[str, yaml.Node]:
        found: dict[str, yaml.Node] = {}
        if not isinstance(node, yaml.MappingNode):
            self.fault(node, "expected a mapping")
            return found
        for key_node, value in node.value:
            key = self.string(key_node)
            if known is not None and key not in known:
                self.fault(key_node, f"unknown {what} {shortened(key)}, known are {', '.join(sorted(known))}")
            elif key in found:
                self.fault(key_node, f"{shortened(key)} stands here twice")
            found[key] = value
        return found

    def sequence(self, node: yaml.Node | None) -> list[yaml.Node]:
        if node is None:
            return []
        if not isinstance(node, yaml.SequenceNode):
            self.fault(node, "expected a list")
            return []
        return list(node.value)

    def strings(self, node: yaml.Node, *place: str) -> tuple[str, ...]:
        """Return the strings of a list, and remember their lines under `place`."""
        items = self.sequence(node)
        strings = tuple(map(self.string, items))
        self.lines |= {(*place, text): item.start_mark.line + 1 for text, item in zip(strings, items, strict=True)}
        return strings

    def string(self, node: yaml.Node) -> str:
        if isinstance(node, yaml.ScalarNode):
            return str(node.value)
        self.fault(node, "expected a string")
        return ""
