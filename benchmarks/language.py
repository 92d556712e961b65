"""Texts as token numbers, a tied LSTM that learns them here, and the small Llama. No benchmark by itself.

Index conventions: n sequence, t position, v entry of the vocabulary.
"""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIKITEXT = "wikitext-2/wiki.{split}.tokens"
STORIES = "tinystories/moe_val.txt"
LLAMA = "stories260K-hf"


class TiedLSTM(nn.Module):
    """Two LSTM layers whose embedding is also the output layer (Press & Wolf 2017, arXiv 1608.05859)."""

    def __init__(self, n_words: int, width: int = 96) -> None:
        super().__init__()
        self.embed = nn.Embedding(n_words, width)
        self.rnn = nn.LSTM(width, width, num_layers=2, batch_first=True)
        self.out = nn.Linear(width, n_words)
        self.out.weight = self.embed.weight
        nn.init.normal_(self.embed.weight, std=0.1)

    def forward(self, ids: Tensor) -> Tensor:
        """[n, t] -> [n, t, v]."""
        return self.out(self.rnn(self.embed(ids))[0])


def missing(folder: Path, *names: str) -> str:
    """Why a network of language is left out, or nothing."""
    lacking = [name for name in names if not (folder / name).exists()]
    return f"SECATEUR_DATA={folder} lacks {', '.join(lacking)}; see benchmarks/README.md" if lacking else ""


def wikitext(folder: Path, n_words: int = 2000, length: int = 32) -> dict[str, Tensor]:
    """WikiText-2 by split, [n, length]: the most frequent words of the training text, all others one word."""
    texts = {split: _words(folder / WIKITEXT.format(split=split)) for split in ("train", "valid", "test")}
    counts = Counter(texts["train"])
    counts.pop("<unk>", None)
    vocabulary = {"<unk>": 0} | {word: i + 1 for i, (word, _) in enumerate(counts.most_common(n_words - 1))}
    return {split: cut([vocabulary.get(w, 0) for w in words], length) for split, words in texts.items()}


def _words(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").replace("\n", " <eos> ").split()


def cut(ids: Sequence[int], length: int) -> Tensor:
    """Consecutive pieces of one length, [n, length]; what is left over at the end is dropped."""
    return torch.tensor(ids[: len(ids) // length * length]).view(-1, length)


def train(model: nn.Module, ids: Tensor, *, epochs: int, lr: float, batch_size: int = 64) -> None:
    """Next-word prediction by Adam with a cosine; the order from torch's global generator."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    steps = epochs * -(-len(ids) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(ids)).split(batch_size):
            batch = ids[rows]
            optimizer.zero_grad()
            F.cross_entropy(model(batch)[:, :-1].flatten(0, 1), batch[:, 1:].flatten()).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()


def llama(folder: Path, length: int = 128) -> tuple[nn.Module, Tensor]:
    """(the Llama of 260,000 parameters in eval mode, stories [n, length] by its own tokenizer)."""
    # transformers imports torchvision, whose compiled library does not load beside a torch of another build
    sys.path.append(str(Path(__file__).parent.parent / "tests"))
    importlib.import_module("helpers.compiled_ops").declare_torchvision_ops()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = str(folder / LLAMA)
    tokenizer = AutoTokenizer.from_pretrained(where, local_files_only=True)
    model: nn.Module = AutoModelForCausalLM.from_pretrained(where, local_files_only=True, use_cache=False).eval()
    stories = (folder / STORIES).read_text(encoding="utf-8").split("\n\n")
    ids = [token for story in stories for token in (tokenizer.bos_token_id, *tokenizer(story).input_ids)]
    return model, cut(ids, length)
