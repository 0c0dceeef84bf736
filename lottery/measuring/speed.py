"""Measures the tokens per second of a loaded model, and the floor that memory bandwidth sets."""

import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from lottery.measuring.memory import tensor_bytes
from lottery.measuring.samples import NEW_TOKENS, PROMPTS
from lottery.models.architecture import context_length, encode_prompt
from lottery.runtime.layers import workspaces

PROMPT_TOKENS = 256
CHUNK, CHUNKS = 7, 7  # decoding is timed seven tokens at a time, seven times a prompt: 49 tokens follow its first
WARM_UP = 8  # tokens; a CUDA graph exists after three
BUDGET_S, DECODE_S = 20.0, 14.0  # for all timing of a model; the part for prefill and decoding
LEAST_REPEATS = 3
KNOWN = 0.03  # the spread is known once the median's standard error is so small a part of the median


def clock(model: Any) -> float:
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


@torch.inference_mode()
def speed_metrics(
    model: Any, tokenizer: Any, eager: bool = False, advance: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """Returns tokens per second at batch 1 of prefill, of decoding and of a whole `generate` call.

    Each figure is a median after a warm-up. Timing repeats until the spread of prefill and decoding is known, or until
    20 seconds have passed. One prompt, seven tokens and one call of `generate` are timed however long they take; where
    not even the tokens of one prompt fit, there are no quartiles. The floor is the measured memory bandwidth divided by the bytes of weights that a token reads. With `eager` no CUDA graph
    is used, because the other model of the table cannot have one. `advance` is called between two timings.
    """
    begin = clock(model)
    prompt = fixed_prompt(model, tokenizer)
    prefill, decode = time_decoding(model, prompt, eager, begin + DECODE_S, advance)
    whole = time_generate(model, tokenizer, begin + BUDGET_S, advance)
    low, middle, high = np.quantile(decode, [0.25, 0.5, 0.75])
    quartiles = {"decode_tok_s_lo": float(low), "decode_tok_s_hi": float(high)} if len(decode) >= CHUNKS else {}
    return {
        "prefill_tok_s": len(prompt) / float(np.median(prefill)),
        "ttft_ms": 1000 * float(np.median(prefill)),
        "decode_tok_s": float(middle),
        **quartiles,
        "decode_floor_tok_s": memory_bandwidth(model.device.type) / bytes_read_per_token(model),
        "generate_tok_s": NEW_TOKENS / float(np.median(whole)),
    }


def fixed_prompt(model: Any, tokenizer: Any) -> list[int]:
    """Returns the token ids whose prefill is timed: at most 256, as many as the context leaves before 50 new ones."""
    words = encode_prompt(tokenizer, " ".join(PROMPTS) + " ")
    length = max(1, min(PROMPT_TOKENS, context_length(model.config) - NEW_TOKENS))
    return (words * (length // len(words) + 1))[:length]


def time_decoding(
    model: Any, prompt: list[int], eager: bool, deadline: float, advance: Callable[[], None]
) -> tuple[list[float], list[float]]:
    """Returns the seconds of each prefill, and the tokens per second of each chunk of decoded tokens."""
    from lottery.runtime.decoding import Decoder  # imports transformers, which pruning does not need

    ids_1T = torch.tensor([prompt], device=model.device)
    decoder = Decoder(model, len(prompt) + NEW_TOKENS, graphs=False if eager else None)
    token_11 = decoder.begin(ids_1T)
    for _ in range(WARM_UP):
        token_11 = decoder.next(token_11)
    prefill: list[float] = []
    decode: list[float] = []
    while not prefill or (clock(model) < deadline and not (spread_is_known(prefill) and spread_is_known(decode))):
        advance()
        begin = clock(model)
        token_11 = decoder.begin(ids_1T)
        last = clock(model)
        prefill.append(last - begin)
        for _ in range(CHUNKS):
            for _ in range(CHUNK):
                token_11 = decoder.next(token_11)
            now = clock(model)
            decode.append(CHUNK / (now - last))
            last = now
            if now > deadline:
                break
    return prefill, decode


def spread_is_known(samples: Sequence[float]) -> bool:
    """Returns whether the standard error of the median, by the quartiles of a normal distribution, is below 3%."""
    if len(samples) < LEAST_REPEATS:
        return False
    low, middle, high = np.quantile(samples, [0.25, 0.5, 0.75])
    return bool(1.2533 * (high - low) / 1.349 / math.sqrt(len(samples)) <= KNOWN * middle)


def time_generate(model: Any, tokenizer: Any, deadline: float, advance: Callable[[], None]) -> list[float]:
    """Returns the seconds of whole `generate` calls of 50 new tokens. The first is a warm-up if others follow."""
    from lottery.runtime.decoding import generate  # imports transformers, which pruning does not need

    whole: list[float] = []
    while not whole or (len(whole) <= LEAST_REPEATS and clock(model) < deadline):
        advance()
        begin = clock(model)
        generate(model, tokenizer, PROMPTS[:1], NEW_TOKENS, fixed_length=True)
        whole.append(clock(model) - begin)
    return whole[1:] or whole


def bytes_read_per_token(model: Any) -> int:
    """Returns the bytes of weights that one decoded token reads.

    These are all, but not embeddings that are not the head. A packed layer also reads the workspace, into which it has
    unpacked its weights; a sparse layer does not use it for a single token.
    """
    table = model.get_input_embeddings().weight
    tied = getattr(model.get_output_embeddings(), "weight", None) is table  # a packed head has no weight
    unpacked = sum(workspace.nbytes for workspace in workspaces(model, one_token=True))
    return tensor_bytes(model) + unpacked - (0 if tied else table.nbytes)


@functools.cache
def memory_bandwidth(device: str) -> float:
    """Returns the bytes per second at which memory is read, measured once per process.

    It is the best of five reads of 512 MiB, which is far more than any cache. On a GPU ten reads are timed together,
    because waiting for a single one would take a part of its time.
    """
    block = torch.ones(2**27, dtype=torch.float32, device=device)
    reads = 10 if device == "cuda" else 1
    best = math.inf
    for _ in range(5):
        if device == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(reads):
            total = block.sum()
        total.item()
        best = min(best, (time.perf_counter() - begin) / reads)
    return block.nbytes / best


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """Returns the result of `work`, and the seconds that it took."""
    begin = time.perf_counter()
    return work(), time.perf_counter() - begin
