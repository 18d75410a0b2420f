"""Train coders: one site, or several in the same passes over the data."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from sae.activations.as_activations import as_activations
from sae.activations.source import Activations
from sae.coders.coder import Coder
from sae.training.config import TrainConfig
from sae.training.distributed import device_of, joined
from sae.training.folder import TrainingFolder, training_plan
from sae.training.interrupts import interrupts_held
from sae.training.jobs import Jobs
from sae.training.metrics import Listener, Notice
from sae.training.session import Session


def train(
    config: TrainConfig,
    activations: Any,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    listener: Listener | None = None,
) -> Coder:
    """A coder of one site. As `train_sites`.

    Raises:
        ValueError: the activations have several sites.
    """
    source = as_activations(activations)
    if len(source.widths) != 1:
        raise ValueError(
            f"`activations` must have one site, got {', '.join(source.widths) or 'none'}. "
            "Use `train_sites`."
        )
    (coder,) = train_sites(config, source, out=out, resume=resume, listener=listener).values()
    return coder


def train_sites(
    config: TrainConfig,
    activations: Any,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    listener: Listener | None = None,
) -> dict[str, Coder]:
    """A coder of each site, all trained in the same passes over the data.

    Memory does not grow with the number of rows: a coder, its gradients and two moments per site,
    and `TrainConfig.buffer_rows` rows each.

    With ``out``, everything is written to a folder (`sae.training.folder`), and a training that
    was interrupted, killed or ran out of disk goes on from its last checkpoint with ``resume``,
    on exactly the same curve. Ctrl-C waits for the end of the step, writes a checkpoint, and goes
    on as KeyboardInterrupt; pressed twice it does not wait. One of several processes goes on from
    the last regular checkpoint, since they cannot stop at one moment.

    Under ``torchrun`` each process reads its part of the data and takes `TrainConfig.batch_size`
    rows per step; gradients are averaged, and all processes return the same coders. They must see
    the same ``out``.

    Nothing is drawn from torch's global generator: weights, order of rows and resampling come from
    generators named by `TrainConfig.seed` and what they are for.

    Args:
        activations: `Activations`; or what `as_activations` makes one of: a tensor ``[row width]``
            (or several by site), a stream of such tensors, the folder of a store.
        out: new folder; None: nothing is written.
        resume: go on with the training in ``out``. A finished one is read again, and a `Notice`
            says so.
        listener: hears each line of the metrics, and notices.

    Returns:
        Coders by site: in the units of the model whatever `TrainConfig.normalise` says, in eval
        mode, without gradients, and with `Coder.about`.

    Raises:
        ValueError: settings that do not fit a site; too little data for one batch; rows or a loss
            that are not finite, with site and step: checkpoints written before stay as they are.
        RunError: ``out`` cannot be used, or was begun with other settings or data, which are named.
        RunLocked: another process trains into ``out``.
        DiskFull: no room; checkpoints written before stay as they are.
        KeyboardInterrupt: Ctrl-C, after a checkpoint was written.
    """
    source = as_activations(activations)
    return _trained(Jobs.one_each(config, source), source, out, resume, listener)


def train_settings(
    configs: Mapping[str, TrainConfig],
    activations: Any,
    *,
    sites: Mapping[str, str] | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    listener: Listener | None = None,
) -> dict[str, Coder]:
    """Coders of several settings, trained in the same passes on the same batches.

    Each is the coder that its settings alone would give. Rows are made and shuffled once, whatever
    the number of settings; memory grows by a coder, its gradients and two moments for each. Where
    ``tokens`` differ, one of fewer than ``buffer_rows`` sees the rows that the longest one shuffles
    together; alone it would shuffle fewer.

    Args:
        configs: by name; batch size, buffer, seed, device and checkpoints must be the same.
        activations: as `train_sites` takes them.
        sites: the site of each setting; may be left out where there is one.
        out, resume, listener: as of `train_sites`; coders, and lines of the metrics, go by name.

    Raises:
        ValueError, RunError, RunLocked, DiskFull, KeyboardInterrupt: as `train_sites`; also for
            settings that cannot be trained together.
    """
    source = as_activations(activations)
    return _trained(Jobs.of_settings(configs, source, sites), source, out, resume, listener)


def _trained(
    jobs: Jobs,
    source: Activations,
    out: str | Path | None,
    resume: bool,
    listener: Listener | None,
) -> dict[str, Coder]:
    if resume and out is None:
        raise ValueError("`resume` needs `out`, the folder of the unfinished training. Name it.")
    tell = listener or _unheard
    with joined() as processes:
        device = device_of(jobs.shared.device, processes)
        for job in jobs.by_name.values():
            job.config.steps(processes.count)
        plan = training_plan(jobs, source, processes.count)
        begun = (
            nullcontext()
            if out is None
            else TrainingFolder.begin(Path(out).expanduser(), plan, resume, processes)
        )
        with begun as folder, interrupts_held() as interrupts:
            if folder is not None and folder.finished:
                tell(Notice(f"{folder.path} holds this training, finished; its coders were read."))
                return folder.coders(device)
            session = Session(jobs, source, processes, folder, tell, interrupts, device)
            session.run()
            return session.finish(_about(jobs, source, plan))


def _unheard(_: Any) -> None:
    pass


def _about(jobs: Jobs, source: Activations, plan: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    provenance = {name: value for name, value in plan["data"].items() if name != "subject"}
    return {
        name: {
            "site": job.site,
            "heads": source.heads[job.site],
            "head_width": source.widths[job.site] // source.heads[job.site],
            "subject": plan["data"].get("subject"),
            "provenance": provenance,
            "config": job.config.record(),
        }
        for name, job in jobs.by_name.items()
    }
