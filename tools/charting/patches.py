"""Patches of kustomize as conditions in a template: what a component changes, if it is enabled.

Of JSON patches, which are lists of operations, only those that add an item to the end of a list are understood.
"""

from __future__ import annotations

from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, SequenceNode

from charting.editing import Edit, Source, child, is_block, parsed

_IDENTITY = ("apiVersion", "kind", "metadata.name", "metadata.namespace")
_MERGE_KEYS = {"volumeMounts": "mountPath", "ports": "containerPort"}
"""By what the API server knows the items of a list; those of other lists by their name."""


def merge(source: Source, patch: str, condition: str) -> None:
    """Edit a document so that a patch is applied to it where a condition of the template is true.

    What is a value of the chart stays so: its template has to know the component, if that changes a part of it.
    """
    root = parsed(patch)
    if isinstance(root, SequenceNode):
        for operation in yaml.safe_load(patch):
            *above, last = operation["path"].removeprefix("/").split("/")
            assert (operation["op"], last) == ("add", "-"), f"only an item can be added, not {operation}"
            _Merge(source, condition).add(source.node(".".join(above)), [operation["value"]])
    else:
        _Merge(source, condition).mapping("", source.root, root)


class _Merge:
    """One patch on its way into one document."""

    def __init__(self, source: Source, condition: str) -> None:
        self._source = source
        self._if = condition

    def mapping(self, path: str, base: Node, patch: Node) -> None:
        """Apply a mapping of a strategic merge patch."""
        assert isinstance(base, MappingNode), f"{path} is no mapping"
        assert isinstance(patch, MappingNode), f"the patch of {path} is no mapping"
        for key, value in patch.value:
            below = f"{path}.{key.value}" if path else key.value
            if below in _IDENTITY or below in self._source.replaced:
                continue
            old = child(base, key.value)
            if old is None:
                self.add(base, {key.value: _plain(value)})
            elif isinstance(value, MappingNode):
                self.mapping(below, old, value)
            elif isinstance(value, SequenceNode):
                self._items(below, old, value)
            elif value.tag == "tag:yaml.org,2002:null":
                (first,) = [name for name, found in base.value if found is old]
                self._remove(first, old)
            elif value.value != old.value:
                start, end = old.start_mark.index, old.end_mark.index
                text = f"{{{{ if {self._if} }}}}{value.value}{{{{ else }}}}{self._source.text[start:end]}{{{{ end }}}}"
                self._source.edits.append(Edit(start, end, text))

    def _items(self, path: str, base: Node, patch: SequenceNode) -> None:
        key = _MERGE_KEYS.get(path.rpartition(".")[2], "name")
        added = []
        for item in patch.value:
            identity = _text(item, key)
            old = next((each for each in base.value if _text(each, key) == identity), None)
            if child(item, "$patch") is not None:
                if old is not None:
                    self._remove(old, old)
            elif old is None:
                added.append(_plain(item))
            else:
                self.mapping(f"{path}.{identity}", old, item)
        if added:
            self.add(base, added)

    def add(self, base: Node, new: dict[str, Any] | list[Any]) -> None:
        """Add keys to a mapping, or items to a list."""
        if is_block(base):
            text = yaml.safe_dump(new, sort_keys=False, width=1000).rstrip()
            lines = f"{{{{- if {self._if} }}}}\n{text}\n{{{{- end }}}}"
            # Not after the last key: its value could get more lines, too.
            plain = [value for _, value in base.value if not is_block(value)] if isinstance(base, MappingNode) else []
            self._source.append(base, lines, after=plain[0] if plain else base)
        else:
            text = yaml.safe_dump(new, sort_keys=False, width=1000, default_flow_style=True).strip()[1:-1]
            end = base.end_mark.index - 1
            self._source.edits.append(Edit(end, end, f"{{{{ if {self._if} }}}}, {text}{{{{ end }}}}"))

    def _remove(self, first: Node, last: Node) -> None:
        self._source.wrap(first, last, f"{{{{- if not {self._if} }}}}", "{{- end }}")


def _text(item: Node, key: str) -> str:
    found = child(item, key)
    assert found is not None, f"an item of a list has no {key}"
    return str(found.value)


def _plain(node: Node) -> Any:
    return yaml.SafeLoader("").construct_document(node)
