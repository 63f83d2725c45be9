"""What stolen tokens are used for: a table of requests, and what becomes of each of them."""

from __future__ import annotations

from testing.attacks import burnins, controllers, events, nodes, reports, slots, status
from testing.attacks.row import Row

SUBJECTS: dict[str, list[Row]] = {
    "Nodes": nodes.ROWS,
    "Status of Nodes": status.ROWS,
    "Reports and budgets": reports.ROWS,
    "Budget slots": slots.ROWS,
    "Events and other objects": events.ROWS,
    "The controller": controllers.ROWS,
    "Burn-ins by the controller": burnins.ROWS,
}
ROWS = [row for rows in SUBJECTS.values() for row in rows]
