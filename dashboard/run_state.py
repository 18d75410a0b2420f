"""What a page says about a run itself: its state, sections, what was skipped, which runs lie by."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from analysis.precision import duration
from analysis.run_files import RunError
from analysis.run_folder import Run, open_run
from dashboard.drawn import escaped
from dashboard.guarded import fragment
from dashboard.shelf import RUN, Item
from dashboard.view import View

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = 200


def show_run(view: View) -> None:
    """The state of the run of a view, and the other runs of the app."""
    run = view.run
    st.markdown("### This run")
    st.markdown(escaped(_summary(run)))
    sections = run.sections
    if sections:
        states = [
            f"{name} ({'finished' if section.finished else 'unfinished'})"
            for name, section in sections.items()
        ]
        st.markdown(escaped(f"Sections: {', '.join(states)}."))
    if not run.finished:
        st.code(f"headscope score … --out {run.path} --resume", language="bash")
    _not_measured(run)
    _skipped(run)
    _altered(run)
    _others(view)


def _summary(run: Run) -> str:
    plan, manifest = run.plan, run.manifest or {}
    model, data = plan.get("model", {}), plan.get("data", {})
    done, total = run.shards
    state = "Finished" if run.finished else f"Unfinished: {done} of {total} shards are done"
    counted = manifest.get("n", "?") if run.finished else f"up to {data.get('n', '?')}"
    parts = [
        f"{state}.",
        f"{model.get('name', '?')} ({model.get('class', '?')}, {model.get('dtype', '?')})",
        f"on {data.get('name', '?')}, {counted} examples, seed {plan.get('seed', '?')},",
        f"begun {str(plan.get('created', '?'))[:16].replace('T', ' ')}",
    ]
    if "elapsed_seconds" in manifest:
        parts.append(f"and took {duration(float(manifest['elapsed_seconds']))}")
    return " ".join(parts) + "."


def _not_measured(run: Run) -> None:
    entries = (run.manifest or {}).get("not_measured", [])
    if not entries:
        return
    by_reason: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        why = str(entry["reason"]).removeprefix(str(entry["measure"])).strip()
        by_reason.setdefault((str(entry["tower"]), why), []).append(str(entry["measure"]))
    with st.expander(f"Not measured ({len(entries)})"):
        for (tower, why), names in by_reason.items():
            st.markdown(f"**{escaped(tower)}**: {escaped(', '.join(names))}: {escaped(why)}")


def _skipped(run: Run) -> None:
    skipped = run.skipped
    if not skipped:
        return
    with st.expander(f"Skipped examples ({len(skipped)})"):
        st.dataframe(
            [{"example": one["id"], "reason": one["reason"]} for one in skipped[:_SHOWN]],
            hide_index=True,
            key="overview-skipped",
        )
        if len(skipped) > _SHOWN:
            st.text(f"And {len(skipped) - _SHOWN} more.")


@fragment
def _altered(run: Run) -> None:
    if not run.finished or not st.button(
        "Check files", help="Compares every file with the digest written when the run finished."
    ):
        return
    altered = run.altered()
    if altered:
        st.text(f"Changed since the run was finished: {', '.join(altered)}.")
    else:
        st.text("Every file is as it was when the run finished.")


def _others(view: View) -> None:
    items = view.shelf.of(RUN)
    if len(items) < 2:
        return
    with st.expander(f"Runs here ({len(items)})"):
        chosen = st.dataframe(
            _table(items),
            hide_index=True,
            key="overview-runs",
            on_select="rerun",
            selection_mode=["single-row", "single-cell"],
        )
        row = picked_row(chosen)
        if row is not None and items[row] != view.item:
            st.button(f"Open {items[row].name}", on_click=_look_at, args=(view, items[row].name))


def _look_at(view: View, name: str) -> None:
    st.session_state.pop("overview-runs", None)
    view.put(run=name)


def picked_row(event: object) -> int | None:
    """The row that was clicked in a dataframe, whichever of its cells."""
    selection = getattr(event, "selection", None) or {}
    rows = list(selection.get("rows", []))
    rows += [cell[0] for cell in selection.get("cells", [])]
    return int(rows[0]) if rows else None


def _table(items: list[Item]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(
        {
            "run": [item.name for item in items],
            "model": [item.model for item in items],
            "data": [item.data for item in items],
            "begun": [item.created[:16].replace("T", " ") for item in items],
            "state": [_state(str(item.path), item.stamp) for item in items],
        }
    )


@st.cache_data(max_entries=256, show_spinner=False)
def _state(path: str, stamp: tuple[float, ...]) -> str:
    try:
        run = open_run(path)
        if run.finished:
            unfinished = [name for name, one in run.sections.items() if not one.finished]
            return "finished" + (f", but {', '.join(unfinished)}" if unfinished else "")
        return "unfinished: {} of {} shards".format(*run.shards)
    except (RunError, ValueError, KeyError) as error:
        return f"cannot be read: {error}"
