"""`headscope generate`: what a model writes before and after edits, what it makes up marked."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headscope.cli.options import (
    Device,
    DeviceMap,
    Dtype,
    Edits,
    Json,
    Model,
    Revision,
    TrustRemoteCode,
    load_subject,
    read_vocabulary,
)

_INDENT = 2

if TYPE_CHECKING:
    from headscope.generation import Version, Versions


def generate(
    model: Model,
    prompt: Annotated[
        str | None,
        typer.Option(help="What is asked. Default with an image: to describe it."),
    ] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option(help="An image; several times for several.", show_default=False),
    ] = None,
    edit: Edits = None,
    objects: Annotated[
        str | None,
        typer.Option(
            help="What is in the image, separated by commas: other objects that are named are "
            "marked."
        ),
    ] = None,
    synonyms: Annotated[
        Path | None,
        typer.Option(
            help='A JSON file such as {"couch": ["sofa"]}: which words name objects. Bundled '
            "models need none."
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="How long an answer may be.")] = 128,
    as_json: Json = False,
    dtype: Dtype = None,
    device: Device = None,
    device_map: DeviceMap = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Let a model write about an image, plainly and under each edit.

    An edit is NAME or NAME:PARAMETER=VALUE,PARAMETER=VALUE; + joins several items of a value, as
    in zero:heads=language.L3H5+language.L4.
    """
    from headscope.cli.screen import print_json, waiting
    from headscope.evaluating.conditions import conditions_of
    from headscope.generation import generate as write
    from headscope.plan import AskedWrongly, names_in

    if max_new_tokens < 1:
        raise AskedWrongly(f"`--max-new-tokens` must be at least 1, got {max_new_tokens}.")
    conditions_of(edit or (), 0, 0)  # a misspelt edit is said before the model is loaded
    vocabulary = read_vocabulary(synonyms)
    subject = load_subject(model, dtype, device, device_map, revision, trust_remote_code)
    there = names_in(objects) if objects else None
    with waiting(f"{subject.name} writes"):
        found = write(
            subject,
            prompt,
            image,
            edit or (),
            objects=there,
            vocabulary=vocabulary,
            max_new_tokens=max_new_tokens,
        )
    if as_json:
        print_json(_record(found, there))
        return
    _print(found, there)


def _print(found: Versions, there: list[str] | None) -> None:
    from rich.text import Text

    from headscope.cli.screen import columns_of_terminal, console, print_lines, wrapped

    screen, width = console(), columns_of_terminal() - _INDENT
    print_lines(found.prompt)
    for version in found:
        print_lines("", f"{version.edit}{_touched(version)}")
        text = Text()
        for piece, wrong in version.pieces:
            text.append(f"[{piece}]" if wrong else piece, style="bold red" if wrong else "")
        for line in (text or Text("(nothing)")).wrap(screen, width):
            line.rstrip()
            screen.print(Text(" " * _INDENT) + line, end="\n")
        if there is not None:
            print_lines(*wrapped([" " * _INDENT + _verdict(version)]))
        print_lines(*((" " * _INDENT + line).rstrip() for line in _word_lines(version, width)))
    notes = list(found.notes)
    if any(version.hallucinated for version in found):
        notes.insert(0, "[...]: named, but not in the image.")
    if any(version.words for version in found):
        notes.append(
            "Below words: T-VHD, how far the outputs of the most image-dependent heads move when "
            "the image is taken away and the plain model reads the same text."
        )
    if notes:
        print_lines("", *wrapped(notes))


def _word_lines(version: Version, width: int) -> list[str]:
    """Words with their T-VHD below them, in as many pairs of lines as are needed."""
    from analysis.precision import plain

    lines: list[str] = []
    words = values = ""
    for word in version.words:
        value = plain(word.t_vhd, 2)
        room = max(len(word.text), len(value)) + 2
        if words and len(words) + room > width:
            lines += ["", words.rstrip(), values.rstrip()]
            words = values = ""
        words += word.text.ljust(room)
        values += value.ljust(room)
    return [*lines, "", words.rstrip(), values.rstrip()] if words else lines


def _touched(version: Version) -> str:
    if version.touched is None:
        return ""
    changed = f"{version.touched:,} rows changed" if version.touched else "changed nothing here"
    return f"  ({changed})"


def _verdict(version: Version) -> str:
    judged = version.judged
    assert judged is not None
    count = len(judged.mentions)
    named = {mention.kind for mention in judged.mentions}
    wrong = list(dict.fromkeys(mention.kind for mention in judged.hallucinated))
    missed = [kind for kind in sorted(judged.there) if kind not in named]
    return (
        f"{count} object{'' if count == 1 else 's'} named, {len(judged.hallucinated)} not there"
        f"{': ' + ', '.join(wrong) if wrong else ''}"
        f"{'; left out: ' + ', '.join(missed) if missed else ''}"
    )


def _record(found: Versions, there: list[str] | None) -> dict[str, object]:
    return {
        "prompt": found.prompt,
        "objects": there,
        "versions": [
            {
                "edit": version.edit,
                "text": version.text,
                "touched": version.touched,
                "mentions": None
                if version.judged is None
                else [
                    {
                        "kind": mention.kind,
                        "start": mention.start,
                        "end": mention.end,
                        "there": mention not in version.hallucinated,
                    }
                    for mention in version.judged.mentions
                ],
                "words": [asdict(word) for word in version.words],
            }
            for version in found
        ],
        "notes": list(found.notes),
    }
