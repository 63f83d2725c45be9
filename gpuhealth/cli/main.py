"""Puts the commands together and turns what goes wrong into one sentence and an exit code."""

from __future__ import annotations

import errno
import json
import sys
from itertools import takewhile
from typing import Annotated

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
    events,
    explain,
    fleet,
    node,
    override,
    preflight,
    quarantine,
    release_gpus,
    restore,
)
from gpuhealth.cli.logs import log_text
from gpuhealth.cli.oom import go_first
from gpuhealth.cli.output import COULD_NOT, INTERRUPTED, READER_GONE, CommandError
from gpuhealth.cli.streams import OutputError, standard

_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)
_SERVICES = (["agent"], ["preflight"], ["controller"])  # what they do is not on standard output
_NOT_BY_HAND = (*_SERVICES, ["burnin"])  # a burn-in decides by its reason

app = typer.Typer(
    help="Can this node's GPUs be trusted with work?",
    rich_markup_mode=None,  # plain help: quick, and readable in any terminal
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_ON_A_NODE = (check, burnin, classify, explain, capture, events)
_ON_A_CLUSTER = (fleet, node, quarantine, restore, override, release_gpus)
for module in (*_ON_A_NODE, *_ON_A_CLUSTER, agent, preflight, controller):
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
        raise typer.Exit(COULD_NOT)


def run(arguments: list[str] | None = None) -> int:
    """The entry point: runs a command and returns its exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    as_json = "--json" in takewhile(lambda word: word != "--", words)
    standard.prepare(as_json=as_json)
    log_text()
    if words[:1] not in _NOT_BY_HAND:
        go_first()
    code, problem = _done(words)
    if problem:
        print(f"gpuhealth: {problem}", file=sys.stderr)  # noqa: T201 - this is where the command speaks
    if as_json and code == INTERRUPTED:
        problem = "interrupted"
    if as_json and problem and not standard.written:
        standard.write_line(json.dumps({"error": problem}).encode())
    return _flushed(code)


def _done(words: list[str]) -> tuple[int, str]:
    """Runs a command: its exit code, and the sentence that says why it could not do its work, if so."""
    try:
        if standard.absent and words[:1] not in _SERVICES:
            return COULD_NOT, "standard output is closed: there is nowhere to write the result to"
        with typer.main.get_command(app).make_context("gpuhealth", words) as context:
            context.command.invoke(context)
            return 0, ""
    except typer.Exit as done:
        return done.exit_code, ""
    except TyperException as wrong_use:
        # pydantic's words, which Typer lets through
        return COULD_NOT, wrong_use.format_message().replace("Value error, ", "")
    except OutputError as error:
        standard.discard()
        return COULD_NOT, str(error)
    except CommandError as error:
        return COULD_NOT, str(error)
    except (KeyboardInterrupt, Abort):
        return INTERRUPTED, ""
    except BrokenPipeError:
        standard.discard()
        return READER_GONE, ""
    except Exception as error:  # noqa: BLE001 - the interpreter's own exit code, 1, would say that the node is degraded
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _EXHAUSTED):
            return COULD_NOT, f"this machine or container has no resources left for the command: {error}"
        import traceback

        traceback.print_exc()
        return COULD_NOT, "a fault of gpuhealth itself; nothing follows from it about this node"


def _flushed(code: int) -> int:
    """The exit code, once everything is written or given up."""
    try:
        standard.flush()
    except BrokenPipeError:
        standard.discard()
        return READER_GONE
    except OutputError as error:
        standard.discard()
        print(f"gpuhealth: {error}", file=sys.stderr)  # noqa: T201 - as above
        return COULD_NOT
    return code
