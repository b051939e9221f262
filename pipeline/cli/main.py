# SPDX-License-Identifier: Apache-2.0
"""``stormrt``: the application and its exit codes."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

import typer

import stormrt
from stormrt.errors import EnvironmentMissingError, InputError, StormrtError
from stormrt.pipeline.cli import (
    build,
    calibrate,
    classify,
    doctor,
    evaluate,
    export,
    inspect,
    package,
    plugins,
    report,
    storm,
    targets,
    validate,
)
from stormrt.pipeline.cli.console import show_error
from stormrt.pipeline.interruption import interrupts_are_kept

_EPILOG = "Exit codes: 0 fine, 1 verdict failed, 2 bad usage or input, 3 something is missing."

app = typer.Typer(
    name="stormrt",
    help="VMamba, cut down by STORM, as TensorRT engines for Jetson Orin and T4.",
    epilog=_EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
app.command("build", epilog=_EPILOG)(build.build_command)
app.command("export", epilog=_EPILOG)(export.export_command)
app.command("validate", epilog=_EPILOG)(validate.validate_command)
app.command("calibrate", epilog=_EPILOG)(calibrate.calibrate_command)
app.command("evaluate", epilog=_EPILOG)(evaluate.evaluate_command)
app.command("classify", epilog=_EPILOG)(classify.classify_command)
app.command("inspect", epilog=_EPILOG)(inspect.inspect_command)
app.command("package", epilog=_EPILOG)(package.package_command)
app.command("report", epilog=_EPILOG)(report.report_command)
app.add_typer(targets.app, name="targets")
app.add_typer(plugins.app, name="plugins")
app.add_typer(storm.app, name="storm")
app.command("doctor", epilog=_EPILOG)(doctor.doctor_command)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"stormrt {stormrt.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """VMamba, cut down by STORM, as TensorRT engines for Jetson Orin and T4."""


def main() -> None:
    """Run the command line; errors of ours become one message and their exit code."""
    # OpenMP's threads spin at every barrier by default. Beside another busy process that makes
    # PyTorch's CPU ops many times slower; sleeping costs little on an idle machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with interrupts_are_kept(), _termination() as terminated:
        _run(terminated)


def _run(terminated: list[int]) -> None:
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except StormrtError as error:
        _fail(error)
    except KeyboardInterrupt:
        _stopped(terminated)
    except SystemExit as stopped:
        # Typer catches these two first, says nothing, and has exit codes of its own.
        if _came_from(stopped, KeyboardInterrupt):
            _stopped(terminated)
        if _came_from(stopped, BrokenPipeError):
            _reader_gone()
        raise
    except MemoryError:
        _fail(
            EnvironmentMissingError(
                "this machine has not enough memory",
                fix="close other programs, or take a smaller --batch, --size or model",
            )
        )
    except BrokenPipeError:
        _reader_gone()
    except OSError as error:
        if _is_in_a_folder_that_is_gone():
            _fail(
                InputError(
                    "the folder that this was started in is gone",
                    got=error.strerror or str(error),
                    fix="cd to a folder that exists",
                )
            )
        # What nobody has a better message for: a name too long, a full standard output.
        failure = InputError(
            "a file could not be read or written",
            where=str(error.filename or "standard output"),
            got=error.strerror or str(error),
        )
        if error.filename is None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            show_error(failure, as_json=False)
            sys.exit(failure.exit_code)
        _fail(failure)


def _is_in_a_folder_that_is_gone() -> bool:
    try:
        os.getcwd()
    except OSError:
        return True
    return False


def _came_from(error: BaseException, kind: type[BaseException]) -> bool:
    """Whether an exception was raised while one of a kind was handled."""
    seen: set[int] = set()
    while error.__context__ is not None and id(error) not in seen:
        seen.add(id(error))
        error = error.__context__
        if isinstance(error, kind):
            return True
    return False


def _stopped(terminated: list[int]) -> NoReturn:
    what, code = ("terminated", 143) if terminated else ("interrupted", 130)
    sys.stderr.write(f"{what}; nothing that was built before is lost\n")
    sys.exit(code)


def _reader_gone() -> NoReturn:
    # The reader (head, less) has gone; the interpreter must not write to it again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(141)


def _fail(error: StormrtError) -> NoReturn:
    show_error(error, as_json="--json" in sys.argv)
    sys.exit(error.exit_code)


@contextmanager
def _termination() -> Iterator[list[int]]:
    """Within the context SIGTERM does what Ctrl-C does: temporary files go, the lock is freed.

    Yields:
        The signals that came.
    """
    came: list[int] = []
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):  # in a program that has its own ways
        yield came
        return

    def handle(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background jobs
            raise KeyboardInterrupt
        # To whoever has SIGINT now: the engine builder cancels its build in a way of its own.
        signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGTERM, handle)
    try:
        yield came
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


if __name__ == "__main__":
    main()
