"""Evidence for what a feature does: that it carries a copy, that it reads the object it names."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from probes.inputs import Batch
    from probes.subject import Subject
    from probes.tokens.map import TowerTokens
    from sae.activations import SubjectActivations
    from sae.coders.coder import Coder
    from sae.evidence.box_evidence import BoxEvidence, Mention
    from sae.evidence.copy_evidence import CopyEvidence


def copy_evidence(
    subject: Subject,
    coder: Coder,
    activations: SubjectActivations,
    latent: int | None = None,
    *,
    controls: int = 8,
    seed: int = 0,
) -> CopyEvidence:
    """Measure whether a feature carries the copy of a word that stood before.

    Args and errors as of `sae.evidence.copy_evidence.copy_evidence`.
    """
    from sae.evidence.copy_evidence import copy_evidence as measured

    return measured(subject, coder, activations, latent, controls=controls, seed=seed)


def box_evidence(
    subject: Subject,
    coder: Coder,
    activations: SubjectActivations,
    latent: int | None = None,
    *,
    seed: int = 0,
) -> BoxEvidence:
    """Measure whether a feature reads an object's place in the image when the object is named.

    Objects and boxes are those of the examples (`analysis.vision.named_objects`). Args and errors
    otherwise as of `sae.evidence.box_evidence.box_evidence`.
    """
    from analysis.vision.boxes import coverage
    from sae.evidence.box_evidence import box_evidence as measured

    return measured(
        subject, coder, activations, latent, mentions=_mentions, coverage=coverage, seed=seed
    )


def _mentions(tokens: TowerTokens, batch: Batch) -> list[Mention]:
    from analysis.vision.named_objects import named_objects
    from analysis.vision.prompt_parts import prompt_parts

    return [*named_objects(tokens, prompt_parts(tokens, batch), batch)]
