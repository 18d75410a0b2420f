"""Data in, examples out: one reader per format, found through the entry points `headscope.readers`.

A reader is any object with ``matches(data) -> bool`` and ``read(data) -> Iterator[Example]``.
"""

from probes.readers.registry import Reader, data_digest, read_examples

__all__ = ["Reader", "data_digest", "read_examples"]
