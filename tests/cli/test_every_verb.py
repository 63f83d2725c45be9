"""Every command keeps its promises, whatever fails, and whatever it is connected to.

The commands are those of the command tree, so that a new one is tested without being named here. Each promises:
standard output holds results only, with --json one JSON document (JSON lines for `events` and `classify`); the reason
of a failure is one sentence on standard error; the exit code is never that of a verdict where there is none.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import signal
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from textwrap import indent
from typing import IO, Any

import pytest
import typer
from testing import processes
from testing.command import Node, Said
from testing.waiting import wait_for

from gpuhealth.cli.main import app
from gpuhealth.model.component import NODE
from gpuhealth.runtime.journal import Entry, Journal

REQUIRED = {"NODE": "gpu-node-17", "VALUE": "healthy", "SUBJECT": "79"}
"""What is given for required arguments and options, by their metavar; a FILE is one that can be written."""
JSON_LINES = {"events", "classify"}
SERVICES = {"agent", "controller", "preflight"}  # they write nothing to standard output
LOG = "4,1,1,-;NVRM: Xid (PCI:0000:61:00): 79, GPU has fallen off the bus.\n"


def _commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


VERBS = dict(_commands(typer.main.get_command(app)))
verbs = pytest.mark.parametrize("verb", VERBS)


_numbers = itertools.count()


def words(verb: str, folder: Path) -> list[str]:
    """The verb with its required arguments, a log to read, and --json if it has that."""
    said = verb.split()
    for parameter in VERBS[verb].params:
        if parameter.default == "-":
            said.append(str(folder / "log"))
        elif parameter.required:
            value = (
                str(folder / f"made-{next(_numbers)}") if parameter.metavar == "FILE" else REQUIRED[parameter.metavar]
            )
            said += [parameter.opts[0], value] if is_option(parameter) else [value]
    return [*said, "--json"] if has_json(verb) else said


def is_option(parameter: Any) -> bool:
    """Whether the parameter of a command is an option, and not an argument."""
    return bool(parameter.param_type_name == "option")


def has_json(verb: str) -> bool:
    """Whether the verb has the option --json."""
    return any("--json" in parameter.opts for parameter in VERBS[verb].params)


@pytest.fixture
def machine(node: Node) -> Node:
    """A machine without GPUs, on which every command has something to do and ends by itself."""
    journal = Journal(node.journal, keep_seconds=1e6, max_entries=1000)
    journal.write([Entry(time=datetime.now(UTC), kind="raised", code="xid.79", component=NODE, message="°")])
    journal.close()
    (node.folder / "log").write_text(LOG)
    node.configure(
        "kubernetes: {kubeconfig: /absent/kubeconfig}\n"
        "http: {host: 192.0.2.1, port: 1}\n"  # of no machine, so that the agent ends
        "burnin: {devices: 'cpu:0,0'}\n"  # which is refused
    )
    return node


def run(node: Node, verb: str, code: str = "", **environment: str) -> Said:
    """Runs the verb, without a cluster to connect to."""
    said = node.run(*words(verb, node.folder), code=code, **{"KUBECONFIG": "/absent"} | environment)
    keeps_promises(verb, said)
    return said


def keeps_promises(verb: str, said: Said) -> None:
    """Standard output is complete JSON where that is promised, and errors are one sentence without a traceback."""
    documents = [json.loads(line) for line in said.out.splitlines()] if has_json(verb) or verb == "classify" else []
    if has_json(verb) and verb not in JSON_LINES:
        assert len(documents) == 1
    assert said.code in (0, 1, 2, 3, 130, 143)
    problems = [line for line in said.err.splitlines() if line.startswith("gpuhealth: ")]
    if said.code == 3 and not any("verdict" in document for document in documents):
        assert problems
    if "internal error" not in said.err:
        assert "Traceback" not in said.err
    if verb in SERVICES:
        assert said.out == ""


@functools.cache
def _usual(verb: str) -> dict[str, Said]:
    return {}


def usual(node: Node, verb: str) -> Said:
    """What the verb does when nothing is wrong, except that there is no cluster."""
    kept = _usual(verb)
    return kept.get("said") or kept.setdefault("said", run(node, verb))


# --- what is wrong inside ---------------------------------------------------------------------------------------------

PLACES = (
    "rich.console:Console.print",
    "typer:echo",
    "gpuhealth.cli.streams:_StandardStreams.write_line",
    "gpuhealth.kube.client:Client.from_kubeconfig",
    "gpuhealth.kernel_log.formats:KernelLogText.events",
    "gpuhealth.agent.capture:save",
    "gpuhealth.agent.agent:Agent.run",
    "gpuhealth.burnin.targets:targets",
)
"""Functions of which each command calls one in the middle of its work."""


def before_each_place(body: str) -> str:
    """Code that makes the first of the places that is reached run the body first."""
    return f"""
