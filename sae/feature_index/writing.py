"""Write an index of all features of a coder: two passes over the data, then open files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.atomic_file import drop_half_written, write_json, written_atomically
from analysis.run_files import MANIFEST, SCHEMA, RunError, digests
from sae.activations.places import PlacedActivations
from sae.coders.coder import Coder
from sae.feature_index.form import (
    ATTRIBUTIONS,
    DECILE,
    EXAMPLES,
    FEATURES,
    INPUTS,
    KIND,
    PICTURES,
    TOKENS,
    TOP,
    Amounts,
)
from sae.feature_index.kept_inputs import InputKeeper
from sae.feature_index.seen_firings import SecondPass
from sae.feature_index.survey import FeatureSurvey, survey_features
from sae.feature_index.tables import attribution_line, example_line, feature_table, in_words
from sae.feature_index.words import words_of_latents
from sae.reading.feature_examples import Firing
from sae.reading.head_shares import decoder_shares

if TYPE_CHECKING:
    from probes.subject import Subject

_OWN = {FEATURES, EXAMPLES, ATTRIBUTIONS, TOKENS, INPUTS, PICTURES}
_GROUPS = 10
Reached = Callable[[str, int], None]


def write_feature_index(
    folder: str | Path,
    subject: Subject,
    activations: PlacedActivations,
    coder: Coder,
    site: str,
    *,
    amounts: Amounts | None = None,
    about: Mapping[str, Any] | None = None,
    reached: Reached = lambda stage, examples: None,
) -> Path:
    """Save where every latent of a coder fires, by which heads and sources, and what it says.

    The data is run twice: once for numbers of all latents and the places where they fire, once for
    the surroundings of the places that are shown. Memory, beside model and coder: twice
    ``top + sample`` firings of 36 bytes per latent (0.3 GB of 65,536), 16 bytes per latent and
    head, and about 2 kB for each example that is shown, at most 30 of each followed latent.

    Args:
        amounts: how much is kept; of many latents those that fire most often get examples.
        about: more for the manifest; JSON values only.
        reached: told of each stage how many examples are done: ``numbers``, ``examples``.

    Returns:
        The folder.

    Raises:
        RunError: the folder holds a finished index or something else.
        ValueError: a site that is not the coder's, data without any firing.
    """
    folder, amounts = Path(folder), amounts or Amounts()
    refuse_taken_index(folder)
    survey = survey_features(
        activations, coder, site, top=amounts.top, sample=amounts.sample,
        reached=lambda examples: reached("numbers", examples),
    )  # fmt: skip
    followed = most_used(survey, amounts.latents)
    if not followed:
        raise ValueError(f"No latent of the coder fires on these {survey.examples.rows} rows.")
    words = words_of_latents(subject, coder, site, survey.examples.firings.nonzero()[:, 0].tolist())
    folder.mkdir(parents=True, exist_ok=True)
    drop_half_written(folder)
    kept = _write_examples(folder, subject, activations, coder, site, survey, followed, amounts,
                           lambda examples: reached("examples", examples))  # fmt: skip
    shares = decoder_shares(coder, activations.heads[site]).cpu()
    table = feature_table(survey, shares, words.best, words.worst, kept.shown)
    with written_atomically(folder / FEATURES) as temporary:
        table.to_parquet(temporary, index=False, compression="zstd", row_group_size=2048)
    found = survey.examples
    record = {
        "kind": KIND,
        "site": site,
        "heads": activations.heads[site],
        "latents": coder.latents,
        "architecture": type(coder).__name__,
        "rows": found.rows,
        "examples": len(found.ids),
        "skipped": len(activations.skipped),
        "dead": int((found.firings == 0).sum()),
        "followed": len(followed),
        "inputs": kept.inputs,
        "amounts": vars(amounts),
        "words": words.what,
        "no_words": words.why,
        "no_attribution": kept.no_attribution,
        **(about or {}),
    }
    write_json(folder / MANIFEST, {"schema": SCHEMA, **record, "files": digests(folder)})
    return folder


def refuse_taken_index(folder: Path) -> None:
    """Nothing, if an index can be written there; what a stopped attempt left is written over.

    Raises:
        RunError: a file, a finished index, or something else is there.
    """
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} must be a folder, it is a file. Choose another name.")
    if not folder.is_dir():
        return
    if (folder / MANIFEST).exists():
        raise RunError(f"{folder} holds a finished index or run. Choose another folder.")
    strangers = sorted(
        item.name for item in folder.iterdir() if item.name not in _OWN and item.suffix != ".part"
    )
    if strangers:
        raise RunError(
            f"{folder} must be a new or empty folder, it holds something else ({strangers[0]}). "
            "Choose another name; nothing was touched."
        )


def most_used(survey: FeatureSurvey, count: int) -> list[int]:
    """The latents that fire most often, at most ``count``, most first; a tie goes to the lower."""
    firings = survey.examples.firings
    order = firings.sort(descending=True, stable=True).indices[:count]
    return [latent for latent in order.tolist() if firings[latent] > 0]


class _Kept:
    """What was written of the examples, for the table of features and the manifest."""

    def __init__(self) -> None:
        self.shown: dict[int, str] = {}
        self.inputs, self.no_attribution = 0, ""


def _write_examples(
    folder: Path, subject: Subject, activations: PlacedActivations, coder: Coder, site: str,
    survey: FeatureSurvey, followed: list[int], amounts: Amounts,
    reached: Callable[[int], None],
) -> _Kept:  # fmt: skip
    """examples.parquet, attributions.parquet and the inputs that are kept."""
    import pandas as pd

    found, by_rank = survey.examples, {}
    wanted: dict[Firing, list[tuple[str, int, int]]] = {}
    for latent in followed:
        for rank, one in enumerate(found.top(latent)):
            wanted.setdefault(one, []).append((TOP, 0, rank))
            by_rank.setdefault(rank, []).append(one)
        tenths = found.quantiles(latent, _GROUPS, amounts.per_decile)
        for group, some in enumerate(tenths):
            for rank, one in enumerate(some):
                wanted.setdefault(one, []).append((DECILE, group, rank))
    # The strongest example of every latent comes before the second of any.
    first = [one for rank in sorted(by_rank) for one in by_rank[rank]]
    keeper = InputKeeper(dict.fromkeys(one.index for one in first), amounts)
    split = {one: rank for rank in sorted(by_rank)[: amounts.attributed] for one in by_rank[rank]}
    second = SecondPass(subject, activations, coder, site, list(wanted), split, reached)
    lines, attributions, kept = [], [], _Kept()
    own = site.rpartition(".")[0]
    for batch, every in second:
        towers = dict.fromkeys([own, *(s.direct.sources.tower for s in every if s.direct)])
        keeper.see(batch, {seen.firing.index: seen.member for seen in every}, towers)
        for seen in every:
            one, number = seen.firing, keeper.numbers.get(seen.firing.index, -1)
            for kind, group, rank in wanted[one]:
                lines.append(example_line(seen, kind, group, rank, number))
                if (kind, rank) == (TOP, 0):
                    kept.shown[one.latent] = in_words(seen.window)
            if seen.direct is not None and number >= 0:
                attributions.append(attribution_line(seen.direct, split[one]))
    keeper.write(folder)
    kept.inputs, kept.no_attribution = len(keeper.numbers), second.no_attribution
    tables = (
        (EXAMPLES, lines, ["latent", "kind", "group", "rank"]),
        (ATTRIBUTIONS, attributions, ["latent", "rank"]),
    )
    for name, some, order in tables:
        frame = pd.DataFrame(some, columns=None if some else order)
        frame = frame.sort_values(order, kind="stable", ascending=[True] * len(order))
        with written_atomically(folder / name) as temporary:
            frame.to_parquet(temporary, index=False, compression="zstd", row_group_size=4096)
    return kept
