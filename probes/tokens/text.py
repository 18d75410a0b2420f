"""Name the positions of text: BOS, system prompt, special tokens, padding, and image positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from probes.tokens.context import Context, starts_of
from probes.tokens.map import ROLES, TowerTokens
from probes.tokens.patches import Patches, unplaced

_BYTE_SPACE, _PIECE_SPACE = "\u0120", "\u2581"
"""How byte-level and SentencePiece vocabularies write a space: two letters, not blanks."""


def text_tokens(
    context: Context,
    tower: str,
    ids: Tensor,
    attention_mask: Tensor | None,
    patches: Sequence[Patches] | None = None,
) -> TowerTokens:
    """The rows of a tower that reads ``ids [example position]``.

    Args:
        attention_mask: 0 marks padding. Without it no position is padding.
        patches: what the language tower reads of each image of the batch. Where their number
            does not equal that of the image tokens in a row, the row's image positions keep the
            role ``image`` and their places stay unknown.
    """
    ids = ids.detach().cpu()
    mask = torch.ones_like(ids) if attention_mask is None else attention_mask.detach().cpu()
    if mask.shape != ids.shape:
        mask = torch.ones_like(ids)
    known = _Vocabulary.of(context)
    role = torch.stack(
        [_roles(known, row, real.bool()) for row, real in zip(ids, mask, strict=True)]
    )
    count, length = ids.shape
    flat = ids.flatten()
    spots = [(role[example] == ROLES.index("image")).nonzero()[:, 0] for example in range(count)]
    image = torch.full((count, length), -1)
    placed = unplaced(count * length)
    columns = {name: getattr(placed, name).clone() for name in ("tile", "row", "column", "box")}
    for example, spot in enumerate(spots):
        index, pieces = _patches_of(context, example, patches, len(spot))
        at = spot + example * length
        image[example, spot] = index
        if pieces is not None:
            for name, column in columns.items():
                column[at] = getattr(pieces, name)
            role[example, spot] = pieces.role
    return TowerTokens(
        tower=tower,
        starts=starts_of([length] * count),
        example=torch.arange(count).repeat_interleave(length),
        role=role.flatten(),
        ids=flat.long(),
        image=image.flatten(),
        text=token_texts(context.tokenizer, flat),
        **columns,
    )


def token_texts(tokenizer: Any, ids: Tensor) -> tuple[str, ...]:
    """Each token as a reader sees it, spaces included; empty without a tokenizer."""
    if tokenizer is None:
        return ()
    wanted = ids.unique().tolist()
    known = {}
    for token_id in wanted:
        token = tokenizer.convert_ids_to_tokens(int(token_id)) if token_id >= 0 else None
        if token is None:
            known[token_id] = ""
            continue
        token = token.decode(errors="replace") if isinstance(token, bytes) else str(token)
        text = token.replace(_BYTE_SPACE, " ").replace(_PIECE_SPACE, " ")
        known[token_id] = text if text.isascii() else _decoded(tokenizer, token_id, token)
    return tuple(known[token_id] for token_id in ids.tolist())


def special_ids(tokenizer: Any) -> set[int]:
    """Ids of the tokens that are not text: those the tokenizer names and those it added as such.

    An unknown word is a word: its token counts as text, unless it also ends texts (GPT-2).
    """
    if tokenizer is None:
        return set()
    named = {int(i) for i in getattr(tokenizer, "all_special_ids", None) or []}
    added = getattr(tokenizer, "added_tokens_decoder", None) or {}
    found = named | {int(i) for i, token in added.items() if getattr(token, "special", False)}
    others = {getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "pad", "sep")}
    return found - ({getattr(tokenizer, "unk_token_id", None)} - others)


def system_prompt_ids(tokenizer: Any, processor: Any = None) -> list[int]:
    """Ids of what the chat template writes before the first user turn, header of the turn excluded.

    Found by comparing the template's text before a first and before a second user turn. Empty
    where there is no template, or the comparison does not work.
    """
    if tokenizer is None:
        return []
    rich = bool(getattr(processor, "chat_template", None))
    holder = processor if rich else tokenizer
    if not getattr(holder, "chat_template", None):
        return []

    def turn(role: str, words: str) -> dict[str, Any]:
        return {"role": role, "content": [{"type": "text", "text": words}] if rich else words}

    first, answer, second = "first-user-turn", "an-answer", "second-user-turn"
    turns = [turn("user", first), turn("assistant", answer), turn("user", second)]
    try:
        whole = str(holder.apply_chat_template(turns, tokenize=False))
    except Exception:  # a template is a program of the model's author and may raise anything
        return []
    if any(words not in whole for words in (first, answer, second)):
        return []
    before = whole[: whole.index(first)]
    between = whole[whole.index(answer) + len(answer) : whole.index(second)]
    header = 0
    while header < min(len(before), len(between)) and before[-1 - header] == between[-1 - header]:
        header += 1
    system = before[: len(before) - header]
    return list(tokenizer(system, add_special_tokens=False)["input_ids"]) if system else []


@dataclass(frozen=True)
class _Vocabulary:
    """The ids that decide what role a token has."""

    special: Tensor
    system: list[int]
    bos: int | None
    cls: int | None
    image: int | None

    @classmethod
    def of(cls, context: Context) -> _Vocabulary:
        tokenizer = context.tokenizer
        bos = getattr(tokenizer, "bos_token_id", None)
        if tokenizer is None:
            text = getattr(context.config, "text_config", None) or context.config
            bos = getattr(text, "bos_token_id", None)
        return cls(
            special=torch.tensor(sorted(special_ids(tokenizer)), dtype=torch.long),
            system=system_prompt_ids(tokenizer, context.processor),
            bos=bos if isinstance(bos, int) else None,
            cls=getattr(tokenizer, "cls_token_id", None),
            image=context.image_token_id,
        )


def _roles(known: _Vocabulary, ids: Tensor, real: Tensor) -> Tensor:
    role = torch.full_like(ids, ROLES.index("text"), dtype=torch.long)
    role[_system_span(known, ids, real)] = ROLES.index("system")
    role[torch.isin(ids, known.special)] = ROLES.index("special")
    if known.image is not None:
        role[ids == known.image] = ROLES.index("image")
    # BLIP-2 and PaliGemma put the image before BOS.
    words = (real & (role != ROLES.index("image"))).nonzero()[:, 0]
    if len(words):
        first = int(ids[words[0]])
        if first == known.bos:
            role[words[0]] = ROLES.index("bos")
        elif first == known.cls:
            role[words[0]] = ROLES.index("cls")
    role[~real] = ROLES.index("pad")
    return role


def _system_span(known: _Vocabulary, ids: Tensor, real: Tensor) -> slice:
    """Where a row begins with the template's system prompt; empty if it does not."""
    positions = real.nonzero()[:, 0]
    if not known.system or not len(positions):
        return slice(0, 0)
    first = int(positions[0])
    if int(ids[first]) == known.bos and known.system[0] != known.bos:
        first += 1
    body, span = ids[first:].tolist(), 0
    while span < min(len(body), len(known.system)) and body[span] == known.system[span]:
        span += 1
    # The last token may have merged with what follows; fewer are the frame of any other turn.
    return slice(first, first + span) if span >= max(1, len(known.system) - 1) else slice(0, 0)


def _patches_of(
    context: Context, example: int, patches: Sequence[Patches] | None, wanted: int
) -> tuple[Tensor, Patches | None]:
    mine = [i for i, owner in enumerate(context.image_examples) if owner == example]
    if patches is not None and len(patches) == context.images:
        pieces = [patches[i] for i in mine]
        if sum(len(piece) for piece in pieces) == wanted:
            index = [torch.full((len(piece),), k) for k, piece in enumerate(pieces)]
            empty = torch.zeros(0, dtype=torch.long)
            return torch.cat(index) if index else empty, Patches.join(pieces)
    return torch.full((wanted,), 0 if len(mine) == 1 else -1), None


def _decoded(tokenizer: Any, token_id: int, token: str) -> str:
    text = tokenizer.decode([token_id])
    return f" {text}" if token.startswith(_PIECE_SPACE) and not text.startswith(" ") else text
