"""The subcommands of ``snakepit`` and their options.

Runs on the main thread; owns nothing.  Needs the extra ``cli``; each subcommand's work has a module.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import click

from .new import KINDS, write_project
from .terminal import make_console

__all__ = ("group", "invoke")


def invoke(argv: Sequence[str]) -> int:
    """Run the command line; return its exit status.

    Raises:
        KeyboardInterrupt: The user pressed Ctrl-C; raised here.
        BrokenPipeError: The reader of the output has gone; raised here.
    """
    # What the pool would log is told by the commands themselves, in words for this occasion.
    logging.getLogger("snakepit").addHandler(logging.NullHandler())
    try:
        status = group.main(args=list(argv), prog_name="snakepit", standalone_mode=False)
    except click.exceptions.Abort:
        raise KeyboardInterrupt from None
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except _ReaderGoneError as error:
        raise BrokenPipeError from error
    return status if isinstance(status, int) else 0


class _ReaderGoneError(Exception):
    """Carries a BrokenPipeError past click, which would end the process in its own way."""


class _Group(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise _ReaderGoneError from error


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("snakepit-pool"), prog_name="snakepit")
def group() -> None:
    """A pool of worker processes in any language: try it, check the machine, call a worker by hand."""


@group.command(
    short_help="Work through the standard library, with a kill.",
    epilog="""
\b
Examples:
  snakepit demo
  snakepit demo --limit 200 --no-node
""",
)
@click.option("--workers", type=click.IntRange(min=1), help="Workers of each pool.  [default: one a CPU]")
@click.option(
    "--limit", type=click.IntRange(min=1), metavar="FILES", help="Take so many files, spread evenly over all."
)
@click.option(
    "--node/--no-node", default=True, help="Also run the JavaScript job.  [default: where Node is found]"
)
def demo(workers: int | None, limit: int | None, node: bool) -> int:
    """Parse the standard library's sources in a pool, and kill a worker in the middle.

    The same files are first parsed in one process, for comparison.  The exit status is 1 if a file
    was lost or counted twice, a result differs, or a process is left over.
    """
    from .demo import run_demo

    return run_demo(make_console(), workers, limit, node)


@group.command(
    short_help="Run one command and print its result as JSON.",
    epilog="""
\b
Examples:
  snakepit run python compute '{"operation": "add", "a": 1, "b": 2}'
  snakepit run node render '{"markdown": "# Hi"}' --handlers handlers.js
  snakepit run 'ruby bridge.rb' ping
  snakepit run python echo '[1, 2]' --repeat 1000 --workers 2 >results.jsonl
  snakepit run python echo - <args.json
""",
)
@click.argument("adapter")
@click.argument("command")
@click.argument("args_text", metavar="[JSON]", default="{}")
@click.option("--session", metavar="ID", help="Run all calls in this session.")
@click.option("--handlers", metavar="FILE", help="Handlers file (for Python also a module name).")
@click.option("--start-args", metavar="JSON", default="null", help="For the start function of the handlers.")
@click.option(
    "--repeat", type=click.IntRange(min=1), metavar="N", help="Call N times; print JSON Lines, and times."
)
@click.option("--timeout", "timeout_s", type=float, metavar="S", help="Seconds that each call may run.")
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Calls at a time.")
@click.option(
    "--level", type=click.Choice(["0", "1"]), help="Protocol level of a command line.  [default: 0]"
)
@click.option("-v", "--verbose", is_flag=True, help="Show the worker's output, and tracebacks from it.")
def run(adapter: str, command: str, args_text: str, **options: Any) -> int:
    """Run one COMMAND in a worker and print its result as JSON.

    ADAPTER is python, javascript (or node), ruby, r, perl, php, java, lua, or a command line in quotes
    that speaks the frame protocol.  JSON is the command's args: {} if left out, read from stdin if it
    is "-"; put -- before one that begins with a minus.

    The exit status is 0; 1 if the command failed; 2 for a usage error; 3 if no worker could start;
    124 if the time-out passed.
    """
    from .run import run_command

    return run_command(adapter, command, args_text, **options)


@group.command(
    short_help="Write a small project that works.",
    epilog="""
\b
Examples:
  snakepit new python words
  snakepit new r model
""",
)
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False))
def new(kind: str, folder: str) -> int:
    """Write a project into DIR: handlers, a program that calls them in a pool, a test and a README.

    Nothing is overwritten.
    """
    return write_project(make_console(), kind, folder)


@group.command(
    short_help="List the commands of a worker.",
    epilog="""
