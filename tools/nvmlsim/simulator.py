"""A simulated GPU node for tests, benchmarks and the demo: builds the driver once, drives it by its command."""

import ctypes
import fcntl
import os
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeAlias

_FOLDER = Path(__file__).resolve().parent
BUILD = _FOLDER / "build"
LIBRARY = BUILD / "libnvidia-ml.so.1"
COMMAND = BUILD / "nvmlsim"

Slots: TypeAlias = int | Iterable[int] | None
"""GPUs by slot: one, several, or None for the default (every GPU; for faults of calls: calls about no GPU, too)."""


class SimulatorError(RuntimeError):
    """The command refused; the text is what it said."""


def library_of(version: str) -> Path:
    """A library that works with the kernel module of this version only, as a real one; it is compiled on first use."""
    library = BUILD / version / "libnvidia-ml.so.1"
    build("all", str(library.relative_to(_FOLDER)))
    return library


def build(*targets: str) -> None:
    """Compile the library and the command if their sources are newer; safe when several processes do it at once."""
    BUILD.mkdir(exist_ok=True)
    with (BUILD / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run(["make", "-s", "-C", str(_FOLDER), *targets], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SimulatorError(f"the simulated driver does not compile:\n{done.stdout}{done.stderr}")


class Simulator:
    """One simulated node: its state file, and its /dev, /sys and /proc below `root`.

    GPUs are named by their slot (gpu0, gpu1 ...), which stays when a GPU before it is dropped and NVML's indices shift.
    """

    def __init__(
        self,
        folder: Path,
        model: str = "h100-sxm",
        gpus: int = 8,
        *,
        driver: str | None = None,
        seed: int = 1,
        mig: int = 0,
    ) -> None:
        build()
        self.state = folder / "nvmlsim.state"
        self.root = folder / "nvmlsim.root"
        options = ["--model", model, "--gpus", str(gpus), "--seed", str(seed), "--mig", str(mig)]
        self.run("create", *options, *(["--driver", driver] if driver else []))
        self.tree()

    @property
    def env(self) -> dict[str, str]:
        """What a program's environment needs so that it sees this node: {**os.environ, **simulator.env}."""
        paths = [str(BUILD), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
        return {"LD_LIBRARY_PATH": ":".join(paths), "NVMLSIM_STATE": str(self.state)}

    def load(self) -> None:
        """Make this process see this node from its next nvmlInit on; a real driver must not have been loaded before."""
        ctypes.CDLL(str(LIBRARY))
        os.environ["NVMLSIM_STATE"] = str(self.state)

    def run(self, verb: str, *words: str) -> str:
        """Run the control command on the state and return what it printed."""
        done = subprocess.run(
            [str(COMMAND), verb, str(self.state), *words], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SimulatorError(done.stderr.strip())
        return done.stdout.strip()

    def inject(self, fault: str, gpu: Slots = None, **arguments: int | float | str) -> None:
        """Inject a fault by name (`nvmlsim faults` lists them)."""
        self.run("inject", fault, *_slots(gpu), *(f"{name}={value}" for name, value in arguments.items()))

    def clear(self, fault: str | None = None, gpu: Slots = None) -> None:
        """Take a fault back; without a name everything is healthy again."""
        self.run("clear", *([fault] if fault else []), *_slots(gpu))

    def lie(self, function: str, gpu: int | None = None, **answer: int | float | str) -> None:
        """Make a function answer something else than the truth (`nvmlsim lies` says what): code=999, value=-1."""
        where = [] if gpu is None else [f"gpu={gpu}"]
        self.run("lie", function, *where, *(f"{name}={value}" for name, value in answer.items()))

    def truth(self, function: str | None = None) -> None:
        """End the lies of a function, or all of them."""
        self.run("truth", *([function] if function else []))

    def calls(self) -> list[str]:
        """Return the functions that programs have called, and "field=ID" for the field values they asked for."""
        return [line.partition(" ")[0] for line in self.run("calls").splitlines()]

    def release(self) -> None:
        """End every hang of the simulated driver."""
        self.run("release")

    def set(self, values: Mapping[str, int | str]) -> None:
        """Give values of the state by dotted name: {"gpu3.temperature": 85}."""
        self.run("set", *(f"{name}={value}" for name, value in values.items()))

    def add(self, values: Mapping[str, int]) -> None:
        """Add to values of the state by dotted name."""
        self.run("add", *(f"{name}={value}" for name, value in values.items()))

    def get(self, name: str) -> int:
        """Return a number of the state by dotted name."""
        return int(self.text(name))

    def text(self, name: str) -> str:
        """Return any value of the state by dotted name, as text."""
        return self.run("get", name)

    def faults(self) -> list[str]:
        """Return the active faults, in the order of injection, as the command prints them."""
        return self.run("faults").splitlines()

    def tree(self) -> Path:
        """Write the node's files; from then on every change of the state brings them in line. Returns their root."""
        self.run("tree", str(self.root))
        return self.root


def _slots(gpu: Slots) -> list[str]:
    if gpu is None:
        return []
    slots = [gpu] if isinstance(gpu, int) else gpu
    return ["gpu=" + ",".join(map(str, slots))]
