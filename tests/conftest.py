"""What every test stands on: one torch thread per process, no network, no progress bars."""

from __future__ import annotations

import os
import signal

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

torch.set_num_threads(1)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts jobs in the background deaf to Ctrl-C; tests of interruptions need to hear it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

collect_ignore = ["saelens_child.py", "sparsify_child.py"]
"""Run by interpreters of other environments, which have what they import."""
