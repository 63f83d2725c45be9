"""The locks of the images: complete, with hashes, and of the versions that pyproject.toml allows."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from release.lock import IMAGE, ROOT, TORCH

LOCKS = ("requirements", "burnin", "build")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def versions(name: str) -> dict[str, list[str]]:
    """The versions in a lock by the names of the packages; some differ by version of Python."""
    found: dict[str, list[str]] = {}
    for package, version in re.findall(r"^([\w.-]+)==([^ ;]+)", (IMAGE / f"{name}.lock").read_text(), re.MULTILINE):
        found.setdefault(package.replace(".", "-"), []).append(version)
    return found


@pytest.mark.parametrize(
    ("lock", "wanted"),
    [
        ("requirements", PROJECT["project"]["dependencies"]),
        ("burnin", PROJECT["project"]["optional-dependencies"]["burnin"]),
        ("build", PROJECT["build-system"]["requires"]),
    ],
)
def test_every_dependency_is_locked(lock: str, wanted: list[str]) -> None:
    """Each dependency has a version, and one that pyproject.toml allows: run tools/lock after a change there."""
    locked = versions(lock)
    for requirement in map(Requirement, wanted):
        found = locked[requirement.name.lower().replace(".", "-")]
        assert all(requirement.specifier.contains(version) for version in found), requirement


@pytest.mark.parametrize("lock", LOCKS)
def test_every_file_has_hashes_and_no_address(lock: str) -> None:
    """pip accepts only files with these hashes, from whatever index it is set to use."""
    text = (IMAGE / f"{lock}.lock").read_text()
    entries = re.split(r"^(?=[\w.-]+==)", text, flags=re.MULTILINE)[1:]
    assert len(entries) == sum(map(len, versions(lock).values()))
    assert all("--hash=sha256:" in entry for entry in entries)
    assert "://" not in text
    assert "--index" not in text


def test_torch_is_the_documented_one() -> None:
    """The burn-in image has the version that the README names in its table, with CUDA 12."""
    assert versions("burnin")["torch"] == [TORCH]
    assert "nvidia-cuda-runtime-cu12" in versions("burnin")
    assert f"| {TORCH} (default)" in (ROOT / "README.md").read_text()


def test_a_lock_is_not_written_twice() -> None:
    """burnin.lock holds only what requirements.lock does not: the one is installed after the other."""
    assert not versions("burnin").keys() & versions("requirements").keys()


def test_the_folder_of_the_images_is_complete() -> None:
    """The Containerfile names each file of its folder."""
    containerfile = (IMAGE / "Containerfile").read_text()
    others = {path.name for path in Path(IMAGE).iterdir() if path.is_file()} - {
        "Containerfile",
        "Containerfile.dockerignore",
    }
    assert {name for name in others if f"daemonset/image/{name}" not in containerfile} == set()
