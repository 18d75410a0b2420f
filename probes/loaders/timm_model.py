"""Vision models of timm, written ``timm:NAME``, with the transforms that their weights expect."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import torch

from probes.load_error import LoadError
from probes.loaders.explain import explained, is_no_network
from probes.loaders.placement import device_named, dtype_named
from probes.loading import LoadOptions

if TYPE_CHECKING:
    from probes.subject import Subject

_PREFIX = "timm:"
_RANDOM = "#random"


def matches(source: Any) -> bool:
    """Whether it is written ``timm:NAME``."""
    return isinstance(source, str) and source.startswith(_PREFIX)


def load(source: str, options: LoadOptions) -> Subject:
    """The timm model of this name; ``timm:NAME#random`` leaves its weights random (no network)."""
    from probes.subject import Subject

    options.refuse("a timm model", "revision", "quantization", "device_map", "trust_remote_code")
    timm = _timm()
    wanted = source.removeprefix(_PREFIX).removesuffix(_RANDOM)
    local = wanted.startswith(("local-dir:", "hf-hub:", "hf_hub:"))
    if not local and wanted.split(".")[0] not in timm.list_models():
        close = get_close_matches(wanted, timm.list_models(), n=1)
        advice = f"Did you mean 'timm:{close[0]}'?" if close else "See `timm.list_models()`."
        raise LoadError(f"timm has no model {wanted!r}. {advice}")
    try:
        model = timm.create_model(wanted, pretrained=not source.endswith(_RANDOM))
    except Exception as error:
        if not is_no_network(error):
            raise
        raise LoadError(
            f"The weights of {source!r} are not in the local cache, and the hub cannot be reached. "
            f"Connect, or write '{source}{_RANDOM}' for random weights."
        ) from error
    model = model.to(device_named(options.device), dtype_named(options.dtype)).eval()
    return Subject(
        model,
        options.processor or TimmImages(model),
        name=source,
        kind="vision",
        aliases={"pixel_values": "x"},
    )


def _timm() -> Any:
    try:
        import timm  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        if error.name not in ("timm", "torchvision"):
            raise
        raise LoadError(
            f"Models of timm need the package {error.name}. Install the extra with "
            "`pip install 'headscope[timm]'`."
        ) from error
    except (ImportError, RuntimeError) as error:
        raise explained(error, "timm") from error
    return timm


class TimmImages:
    """The evaluation transform of a timm model, called like an image processor of transformers."""

    def __init__(self, model: Any) -> None:
        from timm import data  # pyright: ignore[reportMissingImports]

        self.settings = data.resolve_model_data_config(model)
        self.transform: Any = data.create_transform(**self.settings, is_training=False)

    @property
    def size(self) -> dict[str, int]:
        """Rows and columns of pixels that the model reads."""
        _, height, width = self.settings["input_size"]
        return {"height": height, "width": width}

    def __call__(self, images: Any, **_: Any) -> dict[str, torch.Tensor]:
        """Float ``pixel_values [image channel row column]`` from one or several PIL images."""
        several = images if isinstance(images, Sequence) else [images]
        return {"pixel_values": torch.stack([self.transform(image) for image in several])}

    def __repr__(self) -> str:
        return f"TimmImages({self.size['height']} x {self.size['width']})"
