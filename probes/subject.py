"""A subject: a loaded model with its processor and, once observed, its towers and heads."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from probes.collate import Collated, collate
from probes.finite import refuse_nonfinite
from probes.inputs import Batch, Example, InputError
from probes.kinds import ForwardArguments, context_length_of, kind_of
from probes.layout import Layout, Tower
from probes.listening import announced
from probes.load_error import LoadError
from probes.observe_subject import observe_on, observe_on_sample
from probes.preparation import examples_of, prepare_examples, prepare_tensors
from probes.prompts import image_token_of

if TYPE_CHECKING:
    from probes.generation import Generated


_NO_TOWER_OF_THEIR_OWN = {
    "attention_mask",
    "position_ids",
    "token_type_ids",
    "mm_token_type_ids",
    "pixel_attention_mask",
    "image_sizes",
    "image_grid_thw",
    "decoder_attention_mask",
}
"""Inputs that change what attention sees, never which attention there is."""


class Subject:
    """A model with what is needed to run it on a user's data and to name its heads.

    Attributes:
        model: the plain module; nothing is wrapped or rewritten.
        processor: what came with it: processor, tokenizer, image processor or ``None``.
        name: what it was loaded as.
        revision: commit of the hub, if it came from there.
        kind: ``language``, ``encoder-decoder``, ``vision``, ``vision-language``, ``audio`` or
            ``module``.
        arguments: the names that the model's forward takes.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any = None,
        *,
        name: str = "",
        revision: str | None = None,
        kind: str | None = None,
        processor_problem: str = "",
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        self.model = model
        self.processor = processor
        self.name = name or type(model).__name__
        self.revision = revision
        self.kind = kind or kind_of(model, processor)
        self.arguments = ForwardArguments(model, aliases or {})
        self._processor_problem = processor_problem
        self._layout: Layout | None = None
        self._inputs_seen: set[str] = set()
        self._observing = threading.RLock()
        self._flags = threading.Lock()
        self._evaluators = 0
        self._trained: list[nn.Module] = []

    def __repr__(self) -> str:
        seen = "not observed yet"
        if self._layout is not None:
            towers = self._layout.towers.values()
            seen = ", ".join(f"{t.name} {t.layers} x {t.heads}" for t in towers) or "no attention"
        dtype = str(self.dtype).removeprefix("torch.")
        model = type(self.model).__name__
        return f"Subject({self.name!r}, {model}, {self.kind}, {dtype} on {self.device}; {seen})"

    @property
    def config(self) -> Any:
        """The model's configuration, or ``None``."""
        return getattr(self.model, "config", None)

    @cached_property
    def tokenizer(self) -> Any:
        """The processor's tokenizer, or the processor itself if it is one, or ``None``."""
        found = getattr(self.processor, "tokenizer", None)
        if found is None and hasattr(self.processor, "convert_ids_to_tokens"):
            return self.processor
        return found

    @cached_property
    def image_processor(self) -> Any:
        """The part of the processor that makes pixels, or ``None``."""
        found = getattr(self.processor, "image_processor", None)
        if found is None and self.processor is not None and self.tokenizer is None:
            return self.processor
        return found

    @property
    def device(self) -> torch.device:
        """Where the first parameter lies; inputs are sent there."""
        return next(
            (p.device for p in self.model.parameters() if not p.is_meta), torch.device("cpu")
        )

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first floating parameter."""
        floating = (p.dtype for p in self.model.parameters() if p.is_floating_point())
        return next(floating, torch.get_default_dtype())

    @property
    def attention_implementation(self) -> str:
        """What transformers calls the way attention is computed, such as ``sdpa``; else empty."""
        return getattr(self.config, "_attn_implementation", None) or ""

    @property
    def context_length(self) -> int | None:
        """Most tokens of text that the model can read, or ``None``."""
        return context_length_of(self.config, self.tokenizer)

    @property
    def generates(self) -> bool:
        """Whether the model can continue a text."""
        return bool(getattr(self.model, "can_generate", lambda: False)())

    @property
    def layout(self) -> Layout:
        """Towers, layers, heads and anatomy, observed once in a forward on a small sample."""
        with self._observing:
            if self._layout is None:
                self._layout, inputs = observe_on_sample(self)
                self._inputs_seen |= inputs
            return self._layout

    @property
    def processor_failed(self) -> bool:
        """Whether there are processor files that could not be loaded, or not wholly."""
        return "cannot be loaded" in self._processor_problem

    @property
    def processor_problem(self) -> str:
        """Why there is no processor."""
        return self._processor_problem or f"{self.name!r} came without a processor"

    @property
    def towers(self) -> Mapping[str, Tower]:
        """Tower by name.

        Raises:
            LoadError: no softmax attention was seen in the model.
        """
        layout = self.layout
        if not layout.towers:
            refused = [f" ({refusal.path}: {refusal.reason})" for refusal in layout.refusals[:1]]
            raise LoadError(
                f"{self.name!r} ({type(self.model).__name__}) has no softmax attention between "
                f"tokens{''.join(refused)}, so it has no heads to measure. Choose a transformer."
            )
        return layout.towers

    def prepare(
        self,
        text: str | Sequence[str] | None = None,
        images: Any = None,
        examples: Sequence[Example] | None = None,
        *,
        answers: bool = True,
        chat_template: bool = True,
        padding_side: str | None = None,
        **tensors: Any,
    ) -> Batch:
        """A batch from text and images, from examples, or from the model's own tensors by name.

        Args:
            text: one prompt or several.
            images: PIL images, paths or arrays: all for one prompt, or one (or a list) for each
                of several prompts. Without text, each image is an example.
            answers: append the answers that examples have (teacher forcing).
            chat_template: use the model's chat template where it has one.
            padding_side: by default left for models that generate, else right.
            tensors: what the model is called with, such as ``input_ids=`` or ``pixel_values=``.

        Raises:
            InputError: the input does not fit the model; the sentence says why.
        """
        if tensors:
            if text is not None or images is not None or examples is not None:
                raise InputError("Give either text, images and examples, or tensors, not both.")
            return prepare_tensors(self, tensors)
        if examples is None:
            examples = examples_of(text, images, image_token_of(self.processor, self.tokenizer))
        elif text is not None or images is not None:
            raise InputError("Give either text and images, or examples, not both.")
        return prepare_examples(
            self,
            examples,
            answers=answers,
            chat_template=chat_template,
            padding_side=padding_side,
        )

    def collate(self, examples: Sequence[Example], **settings: Any) -> Collated:
        """The tensors for some examples, before their positions are mapped."""
        side = settings.pop("padding_side", None)
        two_sided = bool(getattr(self.config, "is_encoder_decoder", False))
        return collate(
            examples,
            self.processor,
            self.tokenizer,
            kind=self.kind,
            config=self.config,
            accepts=self.arguments,
            padding_side=side or ("left" if self.generates and not two_sided else "right"),
            max_length=self.context_length,
            **settings,
        )

    def forward(self, batch: Batch, **settings: Any) -> Any:
        """The model's outputs for a batch: no gradients, no dropout, no cache.

        Training flags are put back as they were. ``settings`` go to the model as they are.
        """
        with self.evaluating(), torch.no_grad():
            return self.call(batch, **settings)

    def call(self, batch: Batch, **settings: Any) -> Any:
        """The model's outputs as `forward` gives them, with gradients and flags left alone."""
        tensors = self.arguments.named(self.on_device(batch).tensors)
        if "use_cache" in self.arguments.names or (self.generates and self.arguments.any_keyword):
            settings.setdefault("use_cache", False)
        named = {name: value for name, value in tensors.items() if name in self.arguments}
        placed = [value for name, value in tensors.items() if name not in self.arguments]
        with announced(self, batch):
            return self.model(*placed, **named, **settings)

    def generate(self, batch: Batch, max_new_tokens: int = 32, **settings: Any) -> Generated:
        """What the model writes after each example, greedy unless told otherwise."""
        from probes.generation import generate

        return generate(self, batch, max_new_tokens, **settings)

    def check_weights(self) -> None:
        """Nothing, if all weights are finite.

        Raises:
            LoadError: naming the weight, its tower and its layer.
        """
        refuse_nonfinite(self.model, self.name, self.layout.towers)

    def on_device(self, batch: Batch) -> Batch:
        """The batch where the model is, floating tensors in its dtype."""
        return batch.to(self.device, self.dtype)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Every module in evaluation mode, and afterwards as it was.

        Flags belong to the model, not to a thread: the last of several threads puts them back.
        """
        with self._flags:
            self._evaluators += 1
            training = [module for module in self.model.modules() if module.training]
            for module in training:
                module.training = False
            self._trained += training
        try:
            yield
        finally:
            with self._flags:
                self._evaluators -= 1
                if not self._evaluators:
                    for module in self._trained:
                        module.training = True
                    self._trained = []

    def layout_for(self, tensors: Mapping[str, Any], rows: int) -> Layout:
        """The layout, observed on these tensors if our own sample could not show all of it.

        That is so where a sample cannot be guessed, and where a user gives an input that the
        sample had not (the encoder's states, which a decoder then reads by a tower of its own).
        """
        with self._observing:
            try:
                known = self.layout
            except LoadError:
                known = None
            new = set(tensors) - self._inputs_seen - _NO_TOWER_OF_THEIR_OWN
            if known is None or new:
                self._inputs_seen |= new
                seen = observe_on(self, tensors, rows)
                if known is None or len(seen.sites) > len(known.sites):
                    self._layout = known = seen
            return known
