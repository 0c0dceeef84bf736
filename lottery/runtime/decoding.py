"""Text out of a model: greedy decoding a token a call, as it is timed, and `generate`. Beside models.py the only file that
says transformers."""

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from transformers.cache_utils import StaticLayer, StaticSlidingWindowLayer

from lottery.errors import InputError, is_gpu_error, is_out_of_memory
from lottery.models.architecture import context_length, encode
from lottery.progress import say
from lottery.runtime.layers import is_int8


class Decoder:
    """Greedy decoding at batch 1, a token a call. On a GPU over a cache of fixed size, so that each step is replayed as a
    CUDA graph, from capability 8.0 on one that torch.compile makes: launching kernels would hide the model's own time."""

    def __init__(self, model: Any, tokens: int, static: bool | None = None, graphs: bool | None = None) -> None:
        cuda = model.device.type == "cuda"
        self.model, self.step = model, model
        self.static = cuda if static is None else static
        self.cache: Any = static_cache(model, tokens) if self.static else None
        self.model_kwargs: dict[str, torch.Tensor] = {}
        if self.static and model.config.model_type == "opt":
            # Without one it asks the GPU how long a mask to make, which no graph can hold.
            self.model_kwargs["attention_mask"] = torch.ones(1, tokens, dtype=torch.long, device=model.device)
        # bitsandbytes looks at the activations' values in between: no graph can hold that
        able = cuda and not any(map(is_int8, model.modules())) if graphs is None else graphs
        compiled = able and (not cuda or torch.cuda.get_device_capability() >= (8, 0))
        self.to_capture = able and not compiled
        self.graph: Any = None
        if compiled:
            torch.compiler.reset()  # of models before: after eight of other shapes torch would not compile, without a word
            graphed: dict[str, Any] = {"triton.cudagraphs": True, "triton.cudagraph_or_error": True}
            self.step = torch.compile(model.forward, options=graphed if cuda else None)
        self.prompts = 0

    def begin(self, ids_1T: torch.Tensor) -> torch.Tensor:
        """The prompt; the first new token [1, 1]."""
        if self.to_capture and not self.prompts:
            self.to_capture = self.can_capture(ids_1T)
        self.prompts += 1
        return self.prefill(ids_1T)

    def prefill(self, ids_1T: torch.Tensor) -> torch.Tensor:
        if self.static:
            self.cache.reset()
        out = self.model(ids_1T, past_key_values=self.cache if self.static else None, use_cache=True, logits_to_keep=1)
        self.cache = out.past_key_values
        return out.logits[:, -1:].argmax(-1)

    def can_capture(self, ids_1T: torch.Tensor) -> bool:
        """Whether a step runs without waiting for the GPU, tried on the prompt: no graph can hold a step that waits, and a
        capture that fails leaves CUDA's allocator in disorder."""
        token_11 = self.decode_step(self.prefill(ids_1T))  # the first step of all waits: for kernels to be compiled
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            self.decode_step(token_11)
        except RuntimeError as e:
            if is_out_of_memory(e) or is_gpu_error(e):
                raise
            say(
                "warning: no CUDA graph: this model waits for the GPU in between; decoding step by step, launches included"
            )
            return False
        finally:
            torch.cuda.set_sync_debug_mode(before)
        return True

    def next(self, token_11: torch.Tensor) -> torch.Tensor:
        """The token after that one."""
        try:
            if self.to_capture:
                self.capture(token_11)
            if self.graph is not None:
                self.token_11.copy_(token_11)
                self.graph.replay()
                return self.said_11.clone()
            torch.compiler.cudagraph_mark_step_begin()
            return self.decode_step(token_11).clone()
        except (
            Exception
        ) as e:  # a compiler that is missing or at its limits, a layer that waits for the GPU: many kinds
            if self.step is self.model and not self.to_capture:
                raise
            say(f"warning: no CUDA graph ({type(e).__name__}); decoding step by step, launches included")
            self.step, self.to_capture, self.graph = self.model, False, None
            return self.decode_step(token_11).clone()

    def decode_step(self, token_11: torch.Tensor) -> torch.Tensor:
        given = dict(self.model_kwargs)
        if given:
            given["position_ids"] = self.cache.get_seq_length().clone().view(1, 1)
        out = self.step(token_11, past_key_values=self.cache, use_cache=True, logits_to_keep=1, **given)
        return out.logits[:, -1:].argmax(-1)

    def capture(self, token_11: torch.Tensor) -> None:
        """One step as a graph; capturing runs nothing."""
        graph, self.token_11 = torch.cuda.CUDAGraph(), token_11.clone()
        stream = torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph):
                self.said_11 = self.decode_step(self.token_11)
        except Exception:  # of whatever class, and raised again: a failed capture leaves its own stream behind
            torch.cuda.set_stream(stream)
            raise
        self.graph, self.to_capture = graph, False


