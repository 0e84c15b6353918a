"""YAML text to plain values and back, without YAML 1.1's surprises.

PyYAML's safe loader reads `1e-4` as text, `on` and `NO` as booleans, `010` as eight, `12:30:00` as seconds, and keeps
the last of two equal keys without a word. Here only `null`, `true`, `false` and decimal numbers mean more than their
letters, and whatever a recipe never needs (tags, aliases, keys that are not text) is refused.
"""

import re
from collections.abc import Hashable
from typing import Any

import yaml

from marcli.errors import UsageError

MAX_BYTES = 100_000

PLAIN_SCALARS = {
    "tag:yaml.org,2002:null": re.compile(r"~|null|Null|NULL|"),
    "tag:yaml.org,2002:bool": re.compile(r"true|True|TRUE|false|False|FALSE"),
    "tag:yaml.org,2002:int": re.compile(r"[-+]?(0|[1-9][0-9]*)"),
    "tag:yaml.org,2002:float": re.compile(
        r"[-+]?(([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.?(inf|Inf|INF))|\.?(nan|NaN|NAN)"
    ),
}


def _resolvers() -> dict[str | None, list[tuple[str, re.Pattern[str]]]]:
    """PyYAML keeps its table by first character; None stands for any, and patterns must match to the end."""
    return {None: [(tag, re.compile(f"(?:{pattern.pattern})$")) for tag, pattern in PLAIN_SCALARS.items()]}


class StrictLoader(yaml.SafeLoader):
    """SafeLoader with the scalars above, unique text keys, no aliases and no tags."""

    yaml_implicit_resolvers = _resolvers()

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Refuse `*name`: a few nested aliases can stand for gigabytes."""
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.constructor.ConstructorError(
                None, None, f"aliases (*{event.anchor}) are not allowed: use `extends:`, or repeat it", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_scalar(self, node: yaml.Node) -> Any:
        """Refuse a null byte: no path or name of the system can hold one, and each call would fail in its own words."""
        value = super().construct_scalar(node)
        if "\0" in value:
            raise yaml.constructor.ConstructorError(
                None, None, "the text holds a null byte, which no path or name can: remove it", node.start_mark
            )
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Refuse a key that comes twice or is not text; `<<` is a key like any other, hence unknown."""
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            problem = None
            if not isinstance(key, str):
                problem = f"key {key!r} must be text"
            elif key in seen:
                problem = f"key {key!r} is given twice: keep one"
            if problem:
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merge keys need aliases, which are refused."""


def _construct_decimal(loader: StrictLoader, node: yaml.ScalarNode) -> int:
    return int(node.value)


def _construct_float(loader: StrictLoader, node: yaml.ScalarNode) -> float:
    text = node.value.lower()
    return float(text.replace(".", "") if text.endswith(("inf", "nan")) else text)


def _refuse_tag(loader: StrictLoader, node: yaml.Node) -> None:
    raise yaml.constructor.ConstructorError(
        None, None, f"the tag {node.tag!r} is not allowed: recipes hold plain values only", node.start_mark
    )


StrictLoader.add_constructor("tag:yaml.org,2002:int", _construct_decimal)
StrictLoader.add_constructor("tag:yaml.org,2002:float", _construct_float)
for _kind in ("binary", "timestamp", "omap", "pairs", "set"):
    StrictLoader.add_constructor(f"tag:yaml.org,2002:{_kind}", _refuse_tag)
StrictLoader.add_constructor(None, _refuse_tag)


class StrictDumper(yaml.SafeDumper):
    """SafeDumper that quotes exactly what StrictLoader would not read back as text."""

    yaml_implicit_resolvers = _resolvers()


def parse_yaml(text: str, source: str) -> Any:
    """Return the value of one YAML document; raises UsageError naming `source`, line and column."""
    try:
        return yaml.load(text, Loader=StrictLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UsageError(f"{source}{place}: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{source} is not YAML text: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise UsageError(f"{source} is nested too deeply: a recipe has four levels") from None
    except ValueError as error:  # an integer of more than 4,300 digits
        raise UsageError(f"{source} holds a number that cannot be read: {error}") from None


def parse_scalar(text: str) -> Any:
    """Return what an unquoted YAML scalar `text` stands for, whatever punctuation it holds."""
    is_plain_text = not any(pattern.fullmatch(text) for pattern in PLAIN_SCALARS.values())
    return text if is_plain_text else parse_yaml(text, text)


def dump_yaml(tree: dict[str, Any]) -> str:
    """Return `tree` as YAML that `parse_yaml` reads back to an equal value, keys in their order."""
    return yaml.dump(tree, Dumper=StrictDumper, sort_keys=False, allow_unicode=True, width=110)
