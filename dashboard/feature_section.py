"""One feature on the page: examples, what one of them is made of, its heads and its words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import streamlit as st

from analysis.precision import plain
from dashboard.components.firing_examples import firing_examples
from dashboard.drawn import draw, escaped
from dashboard.empty import tell
from dashboard.feature_examples import example_rows
from dashboard.feature_heads import feature_heads
from dashboard.feature_shelf import IndexItem
from dashboard.feature_words import feature_words
from dashboard.firing_on_picture import feature_on_picture, images_read
from dashboard.firing_on_text import feature_on_text, has_text
from dashboard.guarded import fragment
from dashboard.shelf import RUN, Item
from dashboard.view import View
from sae.feature_index.reading import FeatureIndex, IndexedExample, IndexedFeature
from sae.feature_index.views import saved_view

if TYPE_CHECKING:
    import pandas as pd

    from sae.reading.windows import FiringView

_STRONGEST, _TENTHS = "strongest", "by tenth of strength"
_LINKED = 3
_SOURCE = "Kissane et al. 2024, [arXiv 2406.17759](https://arxiv.org/abs/2406.17759)"


def draw_feature(view: View, item: IndexItem, index: FeatureIndex, latent: int) -> None:
    """Everything that the index knows of a latent."""
    feature = index.feature(latent)
    _title(view, item, feature)
    if not feature.firings:
        tell(f"It never fires at the {feature.rows:,} positions that were read.")
    elif not feature.followed:
        count = index.about["followed"]
        tell(
            f"No examples were kept of it: only of the {count:,} that fire most. To keep more:",
            f"headscope sae features CODER --latents {index.about['latents']} --out OTHER",
        )
    else:
        _firings(view, item, index, feature)
    left, right = st.columns([6, 5], gap="medium")
    with left:
        draw(
            feature_heads(feature),
            "feature-heads",
            "Writes: each head's share of the decoder row. Makes it fire: its share of the "
            "pre-activation, by mean absolute size over all firings. Dotted: an equal share. "
            + _SOURCE
            + ".",
            _head_table(feature),
        )
    with right:
        _words(index, feature)


def _title(view: View, item: IndexItem, feature: IndexedFeature) -> None:
    st.subheader(f"Latent {feature.latent} of {feature.site}", anchor=False)
    if feature.firings:
        share = plain(100 * feature.density, 2)
        st.markdown(
            f"Fires at {feature.firings:,} of {feature.rows:,} positions ({share} %), strength "
            f"{plain(feature.mean, 3)} on average, {plain(feature.largest, 3)} at most."
        )
    run = _run_of(view, item)
    if run is None or "head" not in view.pages:
        return
    shares = feature.decoder_shares
    best = sorted(range(len(shares)), key=lambda head: -shares[head])[:_LINKED]
    with st.container(horizontal=True, key="feature-links"):
        for head in best:
            if st.button(
                f"Open H{head}, {plain(100 * shares[head], 2)} %",
                key=f"feature-head-{head}",
                help=f"{feature.site}H{head} in run {escaped(run.name)}",
            ):
                view.open("head", run=run.name, head=f"{feature.site}H{head}")


def _run_of(view: View, item: IndexItem) -> Item | None:
    """The run whose heads these are: that of the address if it is of the model, else the newest."""
    runs = [run for run in view.shelf.of(RUN) if run.model == item.model]
    return next((run for run in runs if run.name == view.value("run")), runs[0] if runs else None)


@fragment
def _firings(view: View, item: IndexItem, index: FeatureIndex, feature: IndexedFeature) -> None:
    latent = feature.latent
    which = st.segmented_control(
        "examples",
        [_STRONGEST, _TENTHS],
        default=_STRONGEST,
        required=True,
        key="examples",
        label_visibility="collapsed",
        bind="query-params",
    )
    top = index.top(latent)
    picked = next((one for one in top if f"{one.group}-{one.rank}" == view.value("firing")), top[0])

    def pick(name: str) -> None:
        view.note("firing", name)

    largest = plain(feature.largest, 3)
    if which == _TENTHS:
        groups = [
            (_tenth(number, some), example_rows(index, item.stamp, some, feature.largest))
            for number, some in enumerate(index.deciles(latent))
        ]
        firing_examples("feature-tenths", groups, largest, "", None)
        said = "Firings in ten groups of equal number by their strength, the strongest first."
    else:
        rows = example_rows(index, item.stamp, top, feature.largest)
        name = f"{picked.group}-{picked.rank}"
        firing_examples("feature-strongest", [("", rows)], largest, name, pick)
        said = "The inputs at which it is strongest; press one to see what it is made of."
    data = escaped(str(index.about.get("data", "")))
    with st.container(key="caption-features-firings"):
        st.markdown(
            f"{said} Tinted: how strongly it fires there; framed: the firing itself. "
            f"{index.about['examples']:,} examples of {data}."
        )
    _attribution(index, picked)


def _tenth(number: int, some: Sequence[IndexedExample]) -> str:
    if not some:
        return f"tenth {number + 1}: none"
    low, high = some[-1].strength, some[0].strength
    return f"tenth {number + 1}: {plain(high, 3)} to {plain(low, 3)}"


def _attribution(index: FeatureIndex, one: IndexedExample) -> None:
    st.subheader(f"What makes it fire in {escaped(one.example)}", anchor=False)
    view = saved_view(index, one)
    if view is None:
        why = index.about.get("no_attribution") or (
            "Heads and sources are kept of the strongest few examples only, and of inputs that "
            "there was room for. Press one of the first."
        )
        tell(str(why))
        return
    said = (
        "What {} brings to the feature where it fires, summed over heads with the pattern as it "
        "is: {}. " + _SOURCE + "."
    )
    if view.example.pictures:
        for image in images_read(view)[:1]:
            draw(
                feature_on_picture(view, image),
                "feature-picture",
                said.format("each patch", "the bluer the more; dotted: objects that the data know"),
                lambda: _source_table(view),
            )
    if has_text(view):
        draw(
            feature_on_text(view),
            "feature-text",
            said.format("each token", "blue for it, red against it"),
            lambda: _source_table(view),
        )


def _words(index: FeatureIndex, feature: IndexedFeature) -> None:
    if not feature.words:
        why = index.about.get("no_words")
        tell(f"What it speaks for is not known. {why}" if why else "It says nothing: it is dead.")
        return
    what = str(index.about.get("words") or "word")

    def table() -> pd.DataFrame:
        import pandas as pd

        return pd.DataFrame([*feature.words, *feature.words_against], columns=[what, "effect"])

    draw(
        feature_words(feature.latent, feature.words, feature.words_against, what),
        "feature-words",
        "Decoder row through W_O and the unembedding, along the residual stream alone; the scale "
        "of the final norm is left out. " + _SOURCE + ".",
        table,
    )


def _head_table(feature: IndexedFeature) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(
        {
            "head": [f"{feature.site}H{n}" for n in range(len(feature.decoder_shares))],
            "writes": feature.decoder_shares,
            "makes_it_fire": feature.firing_shares,
        }
    )


def _source_table(view: FiringView) -> Any:
    return view.attribution.sources.frame(view.attribution.by_source)
