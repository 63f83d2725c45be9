"""Events on nodes and pods that say what the controller does to them, and why. Nothing depends on them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import datetime

import structlog

from gpuhealth.api.names import CONTROLLER
from gpuhealth.controller.pods import Pod
from gpuhealth.kube.client import Client, Object
from gpuhealth.kube.errors import AlreadyExistsError, ApiError
from gpuhealth.kube.events import MESSAGE_LIMIT, NAMESPACE
from gpuhealth.kube.kinds import EVENTS
from gpuhealth.quarantine.marks import written_time
from gpuhealth.runtime.supervisor import raise_if_cancelled

log = structlog.get_logger()


class Telling:
    """The controller's Events."""

    def __init__(self, client: Client, identity: str, now: Callable[[], datetime]) -> None:
        self._client = client
        self._identity = identity
        self._now = now

    async def of_node(self, node: str, reason: str, message: str, *, warning: bool = False) -> None:
        """Tells it of a Node; as its uid the name, as kubelet has it, by which every kubectl finds it."""
        involved = {"apiVersion": "v1", "kind": "Node", "name": node, "uid": node}
        await self._tell(NAMESPACE, involved, reason, message, warning=warning)

    async def of_pod(self, pod: Pod, reason: str, message: str, *, warning: bool = False) -> None:
        """Tells it of a pod."""
        involved = {"apiVersion": "v1", "kind": "Pod", "name": pod.name, "namespace": pod.namespace, "uid": pod.uid}
        await self._tell(pod.namespace, involved, reason, message, warning=warning)

    async def _tell(self, namespace: str, involved: Object, reason: str, message: str, *, warning: bool) -> None:
        time = written_time(self._now())
        digest = hashlib.sha256(f"{involved['uid']}\0{reason}\0{message}\0{time}".encode()).hexdigest()[:16]
        event = {
            "metadata": {"name": f"{involved['name']}.{digest}", "namespace": namespace},
            "involvedObject": involved,
            "type": "Warning" if warning else "Normal",
            "reason": reason,
            "message": message.encode()[:MESSAGE_LIMIT].decode(errors="ignore"),
            "count": 1,
            "firstTimestamp": time,
            "lastTimestamp": time,
            "source": {"component": CONTROLLER},
            "reportingComponent": CONTROLLER,
            "reportingInstance": self._identity,
        }
        try:
            await self._client.create(EVENTS, event, namespace)
        except AlreadyExistsError:
            pass
        except ApiError as error:  # such as a namespace that is being deleted: that must not stop a drain
            raise_if_cancelled()
            log.warning("Event write failed", reason=reason, about=involved["name"], error=str(error))
