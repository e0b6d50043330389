"""Reads YAML that came from outside within limits, and without YAML's surprises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from components.shared.errors import RefusedError

BYTES, DEPTH, NODES, ALIASES = 128 * 2**10, 32, 20_000, 100
"""Maximum size of a YAML document, its nesting, its values with all aliases written out, and its aliases.

Parameters, policies and cluster files have a few kilobytes.
"""


class _Strict(yaml.SafeLoader):
    """YAML less its surprises: a name that stands twice is refused, and 1:30 is a text, not ninety.

    Limits are kept while nodes are composed, before any alias is written out.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._nodes = self._aliases = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            self._aliases += 1
            self._check(self._aliases, ALIASES, "aliases")
            if event.anchor in self.anchors:
                self._count(self._sizes.get(id(self.anchors[event.anchor]), NODES))  # one that holds itself has no end
            return super().compose_node(parent, index)
        self._depth += 1
        self._check(self._depth, DEPTH, "levels of nesting")
        before = self._nodes
        self._count(1)
        node = super().compose_node(parent, index)
        self._depth -= 1
        self._sizes[id(node)] = self._nodes - before
        return node

    def _count(self, nodes: int) -> None:
        self._nodes += nodes
        self._check(self._nodes, NODES, "values, with its aliases written out")

    def _check(self, count: int, most: int, what: str) -> None:
        if count > most:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise ConstructorError(None, None, f"it has more than {most:,} {what}", mark)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        names: set[str] = set()
        for key, _ in getattr(node, "value", ()):
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in names:
                raise ConstructorError(None, None, f"{key.value!r} stands there twice", node.start_mark)
            names.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: Any) -> Any:
        return node.value if ":" in node.value else super().construct_yaml_int(node)


_Strict.add_constructor("tag:yaml.org,2002:int", _Strict.construct_yaml_int)


def parse_yaml(text: str) -> Any:
    """The value in a YAML text; a yaml.YAMLError says what is wrong with it."""
    if len(text) > BYTES:
        raise ConstructorError(None, None, f"it has more than {BYTES:,} characters", None)
    try:
        return yaml.load(text, _Strict)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError:
        raise
    except (ValueError, ArithmeticError, LookupError, TypeError, AttributeError, RecursionError) as error:
        # PyYAML's constructors fail so on values that do not fit their tag, such as !!bool x.
        raise ConstructorError(None, None, f"a value does not fit its type ({type(error).__name__})", None) from None


def read_yaml(path: Path) -> Any:
    """What a YAML file holds; FileNotFoundError where there is none, ValueError where it cannot be read."""
    with path.open("rb") as file:
        data = file.read(BYTES + 1)  # a device has no end
    if len(data) > BYTES:
        raise RefusedError(
            f"{path} is larger than the {BYTES // 2**10} KiB that a YAML file may have here. Shorten it."
        )
    try:
        return parse_yaml(data.decode("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RefusedError(f"{path} is not readable as YAML: {' '.join(str(error).split())}. Mend that line.") from None
