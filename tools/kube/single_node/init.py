"""The first process of a node, in mount, network, pid, uts and ipc namespaces of its own: everything ends with it.

    python -m kube.single_node.init FOLDER

It mounts what the node is to see, and starts the control plane, containerd and the kubelet. The API server listens at
the address of the Service `kubernetes`, so that pods reach it without kube-proxy.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

from nvmlsim.simulator import LIBRARY

from kube.control_plane import ControlPlane, find_binaries, kubelet_token
from kube.single_node.images import BUSYBOX, TORCH
from kube.single_node.supervisor import cgroups

NODE = "gpu-node-1"
ADDRESS, SERVICE, PODS = "172.30.0.2", "10.96.0.1", "10.244.0.0/24"
DRIVER = Path("/run/nvidia/driver/usr/lib/x86_64-linux-gnu")
"""Where the GPU operator's driver container has its libraries."""
_CONTAINERD = "/run/containerd/containerd.sock"
_CONTAINERD_SETTINGS = """
version = 2
[grpc]
address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
restrict_oom_score_adj = true
sandbox_image = "{busybox}"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{networks}"
"""
_RUNTIME_SETTINGS = """
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{runtime}]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{runtime}.options]
BinaryName = "/usr/sbin/runc"
"""
_DEVICES = ("full", "kmsg", "null", "random", "tty", "urandom", "zero")
_SYSCTLS = {  # which the kubelet would set on the whole machine
    "vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10", "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
}  # fmt: skip


def main() -> None:
    """Start everything, write the file `ready`, and wait for processes that lost their parent."""
    folder = Path(sys.argv[1])
    socket.sethostname(NODE)
    _mount(folder)
    _install_driver(folder)
    _set_up_network()
    _make_cgroups(folder.name)
    plane = ControlPlane(
        controller_manager=True, scheduler=True, folder=folder / "control-plane", kubelets=[NODE], port=443,
        api_flags=["--bind-address=0.0.0.0", f"--advertise-address={ADDRESS}",
                   "--kubelet-preferred-address-types=InternalIP"],
    )  # fmt: skip
    _start_containerd(folder)
    plane.start()
    _import_images(folder)
    _start_kubelet(folder, plane)
    (folder / "ready").touch()
    while True:
        with contextlib.suppress(ChildProcessError):
            os.wait()


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} failed: {done.stderr.strip()}")


def _mount(folder: Path) -> None:
    """Mounts /sys, /dev, /run, /var/lib and /var/log of its own; cgroups and the rest are the machine's."""
    for name in ("cgroup", "lib", "log"):
        (folder / name).mkdir()
    _run("mount", "--rbind", "/sys/fs/cgroup", folder / "cgroup")
    _run("mount", "-t", "sysfs", "sysfs", "/sys")  # shows the interfaces of this network namespace
    _run("mount", "--move", folder / "cgroup", "/sys/fs/cgroup")
    _run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
    _run("mount", "--bind", folder / "lib", "/var/lib")
    _run("mount", "--bind", folder / "log", "/var/log")
    devices = {name: Path("/dev", name).stat() for name in _DEVICES}
    _run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/dev")
    for name, device in devices.items():
        os.mknod(f"/dev/{name}", stat.S_IFCHR | stat.S_IMODE(device.st_mode), device.st_rdev)
        Path("/dev", name).chmod(stat.S_IMODE(device.st_mode))
    for name, kind, options in (("pts", "devpts", "newinstance,ptmxmode=0666,mode=620"), ("shm", "tmpfs", "mode=1777")):
        Path("/dev", name).mkdir()
        _run("mount", "-t", kind, "-o", options, kind, f"/dev/{name}")
    for name, target in (("ptmx", "pts/ptmx"), ("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1")):
        Path("/dev", name).symlink_to(target)
    for name, value in _SYSCTLS.items():
        file = folder / name.replace("/", ".")
        file.write_text(f"{value}\n")
        _run("mount", "--bind", file, f"/proc/sys/{name}")


