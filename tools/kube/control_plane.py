"""etcd and the Kubernetes control plane as child processes on free loopback ports.

The binaries come from KUBEBUILDER_ASSETS (the layout of kubebuilder's envtest) or from PATH. Only flags that servers
from 1.20 to today's know are used, or they are chosen by the server's version.

    with ControlPlane() as plane:
        plane.apply(Path("daemonset"))
        plane.create_node("gpu-1", labels={"nvidia.com/gpu.present": "true"})
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from http import HTTPStatus
from http.client import HTTPException, HTTPSConnection
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from kube.manifests import Document, documents

ADMIN_TOKEN = "admin-of-a-throwaway-control-plane"
START_SECONDS = 180.0  # on a machine that has much else to do
STOP_SECONDS = 60.0


class MissingBinariesError(RuntimeError):
    """A control-plane binary is neither in KUBEBUILDER_ASSETS nor on PATH."""


def find_binaries(names: Iterable[str] = ("etcd", "kube-apiserver")) -> dict[str, Path]:
    """Where the binaries are; raises MissingBinariesError with what to do about it."""
    folder = os.environ.get("KUBEBUILDER_ASSETS")
    search = os.pathsep.join(filter(None, [folder, os.environ.get("PATH")]))
    found = {name: shutil.which(name, path=search) for name in names}
    if absent := [name for name, path in found.items() if path is None]:
        raise MissingBinariesError(
            f"{', '.join(absent)} not found: set KUBEBUILDER_ASSETS to a folder that holds them, or put them on PATH"
        )
    return {name: Path(path) for name, path in found.items() if path is not None}


def kubelet_token(node: str) -> str:
    """The token of a kubelet that registers this Node."""
    return f"kubelet-of-{node}"


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class _Connections:
    """Connections to the API server that are kept for the next request, from any thread.

    Most requests of tests ask again for what is not there yet, and a TLS handshake takes several times the CPU of the
    request itself, on both sides.
    """

    def __init__(self, port: int, ca: Path) -> None:
        self._port = port
        self._ca = ca
        self._context: ssl.SSLContext | None = None
        self._idle: list[HTTPSConnection] = []

    def request(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> tuple[int, str]:
        """Status and text of the answer; OSError where there is none."""
        connection = self._connection()
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            text = answer.read().decode(errors="replace")
        except HTTPException as error:
            connection.close()
            raise OSError(f"no answer: {error!r}") from error
        except BaseException:
            connection.close()
            raise
        if answer.will_close:
            connection.close()
        else:
            self._idle.append(connection)
        return answer.status, text

    def _connection(self) -> HTTPSConnection:
        while self._idle:
            with contextlib.suppress(IndexError):  # another thread was faster
                connection = self._idle.pop()
                if not select.select([connection.sock], [], [], 0)[0]:
                    return connection
                connection.close()  # the server has ended it
        if self._context is None:
            self._context = ssl.create_default_context(cafile=str(self._ca))
        return HTTPSConnection("127.0.0.1", self._port, context=self._context, timeout=30)

    def close(self) -> None:
        """Closes those that no request uses."""
        while self._idle:
            self._idle.pop().close()


class RequestError(RuntimeError):
    """The API server refused a request of the tool's own."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"{status}: {body}")
        self.status = status


