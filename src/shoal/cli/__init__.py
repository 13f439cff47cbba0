"""The `shoal` command."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; ends the process with one of the exit codes of `shoal --help`."""
    from shoal.cli.app import app

    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show must not end us
    app(prog_name="shoal")
