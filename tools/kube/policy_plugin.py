"""The ValidatingAdmissionPolicy code of kube-apiserver as a program, for servers that are too old to have it.

`policy-plugin` is found as the other binaries are: in KUBEBUILDER_ASSETS or on PATH. It compiles expressions as the
server does when a policy is created, and judges AdmissionReviews as the server does when a request comes.

    with PolicyPlugin() as plugin:
        plugin.put(documents(Path("daemonset/admission")))
        answer = plugin.review(request)
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from kube.control_plane import find_binaries, free_port
from kube.manifests import Document

START_SECONDS = 60.0  # on a machine that has much else to do
GROUP = "admissionregistration.k8s.io/v1"
_MARKER = "policies-are-in-force"
_REQUEST: Document = {
    "uid": _MARKER,
    "kind": {"group": "marker.invalid", "version": "v1", "kind": "Marker"},
    "resource": {"group": "marker.invalid", "version": "v1", "resource": "markers"},
    "name": _MARKER,
    "operation": "CREATE",
    "userInfo": {"username": "anybody"},
    "object": {"apiVersion": "marker.invalid/v1", "kind": "Marker", "metadata": {"name": _MARKER}},
}


def problems(documents: Iterable[Document]) -> list[str]:
    """What the API server would say of policies when they are created; empty when it takes all of them."""
    (program,) = find_binaries(["policy-plugin"]).values()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "policies.yaml"
        path.write_text(yaml.safe_dump_all(documents), encoding="utf-8")
        done = subprocess.run([program, "compile", path], capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).splitlines()
    return [line for line in lines if not line.endswith(": compiles")] if done.returncode else []


class PolicyPlugin:
    """The plugin as a child process, as a context manager."""

    def __init__(self) -> None:
        self._version = 0

    def __enter__(self) -> PolicyPlugin:
        (program,) = find_binaries(["policy-plugin"]).values()
        address = f"127.0.0.1:{free_port()}"
        self._url = f"http://{address}"
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [program, "serve", address, "", ""], stdout=self._log, stderr=subprocess.STDOUT
        )
        try:
            self._await_answer()
        except BaseException:  # also on Ctrl-C: no orphans
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()

    def put(self, objects: Iterable[Document]) -> None:
        """Add or replace policies, bindings and parameters; returns when they are in force.

        Raises ValueError with the server's words for a policy that does not compile.
        """
        self._version += 1
        # The plugin looks at versions to see what has changed, and takes notice of the marker after all others.
        marked = [*objects, *self._marker()]
        versioned = [
            {**each, "metadata": {**each["metadata"], "resourceVersion": str(self._version)}} for each in marked
        ]
        self._post("/objects", versioned)
        deadline = time.monotonic() + START_SECONDS
        while f"version {self._version}." not in str(self.review(_REQUEST)):
            if time.monotonic() > deadline:
                raise RuntimeError(f"the policies were not in force within {START_SECONDS:g} s")
            time.sleep(0.02)

    def review(self, request: Document) -> Document:
        """The AdmissionResponse to an AdmissionRequest."""
        review = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}
        answer: Document = json.loads(self._post("/review", review))["response"]
        return answer

    def _marker(self) -> list[Document]:
        rule = {"apiGroups": ["marker.invalid"], "apiVersions": ["v1"], "resources": ["*"], "operations": ["CREATE"]}
        says = {"expression": "false", "message": f"version {self._version}."}
        policy = {"matchConstraints": {"resourceRules": [rule]}, "validations": [says]}
        binding = {"policyName": _MARKER, "validationActions": ["Deny"]}
        metadata = {"name": _MARKER}
        return [
            {"apiVersion": GROUP, "kind": "ValidatingAdmissionPolicy", "metadata": metadata, "spec": policy},
            {"apiVersion": GROUP, "kind": "ValidatingAdmissionPolicyBinding", "metadata": metadata, "spec": binding},
        ]

    def _await_answer(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self._post("/objects", [])
            except urllib.error.URLError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self._log.seek(0)
                    tail = self._log.read()[-2000:].decode(errors="replace")
                    raise RuntimeError(f"policy-plugin did not start; the end of its log:\n{tail}") from None
                time.sleep(0.02)
            else:
                return

    def _post(self, path: str, body: Any) -> str:
        request = urllib.request.Request(self._url + path, json.dumps(body).encode(), method="POST")
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            with error:
                raise ValueError(error.read().decode(errors="replace").strip()) from None
