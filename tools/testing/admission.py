"""ValidatingAdmissionPolicies for an API server that has none yet: a webhook that runs kube-apiserver's own code.

The server (1.20) sends every request that a policy's `resourceRules` match, with `object` and `oldObject` as they are
after patches, defaults and the strategies, which is what a newer server gives to the policy itself. The plugin
(`kube.policy_plugin`) then matches and judges as a newer server does. What such an old server does not know yet is
added here: which node a token's pod runs on.
"""

from __future__ import annotations

import base64
import json
import ssl
import threading
from collections.abc import Iterable, Iterator
from copy import deepcopy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from kube import ControlPlane, Document, documents
from kube.control_plane import RequestError
from kube.policy_plugin import PolicyPlugin

from testing.paths import BASE

POD_CLAIM = "authentication.kubernetes.io/pod-name"
NODE_CLAIM = "authentication.kubernetes.io/node-name"
UID_CLAIM = "authentication.kubernetes.io/node-uid"
_PATH = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"

ALL = documents(BASE / "admission")
POLICIES = [d for d in ALL if d["kind"] == "ValidatingAdmissionPolicy"]
CONTROLLERS = {  # tested with it
    "gpuhealth-controller",
    "gpuhealth-controller-events",
    "gpuhealth-controller-reports",
    "gpuhealth-controller-slots",
    "gpuhealth-burnins",
    "gpuhealth-pods",
}
OF_AGENTS = [d for d in ALL if d["metadata"]["name"] not in CONTROLLERS]
OF_CONTROLLER = [d for d in ALL if d["metadata"]["name"] in CONTROLLERS]


def with_variable(objects: list[Document], name: str, expression: str) -> list[Document]:
    """A copy of policies in which a variable has another expression, as after a patch by a kustomization."""
    changed = deepcopy(objects)
    found = [
        each
        for d in changed
        for each in d.get("spec", {}).get("variables", [])
        if d["kind"] == "ValidatingAdmissionPolicy" and each["name"] == name
    ]
    for variable in found:
        variable["expression"] = expression
    assert found
    return changed


def speaks_of(policy: Document, request: Document) -> bool:
    """Whether a policy's rules are for the request's resource and operation."""
    asked = request["resource"]["resource"] + (f"/{request['subResource']}" if request.get("subResource") else "")
    return any(
        request["resource"]["group"] in rule["apiGroups"]
        and asked in rule["resources"]
        and request["operation"] in rule["operations"]
        for rule in policy["spec"]["matchConstraints"]["resourceRules"]
    )


