"""QuarantineBudget: how many nodes may be out of service at once. Written by people, its status by the controller."""

from __future__ import annotations

from typing import Annotated

import msgspec

from gpuhealth.api.names import FAULT_LIMIT_REACHED
from gpuhealth.api.resource import Column, Count, Definition, Int64, Time, one_of

Amount = Annotated[
    int | str,
    msgspec.Meta(
        extra_json_schema={
            "x-kubernetes-int-or-string": True,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "minimum": 0,
            "maximum": 100_000,
            "pattern": r"^(100(\.0+)?|[0-9]{1,2}(\.[0-9]+)?)%$",
        }
    ),
]
"""A count, or a percentage of the selected nodes."""

_HOURS, _MINUTES, _SECONDS = "((1?[0-9]|2[0-3])h)?", "([1-5]?[0-9]m)?", "([1-5]?[0-9]s)?"


def _window(numbers: str, unit: str, smaller: str = "") -> dict[str, str]:
    return {"pattern": rf"^{numbers}(\.[0-9]{{1,9}})?{unit}{smaller}$"}


Window = Annotated[
    str,
    msgspec.Meta(
        extra_json_schema={
            "not": {"pattern": "^[^1-9]*$"},
            "anyOf": [  # by the largest unit: 365 days or less
                {"pattern": "^(365d|8760h|525600m|31536000s)$"},
                _window("([0-9]{1,2}|[12][0-9]{2}|3[0-5][0-9]|36[0-4])", "d", _HOURS + _MINUTES + _SECONDS),
                _window("([0-9]{1,3}|[1-7][0-9]{3}|8[0-6][0-9]{2}|87[0-5][0-9])", "h", _MINUTES + _SECONDS),
                _window("([0-9]{1,5}|[1-4][0-9]{5}|5[01][0-9]{4}|52[0-4][0-9]{3}|525[0-5][0-9]{2})", "m", _SECONDS),
                _window(
                    "([0-9]{1,7}|[12][0-9]{7}|30[0-9]{6}|31[0-4][0-9]{5}|315[0-2][0-9]{4}|3153[0-4][0-9]{3}|31535[0-9]{3})",
                    "s",
                ),
                _window("[0-9]{1,10}", "ms"),
            ],
        }
    ),
]
"""A duration of more than 0 and at most 365 days."""


_NAME = "[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_PREFIX = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
LabelKey = Annotated[str, msgspec.Meta(extra_json_schema={"maxLength": 317, "pattern": f"^({_PREFIX}/)?{_NAME}$"})]
LabelValue = Annotated[str, msgspec.Meta(extra_json_schema={"pattern": f"^({_NAME})?$"})]


