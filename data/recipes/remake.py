"""Remake the bundled world: `python data/recipes/remake.py [--only NAME] [--out DIR] [--quick]`.

Without `--only`, everything; models in the order of their cost, their coders last.
`--quick` runs each recipe for a few steps: the files have the right form, the models are useless.
"""

import argparse
import importlib
import json
import logging
import time
from pathlib import Path

import shelf
import torch

RECIPES = {
    "sets": "sets",
    "pairs": "pairs",
    "repeat-lm": "repeat_lm",
    "shapes-vit": "shapes_vit",
    "prose-lm": "prose_lm",
    "shapes-llava": "shapes_llava",
    "shapes-llava-sinks": "shapes_llava_sinks",
    "coders": "coders",
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Remake the bundled models and input sets.")
    parser.add_argument("--only", action="append", choices=RECIPES, help="repeatable")
    parser.add_argument("--out", type=Path, default=shelf.DATA, help="default: the data folder")
    parser.add_argument("--quick", action="store_true", help="a few steps: form, not substance")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    arguments = parser.parse_args()
    if arguments.quick and arguments.out.resolve() == shelf.DATA:
        parser.error("`--quick` would overwrite the shipped models. Give another `--out`.")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.only or RECIPES:
        started = time.perf_counter()
        measured = importlib.import_module(RECIPES[name]).make(arguments.out, arguments.quick)
        logging.info("%s: %.0f s\n%s", name, time.perf_counter() - started, json.dumps(measured))


if __name__ == "__main__":
    main()
