"""Puts the commands together and turns what goes wrong into one sentence and an exit code."""

from __future__ import annotations

import contextlib
import os
import sys
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
from gpuhealth.cli.output import COULD_NOT, INTERRUPTED, READER_GONE, CommandError

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
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal that has no "°" still gets the rest
    command = typer.main.get_command(app)
    code = COULD_NOT
    try:
        with command.make_context("gpuhealth", sys.argv[1:] if arguments is None else arguments) as context:
            command.invoke(context)
            code = 0
    except typer.Exit as done:
        code = done.exit_code
    except TyperException as wrong_use:
        _say(wrong_use.format_message().replace("Value error, ", ""))  # pydantic's words, which Typer lets through
    except CommandError as error:
        _say(str(error))
    except (KeyboardInterrupt, Abort):
        code = INTERRUPTED
    except BrokenPipeError:
        code = READER_GONE
    except Exception:  # noqa: BLE001 - the interpreter's own exit code, 1, would say that the node is degraded
        import traceback

        traceback.print_exc()
        _say("a fault of gpuhealth itself; nothing follows from it about this node")
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = READER_GONE
    if code == READER_GONE:  # or the interpreter would complain when it flushes once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def _say(sentence: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        print(f"gpuhealth: {sentence}", file=sys.stderr)  # noqa: T201 - this is where the command speaks
