"""ValidatingAdmissionPolicies in front of an API server that has none yet: as a webhook with the same rules.

The server (1.20) sends every request that a policy's `resourceRules` match, with `object` and `oldObject` as they are
after patches, defaults and the strategies, which is what a newer server gives to the policy itself. Here they are
evaluated as it does: match conditions, variables, validations; an error refuses.
"""

from __future__ import annotations

import base64
import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from cel_expr_python import cel  # type: ignore[import-untyped] # ships no marker of its types
from kube import ControlPlane, Document, documents

from tests.conftest import BASE

POD_CLAIM = "authentication.kubernetes.io/pod-name"
NODE_CLAIM = "authentication.kubernetes.io/node-name"
_MAP = cel.Type.Map(cel.Type.STRING, cel.Type.DYN)
_PATH = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
ENVIRONMENT = cel.NewEnv(
    variables={
        "object": cel.Type.DYN,
        "oldObject": cel.Type.DYN,
        "params": cel.Type.DYN,
        "request": _MAP,
        "variables": _MAP,
    }
)

ALL = documents(BASE / "admission")
POLICIES = [d for d in ALL if d["kind"] == "ValidatingAdmissionPolicy"]
CONTROLLERS = {"gpuhealth-controller", "gpuhealth-burnins"}  # tested with it
OF_AGENTS = [d for d in ALL if d["metadata"]["name"] not in CONTROLLERS]


def yields_bool(expression: str) -> bool:
    """Whether the type checker finds that an expression gives yes or no; it raises for one that makes no sense."""
    return bool(ENVIRONMENT.compile(expression).return_type() == cel.Type.BOOL)


class Policy:
    """One policy, with the object that its binding gives it as parameters."""

    def __init__(self, document: Document, params: Document | None) -> None:
        self.name: str = document["metadata"]["name"]
        self.spec = document["spec"]
        self.params = params
        self._conditions = [ENVIRONMENT.compile(each["expression"]) for each in self.spec["matchConditions"]]
        self._variables = [(v["name"], ENVIRONMENT.compile(v["expression"])) for v in self.spec["variables"]]
        self._validations = [(v, ENVIRONMENT.compile(v["expression"])) for v in self.spec["validations"]]

    def broken(self, request: Document) -> list[tuple[Document, str]]:
        """The validations that an AdmissionRequest breaks, each with what its expression gave."""
        known = {key: value for key, value in request.items() if key not in {"object", "oldObject"}}
        data: Document = {"object": request.get("object"), "oldObject": request.get("oldObject"), "request": known}
        data |= {"params": self.params, "variables": {}}
        if any(condition.eval(data=data).plain_value() is False for condition in self._conditions):
            return []
        for name, expression in self._variables:
            variable = expression.eval(data=data)
            if variable.type() != cel.Type.ERROR:  # whoever needs it will not find it, which is an error again
                data["variables"][name] = variable.plain_value()
        values = [
            (validation, expression.eval(data=data).plain_value()) for validation, expression in self._validations
        ]
        return [(validation, str(value)) for validation, value in values if value is not True]


def policies(documents: list[Document]) -> list[Policy]:
    """The policies that are bound, with their parameters."""
    by_name = {(d["kind"], d["metadata"]["name"]): d for d in documents}
    found = []
    for binding in [d["spec"] for d in documents if d["kind"] == "ValidatingAdmissionPolicyBinding"]:
        assert binding["validationActions"] == ["Deny"]
        policy = by_name["ValidatingAdmissionPolicy", binding["policyName"]]
        kind = policy["spec"].get("paramKind", {}).get("kind")
        found.append(Policy(policy, by_name[kind, binding["paramRef"]["name"]] if kind else None))
    return found


class Admission:
    """The webhook, as a context manager."""

    def __init__(self, plane: ControlPlane, documents: list[Document]) -> None:
        self.plane = plane
        self.policies = {policy.name: policy for policy in policies(documents)}
        self.reviewed: list[tuple[str, Document]] = []  # name of the policy, AdmissionRequest
        self._nodes: dict[str, str] = {}

    def __enter__(self) -> Admission:
        admission = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                answer = admission._answer(self.path.split("?")[0].strip("/"), json.loads(self.rfile.read(length)))
                data = json.dumps(answer).encode()
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
        self.plane.apply([self._configuration()])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.plane.request("DELETE", f"{_PATH}/policies")
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _configuration(self) -> Document:
        port = self._server.server_address[1]
        bundle = base64.b64encode(self.plane.ca.read_bytes()).decode()
        webhooks = [
            {
                "name": f"{policy.name}.gpuhealth.io",
                "rules": policy.spec["matchConstraints"]["resourceRules"],
                "failurePolicy": policy.spec["failurePolicy"],
                "sideEffects": "None",
                "admissionReviewVersions": ["v1"],
                "timeoutSeconds": 30,
                "clientConfig": {"url": f"https://127.0.0.1:{port}/{policy.name}", "caBundle": bundle},
            }
            for policy in self.policies.values()
        ]
        return {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingWebhookConfiguration",
            "metadata": {"name": "policies"},
            "webhooks": webhooks,
        }

    def _answer(self, name: str, review: Document) -> Document:
        request = review["request"]
        self._add_node_claim(request["userInfo"])
        # Servers before 1.27 repeat the field there.
        annotations = ((request.get("object") or {}).get("metadata") or {}).get("annotations") or {}
        annotations.pop("seccomp.security.alpha.kubernetes.io/pod", None)
        if request["resource"]["resource"] == "nodes":
            # Before 1.20.6 the server's own validation made the old Node equal to the new one (CVE-2021-25735). What is
            # stored is still the old one now.
            request["oldObject"] = self.plane.request("GET", f"/api/v1/nodes/{request['name']}")
        self.reviewed.append((name, request))
        broken = self.policies[name].broken(request)
        response: Document = {"uid": request["uid"], "allowed": not broken}
        for validation, value in broken[:1]:
            message = f"{validation['message']} ({value})"
            response["status"] = {"code": 403, "reason": validation["reason"], "message": message}
        return {"apiVersion": review["apiVersion"], "kind": review["kind"], "response": response}

    def _add_node_claim(self, user: Document) -> None:
        """What servers since 1.30 know of a token that is bound to a pod."""
        for pod in user.get("extra", {}).get(POD_CLAIM, []):
            if pod not in self._nodes:
                found = self.plane.request("GET", f"/api/v1/namespaces/gpuhealth/pods/{pod}")
                self._nodes[pod] = found["spec"]["nodeName"]
            user["extra"][NODE_CLAIM] = [self._nodes[pod]]
