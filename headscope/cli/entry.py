"""The program `headscope`: its verbs, its exit codes, and errors as sentences."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from headscope.cli.app import app as dashboard
from headscope.cli.atlas import atlas
from headscope.cli.compare import compare
from headscope.cli.demo import demo
from headscope.cli.evaluate import evaluate
from headscope.cli.generate import generate
from headscope.cli.inspect import inspect
from headscope.cli.models import models
from headscope.cli.resuming import INTERRUPTED, Told
from headscope.cli.sae import app as sae
from headscope.cli.scan import scan
from headscope.cli.score import score
from headscope.cli.show import show

DONE, COULD_NOT, ASKED_WRONGLY = 0, 1, 2
DEBUG = "HEADSCOPE_DEBUG"

app = typer.Typer(
    name="headscope",
    help="Measure, explain and steer the attention heads of vision, language and "
    "vision-language models.",
    epilog="Exit codes: 0 done, 1 could not, 2 asked wrongly, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (models, inspect, score, scan, atlas, generate, evaluate, show, compare, demo):
    app.command()(verb)
app.command("app")(dashboard)
app.add_typer(sae)


def _version(asked: bool) -> None:
    if asked:
        from headscope import __version__

        typer.echo(f"headscope {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code and never shows a traceback.

    Set ``HEADSCOPE_DEBUG=1`` to see where an error came from.
    """
    _quiet_libraries()
    before = _interrupt_on_terminate()
    try:
        code = app(args=arguments, prog_name="headscope", standalone_mode=False)
        sys.stdout.flush()
        if code == INTERRUPTED and not isinstance(code, Told):
            # typer makes this code of Ctrl-C, and says nothing.
            return _say("Interrupted.", INTERRUPTED)
        return int(code) if isinstance(code, int) else DONE
    except (KeyboardInterrupt, EOFError):
        return _say("Interrupted.", INTERRUPTED)
    except BrokenPipeError:
        # The reader of stdout (`| head`) has gone. Nothing is left to be said, not even by flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except Exception as error:
        if type(error).__name__ == "Abort":  # click's and typer's word for Ctrl-C
            return _say("Interrupted.", INTERRUPTED)
        return _explained(error)
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _explained(error: Exception) -> int:
    if os.environ.get(DEBUG):
        import traceback

        traceback.print_exc()
    usage = getattr(error, "format_message", None)
    if usage is not None:
        context = getattr(error, "ctx", None)
        where = context.command_path if context is not None else "headscope"
        what = " ".join(usage().split()).rstrip(".")
        # Called without a verb: the help has been printed already.
        return _say(f"{what}. See `{where} --help`.", ASKED_WRONGLY) if what else ASKED_WRONGLY
    return _say(*_sentence(error))


def _sentence(error: Exception) -> tuple[str, int]:
    """What to say about an error, and the exit code."""
    from headscope.plan import AskedWrongly

    text = " ".join(str(error).split())
    if isinstance(error, AskedWrongly):
        return text, ASKED_WRONGLY
    if isinstance(error, MemoryError) or "out of memory" in text.lower():
        return "Out of memory. Use a smaller `--batch-size`, or shorter inputs.", COULD_NOT
    if _is_ours(error) and text:
        return text, COULD_NOT
    if isinstance(error, OSError):
        name = f" ({error.filename})" if error.filename else ""
        return f"The system refused: {error.strerror or text}{name}.", COULD_NOT
    kind = type(error).__name__
    return (
        f"headscope failed where it should not: {kind}: {text[:300]}. "
        f"Set {DEBUG}=1 to see where, and please report it.",
        COULD_NOT,
    )


def _is_ours(error: Exception) -> bool:
    """Whether an error was raised by our packages, with a sentence meant for people."""
    ours = ("headscope", "probes", "analysis", "sae", "dashboard")
    if type(error).__module__.split(".")[0] in ours:
        return True
    if not isinstance(error, (ValueError, RuntimeError)):
        return False
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    raised_in = trace.tb_frame.f_globals.get("__name__", "") if trace is not None else ""
    return raised_in.split(".")[0] in ours


def _say(sentence: str, code: int) -> int:
    sys.stdout.flush()
    print_to_stderr(sentence)
    return code


def print_to_stderr(sentence: str) -> None:
    sys.stderr.write(f"{sentence}\n")
    sys.stderr.flush()


def _quiet_libraries() -> None:
    """Keep progress bars and advice of libraries off stderr, unless the user set otherwise."""
    for name, value in {
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }.items():
        os.environ.setdefault(name, value)


def _interrupt_on_terminate() -> Any:
    """Make SIGTERM end a run like Ctrl-C does; outside of the main thread, leave it alone."""
    try:
        return signal.signal(signal.SIGTERM, signal.default_int_handler)
    except ValueError:
        return None
