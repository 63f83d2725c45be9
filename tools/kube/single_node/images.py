"""The images that the node runs, as archives for containerd, kept in the cache by the content that they are made from.

No registry is needed: the base image is made from Debian's packages and from the Python that runs this program, and
trusts the certificates that this machine trusts. gpuhealth's own image is built from its Containerfile.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from testing.paths import ROOT

from gpuhealth import __version__
from kube.single_node.packages import SOFTWARE, locked, unpacked, with_packages

AGENT = f"registry.example.com/gpuhealth:{__version__}"
BURNIN = f"registry.example.com/gpuhealth-burnin:{__version__}"
BUSYBOX = "localhost/busybox:1"
"""An image with busybox alone: for work, and for the processes that hold the namespaces of pods."""

TORCH = Path(sysconfig.get_path("purelib"))
"""Where the burn-in image finds PyTorch on the node; a gigabyte that is in no image."""

_BASE_PACKAGES = (
    "base-files", "bash", "coreutils", "dash", "findutils", "grep", "libc-bin", "netbase", "sed", "tzdata",
    "libacl1", "libattr1", "libbz2-1.0", "libc6", "libdb5.3", "libexpat1", "libffi8", "libgcc-s1", "libgdbm6",
    "libgmp10", "liblzma5", "libncursesw6", "libnsl2", "libpcre2-8-0", "libreadline8", "libselinux1", "libsqlite3-0",
    "libssl3", "libstdc++6", "libtinfo6", "libtirpc3", "libuuid1", "zlib1g",
)  # fmt: skip
_BASE_VERSION = 1  # to be raised with a change of what is put into the base image
_CERTIFICATES = Path(os.environ.get("SSL_CERT_FILE") or "/etc/ssl/certs/ca-certificates.crt")
_CONTAINERFILE = "daemonset/image/Containerfile"
_SOURCES = ("daemonset/image", "gpuhealth", "pyproject.toml", "README.md")
_KEPT = 3  # archives of each image


class ImageError(RuntimeError):
    """An image could not be built; the text is the end of the builder's output."""


def archives() -> list[Path]:
    """An archive for each image, built where the cache has none; raises ImageError or PackagesError."""
    software = unpacked("software", SOFTWARE)
    with locked("images") as folder:
        builder = _Builder(folder, software)
        return [_busybox(builder), agent := _agent(builder), _burnin(builder, agent)]


class _Builder:
    """buildah, with a store in the cache."""

    def __init__(self, folder: Path, software: Path) -> None:
        self.folder = folder
        self.software = software

    def run(self, *words: str) -> None:
        """Runs buildah; ImageError with the end of its output if it fails."""
        store = ["--root", f"{self.folder}/store", "--runroot", f"{self.folder}/run", "--storage-driver", "overlay"]
        command = ["buildah", *store, *words]
        registries = self.software / "etc/containers/registries.conf"
        environment = {**os.environ, "CONTAINERS_REGISTRIES_CONF": str(registries), "BUILDAH_ISOLATION": "chroot"}
        done = subprocess.run(
            with_packages(self.software, command), env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise ImageError(f"buildah {words[0]} failed:\n{(done.stdout + done.stderr)[-3000:]}")

    def build(self, name: str, containerfile: Path, context: Path, arguments: Mapping[str, str], *more: str) -> None:
        """Builds an image of that name, from layers of earlier builds where nothing has changed."""
        words = [f"--build-arg={key}={value}" for key, value in arguments.items()]
        policy = f"--signature-policy={self._policy()}"
        self.run(
            "build",
            policy,
            "--pull=never",
            "--layers",
            *words,
            *more,
            "-t",
            name,
            "-f",
            str(containerfile),
            str(context),
        )

    def archive(self, name: str, key: str) -> Path:
        """Writes an image to an archive that carries its name; older ones are deleted."""
        path = self._path(name, key)
        part = path.with_suffix(".part")
        part.unlink(missing_ok=True)
        self.run(
            "push", f"--signature-policy={self._policy()}", "--disable-compression", name, f"oci-archive:{part}:{name}"
        )
        part.rename(path)
        others = sorted(
            path.parent.glob(f"{path.name.rpartition('-')[0]}-*.tar"), key=lambda each: each.stat().st_mtime
        )
        for old in others[:-_KEPT]:
            old.unlink()
        return path

    def found(self, name: str, key: str) -> Path | None:
        """The archive of an image with this content, if there is one."""
        path = self._path(name, key)
        return path if path.exists() else None

    def _path(self, name: str, key: str) -> Path:
        return self.folder / f"{name.rpartition('/')[2].partition(':')[0]}-{key}.tar"

    def _policy(self) -> Path:
        policy = self.folder / "policy.json"
        policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        return policy


def _busybox(builder: _Builder) -> Path:
    key = _key([builder.software / "usr/bin/busybox"])
    if found := builder.found(BUSYBOX, key):
        return found
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(builder.software / "usr/bin/busybox", folder)
        (folder / "Containerfile").write_text(
            'FROM scratch\nCOPY busybox /bin/busybox\nENTRYPOINT ["/bin/busybox", "sleep", "1000000"]\n'
        )
        builder.build(BUSYBOX, folder / "Containerfile", folder, {})
    return builder.archive(BUSYBOX, key)


def _agent(builder: _Builder) -> Path:
    base = _base(builder)
    key = _key([file for name in _SOURCES for file in _files(ROOT / name)], base)
    if found := builder.found(AGENT, key):
        return found
    ignore = f"--ignorefile={ROOT / _CONTAINERFILE}.dockerignore"
    builder.build(AGENT, ROOT / _CONTAINERFILE, ROOT, {"BASE": base, "VERSION": __version__}, "--target=agent", ignore)
    return builder.archive(AGENT, key)


def _burnin(builder: _Builder, agent: Path) -> Path:
    """The agent's image, which also looks for packages in TORCH."""
    key = agent.stem.rpartition("-")[2]
    if found := builder.found(BURNIN, key):
        return found
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "torch.pth").write_text("/opt/torch\n")
        (folder / "Containerfile").write_text(
            f"FROM {AGENT}\nCOPY torch.pth /opt/gpuhealth/lib/python3.{sys.version_info.minor}/site-packages/\n"
        )
        builder.build(BURNIN, folder / "Containerfile", folder, {})
    return builder.archive(BURNIN, key)


