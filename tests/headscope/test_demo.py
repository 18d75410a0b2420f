"""The demo: a table and a run folder per model, and what to do next."""

from analysis.run_folder import open_run
from headscope import demo
from headscope.cli import main
from probes.bundled import bundled_models


def test_the_demo_scores_each_model_and_says_what_next(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "MODELS", ("repeat-lm", "shapes-vit"))
    monkeypatch.setattr(demo, "LIMIT", 3)
    assert main(["demo", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    folders = sorted(tmp_path.iterdir())
    assert [folder.name.rsplit("-", 2)[0] for folder in folders] == [
        "demo-repeat-lm",
        "demo-shapes-vit",
    ]
    assert all(open_run(folder).finished for folder in folders)
    assert "language: 2 layers, 16 heads, n = 3" in out
    assert "vision: 4 layers, 24 heads, n = 3" in out
    assert "2 models scored in" in out
    assert f"headscope show {folders[1]}" in out


def test_the_demo_runs_on_bundled_models_only():
    assert set(demo.MODELS) - {"prose-lm"} <= set(bundled_models())
