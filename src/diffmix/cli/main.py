"""`diffmix`: the verbs, and what the shell gets to see of an error.

Exit codes: 0 done; 1 the run failed; 2 the request was wrong. Nothing heavy is imported before a verb runs.
"""

from __future__ import annotations

import errno
import importlib.metadata
import os
import re
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from diffmix.cli.bench import bench
from diffmix.cli.calibrate import calibrate
from diffmix.cli.compare import compare
from diffmix.cli.convert import convert
from diffmix.cli.data import data
from diffmix.cli.demo import demo
from diffmix.cli.evaluate import evaluate
from diffmix.cli.generate import generate
from diffmix.cli.language_arguments import standard_arguments
from diffmix.cli.predict import predict
from diffmix.cli.report import report
from diffmix.cli.spectrum import spectrum
from diffmix.cli.study import study
from diffmix.cli.train import train
from diffmix.errors import RequestError, RunError

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")  # CUDA's words, and a CPU's
_NO_WAY = (errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS)  # no path, or none that this user may take
_ASSIGNMENT = re.compile(r"\w[\w.]*=")
app = typer.Typer(
    name="diffmix",
    help="Sequence models whose tokens exchange information by diffusion: train, evaluate, predict, report.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for verb in (
    train,
    evaluate,
    predict,
    generate,
    calibrate,
    compare,
    study,
    spectrum,
    convert,
    bench,
    report,
    data,
    demo,
):
    app.command()(verb)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"diffmix {importlib.metadata.version('diffmix')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; its exit code. With DIFFMIX_DEBUG set, errors keep their traceback."""
    debug = bool(os.environ.get("DIFFMIX_DEBUG"))
    if not debug and not sys.warnoptions:
        import warnings

        warnings.simplefilter("ignore")  # they speak to developers
    try:
        given = sys.argv[1:] if arguments is None else list(arguments)
        code = app(args=one_option_each(standard_arguments(given)), standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of a pipe had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (KeyboardInterrupt, typer.Abort):
        return _failed("interrupted", 1)
    except Exception as error:
        if debug:
            raise
        code, message = _explain(error)
        return _failed(message, code)
    return code if isinstance(code, int) else 0


def one_option_each(arguments: Sequence[str]) -> list[str]:
    """`--set a=1 b=2` → `--set a=1 --set b=2`, and so with --only, up to `--`."""
    spread: list[str] = []
    option: str | None = None  # the one whose values are being read
    for place, argument in enumerate(arguments):
        if argument == "--":
            return [*spread, *arguments[place:]]
        if argument.startswith(("--set=", "--only=")):
            option, _, argument = argument.partition("=")
            spread.append(option)
        elif argument in ("--set", "--only"):
            option = argument
        elif option is None or not _ASSIGNMENT.match(argument):
            option = None
        elif spread[-1] != option:
            spread.append(option)
        spread.append(argument)
    return spread


def _explain(error: Exception) -> tuple[int, str]:
    """The exit code and the line for an error."""
    if isinstance(error, RequestError):
        return 2, str(error)
    if isinstance(error, RunError):
        return 1, str(error)
    if hasattr(error, "format_message"):  # the command line itself was wrong
        return 2, f"{error.format_message()} (see diffmix --help)"  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(error, OSError):
        if error.errno == errno.ENOSPC:
            return 1, f"no space left on the device ({error.filename or 'while writing'}): free some and start again"
        mend = "; give another path, or make this one readable and writable" if error.errno in _NO_WAY else ""
        return 1, f"{error.strerror or type(error).__name__}: {error.filename or error}{mend}"
    if isinstance(error, MemoryError) or any(words in str(error).lower() for words in _OUT_OF_MEMORY):
        return 1, "out of memory: lower batch_size, micro_batch_size or max_length"
    return 1, f"{type(error).__name__}: {error} (DIFFMIX_DEBUG=1 shows where)"


def _failed(message: str, code: int) -> int:
    # Under torchrun every process ends here; one line is enough.
    if os.environ.get("RANK", "0") == "0":
        print("error: " + " ".join(message.split()), file=sys.stderr)
    return code
