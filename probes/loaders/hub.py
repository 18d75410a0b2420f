"""Models of the Hugging Face hub, from the local cache where they are there already."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from probes.loading import LoadOptions

if TYPE_CHECKING:
    from probes.subject import Subject

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]{0,95}(?:/[A-Za-z0-9][\w.-]{0,95})?$", re.ASCII)
_PATIENCE_SECONDS = 10


def matches(source: Any) -> bool:
    """Whether it is written like a hub id: ``NAME`` or ``OWNER/NAME``."""
    return isinstance(source, str) and _HUB_ID.match(source) is not None


def load(source: str, options: LoadOptions) -> Subject:
    """The model of this id, by the class that its config names."""
    from probes.loaders.pretrained import load_pretrained

    if not _is_cached(source, options.revision):
        _require_network(source)
    return load_pretrained(source, options, name=source)


def _is_cached(source: str, revision: str | None) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(source, "config.json", revision=revision), str)


def _require_network(source: str) -> None:
    # huggingface_hub would retry for half a minute before it says that there is no network.
    from huggingface_hub import constants, get_session

    from probes.loaders.explain import no_network

    try:
        get_session().head(constants.ENDPOINT, timeout=_PATIENCE_SECONDS)
    except Exception as error:
        raise no_network(source) from error
