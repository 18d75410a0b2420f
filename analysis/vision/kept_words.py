"""VHD of every head at every word of a few answers: kept by the study, read back for a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from analysis.atomic_file import written_atomically
from analysis.run_files import AGAIN, RunError, read_table
from analysis.vision.spaced_words import spaced_words
from analysis.vision.words import HALLUCINATED, OTHER, TRUE, Word, token_spans

if TYPE_CHECKING:
    import pandas as pd

    from analysis.vision.head_divergence import Diverged, Reads
    from probes.heads import Site
    from probes.inputs import Batch

WORDS, FILE, VHD = "words", "word_vhd.safetensors", "vhd"
"""The table, the file beside it, and the tensor in that file."""
OWN, GIVEN = "own", "given"
_MARKED = (HALLUCINATED, TRUE, OTHER)


class WordKeeper:
    """Gathers words with VHD of every head, for the section of the study.

    Args:
        layers: of the language tower.
    """

    def __init__(self, layers: int) -> None:
        self._layers = layers
        self._found: dict[str, tuple[list[dict[str, Any]], NDArray[np.float32]]] = {}

    def keep(
        self,
        tokenizer: Any,
        scored: Batch,
        read: Batch,
        reads: Reads,
        said: Sequence[Word],
        found: dict[Site, Diverged],
        t_vhd: Tensor,
    ) -> None:
        """Keep the words of a batch.

        Args:
            scored: the batch as it was given, to which a run's kept examples belong.
            read: the batch with the answers that were read.
            said, t_vhd: one per read.
        """
        ids = read.tensors["input_ids"].cpu()
        heads = max((layer.vhd.shape[1] for layer in found.values()), default=0)
        for row, example in enumerate(read.examples):
            mine = (reads.example == row).nonzero()[:, 0].tolist()
            positions = [int(reads.position[index]) for index in mine]
            text, spans = token_spans(tokenizer, ids[row, positions].tolist())
            alike = _alike(scored, read, row)
            before = _real(read)[row].long().cumsum(0)
            lines, values = [], np.full((len(mine), self._layers, heads), np.nan, np.float32)
            for site, layer in found.items():
                values[:, site.layer, : layer.vhd.shape[1]] = layer.vhd[mine].numpy()
            blocks = []
            for word in spaced_words(text, spans):
                of = list(word.tokens)
                first, last = (int(before[positions[of[end]]]) - 1 for end in (0, -1))
                known = first <= alike
                lines.append(
                    {
                        "example": example.id,
                        "word": len(lines),
                        "text": word.text,
                        "start": word.start,
                        "end": word.end,
                        **_about([said[mine[token]] for token in of]),
                        "t_vhd": float(t_vhd[[mine[token] for token in of]].mean()),
                        "first": first,
                        "last": last,
                        "query_first": first - 1 if known else -1,
                        "query_last": min(last, alike) - 1 if known else -1,
                        "answer": GIVEN if scored is read else OWN,
                    }
                )
                blocks.append(values[of].mean(0))
            empty = np.empty((0, self._layers, heads), np.float32)
            self._found[example.id] = lines, np.stack(blocks) if blocks else empty

    def frame(self, order: Sequence[str]) -> pd.DataFrame:
        """The words of all examples, in the order of their names; see `KeptWords`."""
        import pandas as pd

        lines = [line for name in self._known(order) for line in self._found[name][0]]
        return pd.DataFrame(lines)

    def save(self, folder: Path, order: Sequence[str]) -> None:
        """Write ``word_vhd.safetensors``, a line per line of the table; nothing without words."""
        from safetensors.numpy import save

        blocks = [self._found[name][1] for name in self._known(order)]
        if not blocks:
            return
        heads = max(block.shape[2] for block in blocks)
        wide = [
            np.pad(block, ((0, 0), (0, 0), (0, heads - block.shape[2])), constant_values=np.nan)
            for block in blocks
        ]
        with written_atomically(folder / FILE) as temporary:
            temporary.write_bytes(save({VHD: np.concatenate(wide)}))

    def _known(self, order: Sequence[str]) -> list[str]:
        return [name for name in order if name in self._found and self._found[name][0]]


@dataclass(frozen=True, eq=False)
class KeptWords:
    """The words of the kept answers.

    Attributes:
        frame: a line per word: ``example word text start end`` (characters in the answer without
            the spaces around it), ``group kind mention`` (a word with one token of a hallucinated
            object is one), ``t_vhd`` (mean of its tokens), ``first last`` (its positions in the
            text that was read, padding not counted), ``query_first query_last`` (positions of the
            run's kept example that predict its tokens; -1 where the text before differs there),
            ``answer`` (``own``: the model wrote it, ``given``: the data).
        vhd: float32 ``[word layer head]``, mean over the tokens of the word; NaN: not measured.
    """

    frame: pd.DataFrame
    vhd: NDArray[np.float32]

    def of(self, example: str) -> pd.DataFrame:
        """The words of one example; its index says which line of `vhd` is theirs."""
        return self.frame[self.frame["example"] == example]


def read_kept_words(section: Path) -> KeptWords | None:
    """What a section of a run keeps; None where it is too young to.

    Raises:
        RunError: it cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    table, file = section / f"{WORDS}.parquet", section / FILE
    if not table.is_file():
        return None
    frame = read_table(table).reset_index(drop=True)
    try:
        with safe_open(file, "numpy") as opened:
            vhd = opened.get_tensor(VHD)
    except (SafetensorError, OSError, ValueError) as error:
        raise RunError(f"{file} cannot be read ({error}). {AGAIN}") from error
    if vhd.ndim != 3 or len(vhd) != len(frame):
        raise RunError(f"{file} must hold {len(frame)} words, it has {list(vhd.shape)}. {AGAIN}")
    return KeptWords(frame, vhd)


def _about(words: Sequence[Word]) -> dict[str, Any]:
    """What is known of a word by its tokens: the first that belongs to an object speaks for it."""
    for group in _MARKED:
        for word in words:
            if word.group == group:
                return {"group": group, "kind": word.kind, "mention": word.mention}
    return {"group": "", "kind": "", "mention": -1}


def _alike(scored: Batch, read: Batch, row: int) -> int:
    """With how many tokens both texts of a row begin, padding aside."""
    one, other = (
        batch.tensors["input_ids"].cpu()[row][_real(batch)[row]] for batch in (scored, read)
    )
    length = min(len(one), len(other))
    differs = (one[:length] != other[:length]).nonzero()
    return int(differs[0, 0]) if len(differs) else length


def _real(batch: Batch) -> Tensor:
    """Bool ``[batch token]``: what is no padding."""
    ids = batch.tensors["input_ids"]
    return batch.tensors.get("attention_mask", torch.ones_like(ids)).bool().cpu()
