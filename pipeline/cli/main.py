# SPDX-License-Identifier: Apache-2.0
"""``stormrt``: the application and its exit codes."""

from __future__ import annotations

import os
import sys

import typer

import stormrt
from stormrt.errors import StormrtError
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
    storm,
    targets,
    validate,
)
from stormrt.pipeline.cli.console import show_error

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
    try:
        app()
    except StormrtError as error:
        show_error(error, as_json="--json" in sys.argv)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; nothing that was built before is lost\n")
        sys.exit(130)
    except BrokenPipeError:
        # The reader (head, less) has gone; the interpreter must not write to it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


if __name__ == "__main__":
    main()
