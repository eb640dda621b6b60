"""What every command shares: the application, options, errors and exit codes, progress and printing."""

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from lilliput.errors import FailureError, UserError

if TYPE_CHECKING:
    from rich.console import Console

PIPE_COLUMNS = 120  # width of tables where no terminal says one
# Of commands in the help.
ORDER = ("run", "compress", "eval", "predict", "embed", "inspect", "bench", "pack", "unpack", "report", "data")


@dataclass
class Options:
    """Options that stand before the command."""

    debug: bool = False


class InterruptedCommandError(Exception):
    """Ctrl-C; the message says what to do next."""


class _Commands(TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=ORDER.index)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            # Said here, because only here the command is known, and typer would turn it into a bare exit code.
            resume = "; run the same command to resume" if ctx.invoked_subcommand in ("run", "compress") else ""
            raise InterruptedCommandError(f"interrupted{resume}") from None


app = typer.Typer(
    cls=_Commands,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]
ModelFile = Annotated[Path, typer.Argument(metavar="MODEL", help="A model.lil, or a packed model.lilz.")]
DataPath = Annotated[str | None, typer.Option("--path", help="Where the data lies: an archive or a folder.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="STAGE.FIELD=VALUE", help="Change one setting; may be repeated."),
]
RunsFolder = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the run's folder goes.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing but the run's folder.")]
TextFile = Annotated[Path, typer.Argument(metavar="FILE", help="One text a line, in UTF-8; - is stdin.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        import lilliput

        typer.echo(f"lilliput {lilliput.__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Transformers small enough for the device: train, prune, quantize, export one small file, run and measure it."""
    context.obj.debug = debug


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code. Every error is caught here, once."""
    chosen = Options()
    try:
        code = app(args=arguments, prog_name="lil", standalone_mode=False, obj=chosen)
        if sys.stdout is not None:  # closed by the caller
            sys.stdout.flush()  # a full disk or a closed pipe shows here at the latest
    except Exception as error:
        if chosen.debug:
            traceback.print_exc()
        code, message = _explain(error)
        if message:
            print(f"lil: {' '.join(message.split())}", file=sys.stderr)  # noqa: T201 (a message to the user)
    return code if isinstance(code, int) else 0


def _explain(error: Exception) -> tuple[int, str]:
    """Exit code and message of an error; the message is printed in one line."""
    if isinstance(error, UserError):
        return 2, str(error)
    if isinstance(error, typer.TyperException):
        return error.exit_code, f"{error.format_message()} (lil --help tells more)"
    if isinstance(error, ModuleNotFoundError) and not (error.name or "lilliput").startswith("lilliput"):
        return 2, f"this needs the package '{error.name}', which is not installed: pip install 'lilliput[train]'"
    if isinstance(error, InterruptedCommandError):
        return 130, str(error)
    if isinstance(error, FailureError):
        return 1, str(error)
    if isinstance(error, BrokenPipeError):
        # Whoever read our output has gone; what is still in the buffer must not raise once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1, ""
    if isinstance(error, OSError):
        return 1, f"{error.filename or 'output'}: {error.strerror or error}"
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):  # torch raises a RuntimeError
        return 1, "out of memory"
    return 1, f"a defect of Lilliput, {type(error).__name__}: {error} (lil --debug ... shows where)"


@contextmanager
def progress_bar(title: str, shown: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr while the work lasts, where a terminal is there to see it."""
    from rich.console import Console
    from rich.progress import Progress

    stderr = Console(stderr=True)
    with Progress(console=stderr, transient=True, disable=not (shown and stderr.is_terminal)) as bar:
        task = bar.add_task(title)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def console() -> "Console":
    """What tables are printed on: the terminal, or stdout at a width of its own."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=PIPE_COLUMNS)


def print_json(value: object) -> None:
    """Print one JSON document."""
    typer.echo(json.dumps(value, ensure_ascii=False, indent=1))
