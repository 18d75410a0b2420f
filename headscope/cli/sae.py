"""`headscope sae`: train, judge, read and write autoencoders of head outputs."""

from __future__ import annotations

import typer

from headscope.cli.sae_attribute import attribute
from headscope.cli.sae_evaluate import evaluate
from headscope.cli.sae_export import export
from headscope.cli.sae_features import features
from headscope.cli.sae_train import train

app = typer.Typer(
    name="sae",
    help="Train, judge and read sparse autoencoders of head outputs.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (train, evaluate, attribute, features, export):
    app.command()(verb)
