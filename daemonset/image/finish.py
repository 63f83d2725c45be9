"""Finishes the interpreter of an image: removes its installers, and compiles the standard library.

The base image has no compiled files, and the root of our containers is read-only: without this each process would
compile what it imports. They are compiled at the level of PYTHONOPTIMIZE.
"""

from __future__ import annotations

import compileall
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from py_compile import PycInvalidationMode

_UNUSED = ("ensurepip", "idlelib", "lib2to3", "pydoc_data", "tkinter", "turtledemo")


def main() -> None:
    """Do all of it."""
    subprocess.run(
        [
            sys.executable,
            "-B",
            "-m",
            "pip",
            "uninstall",
            "--yes",
            "--quiet",
            "--root-user-action=ignore",
            "wheel",
            "setuptools",
            "pip",
        ],
        check=True,
    )
    for program in Path(sysconfig.get_path("scripts")).iterdir():
        if re.match(r"(pip|idle|2to3|pydoc)", program.name):
            program.unlink()
    library = sysconfig.get_path("stdlib")
    for name in _UNUSED:
        shutil.rmtree(Path(library, name), ignore_errors=True)
    compileall.compile_dir(
        library, quiet=1, force=True, workers=0, rx=re.compile(r"/(site-packages|test)/"),
        optimize=sys.flags.optimize, invalidation_mode=PycInvalidationMode.UNCHECKED_HASH,
    )  # fmt: skip


if __name__ == "__main__":
    main()
