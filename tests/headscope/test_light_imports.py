"""`headscope --help` answers at once: importing the command line loads nothing heavy."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "pandas", "plotly", "streamlit", "sklearn", "numpy", "pyarrow")


def _heavy_after(statement: str) -> list[str]:
    code = f"{statement}\nimport sys\nprint(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    return found.stdout.split()


@pytest.mark.parametrize(
    "statement",
    [
        "import headscope",
        "import headscope.cli",
        "from headscope.cli import main; main(['--help'])",
        "from headscope.cli import main; main(['--version'])",
        "import sys, io; sys.stdout = io.StringIO(); from headscope.cli import main; "
        "main(['models']); sys.stdout = sys.__stdout__",
    ],
)
def test_nothing_heavy_is_loaded(statement):
    quiet = f"import sys, io\nsys.stdout = io.StringIO()\n{statement}\nsys.stdout = sys.__stdout__"
    assert _heavy_after(quiet) == []


def test_this_test_can_fail():
    assert _heavy_after("import pandas") == ["numpy", "pandas", "pyarrow"]


VERBS = ["models", "inspect", "score", "scan", "atlas", "generate", "evaluate", "show", "demo"]
GROUPED = ["sae", "sae train", "sae evaluate", "sae attribute", "sae export"]


@pytest.mark.parametrize("verb", [*VERBS, *GROUPED])
def test_every_verb_has_help(verb):
    quiet = (
        "import sys, io\nsys.stdout = io.StringIO()\nfrom headscope.cli import main\n"
        f"assert main([*{verb!r}.split(), '--help']) == 0\n"
        "assert 'Usage' in sys.stdout.getvalue()\nsys.stdout = sys.__stdout__"
    )
    assert _heavy_after(quiet) == []
