"""All features of a coder saved as open files, for the dashboard: ``hs.index_features``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headscope.coding.examples import CHUNK_EXAMPLES
from headscope.coding.read_rows import opened_rows
from headscope.plan import AskedWrongly

if TYPE_CHECKING:
    from probes.subject import Subject
    from sae.coders.coder import Coder
    from sae.feature_index import FeatureIndex
    from sae.feature_index.form import Amounts


def index_features(
    coder: Coder | str | Path,
    subject: Subject,
    data: str | Path | None = None,
    *,
    out: str | Path | None = None,
    into: str | Path | None = None,
    site: str = "",
    amounts: Amounts | None = None,
    limit: int | None = None,
    batch_size: int = CHUNK_EXAMPLES,
    context: int | None = None,
    other_model: bool = False,
    called: str = "",
    reached: Callable[[str, int], None] = lambda stage, examples: None,
) -> FeatureIndex:
    """Save where every feature of a coder fires, by which heads and sources, and what it says.

    The index is read without a model: `sae.FeatureIndex`, and the page *Features* of the app.

    Args:
        coder: or its folder, or the name of a bundled one.
        out: a new folder. Default: ``features`` in the coder's own folder, ``runs/NAME-features``
            of a bundled one.
        into: a finished run instead, of which the index becomes the section ``features``.
        amounts: how much is kept.
        called: what the index calls the coder; default: as it was given.
        reached: told of each stage (``numbers``, ``examples``) how many examples are done.

    Args otherwise as of `read_feature`.

    Raises:
        AskedWrongly: both `out` and `into`, or none where the coder has no folder; a model or site
            that is not the coder's.
        RunError: the folder is taken.
        ValueError: data that cannot be used.
    """
    from sae.feature_index import FeatureIndex, write_feature_index
    from sae.feature_index.writing import refuse_taken_index

    folder = index_folder(coder, out, into, site)
    refuse_taken_index(folder)
    opened, rows = opened_rows(coder, subject, data, site, limit, batch_size, context, other_model)
    ((name, _),) = rows.heads.items()
    about: dict[str, Any] = {
        "model": subject.name,
        "data": str(rows.about["data"]["name"]),
        "coder": called or (str(coder) if isinstance(coder, (str, Path)) else ""),
        "activations": rows.about,
    }
    written = write_feature_index(
        folder, subject, rows, opened, name, amounts=amounts, about=about, reached=reached
    )
    return FeatureIndex.open(written)


def index_folder(
    coder: Coder | str | Path, out: str | Path | None, into: str | Path | None, site: str
) -> Path:
    """Where an index of a coder goes.

    Raises:
        AskedWrongly: it is not clear where.
        RunError: `into` is no finished run, or has such a section.
    """
    from analysis.run_folder import RunError, open_run, refuse_section
    from sae.feature_index.form import FOLDER

    if out is not None and into is not None:
        raise AskedWrongly("Give either `--out` or `--into`, not both.")
    if into is not None:
        run = Path(into).expanduser()
        if not open_run(run).finished:
            raise RunError(f"The run {run} must be finished to add to it. Finish it first.")
        refuse_section(run, FOLDER)
        return run / FOLDER
    if out is not None:
        return Path(out).expanduser()
    if not isinstance(coder, (str, Path)):
        raise AskedWrongly("A coder without a folder needs `out` or `into`. Give one.")
    from probes.bundled import bundled_coders
    from sae.exchange.bundled_coder import coder_folder

    if str(coder) in bundled_coders():
        return Path("runs") / f"{coder}-features"
    own = coder_folder(coder)
    return (own / site if site and (own / site).is_dir() else own) / FOLDER
