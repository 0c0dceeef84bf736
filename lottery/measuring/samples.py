"""Generates texts after fixed prompts, and computes metrics of them."""

import itertools
import time
from collections.abc import Sequence
from typing import Any

import torch

from lottery.measuring.perplexity import token_nll
from lottery.models.architecture import context_length, encode, encode_prompt
from lottery.progress import Advance

PROMPTS = (
    "The meaning of life is",
    "Once upon a time",
    "The history of the city",
    "In the morning, the old man",
)
NEW_TOKENS = 50


def time_tokens(model: Any, tokenizer: Any, tokens: int) -> float:
    """Returns the seconds that a fixed prompt and so many new tokens after it take."""
    from lottery.runtime.decoding import generate  # imports transformers, which pruning does not need

    begin = time.perf_counter()
    generate(model, tokenizer, PROMPTS[:1], tokens, fixed_length=True)
    return time.perf_counter() - begin


def tokens_of_samples(tokenizer: Any) -> int:
    """Returns how many tokens a model must take for the longest of the fixed prompts and its new tokens."""
    return max(len(encode_prompt(tokenizer, prompt)) for prompt in PROMPTS) + NEW_TOKENS


def generate_samples(model: Any, tokenizer: Any, advance: Advance) -> list[dict[str, str]]:
    """Continues each fixed prompt greedily by 50 tokens."""
    from lottery.runtime.decoding import generate  # imports transformers, which pruning does not need

    texts = []
    for prompt in PROMPTS:
        texts.append({"prompt": prompt, "text": generate(model, tokenizer, [prompt], NEW_TOKENS, fixed_length=True)[0]})
        advance(1)
    return texts


def text_metrics(found: Sequence[dict[str, str]], tokenizer: Any) -> dict[str, float]:
    """Returns `repetition`, the share of repeated 4-grams of the new text, and `distinct_2`, of distinct 2-grams."""
    fours = twos = four_kinds = two_kinds = 0
    for sample in found:
        ids = encode(tokenizer, sample["text"][len(sample["prompt"]) :], special=False)
        four = list(zip(*(ids[i:] for i in range(4)), strict=False))
        two = list(itertools.pairwise(ids))
        fours, four_kinds = fours + len(four), four_kinds + len(set(four))
        twos, two_kinds = twos + len(two), two_kinds + len(set(two))
    metrics = {"repetition": 1 - four_kinds / fours} if fours else {}
    return metrics | ({"distinct_2": two_kinds / twos} if twos else {})


@torch.inference_mode()
def text_nll(model: Any, tokenizer: Any, found: Sequence[dict[str, str]]) -> float | None:
    """Returns the mean NLL (nats per token) that `model` gives to the samples' new text; None without new text."""
    total, count = 0.0, 0
    for sample in found:
        ids = encode_prompt(tokenizer, sample["text"])[: context_length(model.config)]
        prompt = len(encode_prompt(tokenizer, sample["prompt"]))
        ids_1T = torch.tensor([ids], device=model.device)
        logits = model(ids_1T, use_cache=False).logits[0, :-1]
        nll = token_nll(logits, ids_1T[0, 1:])[prompt - 1 :]
        total, count = total + float(nll.sum()), count + len(nll)
    return total / count if count else None
