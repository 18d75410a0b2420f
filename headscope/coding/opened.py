"""Coders by name, folder or training, and whether a model is the one that they were trained on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from headscope.plan import AskedWrongly

if TYPE_CHECKING:
    from probes.subject import Subject
    from sae.coders.coder import Coder

TRAINING = "training"


def open_coders(given: str | Path) -> dict[str, Coder]:
    """All coders of a bundled name, a folder of one coder in any format, a training, or a sweep.

    Returns:
        By their names in the training, else one by the name of its folder.

    Raises:
        CoderFolderError: there is none, or one cannot be read.
        RunError: an unfinished training.
    """
    from analysis.run_files import MANIFEST, PLAN, RunError, read_json
    from sae.exchange.bundled_coder import coder_folder
    from sae.exchange.formats import load_coder

    folder = coder_folder(given)
    if (folder / TRAINING / PLAN).is_file():
        folder = folder / TRAINING
    if not (folder / PLAN).is_file():
        return {folder.resolve().name: load_coder(folder)}
    if not is_training(folder):
        raise RunError(
            f"{folder} must be a coder or a training of coders, it is the folder of another run. "
            "Show it with `headscope show`."
        )
    if not (folder / MANIFEST).is_file():
        raise RunError(
            f"The training in {folder} is unfinished and has written no coder yet. Go on with it: "
            "give its command again, with `--resume`."
        )
    return {name: load_coder(folder / name) for name in read_json(folder / MANIFEST)["sites"]}


def is_training(folder: Path) -> bool:
    """Whether a folder holds a training of coders, finished or not.

    Raises:
        RunError: its plan cannot be read.
    """
    from analysis.run_files import PLAN, read_json

    return (folder / PLAN).is_file() and "sae" in str(read_json(folder / PLAN).get("kind", ""))


def open_coder(given: str | Path | Coder, name: str = "") -> Coder:
    """One coder.

    Args:
        given: as of `open_coders`; a coder is given back.
        name: which of several; where there is one it need not have this name.

    Raises:
        AskedWrongly: there are several, and none of this name; the sentence names those there are.
    """
    if not isinstance(given, (str, Path)):
        return given
    found = open_coders(given)
    if len(found) == 1:
        return next(iter(found.values()))
    if name not in found:
        got = f", got {name!r}" if name else ""
        raise AskedWrongly(
            f"{given} holds {len(found)} coders: {', '.join(found)}{got}. Choose one with `--site`."
        )
    return found[name]


def model_of(coders: Mapping[str, Coder]) -> str:
    """The name of the model that coders were trained on.

    Raises:
        AskedWrongly: they do not say it.
    """
    for coder in coders.values():
        name = (coder.about.get("subject") or {}).get("name")
        if name:
            return str(name)
    raise AskedWrongly(
        "The coder does not say which model it was trained on. Give the model behind the folder."
    )


def refuse_other_model(coder: Coder, subject: Subject) -> None:
    """Nothing, if a coder says of this model, or of none, that it was trained on it.

    Raises:
        AskedWrongly: it was another one, or other weights of this one.
    """
    from sae import same_model

    try:
        same_model.refuse_other_model(coder, subject, "say `--other-model`")
    except ValueError as error:
        raise AskedWrongly(str(error)) from error


def refuse_other_heads(coder: Coder, subject: Subject, site: str) -> None:
    """Nothing, if a model has the coder's site and it is as wide.

    Raises:
        AskedWrongly: it has not.
    """
    from sae.reading.latent_reading import site_of

    try:
        site_of(subject, coder, site)
    except ValueError as error:
        raise AskedWrongly(str(error)) from error


def site_named(coder: Coder, site: str = "") -> str:
    """Where a coder belongs: as it says itself, else as given.

    Raises:
        AskedWrongly: neither says it.
    """
    found = coder.about.get("site") or site
    if not found:
        raise AskedWrongly(
            "The coder does not say which site it belongs to. Give it, such as "
            "`--site language.L2`."
        )
    return str(found)
