"""Read untrusted YAML within limits and without implicit conversions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from components.shared.errors import RefusedError

MAX_BYTES, MAX_DEPTH, MAX_NODES, MAX_ALIASES = 128 * 2**10, 32, 20_000, 100
"""Maximum size in characters, levels of nesting, values with all aliases expanded, and aliases of a YAML document.

Parameters, policies and cluster files have a few kilobytes.
"""


class _StrictLoader(yaml.SafeLoader):
    """A safe loader that refuses duplicate keys and reads 1:30 as text.

    Limits are checked while nodes are composed, before any alias is expanded.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._nodes = self._aliases = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            self._aliases += 1
            self._check(self._aliases, MAX_ALIASES, "aliases")
            if event.anchor in self.anchors:
                self._count(
                    self._sizes.get(id(self.anchors[event.anchor]), MAX_NODES)
                )  # recursive aliases are infinite
            return super().compose_node(parent, index)
        self._depth += 1
        self._check(self._depth, MAX_DEPTH, "levels of nesting")
        before = self._nodes
        self._count(1)
        node = super().compose_node(parent, index)
        self._depth -= 1
        self._sizes[id(node)] = self._nodes - before
        return node

    def _count(self, nodes: int) -> None:
        self._nodes += nodes
        self._check(self._nodes, MAX_NODES, "values with its aliases expanded")

    def _check(self, count: int, maximum: int, unit: str) -> None:
        if count > maximum:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise ConstructorError(None, None, f"it has more than {maximum:,} {unit}", mark)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        names: set[str] = set()
        for key, _ in getattr(node, "value", ()):
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in names:
                raise ConstructorError(None, None, f"the key {key.value!r} occurs more than once", node.start_mark)
            names.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: Any) -> Any:
        return node.value if ":" in node.value else super().construct_yaml_int(node)


_StrictLoader.add_constructor("tag:yaml.org,2002:int", _StrictLoader.construct_yaml_int)


def parse_yaml(text: str) -> Any:
    """Return the value of a YAML text; raise a yaml.YAMLError if it is invalid."""
    if len(text) > MAX_BYTES:
        raise ConstructorError(None, None, f"it has more than {MAX_BYTES:,} characters", None)
    try:
        return yaml.load(text, _StrictLoader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError:
        raise
    except (ValueError, ArithmeticError, LookupError, TypeError, AttributeError, RecursionError) as error:
        # PyYAML raises these for values that do not match their tag, such as !!bool x.
        raise ConstructorError(None, None, f"a value does not match its type ({type(error).__name__})", None) from None


def read_yaml(path: Path) -> Any:
    """Return the value of a YAML file; raise a ValueError if it is invalid."""
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)  # devices are endless
    if len(data) > MAX_BYTES:
        raise RefusedError(f"{path} is larger than {MAX_BYTES // 2**10} KiB, the maximum for a YAML file. Shorten it.")
    try:
        return parse_yaml(data.decode("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        words = " ".join(str(error).split()).replace('in "<unicode string>", ', "in ")
        raise RefusedError(f"{path} is not valid YAML: {words}. Correct that line.") from None