class ControlPlane:
    """A control plane in a temporary folder; a context manager, or start() and stop()."""

    def __init__(
        self,
        *,
        controller_manager: bool = False,
        scheduler: bool = False,
        audit: bool = False,
        api_flags: Iterable[str] = (),
        folder: Path | None = None,
        kubelets: Iterable[str] = (),
        port: int | None = None,
    ) -> None:
        """`kubelets` are the names of Nodes that real kubelets register, each with its kubelet_token()."""
        self._with_manager = controller_manager
        self._with_scheduler = scheduler
        self._audit = audit
        self._api_flags = list(api_flags)
        self._given_folder = folder
        self._kubelets = list(kubelets)
        self._given_port = port
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._kinds: dict[tuple[str, str], tuple[str, bool]] = {}

    def __enter__(self) -> ControlPlane:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # --- processes ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start everything and return when the API server is ready; on failure nothing is left running."""
        wanted = ["etcd", "kube-apiserver"]
        wanted += ["kube-controller-manager"] if self._with_manager else []
        wanted += ["kube-scheduler"] if self._with_scheduler else []
        self._binaries = find_binaries(wanted)
        self.folder = self._given_folder or Path(tempfile.mkdtemp(prefix="control-plane-"))
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._start_etcd()
            self._start_api_server()
            self.kubeconfig = self.write_kubeconfig("admin", ADMIN_TOKEN)
            for name in wanted[2:]:
                self._start_client(name)
        except BaseException:  # also on Ctrl-C: no orphans
            self.stop()
            raise

    def stop(self) -> None:
        """Stop everything, API clients before the API server before etcd, and remove the folder."""
        if hasattr(self, "_connections"):
            self._connections.close()
        for name in reversed(list(self._processes)):
            process = self._processes.pop(name)
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._given_folder is None and hasattr(self, "folder"):
            shutil.rmtree(self.folder, ignore_errors=True)

    def pause(self, name: str = "kube-apiserver") -> None:
        """Freeze a process: its sockets accept and never answer."""
        self._processes[name].send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid(name), os.WSTOPPED)  # a signal takes effect a moment later

    def resume(self, name: str = "kube-apiserver") -> None:
        """Let a frozen process go on."""
        self._processes[name].send_signal(signal.SIGCONT)

    def stop_api_server(self) -> None:
        """Take the API server away; etcd keeps what was written."""
        self._connections.close()
        process = self._processes.pop("kube-apiserver")
        process.terminate()
        process.wait(STOP_SECONDS)

    def start_api_server(self) -> None:
        """Bring the API server back on the port it had."""
        self._start_api_server()

    def pid(self, name: str) -> int:
        """The process id of etcd, kube-apiserver, kube-controller-manager or kube-scheduler."""
        return self._processes[name].pid

    def _launch(self, name: str, *flags: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [str(self._binaries[name]), *flags], stdout=log, stderr=subprocess.STDOUT, cwd=self.folder
            )

    def _await(self, name: str, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            if self._processes[name].poll() is not None or time.monotonic() > deadline:
                tail = (self.folder / f"{name}.log").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{name} did not become ready; the end of its log:\n{tail}")
            time.sleep(0.05)

    def _start_etcd(self) -> None:
        self._etcd = f"http://127.0.0.1:{free_port()}"
        peers = f"http://127.0.0.1:{free_port()}"
        self._launch(
            "etcd",
            f"--data-dir={self.folder / 'etcd'}",
            "--unsafe-no-fsync",
            f"--listen-client-urls={self._etcd}",
            f"--advertise-client-urls={self._etcd}",
            f"--listen-peer-urls={peers}",
            f"--initial-advertise-peer-urls={peers}",
            f"--initial-cluster=default={peers}",
        )
        self._await("etcd", lambda: _answers(f"{self._etcd}/health"))

    def _start_api_server(self) -> None:
        if not hasattr(self, "port"):
            self.port = self._given_port or free_port()
            self.server = f"https://127.0.0.1:{self.port}"
            self.certificates = self.folder / "certificates"
            self._connections = _Connections(self.port, self.ca)
            self._prepare_api_server()
        keys = self.folder / "service-accounts.key"
        flags = [
            f"--etcd-servers={self._etcd}",
            "--bind-address=127.0.0.1",
            f"--secure-port={self.port}",
            f"--tls-cert-file={self.ca}",
            f"--tls-private-key-file={self.ca.with_suffix('.key')}",
            "--authorization-mode=Node,RBAC",
            f"--token-auth-file={self.folder / 'tokens.csv'}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={keys}",
            f"--service-account-signing-key-file={keys}",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--endpoint-reconciler-type=none",
            "--allow-privileged=true",
        ]
        if self._kubelets:
            flags.append("--enable-admission-plugins=NodeRestriction")
        if not self._with_manager:  # nobody makes the default service accounts that this plugin asks of every pod
            flags.append("--disable-admission-plugins=ServiceAccount")
        if self._audit:
            flags += [f"--audit-policy-file={self.folder / 'audit.yaml'}", f"--audit-log-path={self.audit_log}"]
            flags.append("--audit-log-maxsize=100000")  # MB: else it begins a new file at 100, and the old is not read
        self._launch("kube-apiserver", *flags, *self._api_flags)
        self._await("kube-apiserver", self._is_ready)

    def _prepare_api_server(self) -> None:
        tokens = [f'{ADMIN_TOKEN},admin,admin,"system:masters"']
        tokens += [f'{kubelet_token(name)},system:node:{name},{name},"system:nodes"' for name in self._kubelets]
        (self.folder / "tokens.csv").write_text("\n".join(tokens) + "\n")
        # Keys of elliptic curves: with those that the server makes itself, a connection costs it milliseconds of CPU.
        self.certificates.mkdir(exist_ok=True)
        _openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", self.folder / "service-accounts.key")
        curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30")
        names = "subjectAltName=IP:127.0.0.1,IP:10.96.0.1,DNS:localhost,DNS:kubernetes.default.svc"
        files = ("-out", self.ca, "-keyout", self.ca.with_suffix(".key"))
        _openssl("req", "-x509", *curve, "-subj", "/CN=kube-apiserver", "-addext", names, *files)
        policy = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"]}
        (self.folder / "audit.yaml").write_text(yaml.safe_dump({**policy, "rules": [{"level": "Request"}]}))

    def _is_ready(self) -> bool:
        if not self.ca.exists():
            return False
        try:
            self.request("GET", "/api/v1/namespaces/default")
            return bool(self.request("GET", "/readyz") == "ok")
        except (RequestError, OSError):
            return False

    def _start_client(self, name: str) -> None:
        port = free_port()
        flags = [
            f"--kubeconfig={self.kubeconfig}",
            "--leader-elect=false",
            f"--secure-port={port}",
            f"--tls-cert-file={self.ca}",
            f"--tls-private-key-file={self.ca.with_suffix('.key')}",
        ]
        if self.minor < 24:  # the insecure port has a fixed number, and newer versions refuse the flag
            flags.append("--port=0")
        if name == "kube-controller-manager":
            flags.append(f"--service-account-private-key-file={self.folder / 'service-accounts.key'}")
            flags.append(f"--root-ca-file={self.ca}")
            if not self._kubelets:
                flags.append("--node-monitor-grace-period=24h")  # nobody plays a kubelet's heartbeat
        self._launch(name, *flags)
        self._await(name, lambda: _listens(port))

    # --- what it is ---------------------------------------------------------------------------------------------------

    @property
    def ca(self) -> Path:
        """The certificate to trust: the server's own, which is self-signed."""
        return self.certificates / "apiserver.crt"

    @property
    def minor(self) -> int:
        """The minor version of Kubernetes, such as 20."""
        return int(re.sub(r"\D.*", "", self.request("GET", "/version")["minor"]))

    @property
    def audit_log(self) -> Path:
        """Where the audit log is written, one JSON object a line."""
        return self.folder / "audit.log"

    def audit_position(self) -> int:
        """Where the last whole line of the audit log ends: what comes after it can be asked for alone."""
        with self.audit_log.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            for tail in (1 << 16, size):
                log.seek(max(0, size - tail))
                if end := log.read().rfind(b"\n") + 1:
                    return max(0, size - tail) + end
        return 0

    def audit(self, word: str = "", since: int = 0) -> Iterator[dict[str, Any]]:
        """The audit events so far, one for each request that was answered; those alone that have the word in them.

        `since` is an audit_position(): earlier events are left out.
        """
        with self.audit_log.open("rb") as log:
            log.seek(since)
            complete, _, _ = log.read().rpartition(b"\n")  # the last line may be on its way
        for line in complete.splitlines():
            if word.encode() not in line:
                continue
            event = json.loads(line)
            if event["stage"] in {"ResponseComplete", "ResponseStarted"}:
                yield event

    def write_kubeconfig(self, name: str, token: str, server: str | None = None) -> Path:
        """A kubeconfig with the one context `name`; `server` may be a proxy in front of the API server."""
        cluster: dict[str, Any] = {"server": server or self.server}
        if cluster["server"].startswith("https"):
            cluster["certificate-authority"] = str(self.ca)
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": name, "cluster": cluster}],
            "users": [{"name": name, "user": {"token": token}}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
            "current-context": name,
        }
        path = self.folder / f"{name}.kubeconfig"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        return path

    # --- what is in it ------------------------------------------------------------------------------------------------

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        content_type: str = "application/json",
        token: str = ADMIN_TOKEN,
    ) -> Any:
        """One request as administrator (or with `token`): the decoded answer; RequestError on a refusal."""
        headers = {"Authorization": f"Bearer {token}", "Content-Type": content_type}
        data = None if body is None else json.dumps(body).encode()
        status, text = self._connections.request(method, path, data, headers)
        if status >= HTTPStatus.BAD_REQUEST:
            raise RequestError(status, text)
        return json.loads(text) if text.startswith(("{", "[")) else text

    def apply(self, what: Path | Iterable[Document]) -> list[Document]:
        """Server-side apply of a file, a kustomization or documents; what the server made of them."""
        return [self._apply(document) for document in (documents(what) if isinstance(what, Path) else what)]

    def _apply(self, document: Document) -> Document:
        path = self.path_of(document)
        applied: Document = self.request(
            "PATCH", f"{path}?fieldManager=tools&force=true", document, content_type="application/apply-patch+yaml"
        )
        if document["kind"] == "CustomResourceDefinition":
            self._await("kube-apiserver", lambda: self._is_established(path))
        return applied

    def _is_established(self, path: str) -> bool:
        conditions = self.request("GET", path).get("status", {}).get("conditions") or []
        return any(c["type"] == "Established" and c["status"] == "True" for c in conditions)

    def path_of(self, document: Document) -> str:
        """The address of a document's object, by asking the server's discovery for its kind."""
        version, kind, metadata = document["apiVersion"], document["kind"], document["metadata"]
        root = f"/apis/{version}" if "/" in version else f"/api/{version}"
        if (version, kind) not in self._kinds:  # a moment after its definition a custom resource is not served yet
            self._await("kube-apiserver", lambda: self._discovers(root, version, kind))
        plural, namespaced = self._kinds[version, kind]
        scope = f"/namespaces/{metadata.get('namespace', 'default')}" if namespaced else ""
        return f"{root}{scope}/{plural}/{metadata['name']}"

    def _discovers(self, root: str, version: str, kind: str) -> bool:
        try:
            resources = self.request("GET", root)["resources"]
        except RequestError as error:
            if error.status == 404:
                return False
            raise
        for resource in resources:
            if "/" not in resource["name"]:
                self._kinds[version, resource["kind"]] = resource["name"], resource["namespaced"]
        return (version, kind) in self._kinds

    def create_node(self, name: str, labels: Mapping[str, str] | None = None, *, ready: bool = True) -> Document:
        """A Node, as a kubelet would register it; ready means without the not-ready taint of a new one."""
        metadata = {"name": name, "labels": {"kubernetes.io/hostname": name, **(labels or {})}}
        node: Document = self.request(
            "POST", "/api/v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": metadata}
        )
        if ready:
            condition = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "played by a test"}
            merge = "application/strategic-merge-patch+json"
            self.request(
                "PATCH", f"/api/v1/nodes/{name}/status", {"status": {"conditions": [condition]}}, content_type=merge
            )
            if (
                self._with_manager
            ):  # it replaces the whole list of taints, also by what it has read before a test's change
                self._await("kube-controller-manager", lambda: not self._taints_of(name))
            patch = {"spec": {"taints": None}}
            node = self.request("PATCH", f"/api/v1/nodes/{name}", patch, content_type="application/merge-patch+json")
        return node

    def _taints_of(self, node: str) -> list[Document]:
        return list(self.request("GET", f"/api/v1/nodes/{node}")["spec"].get("taints") or [])

    def service_account_token(
        self, namespace: str, name: str, seconds: int = 3600, *, pod: str = "", audience: str = ""
    ) -> str:
        """A token of a service account, from the TokenRequest API; bound to a pod like a pod's own if one is named."""
        spec: Document = {"expirationSeconds": seconds, "audiences": [audience or "https://kubernetes.default.svc"]}
        if pod:
            uid = self.request("GET", f"/api/v1/namespaces/{namespace}/pods/{pod}")["metadata"]["uid"]
            spec["boundObjectRef"] = {"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": uid}
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        answer = self.request("POST", f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token", body)
        return str(answer["status"]["token"])


def _openssl(*words: str | Path) -> None:
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
