"""A cluster of one node with a real kubelet and simulated GPUs, for tests and the demo.

with SingleNodeCluster() as cluster:
    cluster.kubectl("apply", "-k", "daemonset")
    cluster.write_kernel_log("NVRM: Xid (PCI:7a10:1b:00): 79, pid=1, name=python")
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType

from nvmlsim.simulator import LIBRARY, Simulator
from testing.paths import ROOT
from testing.waiting import wait_for

from kube.control_plane import MissingBinariesError, find_binaries
from kube.single_node.images import archives
from kube.single_node.init import DRIVER, NODE
from kube.single_node.supervisor import cgroups

_BINARIES = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet")
_PROGRAMS = ("unshare", "nsenter", "mount", "ip", "apt-get", "dpkg-deb")
_DOMAIN = 0x7A10  # of the GPUs' PCI addresses: lines of other tests in the kernel log are not about these GPUs


class ClusterError(RuntimeError):
    """The node did not start; the text has the end of its log."""


def why_not() -> str:
    """Why no node can run on this machine; empty where one can."""
    if os.geteuid() != 0:
        return "a node with a real kubelet needs root"
    try:
        find_binaries(_BINARIES)
    except MissingBinariesError as error:
        return f"a node with a real kubelet needs {error}"
    if absent := [name for name in _PROGRAMS if shutil.which(name) is None]:
        return f"a node with a real kubelet needs {', '.join(absent)}, as Debian has them"
    if sys.base_prefix == "/usr":
        return "the images of a node are made with this Python, which must not be Debian's in /usr"
    if not os.access("/dev/kmsg", os.W_OK):
        return "a node with a real kubelet needs a kernel log, and /dev/kmsg cannot be written here"
    return ""


class SingleNodeCluster:
    """One node in namespaces of its own; a context manager, or start() and stop(). It does not outlive its creator."""

    name = NODE

    def __init__(self, gpus: int = 8) -> None:
        self._gpus = gpus
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> SingleNodeCluster:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Builds the images that are not in the cache, starts the node, and returns when it is Ready."""
        images = [str(archive) for archive in archives()]
        self.folder = Path(tempfile.mkdtemp(prefix="gpuhealth-node-"))
        self.kubeconfig = self.folder / "control-plane" / "admin.kubeconfig"
        try:
            (self.folder / "images.json").write_text(json.dumps(images))
            self.driver = Simulator(self.folder, gpus=self._gpus)
            self.driver.set({f"gpu{gpu}.pci.domain": _DOMAIN for gpu in range(self._gpus)})
            shutil.rmtree(self.driver.root)  # which also has the devices at their earlier addresses
            self.driver.tree()
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "tools"), str(ROOT)])}
            command = [sys.executable, "-m", "kube.single_node.supervisor", str(self.folder)]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment)
            wait_for("the node", self._is_up)
            self.init = self._first_process()
            wait_for("the Node to be Ready", self._is_ready)
        except BaseException:  # also on Ctrl-C: no orphans
            self.stop()
            raise

    def stop(self) -> None:
        """Ends every process of the node and removes its folder."""
        if self._process is None:
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        process, self._process = self._process, None
        assert process.stdin is not None
        process.stdin.close()
        process.wait(60)

    def _is_up(self) -> bool:
        assert self._process is not None
        log = self.folder / "init.log"
        failed = log.exists() and "Traceback" in (text := log.read_text(errors="replace"))
        if failed or self._process.poll() is not None:
            raise ClusterError(f"the node did not start:\n{text[-3000:] if failed else ''}")
        return (self.folder / "ready").exists()

    def _first_process(self) -> int:
        """The process id, outside, of the node's first process: that of the only grandchild of the supervisor."""
        assert self._process is not None
        (unshare,) = _children(self._process.pid)
        (init,) = _children(unshare)
        return init

    def _is_ready(self) -> bool:
        try:
            return "True" in self.kubectl(
                "get", "node", NODE, "-o", "jsonpath={.status.conditions[?(@.type=='Ready')].status}"
            )
        except RuntimeError:  # the kubelet has not registered it yet
            return False

    def inside(self, *namespaces: str) -> list[str]:
        """The beginning of a command line that runs a command in namespaces of the node: mount, net, pid, uts."""
        return ["nsenter", "--target", str(self.init), *(f"--{each}" for each in namespaces), "--"]

    @property
    def env(self) -> dict[str, str]:
        """The environment of a person's machine: kubectl and gpuhealth on PATH, and the administrator's kubeconfig."""
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        return {**os.environ, "PATH": path, "KUBECONFIG": str(self.kubeconfig)}

    def command(self, *words: str | Path, seconds: float = 180.0) -> subprocess.CompletedProcess[str]:
        """Runs a command where only the network is the node's: a person's machine."""
        return subprocess.run(
            [*self.inside("net"), *words], env=self.env, cwd=ROOT, capture_output=True, text=True, check=False,
            timeout=seconds,
        )  # fmt: skip

    def kubectl(self, *words: str | Path) -> str:
        """Runs kubectl and returns its output; RuntimeError with its error message when it fails."""
        done = self.command("kubectl", *words)
        if done.returncode:
            raise RuntimeError(f"kubectl {' '.join(map(str, words))} failed: {done.stderr.strip()}")
        return done.stdout

    def remove_driver(self) -> None:
        """Takes the driver's library away, as the end of a driver container does."""
        subprocess.run([*self.inside("mount"), "rm", "-r", DRIVER], check=True)

    def install_driver(self) -> None:
        """Brings a new file of the driver's library, as a new driver container does."""
        subprocess.run([*self.inside("mount"), "mkdir", "-p", DRIVER], check=True)
        subprocess.run([*self.inside("mount"), "cp", LIBRARY, DRIVER], check=True)

    def pod_memory(self, uid: str) -> int:
        """The memory that the kernel charges to a pod, in bytes."""
        for group in cgroups(self.folder.name):
            for pod in group.rglob(f"*pod{uid}"):
                for name in ("memory.usage_in_bytes", "memory.current"):
                    if (pod / name).exists():
                        return int((pod / name).read_text())
        raise ClusterError(f"the pod {uid} has no memory cgroup")

    def write_kernel_log(self, text: str) -> None:
        """Writes one line into the kernel log of this machine, which is the node's too."""
        with Path("/dev/kmsg").open("w") as log:
            log.write(f"<3>{text}\n")


def _children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
