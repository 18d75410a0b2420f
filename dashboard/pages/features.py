"""Features of sparse autoencoders: a list, and where one of them fires, by what, for what."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import streamlit as st

from analysis.precision import plain
from dashboard.components.feature_list import FeatureRow, feature_list
from dashboard.empty import tell
from dashboard.feature_section import draw_feature
from dashboard.feature_shelf import IndexItem, feature_indexes, opened_index
from dashboard.page import Page
from dashboard.view import View
from probes.heads import Head
from sae.feature_index.listing import ORDERS, listed

if TYPE_CHECKING:
    import pandas as pd

    from sae.feature_index.reading import FeatureIndex

_EVERY = "all"
_SHOWN = 200


def show(view: View) -> None:
    """The list, and the feature that is chosen in it."""
    items = feature_indexes(view.shelf)
    if not items:
        tell(
            "No coder here has its features saved yet.",
            "headscope sae features shapes-llava --out runs/shapes-llava-features",
        )
        return
    item = _chosen(view, items)
    index = opened_index(item)
    order = view.choose("sort", "sort by", list(ORDERS))
    names = [_EVERY, *(f"{index.site}H{head}" for head in range(index.heads))]
    head = view.choose("head", "head with the largest share", names)
    text = view.write("text", "find", hint="a word, or a number")
    own = None if head == _EVERY else Head.parse(head).head
    found = listed(index, order, own, text)
    latent = _latent(view, index, found)
    with st.container(horizontal=True, key="features-body", gap="medium"):
        with st.container(key="features-list"):
            _list(view, index, found, latent)
        with st.container(key="features-one"):
            if latent is None:
                tell("No feature is like that. Choose another head, or find another word.")
            else:
                draw_feature(view, item, index, latent)


def _chosen(view: View, items: list[IndexItem]) -> IndexItem:
    """The index that is asked for; by default one of the layer that the address has a head of."""
    by_name = {item.name: item for item in items}
    head, run = view.value("head"), view.shelf.named(view.value("run"))
    fits = [item for item in items if head.startswith(f"{item.site}H")]
    same = [item for item in fits if run is not None and run.model == item.model]
    default = (same or fits or items)[0].name
    return by_name[view.choose("coder", "coder", list(by_name), default)]


def _latent(view: View, index: FeatureIndex, found: pd.DataFrame) -> int | None:
    """The latent of the address, else the first of the list."""
    asked = view.value("latent")
    if asked.isascii() and asked.isdigit() and int(asked) < len(index.features):
        return int(asked)
    if asked:
        tell(f"There is no latent {asked[:40]!r} in this coder; the first of the list is shown.")
    return None if found.empty else int(found["latent"].iloc[0])


def _list(view: View, index: FeatureIndex, found: pd.DataFrame, latent: int | None) -> None:
    def pick(number: int) -> None:
        view.note("latent", str(number))
        view.note("firing", "")

    top = float(found["density"].max()) if len(found) else 0.0
    rows = [_row(line, top) for line in found.head(_SHOWN).to_dict("records")]
    feature_list("features-rows", rows, latent, pick)
    about = index.about
    shown = f"{len(rows):,} of {len(found):,} shown. " if len(found) > len(rows) else ""
    _small(
        f"{shown}{about['latents']:,} latents, {about['dead']:,} never fire on these "
        f"{about['rows']:,} positions; {about['followed']:,} that fire most have examples. "
        "Head: the one with the largest share of what the feature writes."
    )


def _small(text: str) -> None:
    with st.container(key="caption-features-list"):
        st.markdown(text)


def _row(line: dict[Any, Any], top: float) -> FeatureRow:
    density = float(line["density"])
    return {
        "latent": int(line["latent"]),
        "density": _percent(density) if line["firings"] else "never",
        "share": density / top if top else 0.0,
        "head": f"H{line['top_head']}" if line["top_head"] >= 0 else "",
        "example": str(line["example"]),
        "words": str(line["words"])[:120],
    }


def _percent(share: float) -> str:
    return f"{plain(100 * share, 2)} %"


PAGE = Page(
    "features",
    "Features",
    "What single features of head outputs fire at, which heads and sources make them, what for.",
    show,
    needs_run=False,
)
