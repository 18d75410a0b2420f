"""The processor that lies beside a model: the whole one, or its tokenizer or image part alone."""

from __future__ import annotations

from typing import Any

from probes.loaders.explain import explained, torchvision_is_broken
from probes.loading import LoadOptions

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
_PICTURE_FILES = ("preprocessor_config.json", "processor_config.json")
_TOGETHER = ("AutoProcessor",)
_TEXT_ALONE = ("AutoTokenizer",)
_PICTURES_ALONE = ("AutoImageProcessor", "AutoFeatureExtractor")


def find_processor(source: str, options: LoadOptions, name: str) -> tuple[Any, str]:
    """The processor of a model, or ``None`` and the reason why there is none.

    Transformers makes an empty tokenizer where there are no files, so the files are looked for
    first. A model whose processor is broken still loads: it can be run on its own tensors.
    """
    if options.processor is not None:
        return options.processor, ""
    text = any(_has(source, file, options) for file in _TOKENIZER_FILES)
    pictures = any(_has(source, file, options) for file in _PICTURE_FILES)
    if not text and not pictures:
        return None, f"Model {name!r} came without tokenizer and processor files"
    classes = _TOGETHER if text and pictures else _TEXT_ALONE if text else _PICTURES_ALONE
    classes = (*classes, *(c for c in (*_TEXT_ALONE, *_PICTURES_ALONE) if c not in classes))
    first: Exception | None = None
    for class_name in classes:
        if class_name in _TEXT_ALONE and not text:
            continue
        if class_name in _PICTURES_ALONE and not pictures:
            continue
        try:
            return _load(class_name, source, options), _reason(name, first)
        except Exception as error:
            # Which class reads these files is found by trying; the first failure is the telling.
            if torchvision_is_broken(_said(error)) or "trust_remote_code" in str(error):
                raise explained(error, name) from error
            first = first or error
    return None, _reason(name, first)


def _reason(name: str, error: Exception | None) -> str:
    if error is None:
        return ""
    line = (str(error).strip().splitlines() or [""])[0].rstrip(".")
    return f"The processor of {name!r} cannot be loaded ({type(error).__name__}: {line})"


def _load(class_name: str, source: str, options: LoadOptions) -> Any:
    import transformers

    return getattr(transformers, class_name).from_pretrained(
        source, revision=options.revision, trust_remote_code=options.trust_remote_code
    )


def _has(source: str, file: str, options: LoadOptions) -> bool:
    from transformers.utils import cached_file

    found = cached_file(
        source,
        file,
        revision=options.revision,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return found is not None


def _said(error: BaseException | None) -> str:
    lines = []
    while error is not None:
        lines.append(str(error))
        error = error.__cause__ or error.__context__
    return "\n".join(lines)