def static_cache(model: Any, tokens: int) -> Any:
    """Room for so many tokens in every layer. In a sliding layer too: transformers' own cache of it counts in Python, and
    a graph would keep that number; the window is in the mask."""
    cache = transformers.StaticCache(config=model.config, max_cache_len=tokens)
    cache.layers = [
        StaticLayer(max_cache_len=tokens) if type(layer) is StaticSlidingWindowLayer else layer
        for layer in cache.layers
    ]
    return cache


def check_sampling(temperature: float, top_p: float = 1.0, top_k: int = 0) -> None:
    """Raises InputError for what nothing can be drawn with: a temperature below 0.01 but for 0 (greedy), where the logits
    would overflow, or above 100; top_p or top_k out of range, or without sampling."""
    if temperature != 0 and not 0.01 <= temperature <= 100:
        raise InputError(f"temperature={temperature}: give 0 (greedy), or a number from 0.01 to 100")
    if not 0 < top_p <= 1:
        raise InputError(f"top_p={top_p}: give a number above 0, up to 1 (all tokens)")
    if top_k < 0:
        raise InputError(f"top_k={top_k}: give a whole number from 1, or 0 (all tokens)")
    for name, value, unset in (("top_p", top_p, 1), ("top_k", top_k, 0)):
        if temperature == 0 and value != unset:
            raise InputError(f"{name}={value}: at temperature=0 nothing is drawn; give a temperature above 0")


def prompt_ids(model: Any, tokenizer: Any, prompt: str, tokens: int) -> list[int]:
    """The prompt's token ids. Raises InputError where they and so many new ones do not fit into the model's context, and
    for an empty prompt where the model has no token to begin with."""
    context = context_length(model.config)
    # Megabytes take seconds to tokenize. The vocabulary is only asked where the answer is likely no.
    if len(prompt) > 8 * context and len(prompt) > context * max(map(len, tokenizer.get_vocab())):
        raise InputError(f"prompt: its {len(prompt)} characters exceed the model's {context} tokens; shorten it")
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise InputError("prompt: it holds bytes that are no UTF-8; give text") from None
    ids = encode(tokenizer, prompt)
    if not ids:
        if tokenizer.bos_token_id is None:
            raise InputError("prompt is empty, and the model has no token to begin with; give at least a word")
        ids = [tokenizer.bos_token_id]
    if len(ids) + tokens > context:
        raise InputError(
            f"prompt: its {len(ids)} tokens and {tokens} new ones exceed the model's {context}; shorten one of the two"
        )
    return ids


@torch.inference_mode()
def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    tokens: int = 50,
    temperature: float = 0.0,
    seed: int = 0,
    top_p: float = 1.0,
    top_k: int = 0,
    *,
    fixed_length: bool = False,
    deadline: float = math.inf,
) -> list[str]:
    """One text a prompt, the prompt included, at most `tokens` new ones (`fixed_length`: no fewer); greedy at temperature 0.

    One prompt after the other: each gets the text that it gets alone, in the memory of one. Raises InputError as
    `check_sampling` and `prompt_ids` do, before anything is generated; TimeoutError at the time `deadline` of time.monotonic.
    """
    check_sampling(temperature, top_p, top_k)
    prompts_ids = [prompt_ids(model, tokenizer, prompt, tokens) for prompt in prompts]
    own = model.generation_config
    config = transformers.GenerationConfig(
        max_new_tokens=tokens,
        min_new_tokens=tokens if fixed_length else None,
        do_sample=temperature > 0,
        eos_token_id=own.eos_token_id,
        bos_token_id=own.bos_token_id,
        pad_token_id=own.pad_token_id if own.pad_token_id is not None else tokenizer.eos_token_id or 0,
        **({"temperature": temperature, "top_k": top_k, "top_p": top_p} if temperature > 0 else {}),
    )
    texts = []
    for prompt, ids in zip(prompts, prompts_ids, strict=True):
        if deadline < math.inf:
            config.max_time = deadline - time.monotonic()
        ids_1T = torch.tensor([ids], device=model.device)
        with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
            torch.manual_seed(seed)
            out_T = model.generate(ids_1T, attention_mask=torch.ones_like(ids_1T), generation_config=config)[0]
        if time.monotonic() > deadline:
            raise TimeoutError
        # Decoded together, cut apart: alone, the first new word would lose its space in some tokenizers.
        before = tokenizer.decode(ids, skip_special_tokens=True)
        texts.append(prompt + tokenizer.decode(out_T, skip_special_tokens=True)[len(before) :])
    return texts
