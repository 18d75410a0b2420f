"""English that every Python has: the standard library's documentation, and the reference.

Docstrings and comments are read from the library's source, never by importing it; the language
reference comes from `pydoc_data.topics`. Paragraphs that are mostly code, tables or underlines
are left out, and so are tests, which not every installation has. Text depends on the Python
version that runs this; both parts are PSF-licensed.
"""

import ast
import inspect
import re
import sysconfig
from pathlib import Path

LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "site-packages", "pydoc_data", "__pycache__"}
HELD_OUT = {
    "argparse", "asyncio", "calendar", "collections", "csv", "datetime", "decimal", "difflib",
    "email", "gettext", "heapq", "imaplib", "logging", "pickle", "random", "shelve", "socket",
    "statistics", "string", "textwrap", "turtle", "zipfile",
}  # fmt: skip
TOPIC_EVERY = 10  # one reference topic in ten is held out, in alphabetical order


def is_prose(paragraph: str) -> bool:
    """True for running text: mostly letters and spaces, several words, no prompt."""
    if len(paragraph) < 40 or ">>>" in paragraph:
        return False
    plain = sum(character.isalpha() or character in " ,.'" for character in paragraph)
    return plain / len(paragraph) > 0.90


def tidy(document: str) -> str:
    """Paragraphs of running text, one a line; ASCII only, blanks collapsed."""
    kept = []
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(document)):
        line = re.sub(r"\s+", " ", paragraph.replace("*", "").replace('"', "'")).strip()
        if line.isascii() and is_prose(line):
            kept.append(line)
    return "\n".join(kept)


def docstrings(source: str) -> list[str]:
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
    return [text for text in found if text]


def comments(source: str) -> list[str]:
    """Blocks of whole-line comments, without their signs; a bare sign parts two paragraphs."""
    blocks, block = [], []
    for line in [*source.splitlines(), ""]:
        stripped = line.strip()
        if stripped.startswith("#"):
            block.append(stripped.lstrip("#").strip())
        elif block:
            blocks.append("\n".join(block))
            block = []
    return blocks


def collect() -> tuple[list[str], list[str]]:
    """(train, test) documents, split by module and by reference topic; no paragraph in both."""
    root = Path(sysconfig.get_path("stdlib"))
    parts: tuple[list[str], list[str]] = ([], [])
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if LEFT_OUT & set(relative.parts):
            continue
        held_out = relative.parts[0].removesuffix(".py") in HELD_OUT
        source = path.read_text(encoding="utf-8", errors="ignore")
        texts = [*docstrings(source), *comments(source)]
        parts[held_out].append("\n".join(filter(None, map(tidy, texts))))
    from pydoc_data.topics import topics

    for index, name in enumerate(sorted(topics)):
        parts[index % TOPIC_EVERY == 0].append(tidy(topics[name]))

    seen: set[str] = set()
    split = []
    for documents in parts:  # training first: a paragraph said in both stays there
        fresh = []
        for document in documents:
            lines = [line for line in document.split("\n") if line and line not in seen]
            seen.update(lines)
            if lines:
                fresh.append("\n".join(lines))
        split.append(fresh)
    return split[0], split[1]


def passages(documents: list[str], count: int, low: int = 400, high: int = 1200) -> list[str]:
    """`count` passages of whole paragraphs, `low` to `high` characters, spread evenly."""
    found = []
    for document in documents:
        passage = ""
        for line in document.split("\n"):
            joined = f"{passage}\n{line}" if passage else line
            if len(joined) > high:
                if low <= len(passage) <= high:
                    found.append(passage)
                passage = line if len(line) <= high else ""
            else:
                passage = joined
        if low <= len(passage) <= high:
            found.append(passage)
    if len(found) < count:
        raise ValueError(f"`count` must be at most {len(found)} passages, got {count}.")
    return [found[index * len(found) // count] for index in range(count)]
