"""Builds both images and prints their sizes: `tools/image`. Run with --help for its options."""

from __future__ import annotations

import argparse
import gzip
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
CONTAINERFILE = ROOT / "daemonset" / "image" / "Containerfile"
REGISTRY = "registry.example.com"
TARGETS = {"agent": "gpuhealth", "burnin": "gpuhealth-burnin"}
_BUILDERS = ("podman", "docker", "buildah")
_MEGABYTE = 1_000_000


class Size(NamedTuple):
    """Size of an image in bytes: of its files, and of its compressed layers."""

    unpacked: int
    compressed: int


def main() -> None:
    """Build what the arguments ask for."""
    options = _arguments()
    for target in options.target or TARGETS:
        name = f"{options.registry}/{TARGETS[target]}:{version()}"
        subprocess.run(build_command(options, target, name), check=True, cwd=ROOT)
        if not options.no_sizes:
            size = measured(options.builder, options.builder_option, name)
            print(f"{name}: {size.unpacked / _MEGABYTE:.0f} MB, {size.compressed / _MEGABYTE:.0f} MB compressed")
        if options.push:
            subprocess.run([*_tool(options), "push", name], check=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools/image", description="Builds the images of gpuhealth.")
    parser.add_argument("--registry", default=REGISTRY, help=f"registry and path of both images (default: {REGISTRY})")
    parser.add_argument("--target", action="append", choices=sorted(TARGETS), help="build only this one")
    parser.add_argument("--base", help="another base image, such as one of your mirror; it needs CPython and pip")
    parser.add_argument("--torch", help="version of PyTorch in the burn-in image, instead of the pinned one")
    parser.add_argument("--torch-index", help="package index that has this build of PyTorch")
    parser.add_argument("--pip-conf", help="pip.conf for the build, with an index of your own")
    parser.add_argument("--ca", help="certificates of your index or proxy (in pip.conf: cert = /run/secrets/ca)")
    parser.add_argument("--push", action="store_true", help="push the images")
    parser.add_argument("--no-sizes", action="store_true", help="do not measure the images, which takes a while")
    parser.add_argument("--builder", choices=_BUILDERS, help="default: the first of them on PATH")
    parser.add_argument("--builder-option", action="append", default=[], help="option of the builder's own")
    parser.add_argument("--build-option", action="append", default=[], help="option of its command build")
    options = parser.parse_args()
    options.builder = options.builder or next((each for each in _BUILDERS if shutil.which(each)), None)
    if not options.builder:
        parser.error(f"none of {', '.join(_BUILDERS)} is on PATH: install one of them")
    if options.push and options.registry == REGISTRY:
        parser.error(f"--push needs --registry: {REGISTRY} does not exist")
    return options


def version() -> str:
    """The version of gpuhealth in this folder."""
    (found,) = re.findall(r'^__version__ = "(.*)"$', (ROOT / "gpuhealth/__init__.py").read_text(), re.MULTILINE)
    return str(found)


def _tool(options: argparse.Namespace) -> list[str]:
    return [options.builder, *options.builder_option]


def build_command(options: argparse.Namespace, target: str, name: str) -> list[str]:
    """The command that builds one image. Docker finds the ignore file by itself, from its name."""
    arguments = {"VERSION": version(), "REVISION": _revision(), "BASE": options.base}
    if target == "burnin":
        arguments |= {"TORCH": options.torch, "TORCH_INDEX": options.torch_index}
    command = [*_tool(options), "build", "--file", str(CONTAINERFILE), "--target", target, "--tag", name]
    if options.builder != "docker":
        command += ["--ignorefile", f"{CONTAINERFILE}.dockerignore"]
    for key, value in arguments.items():
        command += ["--build-arg", f"{key}={value}"] if value else []
    for key, file in (("pip.conf", options.pip_conf), ("ca", options.ca)):
        command += ["--secret", f"id={key},src={Path(file).resolve()}"] if file else []
    return [*command, *options.build_option, "."]


def _revision() -> str:
    """The commit that is built; empty outside of a repository."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def measured(builder: str, options: list[str], name: str) -> Size:
    """The size of an image: what a node stores, and what it pulls."""
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder, "image.tar")
        save = ["push", "--quiet", name, f"docker-archive:{archive}"] if builder == "buildah" else None
        subprocess.run([builder, *options, *(save or ["save", "--output", str(archive), name])], check=True)
        subprocess.run(["tar", "--extract", "--file", archive, "--directory", folder], check=True)
        manifest = json.loads(Path(folder, "manifest.json").read_text())
        layers = [Path(folder, layer) for layer in manifest[0]["Layers"]]
        return Size(sum(layer.stat().st_size for layer in layers), sum(_compressed(layer) for layer in layers))


def _compressed(layer: Path) -> int:
    """Bytes of a layer as registries keep it."""
    with tempfile.TemporaryFile() as file:
        with layer.open("rb") as source, gzip.open(file, "wb", compresslevel=6) as target:
            shutil.copyfileobj(source, target, 1 << 20)
        return file.tell()


if __name__ == "__main__":
    main()
