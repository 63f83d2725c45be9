"""Label selectors of objects (matchLabels, matchExpressions): matched here, or converted to a query parameter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

Selector = Mapping[str, Any]


class _Expression(msgspec.Struct):
    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: list[str] | None = None


class _Selector(msgspec.Struct, rename="camel"):
    match_labels: dict[str, str] | None = None
    match_expressions: list[_Expression] | None = None


def check_selector(selector: Any) -> Selector | None:
    """The selector, if labels can be matched with it. Raises ValueError with the reason."""
    msgspec.convert(selector, _Selector | None)
    found: Selector | None = selector
    return found


def matches(selector: Selector | None, labels: Mapping[str, str]) -> bool:
    """Whether the selector matches the labels. As in Kubernetes an empty one matches everything, None nothing."""
    if selector is None:
        return False
    wanted = selector.get("matchLabels") or {}
    if any(labels.get(key) != value for key, value in wanted.items()):
        return False
    return all(_holds(expression, labels) for expression in selector.get("matchExpressions") or [])


def _holds(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    key, values = expression["key"], expression.get("values") or []
    match expression["operator"]:
        case "In":
            return labels.get(key) in values
        case "NotIn":  # true also where the key is absent
            return labels.get(key) not in values
        case "Exists":
            return key in labels
        case "DoesNotExist":
            return key not in labels
    raise ValueError(f"{expression['operator']!r} is not an operator of a label selector")


def query_text(selector: Selector) -> str:
    """The selector as the query parameter labelSelector of a list."""
    terms = [f"{key}={value}" for key, value in (selector.get("matchLabels") or {}).items()]
    for expression in selector.get("matchExpressions") or []:
        key, values = expression["key"], ",".join(expression.get("values") or [])
        match expression["operator"]:
            case "In":
                terms.append(f"{key} in ({values})")
            case "NotIn":
                terms.append(f"{key} notin ({values})")
            case "Exists":
                terms.append(key)
            case "DoesNotExist":
                terms.append(f"!{key}")
    return ",".join(terms)
