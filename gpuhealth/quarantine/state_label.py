"""Changes of the label `gpuhealth.io/state` by the controller and the preflight, as the transition table has it.

Their view of a Node may be old, so they send a JSON patch that tests the label it changes. The agent needs no such
test: it writes label and taint in one request under the Node's resourceVersion.
"""

from __future__ import annotations

from gpuhealth.api.names import STATE_LABEL
from gpuhealth.kube.client import JSON_PATCH, Client
from gpuhealth.kube.errors import InvalidError, NotFoundError
from gpuhealth.kube.kinds import NODES
from gpuhealth.kube.patches import Operation, pointer, remove_unchanged, replace_unchanged
from gpuhealth.quarantine.state import StateEvent, next_state, state_of

_PATH = pointer("metadata", "labels", STATE_LABEL)


def label_patch(label: str | None, event: StateEvent) -> list[Operation]:
    """The operations that change a Node's label from `label` as the event requires; empty for no change."""
    current = state_of(label)
    new = next_state(current, event)
    if new is current:
        return []
    return remove_unchanged(_PATH, label) if new is None else replace_unchanged(_PATH, label, str(new))


async def change_label(client: Client, node: str, label: str | None, event: StateEvent) -> bool:
    """Change the label of a Node, last seen as `label`, as the event requires, with at most one request.

    False where the label has changed meanwhile or the Node is deleted, which its watch will show. Raises ApiError.
    """
    if not (patch := label_patch(label, event)):
        return True
    try:
        await client.patch(NODES, node, patch, content_type=JSON_PATCH)
    except (InvalidError, NotFoundError):
        return False
    return True
