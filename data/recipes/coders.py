"""One trained coder for each bundled model: a sparse autoencoder of head outputs, by headscope.

Every coder is a TopK one of one attention layer, trained by `sae.training.train` on inputs that are
drawn anew from what its model was trained on (`coder_inputs`), judged on bundled sets that nobody
trained on, beside a random dictionary, principal components and itself untrained, at the same L0.
"""

import logging
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import coder_inputs
import shelf

from headscope.coding import box_evidence, copy_evidence
from headscope.coding.evaluating import evaluate_coder
from headscope.coding.examples import in_windows, rows_of
from headscope.coding.feature_index import index_features
from probes.inputs import Example
from probes.loading import load
from probes.readers import read_examples
from sae.activations import store_activations
from sae.exchange.headscope_folder import load_coder, save_coder
from sae.feature_index.form import Amounts
from sae.training import Record, TrainConfig, train

log = logging.getLogger(__name__)
SEED, INPUTS_SEED = 0, 1000
BATCH_EXAMPLES = 64
FEATURES = Amounts(latents=200, top=5, per_decile=1, attributed=2, sample=40, inputs=32)


@dataclass(frozen=True)
class Recipe:
    """How the coder of a model is made.

    Attributes:
        inputs: gives so many examples by a seed.
        judged_on: bundled sets; the first is what the coder is told by.
        context: tokens of a window, None: whole texts.
        shown: what one feature is shown to do on the first of the sets, and for which feature it
            is chosen: on one half of the examples, measured on the other.
    """

    site: str
    about: str
    inputs: Callable[[int, int], list[Example]]
    examples: int
    latents: str
    k: int
    tokens: int
    judged_on: tuple[str, ...]
    context: int | None = None
    shown: Callable | None = None


RECIPES = {
    "repeat-lm": Recipe(
        "language.L1",
        "induction heads: features of the word that is copied",
        coder_inputs.repeats,
        8_000,
        "8x",
        8,
        3_000_000,
        ("repeats",),
        shown=copy_evidence,
    ),
    "shapes-vit": Recipe(
        "vision.L2",
        "third of four layers",
        coder_inputs.single_images,
        6_000,
        "8x",
        8,
        3_000_000,
        ("digits", "shapes"),
    ),
    "prose-lm": Recipe(
        "language.L2",
        "third of four layers, on English",
        coder_inputs.prose,
        100_000,
        "16x",
        16,
        2_140_000,
        ("prose",),
        context=128,
    ),
    "shapes-llava": Recipe(
        "language.L2",
        "heads that read the patches of the object that is named",
        coder_inputs.described_scenes,
        12_000,
        "8x",
        16,
        3_000_000,
        ("scenes",),
        shown=box_evidence,
    ),
    "shapes-llava-sinks": Recipe(
        "language.L2",
        "the same layer, most of its heads with a planted sink",
        coder_inputs.described_scenes,
        12_000,
        "8x",
        16,
        3_000_000,
        ("scenes",),
        shown=box_evidence,
    ),
}


def make(out: Path, quick: bool = False) -> dict:
    """Train and judge the coder of every bundled model; returns what was measured."""
    return {name: make_one(out, name, quick) for name in RECIPES}


def make_one(out: Path, name: str, quick: bool = False) -> dict:
    """Train, judge and save the coder of one model."""
    recipe, started = RECIPES[name], time.perf_counter()
    subject = _subject(out, name)
    with tempfile.TemporaryDirectory() as folder:
        coder, measured = _trained(subject, recipe, Path(folder), quick)
    measured["training_seconds"] = round(time.perf_counter() - started)
    path = out / "coders" / name
    shutil.rmtree(path, ignore_errors=True)
    save_coder(coder, path)
    shelf.enter_coder(out, name, recipe.site, coder, recipe.about)
    coder = load_coder(path)
    for data in recipe.judged_on:
        found = evaluate_coder(
            coder, subject, data, limit=8 if quick else None, context=recipe.context
        )
        measured.setdefault("judged", {})[data] = found.record()
    if recipe.shown is not None and not quick:
        examples = list(read_examples(recipe.judged_on[0], subject.kind))
        rows = rows_of(subject, examples, recipe.site, batch_size=BATCH_EXAMPLES)
        measured["shown"] = asdict(recipe.shown(subject, coder, rows))
    if not quick:
        write_features(out, name)
    measured["total_seconds"] = round(time.perf_counter() - started)
    shelf.write_coder_measured(out, name, measured)
    return measured


def write_features(out: Path, name: str) -> None:
    """The features of a coder on the first set that it was judged on, small enough to ship."""
    recipe, folder = RECIPES[name], out / "coders" / name
    shutil.rmtree(folder / "features", ignore_errors=True)
    index_features(
        folder, _subject(out, name), recipe.judged_on[0], context=recipe.context,
        out=folder / "features", amounts=FEATURES, called=name,
    )  # fmt: skip


def _subject(out: Path, name: str):
    """The model as it was made in `out`, else the shipped one."""
    folder = out / "models" / name
    if out.resolve() == shelf.DATA or not folder.is_dir():
        return load(name)
    subject = load(str(folder))
    subject.name = name
    return subject


def _trained(subject, recipe: Recipe, folder: Path, quick: bool):
    """(coder, what was measured while training); head outputs are made once, in a folder."""
    examples = recipe.inputs(40 if quick else recipe.examples, INPUTS_SEED)
    facts = {"name": f"data/recipes/coder_inputs.py: {recipe.inputs.__name__}"}
    if recipe.context is not None:
        facts["context"] = recipe.context
    rows = rows_of(
        subject,
        in_windows(subject, examples, recipe.context),
        recipe.site,
        batch_size=BATCH_EXAMPLES,
        seed=SEED,
        facts=facts,
    )
    stored = store_activations(rows, folder / "store")
    config = TrainConfig(
        latents=recipe.latents,
        k=recipe.k,
        tokens=1_024 if quick else recipe.tokens,
        batch_size=256 if quick else 1_024,
        buffer_rows=65_536,
        seed=SEED,
        log_every=100,
    )
    last: list[Record] = []

    def hear(told) -> None:
        if isinstance(told, Record):
            last[:] = [told]
            log.info(
                "%s step %d/%d explained variance %.4f (%.0f s)",
                subject.name, told.step, told.steps, told.explained_variance or 0.0, told.seconds,
            )  # fmt: skip

    coder = train(config, stored, listener=hear)
    rows_there = stored.rows[recipe.site]
    return coder, {
        "seed": SEED,
        "site": recipe.site,
        "examples": len(examples),
        "rows": rows_there,
        "rows_trained_on": last[0].tokens,
        "epochs": round(last[0].tokens / rows_there, 2),
        "width": coder.width,
        "latents": coder.latents,
        "k": recipe.k,
        "dead_at_end": last[0].dead,
    }