\b
Examples:
  snakepit commands python --handlers handlers.py
  snakepit commands ruby --handlers handlers.rb --json
  snakepit commands python --handlers handlers.py --schema
""",
)
@click.argument("adapter")
@click.option("--handlers", metavar="FILE", help="Handlers file (for Python also a module name).")
@click.option("--start-args", metavar="JSON", default="null", help="For the start function of the handlers.")
@click.option("--level", type=click.Choice(["0", "1"]), help="Protocol level of a command line.  [default: 0]")
@click.option("--json", "as_json", is_flag=True, help="Print what the worker announces as one JSON object.")
@click.option("--schema", "as_schema", is_flag=True, help="Print the JSON Schema of each command's arguments.")
def commands(adapter: str, **options: Any) -> int:
    """Start a worker and list its commands, their parameters and their descriptions.

    ADAPTER is as in "snakepit run".  Types are shown where the language tells them: Python from
    annotations, Java and Go from their own.  The exit status is 0; 1 if the worker announces nothing, as at
    level 0; 2 for a usage error; 3 if no worker could start.
    """
    from .describe import run_commands

    return run_commands(make_console(), adapter, **options)


@group.command(
    short_help="Look at interpreters, bridges and the system.",
    epilog="""
\b
Examples:
  snakepit doctor
  snakepit doctor --json | jq .next_steps
  snakepit doctor --orphans
  snakepit doctor --kill-orphans
""",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--orphans", is_flag=True, help="Only list the workers that dead hosts have left.")
@click.option("--kill-orphans", is_flag=True, help="End these workers, and say what was ended.")
def doctor(as_json: bool, orphans: bool, kill_orphans: bool) -> int:
    """Look at this machine: interpreters, bridges, and what the pool uses of the system.

    Each interpreter with a bridge is started and asked.  The exit status is 0 if workers of this Python work.

    With --orphans or --kill-orphans nothing is started.  The exit status is 0 if there are no orphans
    (any more), 1 if there are some, 3 if that cannot be found out here.
    """
    if orphans or kill_orphans:
        from .orphans import run_orphans

        return run_orphans(make_console(), as_json, kill_orphans)

    from .doctor import run_doctor

    return run_doctor(make_console(), as_json)


@group.command(
    short_help="Compare the cost of a call with other pools.",
    epilog="""
\b
Examples:
  snakepit bench
  snakepit bench --rounds 9 --workers 4
""",
)
@click.option(
    "--workers", type=click.IntRange(min=1), default=2, show_default=True, help="Workers of each pool."
)
@click.option(
    "--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Rounds over all pools."
)
def bench(workers: int, rounds: int) -> int:
    """Compare the cost of one call with that of other pools, in this interpreter, on this machine."""
    from .bench import run_bench

    return run_bench(make_console(), workers, rounds)


@group.command(
    short_help="Test a bridge, in any language, against the protocol.",
    epilog="""
\b
Examples:
  snakepit conformance -- ruby bridge.rb
  snakepit conformance -- ./bridge --handlers handlers.rb
  snakepit conformance --level 0 -- ruby old_bridge.rb
  snakepit conformance --only 'integers*' --timeout 60 -- ./bridge
  snakepit conformance --json -- ./bridge | jq '.cases[] | select(.status == "failed")'
""",
)
@click.argument("argv", metavar="-- ARGV...", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option(
    "--level",
    type=click.IntRange(0, 1),
    default=1,
    show_default=True,
    help="Protocol level of the bridge; 0 speaks on stdin and stdout only.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--only", multiple=True, metavar="NAME", help="Only this case, or those of a pattern; may be repeated.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0, min_open=True),
    default=10.0,
    show_default=True,
    metavar="S",
    help="Seconds to wait for an answer, or an end.",
)
def conformance(argv: tuple[str, ...], level: int, as_json: bool, only: tuple[str, ...], timeout_s: float) -> int:
    """Test the bridge that ARGV starts against the rules and transcripts of the frame protocol.

    One line a case: ok, FAIL with what was sent, expected and received, n/a with what the bridge does
    not have (a capability, a command), or cannot, with what its language is known not to allow.  The last
    line counts the cases that apply.  Every case starts the bridge anew, and ends it.

    Many cases need commands that a handler file has to bring; PROTOCOL.md, section 13, describes them, and
    the kit looks for them where there is `identity`.  The more of them there are, the more is tested; a
    command `echo` alone already opens most cases of values.

    The exit status is 0; 1 if something was found; 2 for a usage error, or a bridge that did not start.
    """
    from .conformance import run_conformance

    return run_conformance(make_console(), argv, level, as_json, only, timeout_s)