def _install_driver(folder: Path) -> None:
    """The simulated driver: devices, PCI bus and /proc/driver; its library, as a driver container has it."""
    tree = folder / "nvmlsim.root"
    for name in ("sys/bus/pci", "proc/driver"):
        _run("mount", "--rbind", tree / name, f"/{name}")
    for name in ("sys/devices", "sys/module"):  # together with those of the machine
        _run("mount", "-t", "overlay", "overlay", "-o", f"lowerdir={tree}/{name}:/{name}", f"/{name}")
    for number, device in enumerate(sorted((tree / "dev").iterdir())):
        os.mknod(f"/dev/{device.name}", stat.S_IFCHR | 0o666, os.makedev(195, number))
    Path("/dev/nvmlsim.state").touch()
    _run("mount", "--bind", folder / "nvmlsim.state", "/dev/nvmlsim.state")
    DRIVER.mkdir(parents=True)
    shutil.copy(LIBRARY, DRIVER)
    torch = Path("/run/torch")
    torch.mkdir()
    _run("mount", "--bind", TORCH, torch)
    _run("mount", "--make-rshared", "/")
    manager = folder / "nv-fabricmanager"
    shutil.copy("/bin/sleep", manager)
    subprocess.Popen([manager, "infinity"])


def _set_up_network() -> None:
    for words in (
        "link set lo up", f"addr add {SERVICE}/32 dev lo", "link add node0 type bridge",
        f"addr add {ADDRESS}/24 dev node0", "link set node0 up",
    ):  # fmt: skip
        _run("ip", *words.split())
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


def _make_cgroups(name: str) -> None:
    """The kubelet's own root: it deletes groups of pods that it does not know, and another's would be among them."""
    for group in cgroups(name):
        group.mkdir(exist_ok=True)
        for file in ("cpuset.cpus", "cpuset.mems"):  # version 1: an empty one takes no process
            if (group / file).exists() and (group / "tasks").exists():
                (group / file).write_text((group.parent / file).read_text())
        if (group / "cgroup.controllers").exists():
            for each in (group.parent, group):
                for controller in (each / "cgroup.controllers").read_text().split():
                    with contextlib.suppress(OSError):  # one that the machine does not delegate
                        (each / "cgroup.subtree_control").write_text(f"+{controller}")


def _start(folder: Path, name: str, *command: str | Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "SSL_CERT_FILE"}
    with (folder / "log" / f"{name}.log").open("ab") as log:
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)


def _start_containerd(folder: Path) -> None:
    text = _CONTAINERD_SETTINGS.format(socket=_CONTAINERD, busybox=BUSYBOX, networks=folder / "cni")
    for runtime in ("runc", "nvidia"):  # burn-ins run on the processor here, and need nothing that NVIDIA's adds
        text += _RUNTIME_SETTINGS.format(runtime=runtime)
    (folder / "containerd.toml").write_text(text)
    (folder / "cni").mkdir()
    ranges = [[{"subnet": PODS}]]
    addresses = {"type": "host-local", "dataDir": "/run/cni", "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}]}
    bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "hairpinMode": True, "ipam": addresses}
    network = {"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge]}
    (folder / "cni" / "pods.conflist").write_text(json.dumps(network))
    _start(folder, "containerd", "containerd", "--config", folder / "containerd.toml")


def _import_images(folder: Path) -> None:
    deadline = time.monotonic() + 120
    while subprocess.run(["ctr", "--address", _CONTAINERD, "version"], capture_output=True, check=False).returncode:
        if time.monotonic() > deadline:
            raise RuntimeError(f"containerd does not answer; its log is {folder}/log/containerd.log")
        time.sleep(0.1)
    for archive in json.loads((folder / "images.json").read_text()):
        _run("ctr", "--address", _CONTAINERD, "--namespace", "k8s.io", "images", "import", archive)


def _start_kubelet(folder: Path, plane: ControlPlane) -> None:
    settings = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
        "authorization": {"mode": "AlwaysAllow"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{folder.name}",
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "failSwapOn": False,
        "imageGCHighThresholdPercent": 100,
        "makeIPTablesUtilChains": False,
        "protectKernelDefaults": True,
        "readOnlyPort": 0,
        "resolvConf": "/etc/resolv.conf",
        "serializeImagePulls": False,
    }
    (folder / "kubelet.yaml").write_text(json.dumps(settings))
    kubeconfig = plane.write_kubeconfig("kubelet", kubelet_token(NODE))
    flags = ["--container-runtime=remote"] if plane.minor < 24 else []
    _start(
        folder, "kubelet", find_binaries(["kubelet"])["kubelet"], f"--config={folder}/kubelet.yaml",
        f"--kubeconfig={kubeconfig}", f"--hostname-override={NODE}", f"--node-ip={ADDRESS}",
        f"--container-runtime-endpoint=unix://{_CONTAINERD}", "--root-dir=/var/lib/kubelet", *flags,
    )  # fmt: skip


if __name__ == "__main__":
    main()
