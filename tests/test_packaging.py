"""What holds the packages together: layers, names, lazy imports, entry points, pins, the wheel."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import textwrap
import tomllib
import venv
from pathlib import Path

import pytest
import torch
from jaxtyping import Float, TypeCheckError, jaxtyped
from shape_checks import shapes_only

import headscope
from headscope.public_names import PUBLIC

ROOT = Path(headscope.__file__).parent.parent
PACKAGES = ("headscope", "dashboard", "sae", "analysis", "probes")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
POINTS = PROJECT["project"]["entry-points"]


def test_arrows_between_packages_point_down() -> None:
    checked = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout


def test_no_module_is_named_after_a_drawer() -> None:
    drawers = {"utils", "util", "helpers", "helper", "common", "misc", "core"}
    found = [
        path
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if path.stem in drawers
    ]
    assert found == []


def test_init_files_hold_no_function() -> None:
    for package in PACKAGES:
        for path in (ROOT / package).rglob("__init__.py"):
            text = path.read_text(encoding="utf-8")
            assert text.lstrip().startswith(('"""', 'r"""')), f"{path} needs a docstring"
            assert not re.search(r"^\s*(def|class) ", text, re.M), f"{path} defines something"


@pytest.mark.parametrize("package", PACKAGES)
def test_the_generic_package_names_are_ours(package: str, tmp_path: Path) -> None:
    code = f"import {package}; print({package}.__file__)"
    found = Path(_said(code, tmp_path).strip()).parent
    assert found == ROOT / package, (
        f"`import {package}` finds {found}, not headscope's own package. Uninstall the "
        f"distribution that brings it (`pip show -f` tells), or use a fresh environment."
    )


HEAVY = ("torch", "transformers", "pandas", "plotly", "streamlit", "typer", "rich", "sklearn")


def test_importing_headscope_loads_nothing_heavy(tmp_path: Path) -> None:
    assert _loaded("import headscope", tmp_path) == []


def test_the_check_of_lazy_imports_can_fail(tmp_path: Path) -> None:
    assert "torch" in _loaded("import headscope; headscope.Subject", tmp_path)


def test_every_public_name_is_there_and_modules_do_not_shadow_them() -> None:
    for name, where in PUBLIC.items():
        module, _, member = where.partition(":")
        found = importlib.import_module(module)
        assert getattr(headscope, name) is (getattr(found, member) if member else found), name
    assert set(headscope.__all__) == {"__version__", *PUBLIC}
    assert set(headscope.__all__) <= set(dir(headscope))
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        _ = headscope.no_such_name


def test_entry_points_and_the_lists_in_the_code_are_the_same() -> None:
    from analysis.importance.study import BUILT_IN as studies
    from analysis.measures.registry import BUILT_IN as measures
    from probes.edits.apply import BUILT_IN as edits
    from probes.loading import _OURS as loaders
    from probes.readers.registry import _OURS as readers

    assert POINTS["headscope.loaders"] == loaders
    assert POINTS["headscope.readers"] == readers
    assert POINTS["headscope.measures"] == measures
    assert POINTS["headscope.studies"] == studies
    assert POINTS["headscope.edits"] == edits


def test_every_entry_point_leads_somewhere() -> None:
    for group in POINTS.values():
        for where in group.values():
            module, _, member = where.partition(":")
            found = importlib.import_module(module)
            assert not member or hasattr(found, member), where


def test_every_loader_and_reader_has_the_functions_of_its_protocol() -> None:
    for group, verb in (("headscope.loaders", "load"), ("headscope.readers", "read")):
        for where in POINTS[group].values():
            module = importlib.import_module(where)
            assert callable(module.matches) and callable(getattr(module, verb)), where


def test_what_we_depend_on_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.partition("==")[0] for line in lines if "==" in line}
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [*PROJECT["project"]["dependencies"], *extras["dev"]]
    names = {re.split(r"[<>=\[ ]", one)[0].lower() for one in wanted}
    assert names <= pinned
    assert not [
        line for line in lines if "+" in line or "@" in line or "/" in line.partition("#")[0]
    ]


def test_the_version_is_written_the_same_everywhere() -> None:
    assert PROJECT["project"]["version"] == headscope.__version__


def test_make_alone_lists_every_target() -> None:
    said = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("setup", "demo", "test", "check", "bench", "data", "app"):
        assert re.search(rf"^  make {target} +\S", said, re.M), target


def test_shapes_are_checked_at_run_time() -> None:
    @jaxtyped(typechecker=shapes_only)
    def add(left: Float[torch.Tensor, " query"], right: Float[torch.Tensor, " query"]) -> None:
        del left, right

    add(torch.zeros(3), torch.zeros(3))
    with pytest.raises(TypeCheckError):
        add(torch.zeros(3), torch.zeros(5))


@pytest.mark.slow
def test_a_wheel_does_the_main_job_from_another_folder(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "-w", str(wheels), str(ROOT)], check=True)
    (wheel,) = wheels.glob("headscope-*.whl")
    clean = tmp_path / "clean"
    venv.create(clean, with_pip=True)
    python = clean / ("Scripts" if os.name == "nt" else "bin") / "python"
    pip = [str(python), "-m", "pip", "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True)
    # The dependencies are borrowed from this environment: a path in a .pth file makes its
    # packages importable and ignores its own .pth files, so the editable headscope is not found.
    borrowed = Path(torch.__file__).parent.parent
    (site,) = (clean / "lib").glob("python*/site-packages")
    (site / "borrowed.pth").write_text(f"{borrowed}\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    tool = python.with_name("headscope")
    where = subprocess.run(
        [python, "-c", "import probes; print(probes.__file__)"],
        **_child(elsewhere),
        check=True,
    )
    assert str(site) in where.stdout
    listed = subprocess.run([tool, "models"], **_child(elsewhere), check=True)
    assert "repeat-lm" in listed.stdout
    scored = subprocess.run(
        [tool, "score", "repeat-lm", "--limit", "3", "--out", "run"],
        **_child(elsewhere),
        check=False,
    )
    assert scored.returncode == 0, scored.stderr
    assert (elsewhere / "run" / "manifest.json").is_file()
    assert (elsewhere / "run" / "heads.parquet").is_file()


def _loaded(code: str, folder: Path) -> list[str]:
    report = f"import sys; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    return _said(f"{code}\n{report}", folder).split()


def _said(code: str, folder: Path) -> str:
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, **_child(folder), check=True).stdout


def _child(folder: Path) -> dict[str, object]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {
        "cwd": folder,
        "env": environment | {"HF_HUB_OFFLINE": "1"},
        "capture_output": True,
        "text": True,
    }
