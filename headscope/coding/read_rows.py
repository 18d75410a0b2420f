"""A coder with the head outputs of its site on some data, and what its features speak for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headscope.coding.examples import in_windows, rows_of
from headscope.coding.opened import (
    open_coder,
    refuse_other_heads,
    refuse_other_model,
    site_named,
)
from headscope.plan import AskedWrongly

if TYPE_CHECKING:
    from probes.subject import Subject
    from sae.activations import SubjectActivations
    from sae.coders.coder import Coder

WORDS = 8


def opened_rows(
    given: Coder | str | Path,
    subject: Subject,
    data: str | Path | None,
    site: str,
    limit: int | None,
    batch_size: int,
    context: int | None,
    other_model: bool,
    latent: int | None = None,
) -> tuple[Coder, SubjectActivations]:
    """A coder, and the head outputs of its site on the data; nothing was run yet."""
    from headscope.plan import default_data
    from probes.inputs import InputError
    from probes.readers import read_examples
    from sae.reading.latent_reading import chosen_latents

    coder = open_coder(given, site)
    where = site_named(coder, site)
    if latent is not None:
        try:
            chosen_latents(coder, latent)
        except ValueError as error:
            raise AskedWrongly(str(error)) from error
    if not other_model:
        refuse_other_model(coder, subject)
    refuse_other_heads(coder, subject, where)
    provenance: Mapping[str, Any] = coder.about.get("provenance") or {}
    known: Mapping[str, Any] = provenance.get("data") or {}
    context = context if context is not None else known.get("context")
    fallback = default_data(subject) if data is None else str(data)
    try:
        name = str(known.get("name") or fallback) if data is None else str(data)
        found = list(read_examples(name, subject.kind, limit))
    except InputError:
        if data is not None or name == fallback:
            raise
        name = fallback
        found = list(read_examples(name, subject.kind, limit))
    examples = in_windows(subject, found, context)
    coder = coder.to(subject.device)
    roles, facts = provenance.get("roles"), {"name": name}
    return coder, rows_of(subject, examples, where, roles=roles, batch_size=batch_size, facts=facts)


def logit_words(
    subject: Subject, coder: Coder, site: str, latents: Sequence[int]
) -> tuple[dict[int, tuple], dict[int, tuple], str]:
    """What features speak for and against, or why it is not known."""
    from sae.reading.logit_effects import logit_effects

    if not latents:
        return {}, {}, "No feature was asked for."
    try:
        found = logit_effects(subject, coder, site, list(latents))
    except ValueError as error:
        return {}, {}, str(error)
    unnamed = "class" if not found.words else "word"

    def shown(told: list[tuple[int, str, float]]) -> tuple[tuple[str, float], ...]:
        return tuple((name or f"{unnamed} {number}", effect) for number, name, effect in told)

    best = {latent: shown(found.top(latent, WORDS)) for latent in latents}
    return best, {latent: shown(found.bottom(latent, WORDS)) for latent in latents}, ""