class SelectorTerm(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One requirement of a label selector."""

    key: LabelKey
    """Key of the label."""
    operator: Annotated[str, one_of(("In", "NotIn", "Exists", "DoesNotExist"))]
    """In and NotIn need values, Exists and DoesNotExist have none."""
    values: tuple[LabelValue, ...] | None = None
    """Values of the label."""


_VALUES_BY_OPERATOR = msgspec.Meta(
    extra_json_schema={
        "anyOf": [
            {
                "properties": {"operator": {"enum": ["In", "NotIn"]}, "values": {"minItems": 1}},
                "required": ["values"],
            },
            {"properties": {"operator": {"enum": ["Exists", "DoesNotExist"]}, "values": {"maxItems": 0}}},
        ]
    }
)


class LabelSelector(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A label selector as in Kubernetes."""

    match_labels: dict[str, LabelValue] | None = None
    """Labels that a node must have, all of them. A key that cannot be a label's selects no node."""
    match_expressions: tuple[Annotated[SelectorTerm, _VALUES_BY_OPERATOR], ...] | None = None
    """Requirements that a node must meet, all of them."""


class BudgetMetadata(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Restrictions of a budget's metadata."""

    name: Annotated[
        str, msgspec.Meta(extra_json_schema={"maxLength": 63, "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"})
    ] = ""
    """Without dots: a slot's name is this name, a dot and a suffix."""


class BudgetSpec(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The nodes of the budget, and how many of them may be out of service."""

    node_selector: LabelSelector
    """
    The nodes of this budget: a pool, a rack, an NVLink domain. Empty: all nodes. A node that several budgets
    select needs a slot in each of them.
    """
    max_unavailable: Amount
    """
    Nodes that may be out at once: a count, or a percentage of the selected nodes, rounded down but at least one unless
    it is 0%.
    """
    max_per_window: Amount | None = None
    """Nodes that may go out within the window, including those that came back. Absent: no limit."""
    max_per_fault: Amount | None = None
    """
    Nodes that may go out for one finding code within the window: more of the same means a suspect driver or a suspect
    check, not more bad nodes. Absent: no limit.
    """
    count_unavailable: bool = False
    """
    Whether nodes that are cordoned by people or not ready count as out: each of them takes a slot while there is
    a free one.
    """
    window: Window = "1h"
    """
    A duration of more than 0 and at most 365d, such as 30m, 24h, 1h30m or 14d: of several units the larger one comes
    first, and the others are less than one of the next larger.
    """


class BudgetCondition(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A condition as in Kubernetes."""

    type: str
    """Type of the condition."""
    status: Annotated[str, one_of(("True", "False", "Unknown"))]
    """True, False or Unknown."""
    observed_generation: Int64 = 0
    """Generation of the budget that the condition is about."""
    last_transition_time: Time
    """When the status last changed."""
    reason: str
    """Reason of the last change, in CamelCase."""
    message: str
    """Explanation for people."""


class BudgetStatus(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Use of the budget. Written by the controller."""

    observed_generation: Int64 = 0
    """Generation of the budget that the status is about."""
    size: Count = 0
    """Nodes that are selected."""
    limit: Count = 0
    """maxUnavailable as a count."""
    used: Count = 0
    """Slots that are taken."""
    unavailable: Count = 0
    """With countUnavailable, nodes that are cordoned or not ready and not quarantined."""
    uncounted: Count = 0
    """
    Quarantined nodes that the budget selects now and that hold no slot because none is free: they stay out in
    addition to those that hold the slots, and no other node goes out meanwhile.
    """
    counted: bool = False
    """
    Whether every quarantined node was found to hold a slot since the budget was last changed. While it is not true,
    agents count the quarantined nodes themselves before they take a slot.
    """
    blocked: Count = 0
    """Nodes that should be out and have no free slot."""
    blocked_nodes: tuple[str, ...] = ()
    """Their names."""
    conditions: Annotated[
        tuple[BudgetCondition, ...],
        msgspec.Meta(
            extra_json_schema={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        ),
    ] = ()
    """
    FaultLimitReached is True while nodes stay in service because as many as maxPerFault allows went out for one
    fault: suspect the driver or the check before the nodes.
    """
    nodes: tuple[str, ...] = ()
    """The nodes that hold the slots."""


class QuarantineBudget(msgspec.Struct, frozen=True, kw_only=True):
    """Like a PodDisruptionBudget, for nodes: how many gpuhealth may take out of service at once."""

    metadata: BudgetMetadata | None = None
    spec: BudgetSpec
    status: BudgetStatus | None = None


DEFINITION = Definition(
    kind="QuarantineBudget",
    plural="quarantinebudgets",
    short_name="qb",
    struct=QuarantineBudget,
    columns=(
        Column("Max", ".spec.maxUnavailable"),
        Column("Nodes", ".status.size", "integer"),
        Column("Limit", ".status.limit", "integer"),
        Column("Used", ".status.used", "integer"),
        Column("Blocked", ".status.blocked", "integer"),
        Column(
            "Suspect",
            f'.status.conditions[?(@.type=="{FAULT_LIMIT_REACHED}")].status',
            description="Whether nodes are blocked because too many failed alike.",
        ),
        Column("Age", ".metadata.creationTimestamp", "date"),
        Column("Unavailable", ".status.unavailable", "integer", wide=True),
        Column("Uncounted", ".status.uncounted", "integer", wide=True),
        Column("Per window", ".spec.maxPerWindow", wide=True),
        Column("Per fault", ".spec.maxPerFault", wide=True),
        Column("Window", ".spec.window", wide=True),
    ),
)
