"""Edits of a YAML text at places that are named by paths. Comments and layout of the rest stay as they are.

A path is written `spec.template.spec.containers.agent.image`. In a list a segment is the index of an item, or its
`name` or `key`. Dots within a segment are written `\\.`.
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass, field
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode


@dataclass(frozen=True)
class Edit:
    """Text that takes the place of a part of the source."""

    start: int
    end: int
    text: str


@dataclass
class Source:
    """One document of a YAML file, as text with the places of its values."""

    text: str
    edits: list[Edit] = field(default_factory=list)
    replaced: set[str] = field(default_factory=set)
    """Paths of values that have another text; the edit of a part of them would be lost."""

    def __post_init__(self) -> None:
        self.root = parsed(self.text)
        self.data: Any = yaml.safe_load(self.text)

    # --- places ---------------------------------------------------------------------------------------------------

    def node(self, path: str) -> Node:
        """The value at a path. KeyError with the path and the first segment that is not there."""
        found = self.root
        for segment in segments(path) if path else ():
            below = child(found, segment)
            if below is None:
                raise KeyError(f"{path}: there is no {segment}")
            found = below
        return found

    def value(self, path: str) -> Any:
        """The value at a path, as Python has it."""
        loader = yaml.SafeLoader("")
        return loader.construct_document(self.node(path))

    def line_end(self, node: Node) -> int:
        """The end of the line on which a value ends, with its comment."""
        end = self.text.find("\n", last_leaf(node).end_mark.index)
        return len(self.text) if end < 0 else end

    # --- edits ----------------------------------------------------------------------------------------------------

    def replace(self, path: str, text: str) -> None:
        """Put a text where the value at a path is."""
        node = self.node(path)
        self.replaced.add(path)
        if is_block(node):  # it begins on the line after its key
            self.edits.append(Edit(self._after_key(path), self.line_end(node), text))
        else:
            self.edits.append(Edit(node.start_mark.index, node.end_mark.index, text))

    def _after_key(self, path: str) -> int:
        above, _, last = path.rpartition(".")
        parent = self.node(above)
        assert isinstance(parent, MappingNode), f"{path} is no key of a mapping"
        (key,) = [key for key, _ in parent.value if key.value == last]
        return int(key.end_mark.index) + 1

    def insert_before(self, path: str, lines: str) -> None:
        """Put lines before the line with the key of the value at a path."""
        start = self.text.rfind("\n", 0, self._after_key(path)) + 1
        column = self.node(path.rpartition(".")[0]).start_mark.column
        self.edits.append(Edit(start, start, textwrap.indent(lines, " " * column) + "\n"))

    def append(self, node: Node, lines: str, after: Node | None = None) -> None:
        """Put lines after the last item of a block list or mapping, or after another one, as deep as its items are."""
        assert is_block(node), "only block lists and block mappings can be continued"
        column = node.start_mark.column
        end = self.line_end(after or node)
        self.edits.append(Edit(end, end, "\n" + textwrap.indent(lines, " " * column)))

    def wrap(self, first: Node, last: Node, before: str, after: str) -> None:
        """Put lines around those of a list item, or of a key and its value."""
        start = self.text.rfind("\n", 0, first.start_mark.index) + 1
        end = self.line_end(last)
        line = self.text[start:end]
        indent = " " * (len(line) - len(line.lstrip(" ")))
        self.edits.append(Edit(start, start, f"{indent}{before}\n"))
        self.edits.append(Edit(end, end, f"\n{indent}{after}"))

    def edited(self, *, template: bool = True) -> str:
        """The text with all edits; in a template only the edits are template syntax."""
        unchanged = escaped if template else str
        parts, position = [], 0
        for edit in sorted(self.edits, key=lambda each: (each.start, each.end)):
            assert edit.start >= position, "two edits overlap"
            parts += [unchanged(self.text[position : edit.start]), edit.text]
            position = edit.end
        return "".join([*parts, unchanged(self.text[position:])])


def parsed(text: str) -> Node:
    """The value of a YAML document, with the places of its parts."""
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    assert node is not None, "the document is empty"
    return node


def segments(path: str) -> list[str]:
    """The segments of a path."""
    return [part.replace("\\.", ".") for part in re.split(r"(?<!\\)\.", path)]


def child(node: Node, segment: str) -> Node | None:
    """The value of a key, or the item of a list with that index, name or key."""
    if isinstance(node, MappingNode):
        return next((value for key, value in node.value if key.value == segment), None)
    if isinstance(node, SequenceNode):
        if segment.isdigit():
            return node.value[int(segment)] if int(segment) < len(node.value) else None
        return next((item for item in node.value if segment in identities(item)), None)
    return None


def identities(item: Node) -> list[str]:
    """The name and the key of an item of a list."""
    return [found.value for found in (child(item, "name"), child(item, "key")) if isinstance(found, ScalarNode)]


def is_block(node: Node) -> bool:
    """Whether a value is a list or mapping of several lines, and not in brackets."""
    return isinstance(node, MappingNode | SequenceNode) and not node.flow_style


def last_leaf(node: Node) -> Node:
    """The value with which a value ends."""
    while is_block(node) and node.value:
        last = node.value[-1]
        node = last[1] if isinstance(node, MappingNode) else last
    return node


def escaped(text: str) -> str:
    """A text without template syntax: what looks like it is printed."""
    return text.replace("{{", '{{ "{{" }}')