import os, pkgutil, sys, structlog, time
places = {PLACES!r}
reached = []
def instrument(place):
    owner, _, name = place.rpartition("." if place.rpartition(":")[2].count(".") else ":")
    owner = pkgutil.resolve_name(owner)
    original = getattr(owner, name)
    def injected(*arguments, **options):
        if not reached:
            reached.append(name)
{indent(body.strip(), " " * 12)}
        return original(*arguments, **options)
    setattr(owner, name, injected)
for place in places:
    instrument(place)
"""


@verbs
def test_an_internal_error(machine: Node, verb: str) -> None:
    """An exception in the middle of the work: exit code 3, one line that begins with the reason, then the traceback."""
    said = run(machine, verb, before_each_place("raise RuntimeError('injected\\n\\x1b[2J')"))
    assert said.code == 3
    sentence, *rest = [line for line in said.err.splitlines() if not line.startswith("{")]  # the log of a service
    assert sentence.startswith("gpuhealth: internal error in gpuhealth (RuntimeError: injected")
    assert rest[0] == "Traceback (most recent call last):"
    assert "\x1b" not in sentence
    if has_json(verb):
        assert json.loads(said.out) == {"error": sentence.removeprefix("gpuhealth: ")}


@verbs
def test_output_of_others(machine: Node, verb: str) -> None:
    """A log line, and with --json also the output of libraries, go to standard error."""
    noise = (
        'structlog.get_logger().error("a log line")\nif "--json" in sys.argv: print("noise"); os.write(1, b"noise\\n")'
    )
    said = run(machine, verb, before_each_place(noise))
    assert "a log line" not in said.out
    assert "a log line" in said.err


@verbs
def test_an_nvml_process_that_crashes(machine: Node, verb: str) -> None:
    """If the process that calls NVML aborts as soon as it starts, no command promises less, and none says healthy."""
    (machine.folder / "sitecustomize.py").write_text(
        "import os, sys\nif any('nvml.child' in word for word in sys.orig_argv): os.abort()"
    )
    said = run(machine, verb, f"import os; os.environ['PYTHONPATH'] = {str(machine.folder)!r}")
    assert said.code == (0 if verb in ("capture", "classify", "events", "explain") else 3)


# --- what is wrong outside --------------------------------------------------------------------------------------------

ODD = {
    "narrow": {"COLUMNS": "20", "LINES": "1", "TERM": "dumb", "NO_COLOR": "1"},
    "absurd": {"COLUMNS": "²", "LINES": "9" * 5000, "TERM": "\x1b[2J", "FORCE_COLOR": "1"},
    "homeless": {"HOME": "/proc/1/absent", "TMPDIR": "/absent", "USER": "", "LOGNAME": "", "KUBECONFIG": ""},
}


@verbs
@pytest.mark.parametrize("environment", ODD.values(), ids=ODD)
def test_odd_environments(machine: Node, verb: str, environment: dict[str, str]) -> None:
    """Width, terminal, home and folder for temporary files may be anything: no result changes, and nothing fails."""
    assert run(machine, verb, **environment).code == usual(machine, verb).code


@verbs
def test_a_user_without_a_name(machine: Node, verb: str) -> None:
    """A user id without an entry in /etc/passwd, and no home, as in many containers, change no result."""
    code = "import os; os.getuid = lambda: 54321; os.environ.pop('HOME', None)"
    said = run(machine, verb, code, USER="", LOGNAME="", LNAME="", USERNAME="", KUBECONFIG="")
    assert said.code == usual(machine, verb).code


@verbs
def test_ascii(machine: Node, verb: str) -> None:
    """Names that the terminal's encoding lacks are replaced, and JSON is complete."""
    machine.config.write_text(machine.config.read_text().replace("gpu-node-17", "nœud-17"), encoding="utf-8")
    run(machine, verb, LC_ALL="C", LANG="C", PYTHONIOENCODING="ascii", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")


@contextlib.contextmanager
def unwritable(kind: str) -> Iterator[IO[bytes]]:
    """A stream that cannot be written: a full disk, or a pipe without a reader."""
    if kind == "full":
        with Path("/dev/full").open("wb") as full:
            yield full
        return
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb", 0) as pipe:
        yield pipe


def started(
    node: Node, arguments: Sequence[str], output: IO[bytes], errors: IO[bytes], code: str = ""
) -> processes.Process:
    """Starts the command with these streams."""
    environment = node.env(KUBECONFIG="/absent")
    return processes.start(arguments, environment, output, errors, code)


@verbs
@pytest.mark.parametrize("kind", ["full", "broken"])
@pytest.mark.parametrize("stream", ["output", "errors"])
def test_streams_that_cannot_be_written(machine: Node, verb: str, kind: str, stream: str) -> None:
    """Without a place for the result the exit code is no verdict; without standard error nothing changes."""
    file = machine.folder / "other"
    with unwritable(kind) as broken, file.open("wb") as other:
        streams = (broken, other) if stream == "output" else (other, broken)
        code = started(machine, words(verb, machine.folder), *streams).wait(300)
    expected = usual(machine, verb)
    if stream == "errors":
        assert code == expected.code
        assert bool(file.read_text()) == bool(expected.out)
        return
    error = file.read_text()
    assert "Traceback" not in error
    written = has_json(verb) or expected.out
    assert code == (expected.code if not written else 141 if kind == "broken" else 3)
    assert ("cannot write to standard output: No space left on device" in error) == (bool(written) and kind == "full")


@verbs
@pytest.mark.parametrize("stream", [0, 1, 2])
def test_closed_streams(machine: Node, verb: str, stream: int) -> None:
    """With standard output closed a command that has a result fails at once; the other streams are not needed."""
    name = ("stdin", "stdout", "stderr")[stream]
    said = machine.run(
        *words(verb, machine.folder),
        code=f"import os, sys; os.close({stream}); sys.{name} = None",
        KUBECONFIG="/absent",
    )
    assert "Traceback" not in said.err
    if stream == 1 and verb not in SERVICES:
        sentence = "gpuhealth: standard output is closed: the result cannot be written\n"
        assert (said.code, said.out, said.err) == (3, "", sentence)
    else:
        assert said.code == usual(machine, verb).code


@verbs
@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_in_the_middle(machine: Node, verb: str, number: signal.Signals, expected: int) -> None:
    """Ctrl-C and SIGTERM end a command without a traceback, and JSON is complete: the result or why there is none."""
    reached, output, errors = (machine.folder / name for name in ("reached", "output", "errors"))
    wait = f"open({str(reached)!r}, 'w').close()\nwhile os.path.exists({str(reached)!r}): time.sleep(0.01)"
    with output.open("wb") as out, errors.open("wb") as err:
        process = started(machine, words(verb, machine.folder), out, err, before_each_place(wait))
        wait_for("the middle of the work", lambda: reached.exists() or process.poll() is not None, seconds=20)
        process.send_signal(number)
        reached.unlink(missing_ok=True)
        code = process.wait(10)
    said = Said(code, output.read_text(), errors.read_text())
    keeps_promises(verb, said)
    assert code in (expected, 3)  # 3: a burn-in that was stopped, or the work failed before the loop saw the signal


# --- what --json is ---------------------------------------------------------------------------------------------------


def test_json_is_said_of_the_verbs_that_have_it() -> None:
    """The help of --json says which of the two forms it is, and `classify`, which has no other form, says so too."""
    forms = {
        verb: option.help
        for verb, command in VERBS.items()
        for option in filter(is_option, command.params)
        if "--json" in option.opts
    }
    assert {"check", "events", "burnin", "fleet", "node"} <= forms.keys()
    for verb, text in forms.items():
        assert ("JSON lines" in text) == (verb in JSON_LINES), verb
    assert "JSON lines" in (VERBS["classify"].help or "")
