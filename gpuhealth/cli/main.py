"""The entry point: registers all commands, and turns every error into one sentence and an exit code."""

from __future__ import annotations

import errno
import json
import signal
import sys
import threading
from itertools import takewhile
from typing import Annotated, NamedTuple

import typer
from typer.exceptions import Abort, TyperException

from gpuhealth import __version__
from gpuhealth.cli import (
    agent,
    burnin,
    capture,
    check,
    classify,
    controller,
    doctor,
    events,
    explain,
    fleet,
    node,
    override,
    preflight,
    quarantine,
    release_gpus,
    restore,
    uninstall,
)
from gpuhealth.cli.logs import log_text
from gpuhealth.cli.oom import prefer_for_oom_kill
from gpuhealth.cli.output import INTERRUPTED, PIPE_CLOSED, TERMINATED, UNKNOWN, CommandError
from gpuhealth.cli.streams import OutputError, standard
from gpuhealth.runtime.text import printable

_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)
_ERROR_CHARACTERS = 200
_SERVICES = (["agent"], ["preflight"], ["controller"])  # they write nothing to standard output
_KEEP_OOM_SCORE = (*_SERVICES, ["burnin"])  # a burn-in decides by its reason

app = typer.Typer(
    help="Health checks, burn-in and quarantine of NVIDIA GPU nodes.",
    rich_markup_mode=None,  # plain help starts faster and is readable in any terminal
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_NODE_COMMANDS = (check, burnin, classify, explain, capture, events)
_CLUSTER_COMMANDS = (fleet, node, quarantine, restore, override, release_gpus, doctor, uninstall)
for module in (*_NODE_COMMANDS, *_CLUSTER_COMMANDS, agent, preflight, controller):
    app.command(name=module.__name__.rpartition(".")[2].replace("_", "-"))(module.command)


@app.callback(invoke_without_command=True)
def _main(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(f"gpuhealth {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(UNKNOWN)


def run(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code. It replaces sys.stdout and sys.stderr of this process."""
    words = sys.argv[1:] if arguments is None else arguments
    as_json = "--json" in takewhile(lambda word: word != "--", words)
    standard.prepare(as_json=as_json)
    log_text()
    if words[:1] not in _KEEP_OOM_SCORE:
        prefer_for_oom_kill()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)  # services and burn-ins replace it by handlers of their own
    try:
        return _finish(execute(words), as_json)
    except KeyboardInterrupt as second:  # while the first one is handled, or the result is written
        standard.discard()
        return TERMINATED if isinstance(second, _Terminated) else INTERRUPTED
    except Exception as error:  # noqa: BLE001 - as in execute(); here the result or the error could not be written
        standard.discard()
        print(f"gpuhealth: {_internal_error(error).problem}", file=sys.stderr)  # noqa: T201 - as in _finish()
        return UNKNOWN


def _finish(ending: Ending, as_json: bool) -> int:
    """Print why the command could not do its work, write all output, and return the exit code."""
    problem = printable(" ".join(ending.problem.splitlines()))
    if problem:
        print(f"gpuhealth: {problem}", file=sys.stderr)  # noqa: T201 - the one place that prints errors
    if ending.traceback:
        print(ending.traceback, file=sys.stderr, end="")  # noqa: T201 - for a report of the bug
    problem = problem or {INTERRUPTED: "interrupted", TERMINATED: "terminated"}.get(ending.code, "")
    if as_json and problem and not standard.has_result:
        standard.write_line(json.dumps({"error": problem}).encode())
    return _flush(ending.code)


class _Terminated(KeyboardInterrupt):
    """SIGTERM: ends the command like Ctrl-C, so that complete lines and documents are written."""


def _terminate(_number: int, _frame: object) -> None:
    raise _Terminated


class Ending(NamedTuple):
    """How a command has ended."""

    code: int
    problem: str = ""  # one sentence where it could not do its work
    traceback: str = ""  # of an internal error


def execute(words: list[str]) -> Ending:
    """Run a command on the current streams."""
    try:
        if standard.stdout_closed and words[:1] not in _SERVICES:
            return Ending(UNKNOWN, "standard output is closed: the result cannot be written")
        with typer.main.get_command(app).make_context("gpuhealth", words) as context:
            context.command.invoke(context)
            return Ending(0)
    except typer.Exit as done:
        return Ending(done.exit_code)
    except TyperException as wrong_use:
        # the prefix is pydantic's
        return Ending(UNKNOWN, wrong_use.format_message().replace("Value error, ", ""))
    except OutputError as error:
        standard.discard()
        return Ending(UNKNOWN, str(error))
    except CommandError as error:
        return Ending(UNKNOWN, str(error))
    except _Terminated:
        return Ending(TERMINATED)
    except (KeyboardInterrupt, Abort):
        return Ending(INTERRUPTED)
    except BrokenPipeError:
        standard.discard()
        return Ending(PIPE_CLOSED)
    except Exception as error:  # noqa: BLE001 - the interpreter's exit code 1 would mean that the node is degraded
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _EXHAUSTED):
            return Ending(UNKNOWN, f"this machine or container is out of resources: {error}")
        return _internal_error(error)


def _internal_error(error: Exception) -> Ending:
    import traceback

    what = traceback.format_exception_only(error)[-1].strip()[:_ERROR_CHARACTERS]
    problem = f"internal error in gpuhealth ({what}); this says nothing about the node's health"
    return Ending(UNKNOWN, problem, "".join(traceback.format_exception(error)))


def _flush(code: int) -> int:
    """Write all buffered output, and return the exit code: another one where that fails."""
    try:
        standard.flush()
    except BrokenPipeError:
        standard.discard()
        return PIPE_CLOSED
    except OutputError as error:
        standard.discard()
        print(f"gpuhealth: {error}", file=sys.stderr)  # noqa: T201 - as above
        return UNKNOWN
    return code
