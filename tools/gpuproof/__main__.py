"""`tools/gpu-proof`: runs all steps, writes a folder of results, and prints the verdict first."""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from pathlib import Path

_NEEDED = ("msgspec", "pydantic", "structlog", "typer", "psutil", "pynvml", "yaml")


def main() -> int:
    """Exit code: 0 all proved, 1 not all could be proved here, 2 something was disproved, 3 no proof was possible."""
    parser = argparse.ArgumentParser(
        prog="tools/gpu-proof",
        description="Proves on this machine what gpuhealth says of its GPUs."
        " Exit code: 0 all proved, 1 not all could be proved here, 2 something was disproved, 3 no proof was possible.",
    )
    parser.add_argument("steps", nargs="*", metavar="STEP", help="only these steps")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the results; default: gpu-proof-TIME")
    parser.add_argument("--minutes", type=float, default=9.0, metavar="N", help="for all steps together; default: 9")
    parser.add_argument("--devices", default="all", metavar="DEVICES", help="for burn-ins: all, cuda:0, or cpu")
    parser.add_argument("--list", action="store_true", help="list the steps and end")
    words = parser.parse_args()
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        print(f"gpu-proof: no proof possible: {sys.executable} lacks the modules {', '.join(missing)}")
        return 3
    if not 0 < words.minutes <= 24 * 60:
        parser.error(f"--minutes: {words.minutes:g} is not between 0 and 1440")
    from gpuproof import proof
    from gpuproof.steps import STEPS

    names = [step.name for step in STEPS]
    if words.list:
        print("\n".join(names))
        return 0
    if unknown := [name for name in words.steps if name not in names]:
        parser.error(f"there is no step {unknown[0]}; steps: {', '.join(names)}")
    chosen = tuple(step for step in STEPS if not words.steps or step.name in words.steps)
    folder = words.out or Path(f"gpu-proof-{time.strftime('%Y%m%dT%H%M%S')}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out: cannot make {folder}: {error.strerror}")
    return proof.run(chosen, folder.resolve(), words.minutes * 60, words.devices)


if __name__ == "__main__":
    sys.exit(main())
