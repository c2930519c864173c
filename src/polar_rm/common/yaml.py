"""YAML for configs: numbers and dates as users mean them, no duplicate keys, and limits on what a small text can expand to."""

from __future__ import annotations

import re
from typing import Any

import yaml

MAX_BYTES = 1 << 20
MAX_DEPTH = 64
MAX_VALUES = 100_000

_TOO_DEEP = f"it is nested deeper than {MAX_DEPTH} levels"


def parse_yaml(text: str) -> Any:
    """The value of one YAML document; None for an empty one.

    Raises:
        ValueError: says in one line what is wrong: not YAML, a duplicate key, more than ``MAX_BYTES`` bytes, nested deeper than
            ``MAX_DEPTH``, or aliases that refer to themselves or expand to more than ``MAX_VALUES`` values.
    """
    check_size(len(text.encode("utf-8", "surrogatepass")))
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML: {' '.join(str(error).split())}") from None
    except _Refused as error:
        raise ValueError(str(error)) from None
    except ValueError as error:  # numbers with thousands of digits
        raise ValueError(f"not valid YAML: {error}") from None


def dump_yaml(value: Any) -> str:
    """The value as text that :func:`parse_yaml` reads; keys keep their order."""
    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
    return text


def dump_line(value: Any) -> str:
    """The value on one line, in YAML's flow style."""
    text: str = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, sort_keys=False, width=float("inf"))
    return text.removesuffix("\n").removesuffix("\n...")


def check_size(n_bytes: int) -> None:
    """Check that a text is short enough to be parsed.

    Raises:
        ValueError: the text has more than ``MAX_BYTES`` bytes.
    """
    if n_bytes > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES:,} bytes: too long for settings")


class _Refused(Exception):
    """The text is YAML, but we don't accept it."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with two corrections and with limits.

    YAML 1.1 reads ``1e-3``, which has no dot, as a string, but every user means a number. It reads ``2026-11-26`` as a date,
    but it is the name of a run. The limits are checked while nodes are composed, before any recursion is deep.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0
        self._values = 0
        # Anchor -> number of values in its node, with aliases expanded.
        self._sizes: dict[str | None, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: yaml.NodeEvent = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in self.anchors and event.anchor not in self._sizes:
                raise _Refused(f"the alias *{event.anchor} refers to itself")
            self._count(self._sizes.get(event.anchor, 1))
            return super().compose_node(parent, index)
        if self._depth >= MAX_DEPTH:
            raise _Refused(_TOO_DEEP)
        self._depth += 1
        before = self._values
        self._count(1)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(node, yaml.MappingNode):
            _check_keys(node)
        if event.anchor:
            self._sizes[event.anchor] = self._values - before
        return node

    def fetch_flow_collection_start(self, token: type[yaml.Token]) -> None:
        # The scanner reads consecutive brackets in quadratic time, and all of them before a node is composed.
        if self.flow_level >= MAX_DEPTH:
            raise _Refused(_TOO_DEEP)
        super().fetch_flow_collection_start(token)

    def _count(self, values: int) -> None:
        self._values += values
        if self._values > MAX_VALUES:
            raise _Refused(f"it holds more than {MAX_VALUES:,} values after its aliases are expanded")


def _check_keys(node: yaml.MappingNode) -> None:
    seen = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
            if key.value in seen:
                raise _Refused(f"line {key.start_mark.line + 1}: the key {key.value!r} appears twice")
            seen.add(key.value)


_Loader.yaml_implicit_resolvers = {
    first: [rule for rule in rules if rule[0] != "tag:yaml.org,2002:timestamp"]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)
