"""What is trained in the same passes over the data: a coder per site, or several at one site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sae.activations.source import Activations
from sae.training.config import TrainConfig

_SHARED = ("batch_size", "buffer_rows", "seed", "device", "checkpoint_every")
"""Settings of the passes themselves: all coders see the same batches."""


@dataclass(frozen=True)
class Job:
    """A coder that is to be trained.

    Attributes:
        site: whose rows it sees.
    """

    site: str
    config: TrainConfig


@dataclass(frozen=True)
class Jobs:
    """All that one training trains, each by its name.

    Attributes:
        named: whether names were given; else each is called as its site.
    """

    by_name: Mapping[str, Job]
    named: bool = False

    @classmethod
    def one_each(cls, config: TrainConfig, source: Activations) -> Jobs:
        """The same settings at every site."""
        return cls({site: Job(site, config) for site in source.widths})

    @classmethod
    def of_settings(
        cls,
        configs: Mapping[str, TrainConfig],
        source: Activations,
        sites: Mapping[str, str] | None = None,
    ) -> Jobs:
        """Several settings by name.

        Args:
            sites: the site of each; may be left out where there is one.

        Raises:
            ValueError: none, settings of the passes that differ, or sites that do not fit the data.
        """
        if not configs:
            raise ValueError("There must be at least one setting to train, got none. Name one.")
        first_name, first = next(iter(configs.items()))
        for name, config in configs.items():
            for field in _SHARED:
                mine, other = getattr(first, field), getattr(config, field)
                if mine != other:
                    raise ValueError(
                        f"`{field}` must be the same in settings that are trained together, got "
                        f"{mine!r} in {first_name!r} and {other!r} in {name!r}. Train them apart."
                    )
        there = list(source.widths)
        if sites is None and len(there) == 1:
            sites = dict.fromkeys(configs, there[0])
        of = {name: (sites or {}).get(name, "") for name in configs}
        if set(of.values()) != set(there):
            raise ValueError(
                f"`sites` must say which of {', '.join(there)} each setting is trained at, and "
                f"leave none out; got {of}. Give activations of those sites alone."
            )
        return cls({name: Job(of[name], config) for name, config in configs.items()}, True)

    @property
    def shared(self) -> TrainConfig:
        """Of which the settings of the passes are taken."""
        return next(iter(self.by_name.values())).config

    def at(self, site: str) -> list[str]:
        """Names of those that see the rows of a site."""
        return [name for name, job in self.by_name.items() if job.site == site]

    def record(self) -> dict[str, Any]:
        """What a plan says of them, JSON values only."""
        if not self.named:
            return {"config": self.shared.record()}
        return {
            "settings": {
                name: {"site": job.site, "config": job.config.record()}
                for name, job in self.by_name.items()
            }
        }
