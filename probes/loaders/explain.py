"""What went wrong while a model was loaded, in one or two sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from probes.load_error import LoadError

_NO_NETWORK = (
    "LocalEntryNotFoundError",
    "OfflineModeIsEnabled",
    "ConnectError",
    "ConnectTimeout",
    "ConnectionError",
    "ConnectionRefusedError",
    "ReadTimeout",
)


def explained(error: BaseException, name: str) -> LoadError:
    """The `LoadError` for an exception met while loading ``name``; raise it from that exception."""
    causes = list(_causes(error))
    kinds = {type(cause).__name__ for cause in causes}
    said = "\n".join(str(cause) for cause in causes)
    if torchvision_is_broken(said):
        return LoadError(_torchvision_sentence(said))
    if "trust_remote_code" in said:
        return LoadError(
            f"Model {name!r} brings Python code of its own, which is not run unasked. Read that "
            "code, then pass `trust_remote_code=True` (`--trust-remote-code`)."
        )
    if "GatedRepoError" in kinds:
        return LoadError(
            f"Model {name!r} is gated. Ask for access on its hub page, then run `hf auth login`."
        )
    if "RevisionNotFoundError" in kinds:
        return LoadError(f"Model {name!r} has no such revision. Check `revision` on the hub.")
    if "RepositoryNotFoundError" in kinds:
        from probes.loading import unknown_name

        return unknown_name(name, "is neither bundled, a folder, nor public on the hub")
    if is_no_network(error):
        return no_network(name)
    return LoadError(_plain_sentence(name, error, said))


def is_no_network(error: BaseException) -> bool:
    """Whether an exception, or one behind it, means that the hub could not be reached."""
    return bool({type(cause).__name__ for cause in _causes(error)} & set(_NO_NETWORK))


def no_network(name: str) -> LoadError:
    """The error for a hub model that is not in the cache while the hub cannot be reached."""
    from probes.loading import unknown_name

    reason = (
        "is neither bundled, a folder, nor in the local cache, and the hub cannot be reached "
        "(no network, or HF_HUB_OFFLINE is set)"
    )
    return unknown_name(name, reason)


def torchvision_is_broken(said: str) -> bool:
    """Whether these messages come from a torchvision that does not fit the installed torch."""
    return "torchvision::" in said or (
        "torchvision" in said
        and bool(re.search(r"undefined symbol|CUDA version|circular import|_C\.so|partially", said))
    )


def _torchvision_sentence(said: str) -> str:
    fact = next((line for line in said.splitlines() if "torchvision" in line), said).strip()
    return (
        f"The installed torchvision {_version('torchvision')} does not fit torch "
        f"{_version('torch')} ({fact[:120]}). Install the torchvision that was built for this "
        "torch, or run `pip uninstall torchvision`: most models run without it."
    )


def _plain_sentence(name: str, error: BaseException, said: str) -> str:
    if "SafetensorError" in {type(cause).__name__ for cause in _causes(error)}:
        return (
            f"The weights of {name!r} cannot be read ({_first_line(error)}). "
            "Download or save them again."
        )
    if "no file named" in said:
        return (
            f"{name!r} has no weights file (model.safetensors). Save the model with "
            "`model.save_pretrained(FOLDER)`."
        )
    if "valid JSON" in said:
        return f"The config.json of {name!r} is not valid JSON. Save the model again."
    unknown = re.search(r"model type `(.+?)` but Transformers does not recognize", said)
    if unknown:
        return (
            f"Model {name!r} is of type {unknown[1]!r}, which transformers "
            f"{_version('transformers')} does not know. Upgrade transformers."
        )
    if "Unrecognized model" in said:
        return (
            f"The config.json of {name!r} does not say what the model is (`model_type`). "
            "Save the model with `model.save_pretrained(FOLDER)`."
        )
    if "OutOfMemoryError" in type(error).__name__:
        return (
            f"Model {name!r} does not fit into the device's memory. "
            "Choose a smaller `dtype`, `quantization`, or `device_map='auto'`."
        )
    package = re.search(r"No module named '([\w.]+)'", said)
    if package:
        module = package[1].split(".")[0]
        return f"Model {name!r} needs the package {module}. Install it."
    return (
        f"Model {name!r} cannot be loaded ({type(error).__name__}: {_first_line(error)}). "
        "The exception behind this one says more."
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(version unknown)"
