"""The command line. Importing it loads typer and nothing heavier, so that help comes at once."""

from headscope.cli.entry import app, main

__all__ = ["app", "main"]
