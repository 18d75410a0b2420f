"""The study of attention against saliency: does a head look at what the answer depends on?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from analysis.importance.readings import ReadingError
from analysis.progress import Progress
from analysis.scores import BatchScores, Column
from analysis.statistics import RatioSums
from analysis.vision.answer_score import answer_tokens
from analysis.vision.correlation import pearson, spearman
from analysis.vision.occlusion import MOST_BLOCKS, Blocks
from analysis.vision.saliencies import OCCLUSION, saliencies
from analysis.vision.saliency_maps import OBJECT, Group, attention_maps, groups_of
from analysis.vision.saliency_sources import Source, blocks_of, sources_of
from probes.heads import Site
from probes.written_text import continued

if TYPE_CHECKING:
    import pandas as pd

    from analysis.importance.study import StudyOptions
    from analysis.importance.targets import Data
    from analysis.tally import Tally
    from probes.inputs import Batch, Example
    from probes.subject import Subject

MEASURES = {"saliency_spearman": spearman, "saliency_pearson": pearson}
MAX_NEW_TOKENS = 64
_ALL = -1


@dataclass(frozen=True)
class _Compared:
    """One correlation of one example: ``value`` and ``null`` are float64 ``[head]``."""

    row: int
    site: Site
    measure: str
    variant: str
    value: Tensor
    null: Tensor


@dataclass
class Saliency:
    """Correlation of every head's attention with what the answer depends on, place by place.

    For an answer (``tokens=answer``) and for each mention of an object of the image
    (``tokens=object``): the mean weight of the queries that predict its tokens on every piece of
    the image (patches, or squares of them if there are more than ``most_blocks``), against

    - ``by=occlusion``: what the log-probability of the tokens loses when the piece is covered;
    - ``by=gradient_norm``, ``by=gradient_input``: length of its gradient at what enters the tower
      at each position, and ``|gradient . input|`` (summed over a piece).

    In encoder-decoders the pieces are what the encoder reads and attention is the decoder's cross
    attention, with ``by=output_gradient_norm``, the gradient at what the encoder gives out, beside
    them: *Cross-Attention is Half Explanation in Speech-to-Text Models* (Papi et al., 2025, arXiv
    2509.18010). Measures: ``saliency_spearman``, ``saliency_pearson``, mean over examples; the null
    has the saliency shuffled over the pieces. Table ``saliency``: the same for the mean map of all
    heads and of each layer.

    Cost per example: one forward for 16 pieces, and for a batch one forward with 1 + (most objects
    of an example) backwards.

    Attributes:
        most_blocks: most pieces, hidden one at a time.
    """

    most_blocks: int = MOST_BLOCKS
    seed: int = 0
    max_new_tokens: int = MAX_NEW_TOKENS
    name: str = "saliency"
    section: str = "vision"
    progress: Progress = field(default_factory=Progress, repr=False)
    _own: bool = field(default=False, repr=False)
    _sources: list[Source] = field(default_factory=list, repr=False)
    _means: dict[str, list[tuple[str, int, str, str, float]]] = field(
        default_factory=dict, repr=False
    )

    def begin(self, subject: Subject, data: Data) -> None:
        """Find out where the model reads what, and whose answers are explained.

        Raises:
            ValueError: the subject does not answer about an image or an encoder's input.
        """
        self._sources = sources_of(subject)
        self._means.clear()
        batches = self.progress.over("answers", data)()
        examples = [example for batch in batches for example in batch.examples]
        one_sided = not getattr(subject.config, "is_encoder_decoder", False)
        answered = all(example.answer is not None for example in examples)
        self._own = not answered and subject.generates and one_sided

    def score(self, subject: Subject, batch: Batch) -> BatchScores:
        """Correlations of each example.

        Raises:
            ReadingError: an example has no answer, and the model writes none; or no image.
        """
        found: dict[tuple[Site, str, str], list[_Compared]] = defaultdict(list)
        for one in self._compare(subject, batch):
            found[one.site, one.measure, one.variant].append(one)
        columns: list[Column] = []
        sums: list[list[Tensor]] = []
        for key in sorted(found, key=_order):
            site, measure, variant = key
            mine = found[key]
            heads = len(mine[0].value)
            columns += [
                Column(site.tower, site.layer, head, measure, variant, "correlation")
                for head in range(heads)
            ]
            block = torch.zeros(4, batch.size, heads, dtype=torch.float64)
            for one in mine:
                for at, values in ((0, one.value), (2, one.null)):
                    known = torch.isfinite(values)
                    block[at, one.row] += values.masked_fill(~known, 0.0)
                    block[at + 1, one.row] += known
            sums.append(list(block))
        ids = tuple(example.id for example in batch.examples)
        if not sums:
            return BatchScores.nothing(ids)
        value, count, null, null_count = (torch.cat(parts, 1) for parts in zip(*sums, strict=True))
        return BatchScores(tuple(columns), value, count, null, null_count, examples=ids)

    def finish(self, subject: Subject, data: Data, tally: Tally) -> Mapping[str, pd.DataFrame]:
        """``saliency``: correlations of the mean maps of all heads (layer -1) and of each layer.

        Examples that another process scored before an interruption are looked at again.
        """
        import pandas as pd

        for batch in self.progress.over("mean maps", data)():
            if any(example.id not in self._means for example in batch.examples):
                for _ in self._compare(subject, batch):
                    pass
        keys = list(dict.fromkeys(line[:4] for lines in self._means.values() for line in lines))
        if not keys:
            return {}
        place = {key: index for index, key in enumerate(keys)}
        account = RatioSums.empty(len(keys), seed=self.seed)
        for name, lines in self._means.items():
            top = torch.zeros(1, len(keys), dtype=torch.float64)
            count = torch.zeros_like(top)
            for *key, value in lines:
                top[0, place[tuple(key)]] += value  # type: ignore[index]
                count[0, place[tuple(key)]] += 1  # type: ignore[index]
            account.add([name], top.numpy(), count.numpy())
        low, high = account.interval()
        frame = pd.DataFrame(keys, columns=["tower", "layer", "measure", "variant"])
        frame = frame.assign(value=account.value, ci_low=low, ci_high=high, n=account.n)
        return {"saliency": frame}

    def _compare(self, subject: Subject, batch: Batch) -> Iterator[_Compared]:
        batch, written = self._answered(subject, batch)
        tokens = answer_tokens(batch)
        groups = groups_of(batch, tokens)
        for example in batch.examples:
            self._means[example.id] = []
        for source in self._sources:
            blocks = [blocks_of(source, batch, row, self.most_blocks) for row in range(batch.size)]
            _refuse_empty(batch, blocks)
            maps = attention_maps(subject, batch, tokens, groups, source, blocks)
            scores = saliencies(subject, batch, tokens, groups, source, blocks, written)
            for index, group in enumerate(groups):
                for by, values in scores[index].items():
                    yield from self._correlated(
                        batch.examples[group.row], group, by, values,
                        {site: of_site[index] for site, of_site in maps.items()},
                    )  # fmt: skip

    def _correlated(
        self,
        example: Example,
        group: Group,
        by: str,
        values: Tensor,
        maps: Mapping[Site, Tensor],
    ) -> Iterator[_Compared]:
        shuffled = values[_shuffle(len(values), f"{self.seed}\0{example.id}")]
        variant = f"by={by},tokens={group.name}"
        for measure, correlate in MEASURES.items():
            for site, heads in maps.items():
                value, null = correlate(heads, values), correlate(heads, shuffled)
                yield _Compared(group.row, site, measure, variant, value, null)
            towers = dict.fromkeys(site.tower for site in maps)
            for tower in towers:
                layers = {s.layer: heads.mean(0) for s, heads in maps.items() if s.tower == tower}
                layers[_ALL] = torch.stack(list(layers.values())).mean(0)
                for layer, mean in layers.items():
                    value = float(correlate(mean, values))
                    if value == value:
                        line = (tower, layer, measure, variant, value)
                        self._means[example.id].append(line)

    def _answered(self, subject: Subject, batch: Batch) -> tuple[Batch, Tensor | None]:
        """The batch with the answers that are explained, and what the model itself wrote."""
        if not self._own:
            return batch, None
        if any(start >= 0 for start in batch.answer_starts):
            batch = subject.prepare(examples=batch.examples, answers=False)
        written = subject.generate(batch, self.max_new_tokens).ids
        return continued(subject, batch, written), written


def _order(key: tuple[Site, str, str]) -> tuple[int, bool, bool, str, Site]:
    """Measure by measure; what tells most comes first: objects, and what is really hidden."""
    site, measure, variant = key
    by_name = list(MEASURES).index(measure)
    return by_name, OBJECT not in variant, OCCLUSION not in variant, variant, site


def _refuse_empty(batch: Batch, blocks: list[Blocks]) -> None:
    for example, of_row in zip(batch.examples, blocks, strict=True):
        if not of_row.count:
            raise ReadingError(
                f"Example {example.id!r} must have an image, or something that an encoder reads, "
                "to explain its answer by, it has none. Leave it out, or give it one.",
                example.id,
            )


def _shuffle(count: int, text: str) -> Tensor:
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=7).digest()
    dice = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
    return torch.randperm(count, generator=dice)


def make(options: StudyOptions) -> Saliency:
    """The study, for `headscope.studies`."""
    return Saliency(seed=options.seed)
