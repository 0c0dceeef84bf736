"""Generates text: greedily one token per call, which is what speed is measured with, and whole texts with `generate`.

Legend: T tokens; 1 is a batch of one.
"""

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from transformers.cache_utils import StaticLayer, StaticSlidingWindowLayer

from lottery.errors import InputError, is_gpu_error, is_out_of_memory
from lottery.models.architecture import context_length, encode_prompt
from lottery.progress import say
from lottery.runtime.layers import is_int8


class Decoder:
    """Decodes greedily at batch 1, one token per call.

    On a GPU the cache has a fixed size, so that each step can be replayed as a CUDA graph; from compute capability 8.0
    on, torch.compile makes the graph. Without a graph, the time to launch kernels would hide the model's own time.
    """

    def __init__(self, model: Any, tokens: int, static: bool | None = None, graphs: bool | None = None) -> None:
        cuda = model.device.type == "cuda"
        self.model, self.step = model, model
        self.static = cuda if static is None else static
        self.cache: Any = static_cache(model, tokens) if self.static else None
        self.model_kwargs: dict[str, torch.Tensor] = {}
        if self.static and model.config.model_type == "opt":
            # Without a mask OPT asks the GPU for the length of one, and a graph cannot hold a step that waits.
            self.model_kwargs["attention_mask"] = torch.ones(1, tokens, dtype=torch.long, device=model.device)
        # bitsandbytes looks at the values of activations during a step, which a graph cannot hold.
        able = cuda and not any(map(is_int8, model.modules())) if graphs is None else graphs
        compiled = able and (not cuda or torch.cuda.get_device_capability() >= (8, 0))
        self.to_capture = able and not compiled
        self.graph: Any = None
        if compiled:
            torch.compiler.reset()  # otherwise torch stops compiling, silently, after eight models of other shapes
            graphed: dict[str, Any] = {"triton.cudagraphs": True, "triton.cudagraph_or_error": True}
            self.step = torch.compile(model.forward, options=graphed if cuda else None)
        self.prompts = 0

    def begin(self, ids_1T: torch.Tensor) -> torch.Tensor:
        """Processes the prompt, and returns the first new token [1, 1]."""
        if self.to_capture and not self.prompts:
            self.to_capture = self.can_capture(ids_1T)
        self.prompts += 1
        return self.prefill(ids_1T)

    def prefill(self, ids_1T: torch.Tensor) -> torch.Tensor:
        if self.static:
            self.cache.reset()
        out = self.model(ids_1T, past_key_values=self.cache if self.static else None, use_cache=True, logits_to_keep=1)
        self.cache = out.past_key_values
        return likeliest(out.logits[:, -1:])

    def can_capture(self, ids_1T: torch.Tensor) -> bool:
        """Tries on the prompt whether a step runs without waiting for the GPU.

        A graph cannot hold a step that waits, and a failed capture leaves CUDA's allocator in disorder.
        """
        token_11 = self.decode_step(self.prefill(ids_1T))  # the very first step waits for kernels to be compiled
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            self.decode_step(token_11)
        except RuntimeError as e:
            if is_out_of_memory(e) or is_gpu_error(e):
                raise
            say(
                "warning: no CUDA graph: this model waits for the GPU within a step; it decodes step by step, and its "
                "decode speed includes the time to launch kernels"
            )
            return False
        finally:
            torch.cuda.set_sync_debug_mode(before)
        return True

    def next(self, token_11: torch.Tensor) -> torch.Tensor:
        """Returns the token that follows `token_11`."""
        try:
            if self.to_capture:
                self.capture(token_11)
            if self.graph is not None:
                self.token_11.copy_(token_11)
                self.graph.replay()
                return self.next_11.clone()
            torch.compiler.cudagraph_mark_step_begin()
            return self.decode_step(token_11).clone()
        except Exception as e:  # of many kinds: a missing compiler, its limits, a layer that waits for the GPU
            if self.step is self.model and not self.to_capture:
                raise
            say(
                f"warning: no CUDA graph ({type(e).__name__}); the model decodes step by step, and its decode speed "
                f"includes the time to launch kernels"
            )
            self.step, self.to_capture, self.graph = self.model, False, None
            return self.decode_step(token_11).clone()

    def decode_step(self, token_11: torch.Tensor) -> torch.Tensor:
        given = dict(self.model_kwargs)
        if given:
            given["position_ids"] = self.cache.get_seq_length().clone().view(1, 1)
        out = self.step(token_11, past_key_values=self.cache, use_cache=True, logits_to_keep=1, **given)
        return likeliest(out.logits[:, -1:])

    def capture(self, token_11: torch.Tensor) -> None:
        """Captures one step as a graph. Capturing does not run the step."""
        graph, self.token_11 = torch.cuda.CUDAGraph(), token_11.clone()
        stream = torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph):
                self.next_11 = self.decode_step(self.token_11)
        except Exception:  # whatever its class, it is raised again: a failed capture leaves its own stream set
            torch.cuda.set_stream(stream)
            raise
        self.graph, self.to_capture = graph, False


