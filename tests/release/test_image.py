"""The images: pinned, small, without installers, and built by one command."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess

import pytest
from release.image import CONTAINERFILE, Size, build_command, measured, version

from gpuhealth import __version__

NAME = "registry.example.com/gpuhealth:test"
BASE = os.environ.get("IMAGE_BASE")
"""An image in the local storage of buildah that replaces the pinned one, where no registry can be reached."""


def options(**changed: object) -> argparse.Namespace:
    """The options of tools/image."""
    given: dict[str, object] = {
        "builder": "podman",
        "builder_option": [],
        "build_option": [],
        "base": None,
        "torch": None,
    }
    return argparse.Namespace(**{**given, "torch_index": None, "pip_conf": None, "ca": None, **changed})


def test_the_base_is_pinned() -> None:
    """Every stage is built on the one base, which a tag names and a digest pins."""
    text = CONTAINERFILE.read_text()
    (base,) = re.findall(r"^ARG BASE=(.*)$", text, re.MULTILINE)
    assert re.fullmatch(r"docker\.io/library/python:3\.11\.\d+-slim-bookworm@sha256:[0-9a-f]{64}", base)
    assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) == {"${BASE}", "build"}


def test_nothing_else_goes_to_the_builder() -> None:
    """The ignore file begins with everything, and lets in what is copied."""
    lines = (CONTAINERFILE.parent / "Containerfile.dockerignore").read_text().splitlines()
    assert next(line for line in lines if not line.startswith("#")) == "*"
    assert "**/__pycache__" in lines


def test_the_command_of_a_build() -> None:
    """Version, mirror, secrets and ignore file reach the builder; PyTorch's arguments only that of the burn-in."""
    given = options(base="mirror/python:3.11", torch="2.7.1", torch_index="https://example.com/cu118", ca="/etc/ca.pem")
    agent, burnin = (" ".join(build_command(given, target, NAME)) for target in ("agent", "burnin"))
    assert f"--build-arg VERSION={__version__} " in agent
    assert "--build-arg BASE=mirror/python:3.11 " in agent
    assert "--secret id=ca,src=/etc/ca.pem" in agent
    assert f"--ignorefile {CONTAINERFILE}.dockerignore" in agent
    assert "TORCH" not in agent
    assert "--build-arg TORCH=2.7.1 --build-arg TORCH_INDEX=https://example.com/cu118" in burnin
    assert "--ignorefile" not in " ".join(build_command(options(builder="docker"), "agent", NAME)), "docker has none"
    assert version() == __version__


@pytest.fixture(scope="module")
def built() -> list[str]:
    """buildah, with an image of agent and controller that it has built."""
    if BASE is None or not shutil.which("buildah") or os.geteuid():
        pytest.skip("images are built by root with buildah, where IMAGE_BASE names a base in its storage")
    given = options(builder="buildah", base=BASE, build_option=["--isolation=chroot", "--pull=false"])
    subprocess.run(build_command(given, "agent", NAME), check=True, cwd=CONTAINERFILE.parents[2])
    return ["buildah"]


def test_the_size(built: list[str]) -> None:
    """The image of the agent stays below 250 MB, and 80 MB compressed, on the stand-in for the base as well."""
    size = measured(built[0], [], NAME)
    assert size <= Size(250_000_000, 80_000_000)
    assert size.compressed <= 80_000_000


def test_what_is_in_it(built: list[str]) -> None:
    """It has labels and a user, runs commands, and holds no installer and no module that is not compiled."""
    inspected = json.loads(subprocess.run([*built, "inspect", NAME], check=True, capture_output=True).stdout)
    config = inspected["OCIv1"]["config"]
    assert (config["User"], config["Entrypoint"]) == ("65532:65532", ["gpuhealth"])
    assert config["Labels"]["org.opencontainers.image.version"] == __version__
    (container,) = subprocess.run([*built, "from", NAME], check=True, capture_output=True, text=True).stdout.split()
    code = "import gpuhealth.cli.main, importlib.util as u; print(gpuhealth.__cached__, u.find_spec('pip'))"
    run = [*built, "run", "--isolation=chroot", container, "python", "-c", code]
    try:
        shown = subprocess.run(run, check=True, capture_output=True, text=True).stdout.split()
    finally:
        subprocess.run([*built, "rm", container], check=True, capture_output=True)
    assert shown[0].endswith(".opt-2.pyc")
    assert shown[1] == "None"
