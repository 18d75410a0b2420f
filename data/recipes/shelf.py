"""Where bundled things lie: model folders, set folders, the index and the measured numbers.

    OUT/index.json                      what is there
    OUT/models/NAME/                    `save_pretrained` format, and measured.json
    OUT/sets/NAME/examples.jsonl        one example a line; images are relative paths
    OUT/coders/NAME/                    headscope's own format, and measured.json

Every recipe takes OUT as an argument, so that remaking never has to touch what is shipped.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

DATA = Path(__file__).resolve().parent.parent


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Weights drawn inside depend on `seed` only; the caller's random state is put back.

    Transformers draws initial weights from torch's global generator and takes no other.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def model_folder(out: Path, name: str) -> Path:
    folder = out / "models" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def set_folder(out: Path, name: str) -> Path:
    folder = out / "sets" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def read_index(out: Path) -> dict:
    path = out / "index.json"
    return json.loads(path.read_text()) if path.exists() else {"models": {}, "sets": {}}


def _enter(out: Path, section: str, name: str, entry: dict) -> None:
    index = read_index(out)
    index.setdefault(section, {})[name] = entry
    index[section] = dict(sorted(index[section].items()))
    _write_json(out / "index.json", index)


def enter_model(out: Path, name: str, kind: str, default_set: str, about: str, model) -> None:
    """List a saved model in the index, under the name of its transformers class."""
    entry = {
        "path": f"models/{name}",
        "kind": kind,
        "default_set": default_set,
        "about": about,
        "class": type(model).__name__,
    }
    _enter(out, "models", name, entry)


def write_set(out: Path, name: str, kind: str, about: str, examples: list[dict], **extra) -> None:
    """Write examples.jsonl and list the set in the index; `extra` goes into its entry."""
    folder = set_folder(out, name)
    lines = [json.dumps(example, ensure_ascii=False) for example in examples]
    (folder / "examples.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    entry = {"path": f"sets/{name}", "kind": kind, "about": about, "n": len(examples), **extra}
    _enter(out, "sets", name, entry)


def enter_coder(out: Path, name: str, site: str, coder, about: str) -> None:
    """List a saved coder of the model of the same name in the index."""
    entry = {
        "path": f"coders/{name}",
        "model": name,
        "site": site,
        "coder": coder.architecture,
        "latents": coder.latents,
        "about": about,
    }
    _enter(out, "coders", name, entry)


def write_coder_measured(out: Path, name: str, measured: dict) -> None:
    """The same for a coder."""
    _write_json(out / "coders" / name / "measured.json", measured)


def write_measured(out: Path, name: str, measured: dict) -> None:
    """The numbers that data/README.md quotes, beside the weights that reach them."""
    _write_json(model_folder(out, name) / "measured.json", measured)


def _write_json(path: Path, value: dict) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)
