"""Measure, explain and steer the attention heads of vision, language and vision-language models.

>>> import headscope as hs
>>> sorted(set(hs.__all__) & {"load", "capture", "score", "edit"})
['capture', 'edit', 'load', 'score']
"""

from headscope.public_names import PUBLIC, lazily

__version__ = "0.1.0"
__all__ = ["__version__", *PUBLIC]  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__, __dir__ = lazily(__name__)