class Admission:
    """The webhook in front of a control plane, as a context manager that installs and removes it."""

    def __init__(self, plane: ControlPlane, objects: list[Document], namespace: str = "gpuhealth") -> None:
        """`namespace` is that of the installation, whose pods' nodes are looked up."""
        self.plane = plane
        self.objects = objects
        self._namespace = namespace
        self.policies = [d for d in objects if d["kind"] == "ValidatingAdmissionPolicy"]
        self.reviewed: list[Document] = []  # AdmissionRequests
        self._claims: dict[str, dict[str, list[str]]] = {}

    def __enter__(self) -> Admission:
        self.plugin = PolicyPlugin().__enter__()
        try:
            self.plugin.put(self.objects)
            self._serve()
            self.plane.apply([self._configuration()])
        except BaseException:
            self.plugin.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.plane.request("DELETE", f"{_PATH}/policies")
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self.plugin.__exit__(None, None, None)

    def renew(self) -> None:
        """Restarts the plugin, as if the policies had been deleted and applied again."""
        self.plugin.__exit__(None, None, None)
        self.plugin = PolicyPlugin().__enter__()
        self.plugin.put(self.objects)

    def _serve(self) -> None:
        admission = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                data = json.dumps(admission._answer(json.loads(self.rfile.read(length)))).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.plane.ca, self.plane.ca.with_suffix(".key"))  # the API server's own: for 127.0.0.1
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def _configuration(self) -> Document:
        port = self._server.server_address[1]
        bundle = base64.b64encode(self.plane.ca.read_bytes()).decode()
        webhook = {
            "name": "policies.gpuhealth.io",
            "rules": [rule for policy in self.policies for rule in policy["spec"]["matchConstraints"]["resourceRules"]],
            "failurePolicy": "Fail",
            "sideEffects": "None",
            "admissionReviewVersions": ["v1"],
            "timeoutSeconds": 30,
            "clientConfig": {"url": f"https://127.0.0.1:{port}/", "caBundle": bundle},
        }
        return {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingWebhookConfiguration",
            "metadata": {"name": "policies"},
            "webhooks": [webhook],
        }

    def _answer(self, review: Document) -> Document:
        request = review["request"]
        self._add_node_claims(request["userInfo"])
        # Servers before 1.27 repeat the field there.
        annotations = ((request.get("object") or {}).get("metadata") or {}).get("annotations") or {}
        annotations.pop("seccomp.security.alpha.kubernetes.io/pod", None)
        if request["resource"]["resource"] == "nodes":
            # Before 1.20.6 the server's own validation made the old Node equal to the new one (CVE-2021-25735). What is
            # stored is still the old one now.
            request["oldObject"] = self.plane.request("GET", f"/api/v1/nodes/{request['name']}")
        self.reviewed.append(request)
        return {"apiVersion": review["apiVersion"], "kind": review["kind"], "response": self.plugin.review(request)}

    def _add_node_claims(self, user: Document) -> None:
        """Adds to the user what servers since 1.30 know about a token that is bound to a pod."""
        for pod in user.get("extra", {}).get(POD_CLAIM, []):
            if pod not in self._claims:
                self._claims[pod] = self._node_of(pod)
            user["extra"] |= self._claims[pod]

    def _node_of(self, pod: str) -> dict[str, list[str]]:
        found = self.plane.request("GET", f"/api/v1/namespaces/{self._namespace}/pods/{pod}")
        if not (node := found["spec"].get("nodeName")):
            return {}
        claims = {NODE_CLAIM: [node]}
        try:
            claims[UID_CLAIM] = [self.plane.request("GET", f"/api/v1/nodes/{node}")["metadata"]["uid"]]
        except RequestError as error:
            if error.status != 404:
                raise
        return claims


def needed_rules(policies: Iterable[Document], requests: list[Document]) -> set[str]:
    """The messages of those rules for which there is a request that nothing but this rule of its policy refuses.

    Each rule is judged alone, as a policy of its own for requests of a group of its own.
    """
    policies = list(policies)
    with PolicyPlugin() as plugin:
        plugin.put([each for policy in policies for each in _alone(policy)])
        return {message for request in requests for policy in policies for message in _only(plugin, policy, request)}


def _only(plugin: PolicyPlugin, policy: Document, request: Document) -> Iterator[str]:
    if not speaks_of(policy, request):
        return
    user = request["userInfo"]
    broken = []
    for number, rule in enumerate(policy["spec"]["validations"]):
        groups = [*user.get("groups", []), f"{policy['metadata']['name']}-{number}"]
        if not plugin.review(request | {"userInfo": user | {"groups": groups}})["allowed"]:
            broken.append(rule["message"])
    if len(broken) == 1:
        yield broken[0]


def _alone(policy: Document) -> Iterator[Document]:
    for number, rule in enumerate(policy["spec"]["validations"]):
        name = f"{policy['metadata']['name']}-{number}"
        one = deepcopy(policy)
        one["metadata"]["name"] = name
        one["spec"]["validations"] = [rule]
        one["spec"]["matchConditions"].append({"name": "alone", "expression": f"'{name}' in request.userInfo.groups"})
        yield one
        binding = {"policyName": name, "validationActions": ["Deny"]}
        yield {
            "apiVersion": policy["apiVersion"],
            "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": name},
            "spec": binding,
        }
