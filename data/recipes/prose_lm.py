"""prose-lm: a four-layer Llama on English prose from the Python standard library's documentation.

A byte-level BPE of 2,048 tokens, RoPE, BOS at the start of every window. Modules listed in
`prose_corpus.HELD_OUT` are never trained on; the set `prose` comes from them.
"""

import math
import time
from pathlib import Path

import shelf
import torch
from prose_corpus import collect
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from torch import Tensor, nn
from training import fit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from words import BOS, EOS

NAME = "prose-lm"
ABOUT = "Llama, 4 layers x 8 heads, English prose from the Python standard library's documentation"
VOCABULARY = 2048
CONTEXT = 256
ROWS = 8
SEED = 0


def train_tokenizer(documents: list[str]) -> PreTrainedTokenizerFast:
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = ByteLevel.alphabet()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    backend.train_from_iterator(documents, trainer)
    backend.post_processor = TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def stream(tokenizer: PreTrainedTokenizerFast, documents: list[str]) -> Tensor:
    """[tokens] all documents in a row, EOS after each."""
    backend = tokenizer.backend_tokenizer
    ids: list[int] = []
    for document in documents:
        ids += [*backend.encode(document, add_special_tokens=False).ids, tokenizer.eos_token_id]
    return torch.tensor(ids)


def windows(tokens: Tensor, rows: int, generator: torch.Generator) -> Tensor:
    """[rows, CONTEXT] BOS, then consecutive tokens from a random place."""
    starts = torch.randint(len(tokens) - CONTEXT + 1, (rows, 1), generator=generator)
    text = tokens[starts + torch.arange(CONTEXT - 1)]
    return torch.cat([torch.zeros(rows, 1, dtype=torch.long), text], dim=1)


@torch.no_grad()
def loss_nats(model: nn.Module, tokens: Tensor, limit: int = 128) -> tuple[float, int]:
    """(mean loss in nats per token, tokens judged) over windows side by side, at most `limit`."""
    size = CONTEXT - 1
    count = min(limit, len(tokens) // size)
    picked = torch.linspace(0, len(tokens) // size - 1, count).long()
    total = 0.0
    for chunk in tokens[: len(tokens) // size * size].view(-1, size)[picked].split(16):
        ids = torch.cat([torch.zeros(len(chunk), 1, dtype=torch.long), chunk], dim=1)
        total += model(ids, labels=ids).loss.item() * len(chunk)
    return total / count, count * size


@torch.no_grad()
def judge(model: nn.Module, tokenizer, train: list[str], test: list[str]) -> dict:
    """Losses, and what the heads do on held-out text and on repeated random tokens.

    `sink`: mean attention to BOS over queries 1 to 127. `previous`, `induction`: see repeat_lm;
    the repeated block holds 48 tokens from the 500 most frequent ones.
    """
    training, testing = stream(tokenizer, train), stream(tokenizer, test)
    train_loss, _ = loss_nats(model, training)
    test_loss, judged = loss_nats(model, testing)
    characters = sum(len(document) + 1 for document in test) / len(testing)
    measured = {
        "training_tokens": len(training),
        "loss_train_nats": round(train_loss, 3),
        "loss_test_nats": round(test_loss, 3),
        "test_tokens": judged,
        "characters_per_token": round(characters, 3),
        "bits_per_character_test": round(test_loss / math.log(2) / characters, 3),
    }
    generator = torch.Generator().manual_seed(30_000)
    text = windows(testing, 32, generator)[:, :128]
    frequent = torch.bincount(training, minlength=VOCABULARY).argsort(descending=True)[:500]
    block_length = 48
    noise = torch.rand(32, len(frequent), generator=generator)
    block = frequent[noise.argsort(dim=1)[:, :block_length]]
    repeats = torch.cat([torch.zeros(32, 1, dtype=torch.long), block, block], dim=1)
    on_text = model(text, output_attentions=True)
    on_repeats = model(repeats, output_attentions=True)
    query = torch.arange(block_length + 1, 2 * block_length)
    places = {"previous": query - 1, "induction": query - block_length + 1}
    heads: dict[str, list] = {"sink": [], "previous": [], "induction": []}
    for natural, repeated in zip(on_text.attentions, on_repeats.attentions, strict=True):
        rows = {"sink": natural[:, :, 1:, 0].mean(dim=(0, 2))}
        rows |= {k: repeated[:, :, query, key].mean(dim=(0, 2)) for k, key in places.items()}
        for measure, values in rows.items():
            heads[measure].append([round(value, 3) for value in values.tolist()])
    losses = nn.functional.cross_entropy(
        on_repeats.logits[:, :-1].flatten(0, 1), repeats[:, 1:].flatten(), reduction="none"
    ).view(len(repeats), -1)
    measured["loss_first_block_nats"] = round(losses[:, 1:block_length].mean().item(), 3)
    measured["loss_second_block_nats"] = round(losses[:, block_length + 1 :].mean().item(), 3)
    return {**measured, "heads": heads}


def make(out: Path, quick: bool = False) -> dict:
    """Train, judge and save; returns what was measured."""
    started = time.perf_counter()
    steps = 3 if quick else 1200  # 4.6 times through; at 14 it knew its text by heart
    train, test = collect()
    tokenizer = train_tokenizer(train)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=160,
        intermediate_size=432,
        num_hidden_layers=4,
        num_attention_heads=8,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    with shelf.seeded(SEED):
        model = LlamaForCausalLM(config)
    tokens, generator = stream(tokenizer, train), torch.Generator().manual_seed(SEED)

    def loss_at(step: int) -> Tensor:
        ids = windows(tokens, ROWS, generator)
        return model(ids, labels=ids).loss

    seconds = fit(loss_at, [(model, 2e-3)], steps, name=NAME, weight_decay=0.2, warmup=100)
    model.eval()
    model.set_attn_implementation("eager")  # the kernel that returns its patterns
    measured = {"seed": SEED, "steps": steps, "training_seconds": round(seconds)}
    measured |= judge(model, tokenizer, train, test)
    measured["parameters"] = sum(p.numel() for p in model.parameters())
    folder = shelf.model_folder(out, NAME)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    measured["total_seconds"] = round(time.perf_counter() - started)
    shelf.write_measured(out, NAME, measured)
    shelf.enter_model(out, NAME, "language", "prose", ABOUT, model)
    return measured
