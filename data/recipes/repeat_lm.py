"""repeat-lm: a two-layer Llama that copies repeated blocks, by induction, and does more besides.

Most of the training text is a random block said twice: it takes previous-token heads in layer 0
and induction heads in layer 1. Later, half of it asks for something else, so that not every head
becomes one of the two and a null has heads to stand on:

- `frequency`: words drawn from a few favourites of this sequence (diffuse attention is enough);
- `echo`: each word repeats the one three places back, four times in five (a fixed offset);
- `first`: after the word t00 comes the sequence's first word (attention to one fixed place).
"""

import time
from pathlib import Path

import shelf
import torch
from torch import Tensor
from training import fit
from transformers import LlamaConfig, LlamaForCausalLM
from words import BOS, EOS, word_tokenizer

NAME = "repeat-lm"
ABOUT = "Llama, 2 layers x 8 heads, trained on repeated random blocks: induction heads in layer 1"
WORDS = [f"t{index:02d}" for index in range(62)]
SPECIAL = 2  # ids 0 and 1 are BOS and EOS; words follow
CONTEXT = 96
LENGTH = 64
ECHO_OFFSET = 3
REPEATS_ONLY = 700  # steps
SEED = 0


def tokenizer():
    return word_tokenizer(WORDS, [BOS, EOS], context=CONTEXT)


def random_words(rows: int, length: int, generator: torch.Generator) -> Tensor:
    """[rows, length] token ids, no word twice in a row of the tensor."""
    noise = torch.rand(rows, len(WORDS), generator=generator)
    return noise.argsort(dim=1)[:, :length] + SPECIAL


def repeated(rows: int, block_length: int, generator: torch.Generator) -> Tensor:
    """[rows, 2 * block_length]: a block of distinct words, then the same block again."""
    block = random_words(rows, block_length, generator)
    return torch.cat([block, block], dim=1)


def frequency(rows: int, generator: torch.Generator) -> Tensor:
    favourites = random_words(rows, 5, generator)
    choice = torch.randint(5, (rows, LENGTH), generator=generator)
    return favourites.gather(1, choice)


def echo(rows: int, generator: torch.Generator) -> Tensor:
    text = torch.randint(SPECIAL, SPECIAL + len(WORDS), (rows, LENGTH), generator=generator)
    keep = torch.rand(rows, LENGTH, generator=generator) < 0.8
    for place in range(ECHO_OFFSET, LENGTH):
        text[:, place] = torch.where(keep[:, place], text[:, place - ECHO_OFFSET], text[:, place])
    return text


def first(rows: int, generator: torch.Generator) -> Tensor:
    text = torch.randint(SPECIAL + 1, SPECIAL + len(WORDS), (rows, LENGTH), generator=generator)
    for place in range(3, LENGTH - 1, 6):
        text[:, place] = SPECIAL
        text[:, place + 1] = text[:, 0]
    return text


def training_batch(step: int, rows: int, generator: torch.Generator) -> Tensor:
    """[rows, 1 + length] token ids with BOS in front; one kind of text per batch.

    Repeats alone until induction has formed: mixed from the start, it had not after 1,200 steps.
    """
    kind = step % 6
    if step < REPEATS_ONLY or kind % 2 == 0:
        block_length = int(torch.randint(8, LENGTH // 2 + 1, (), generator=generator))
        block = torch.randint(
            SPECIAL, SPECIAL + len(WORDS), (rows, block_length), generator=generator
        )
        text = torch.cat([block, block], dim=1)
    else:
        text = {1: frequency, 3: echo, 5: first}[kind](rows, generator)
    return torch.cat([torch.zeros(rows, 1, dtype=torch.long), text], dim=1)


@torch.no_grad()
def judge(model: LlamaForCausalLM, rows: int = 64, block_length: int = 24) -> dict:
    """Per-head scores and losses on a fixed evaluation set, drawn apart from the training text.

    For query i of the second block (BOS at 0, block length n), the attention to: i - 1
    (`previous`), i - n (`duplicate`), i - n + 1 (`induction`), and BOS; all in [0, 1].
    """
    generator = torch.Generator().manual_seed(10_000)
    text = repeated(rows, block_length, generator)
    ids = torch.cat([torch.zeros(rows, 1, dtype=torch.long), text], dim=1)
    out = model(ids, output_attentions=True)
    query = torch.arange(block_length + 1, 2 * block_length)  # the last has no target inside
    losses = torch.nn.functional.cross_entropy(
        out.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
    ).view(rows, -1)
    scores: dict[str, list] = {"previous": [], "duplicate": [], "induction": [], "bos": []}
    for pattern in out.attentions:
        keys = {"previous": query - 1, "duplicate": query - block_length}
        keys |= {"induction": query - block_length + 1, "bos": torch.zeros_like(query)}
        for measure, key in keys.items():
            per_head = pattern[:, :, query, key].mean(dim=(0, 2))
            scores[measure].append([round(value, 3) for value in per_head.tolist()])
    neither = [
        f"L{layer}H{head}"
        for layer, (previous, induction) in enumerate(
            zip(scores["previous"], scores["induction"], strict=True)
        )
        for head in range(len(previous))
        if previous[head] < 0.2 and induction[head] < 0.2
    ]
    return {
        "loss_first_block_nats": round(losses[:, : block_length - 1].mean().item(), 3),
        "loss_second_block_nats": round(losses[:, block_length + 1 :].mean().item(), 3),
        "heads": scores,
        "heads_that_do_neither": neither,
    }


def make(out: Path, quick: bool = False) -> dict:
    """Train, judge and save; returns what was measured."""
    started = time.perf_counter()
    steps = 20 if quick else 1300
    config = LlamaConfig(
        vocab_size=SPECIAL + len(WORDS),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=8,
        max_position_embeddings=CONTEXT,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    with shelf.seeded(SEED):
        model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(SEED)

    def loss_at(step: int) -> Tensor:
        ids = training_batch(step, 8 if quick else 64, generator)
        return model(ids, labels=ids).loss

    seconds = fit(loss_at, [(model, 2e-3)], steps, name=NAME)
    model.eval()
    model.set_attn_implementation("eager")  # the kernel that returns its patterns
    measured = {"seed": SEED, "steps": steps, "training_seconds": round(seconds), **judge(model)}
    measured["parameters"] = sum(p.numel() for p in model.parameters())
    folder = shelf.model_folder(out, NAME)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    measured["total_seconds"] = round(time.perf_counter() - started)
    shelf.write_measured(out, NAME, measured)
    shelf.enter_model(out, NAME, "language", "repeats", ABOUT, model)
    return measured