def _base(builder: _Builder) -> str:
    """The name of the base image: a small Debian with this program's Python and pip in /usr/local."""
    key = _key([Path(sys.executable).resolve(), _CERTIFICATES], f"{_BASE_VERSION} {_BASE_PACKAGES}")
    name = f"localhost/gpuhealth-base:{key}"
    marker = builder.folder / name.replace("/", "_")
    if marker.exists():
        return name
    debian = unpacked("debian", _BASE_PACKAGES)
    with tempfile.TemporaryDirectory(dir=builder.folder) as folder:
        root = Path(folder, "root")
        shutil.copytree(debian, root, symlinks=True, ignore=shutil.ignore_patterns("doc", "man", "locale", "info"))
        _add_python(root)
        _add_settings(root)
        (Path(folder) / "Containerfile").write_text(
            "FROM scratch\nCOPY root /\nENV PATH=/usr/local/bin:/usr/bin:/bin LANG=C.UTF-8\nRUN /usr/sbin/ldconfig\n"
        )
        builder.build(name, Path(folder, "Containerfile"), Path(folder), {})
    marker.touch()
    return name


def _add_python(root: Path) -> None:
    version = f"python3.{sys.version_info.minor}"
    prefix, local = Path(sys.base_prefix), root / "usr/local"
    (local / "bin").mkdir(parents=True, exist_ok=True)
    shutil.copy(prefix / "bin" / version, local / "bin" / version)
    unused = shutil.ignore_patterns("site-packages", "test", "tests", "idlelib", "*.a", "__pycache__", "config-*")
    shutil.copytree(prefix / "lib" / version, local / "lib" / version, symlinks=True, ignore=unused)
    for library in (prefix / "lib").glob("libpython*.so*"):
        shutil.copy(library, local / "lib", follow_symlinks=False)
    packages = local / "lib" / version / "site-packages"
    for package in Path(sysconfig.get_path("purelib")).glob("pip*"):
        if package.name == "pip" or package.name.startswith("pip-"):
            shutil.copytree(package, packages / package.name)
    for name in ("python", "python3"):
        (local / "bin" / name).symlink_to(version)
    pip = local / "bin/pip"
    pip.write_text("#!/usr/local/bin/python3\nfrom pip._internal.cli.main import main\nraise SystemExit(main())\n")
    pip.chmod(0o755)


def _add_settings(root: Path) -> None:
    certificates = root / "etc/ssl/certs/ca-certificates.crt"
    certificates.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(_CERTIFICATES, certificates)
    (root / "etc/pip.conf").write_text(f"[global]\ncert = /{certificates.relative_to(root)}\n{_index()}")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n")
    (root / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")
    (root / "tmp").mkdir(exist_ok=True)
    (root / "tmp").chmod(0o1777)


def _index() -> str:
    """The line of pip's settings that names this machine's package index, if it has one of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.index-url"], capture_output=True, text=True, check=False
    )
    return f"index-url = {done.stdout.strip()}\n" if done.returncode == 0 else ""


def _files(path: Path) -> list[Path]:
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
    return [file for file in files if "__pycache__" not in file.parts]


def _key(files: Iterable[Path], more: str = "") -> str:
    found = hashlib.sha256(more.encode())
    for file in files:
        found.update(str(file).encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return found.hexdigest()[:16]
