"""The condition GPUHealthy=Unknown, which the controller writes where no agent is ready."""

from __future__ import annotations

from datetime import datetime

from gpuhealth.api.names import ConditionReason
from gpuhealth.kube.client import STRATEGIC_MERGE_PATCH, Client, Object
from gpuhealth.kube.kinds import NODES
from gpuhealth.kube.objects import read
from gpuhealth.quarantine.condition import Summary, condition_patch


async def set_condition_unknown(client: Client, node: Object, message: str, now: datetime) -> Object:
    """Set the Node's condition to Unknown with reason AgentSilent; return the Node as it is after that."""
    unknown = Summary("Unknown", ConditionReason.AGENT_SILENT, message)
    patch = read(NODES.kind, node, lambda node: condition_patch(node, unknown, now))
    name = node["metadata"]["name"]
    return await client.patch(NODES, name, patch, content_type=STRATEGIC_MERGE_PATCH, subresource="status")