def likeliest(logits_11W: torch.Tensor) -> torch.Tensor:
    """Returns the likeliest token [1, 1], of equal ones the first.

    On a CPU the logits become float32: of 49,152 words in bfloat16 torch finds it in 160 microseconds, in float32 in 44
    with the conversion.
    """
    return (logits_11W if logits_11W.is_cuda else logits_11W.float()).argmax(-1)


def static_cache(model: Any, tokens: int) -> Any:
    """Returns a cache with room for `tokens` tokens in every layer, also in layers with a sliding window.

    transformers' own cache of a sliding layer counts in Python, and a graph would repeat one number for ever. The mask
    applies the window.
    """
    cache = transformers.StaticCache(config=model.config, max_cache_len=tokens)
    cache.layers = [
        StaticLayer(max_cache_len=tokens) if type(layer) is StaticSlidingWindowLayer else layer
        for layer in cache.layers
    ]
    return cache


def check_sampling(temperature: float, top_p: float = 1.0, top_k: int = 0) -> None:
    """Raises InputError for sampling parameters that cannot be used.

    The temperature is 0 (greedy) or from 0.01 to 100: below that the logits would overflow. top_p and top_k must be in
    their range, and need a temperature above 0.
    """
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
    """Returns the prompt's token ids.

    Raises InputError where these and `tokens` new ones exceed the model's context, for a prompt that is not UTF-8, and
    for an empty prompt if the model has no token to begin with.
    """
    context = context_length(model.config)
    # Megabytes take seconds to tokenize. The longest token of the vocabulary is computed only for long prompts.
    if len(prompt) > 8 * context and len(prompt) > context * max(map(len, tokenizer.get_vocab())):
        raise InputError(f"prompt: its {len(prompt)} characters exceed the model's {context} tokens; shorten it")
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise InputError("prompt: it holds bytes that are not UTF-8; give text") from None
    ids = encode_prompt(tokenizer, prompt)
    if not ids:
        if tokenizer.bos_token_id is None:
            raise InputError("prompt is empty, and the model has no token to begin with; give at least one word")
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
    """Returns one text per prompt: the prompt and at most `tokens` new tokens (with `fixed_length` exactly so many).

    Decoding is greedy at temperature 0. The prompts run one after the other, so each gets the text that it gets alone,
    and memory is needed for one. Raises InputError as `check_sampling` and `prompt_ids` do, before anything is
    generated; TimeoutError when time.monotonic() reaches `deadline` (seconds).
    """
    check_sampling(temperature, top_p, top_k)
    prompts_ids = [prompt_ids(model, tokenizer, prompt, tokens) for prompt in prompts]
    own = model.generation_config
    # What is not given here comes from the model's generation_config.json; its switches must not change what returns.
    config = transformers.GenerationConfig(
        max_new_tokens=tokens,
        min_new_tokens=tokens if fixed_length else None,
        num_beams=1,
        num_return_sequences=1,
        use_cache=True,
        return_dict_in_generate=False,
        output_attentions=False,
        output_hidden_states=False,
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
        # Prompt and new tokens are decoded together, then cut: alone, the first new word may lose its space.
        before = tokenizer.decode(ids, skip_special_tokens=True)
        texts.append(prompt + tokenizer.decode(out_T, skip_special_tokens=True)[len(before) :])
    return texts
