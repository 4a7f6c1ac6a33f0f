"""The command `cvq`: parses, calls the library, prints. Heavy imports happen inside the commands."""

import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup
from typer.main import get_command
from typer.models import CommandInfo

from channelvq import __version__
from channelvq.cli.options import HELD
from channelvq.errors import InputError, did_you_mean
from channelvq.registry import Registry
from channelvq.terminal import READING, printable

# In the order of a reader's day. A command's module is imported when that command, or the help of all, is asked for.
COMMANDS: Registry[Callable[..., None] | typer.Typer] = Registry(
    "command",
    {
        "demo": "channelvq.cli.demo:demo",
        "tokenize": "channelvq.cli.tokens:tokenize",
        "detokenize": "channelvq.cli.tokens:detokenize",
        "reconstruct": "channelvq.cli.tokens:reconstruct",
        "encode": "channelvq.cli.codec:encode",
        "decode": "channelvq.cli.codec:decode",
        "info": "channelvq.cli.codec:info",
        "tables": "channelvq.cli.codec:tables",
        "generate": "channelvq.cli.generator:generate",
        "data": "channelvq.cli.data:data_app",
        "recipes": "channelvq.cli.training:recipes",
        "show": "channelvq.cli.training:show",
        "plan": "channelvq.cli.training:plan",
        "train": "channelvq.cli.training:train",
        "evaluate": "channelvq.cli.evaluate:evaluate_app",
        "compare": "channelvq.cli.compare:compare",
        "doctor": "channelvq.cli.doctor:doctor",
        "report": "channelvq.cli.generator:report",
        "app": "channelvq.cli.page:app",
        "serve": "channelvq.cli.serve:serve",
        "export": "channelvq.cli.generator:export",
    },
)


HELP = "Images as tokens, one for each channel (CVQ), and images from text on these tokens (CAR)."


class Commands(TyperGroup):
    """The commands of the list above."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Their names, in order."""
        return COMMANDS.names()

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """One of them; None for another name, of which typer then says so."""
        return _command(cmd_name) if cmd_name in COMMANDS else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As typer does, but the error of an unknown name says which one was meant, or where it went."""
        if args and args[0] not in COMMANDS:
            hint = did_you_mean(args[0], COMMANDS.names())
            if args[0] in ("experiment", "bench"):
                hint = "; studies and benches are `python -m lab` in a checkout"
            ctx.fail(f"No such command {args[0]!r}{hint}")
        name, command, rest = super().resolve_command(ctx, args)
        if command is not None and any(taken.name == "overrides" for taken in command.params):
            _refuse_dashes(rest)
        return name, command, rest

    def invoke(self, ctx: Any) -> Any:
        """Run the command; what it holds of its output folders is given back."""
        with HELD:
            return super().invoke(ctx)


def _command(name: str) -> Any:
    listed = COMMANDS[name]
    one = listed if isinstance(listed, typer.Typer) else typer.Typer(add_completion=False)
    if one is not listed:
        one.registered_commands.append(CommandInfo(name=name, callback=listed))
    command = get_command(one)
    command.name = name
    return command


def _refuse_dashes(words: list[str]) -> None:
    """InputError for a setting that is written as if it were an option, of which none has a dot in its name."""
    for word in words:
        if word.startswith("-") and "." in word.partition("=")[0]:
            name, _, value = word.lstrip("-").partition("=")
            raise InputError(f"{word}: a setting of a recipe has no dashes; give {name}={value or 'VALUE'}")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"channelvq {__version__}")
        raise typer.Exit()


app = typer.Typer(cls=Commands, no_args_is_help=True, pretty_exceptions_enable=False, help=HELP)


@app.callback()
def _all(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="The version, and nothing else.")
    ] = False,
) -> None:
    """The commands are listed in COMMANDS; typer wants a function where none is added to it."""


def main() -> None:
    """Entry point of `cvq`."""
    guarded(app)


def guarded(command: Callable[[], object]) -> None:
    """Run a command: what a user can mend is one line on stderr and exit code 2, never a traceback."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            command()
    except KeyboardInterrupt:
        sys.exit(130)
    except (InputError, FloatingPointError) as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error) or repr(error))
    except Exception as error:
        if type(error).__name__ != "SafetensorError":  # how safetensors tells of a full disk or a broken file
            raise
        _fail(str(error))


def _show_warning(message: Warning | str, *_where: Any) -> None:
    """Where in the code a warning comes from helps no user; of which picture it speaks does."""
    text, name = " ".join(str(message).split()), READING.get()
    said = text if name in text else f"{name}: {text}"
    typer.echo(f"warning: {printable(said)}", err=True)


def _fail(message: str) -> NoReturn:
    typer.echo(f"error: {printable(message)}", err=True)
    sys.exit(2)
