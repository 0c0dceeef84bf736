"""A base or a ticket on disk -> a transformers model and its tokenizer; text from it. The only file that says transformers."""

import functools
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers
from transformers.cache_utils import StaticLayer, StaticSlidingWindowLayer

from lottery.checkpoint import DTYPES, TOKENIZER_FILES, TensorInfo
from lottery.failures import is_of_gpu, is_of_memory
from lottery.progress import say
from lottery.runtime import PackedLinear, Scratch, check_int8, int8_linear, is_int8
from lottery.spec import InputError, MachineError
from lottery.ticket import Stored

MOST_LAYERS = 1000  # of any model there is, and more: a config.json may say what it likes


class Tensors(Protocol):
    """What a model is built from: a Base, or a Stored ticket."""

    @property
    def dtype(self) -> str: ...
    @property
    def folder(self) -> Path: ...
    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...
    def info(self, name: str) -> TensorInfo: ...
    def tensor(self, name: str) -> torch.Tensor: ...


class Lazy:
    """One value of a state dict, read (and unpacked, and its hash checked) only when the loader asks for it."""

    def __init__(self, source: Tensors, name: str) -> None:
        self.source, self.name = source, name

    def __getitem__(self, index: Any) -> torch.Tensor:
        return self.source.tensor(self.name)[index]

    def get_shape(self) -> list[int]:
        return list(self.source.info(self.name).shape)

    def get_dtype(self) -> str:
        return self.source.info(self.name).dtype


def pick_device(device: str) -> str:
    """`auto`: the GPU where torch can use one. Raises InputError where device=cuda and it cannot."""
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if not torch.cuda.is_available():
        raise InputError("device=cuda: torch sees no GPU here (lottery doctor says why); give device=cpu")
    if (reason := unsupported_gpu()) is None:
        return "cuda"
    if device == "cuda":
        raise InputError(f"device=cuda: {reason}; or give device=cpu")
    say(f"warning: {reason}; all runs on the CPU")
    return "cpu"


@functools.cache
def unsupported_gpu() -> str | None:
    """Why the installed torch cannot compute on this GPU, and the way out; None where it can."""
    if torch.version.hip:  # AMD's have names of another kind
        return None
    major, minor = torch.cuda.get_device_capability()
    if supports(torch.cuda.get_arch_list(), major, minor):
        return None
    way = "install the cu126 build, as conda.yaml does" if major < 8 else "install a newer torch"
    return f"{torch.cuda.get_device_name()} is sm_{major}{minor}; torch (CUDA {torch.version.cuda}) has no code for it: {way}"


def supports(architectures: list[str], major: int, minor: int) -> bool:
    """Whether a build for these architectures runs on the device: binary code of its generation, or PTX of an older one."""
    for architecture in architectures:
        kind, _, number = architecture.partition("_")
        has = int("".join(c for c in number if c.isdigit()))
        if kind == "sm" and has // 10 == major and has % 10 <= minor:
            return True
        if kind == "compute" and has <= 10 * major + minor:
            return True
    return False


def computes_bfloat16(device: str) -> bool:
    """Whether bfloat16 arithmetic is at home on the device, rather than emulated at a fraction of float32's speed."""
    if device == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    able = torch.cpu.get_capabilities()
    return bool(able.get("amx_bf16") or able.get("avx512_bf16"))


def arithmetic(dtype: str, source: str, device: str) -> str:
    """The type to compute in, `source`'s own where the device computes it well; names as torch has them."""
    own = str(DTYPES[source]).removeprefix("torch.")
    if dtype not in ("auto", "source"):
        return dtype
    if dtype == "source" or own == "float32" or (own == "bfloat16" and computes_bfloat16(device)):
        return own
    return "float16" if device == "cuda" else "float32"


@contextmanager
def usable(folder: Path, what: str) -> Iterator[None]:
    """Whatever transformers raises over a file of the user's is an InputError: it has no class of its own for that."""
    try:
        yield
    except (InputError, MachineError):
        raise
    except Exception as e:  # KeyError, ZeroDivisionError, a validation class of its own: anything, over a bad file
        if is_of_memory(e) or is_of_gpu(e):
            raise
        reason = " ".join(str(e).split())[:200]
        raise InputError(f"model={folder}: {what} is not usable ({type(e).__name__}: {reason})") from e


def read_config(folder: Path) -> Any:
    with usable(folder, "config.json"):
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
        if not 0 < layers <= MOST_LAYERS:
            raise InputError(f"model={folder}: config.json says {layers} layers; give a model with 1 to {MOST_LAYERS}")
        return config


def is_tied(folder: Path) -> bool:
    """Whether the head is the embedding matrix itself; where config.json does not say, its class's own default holds."""
    config = read_config(folder)
    return bool(getattr(config, "tie_word_embeddings", False))


def skeleton(config: Any, folder: Path) -> Any:
    """The model that a config describes, without weights."""
    with usable(folder, "config.json"), torch.device("meta"):
        return model_class(config, folder)(config)


def outline(folder: Path) -> dict[str, TensorInfo]:
    """Name -> shape and type of every parameter of the model that config.json describes, a tied one once; no weights."""
    config = read_config(folder)
    dtype = config.dtype if config.dtype in DTYPES.values() else torch.float32
    name_of_dtype = next(name for name, known in DTYPES.items() if known == dtype)
    model = skeleton(config, folder)
    return {name: TensorInfo("", name_of_dtype, tuple(p.shape)) for name, p in model.named_parameters()}


def linear_layers(folder: Path) -> dict[str, tuple[str, str]]:
    """What a checkpoint may call each linear layer of the model that config.json describes -> (its path in memory, the
    name of its class). Checkpoints of some families leave out the first part of the path."""
    model = skeleton(read_config(folder), folder)
    found = {path: kind(m) for path, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    short = {path.removeprefix(f"{model.base_model_prefix}."): path for path in found}
    return {name: (path, found[path]) for name, path in [*short.items(), *((path, path) for path in found)]}


def context_length(config: Any) -> int:
    """The longest window that the model takes, in tokens."""
    return int(getattr(config.get_text_config(), "max_position_embeddings", None) or 2048)


def read_tokenizer(folder: Path) -> Any | None:
    """The folder's tokenizer, None where it has none. Never runs code out of the folder."""
    if not any((folder / name).is_file() for name in TOKENIZER_FILES if name != "chat_template.jinja"):
        return None
    with usable(folder, "its tokenizer"):
        return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


class Stub(Lazy):
    """In place of a matrix that will lie in a layer of our own: of its shape, in the memory of one number."""

    def __init__(self, source: Tensors, name: str, dtype: torch.dtype) -> None:
        super().__init__(source, name)
        self.one = torch.empty(1, dtype=dtype)

    def __getitem__(self, index: Any) -> torch.Tensor:
        return self.one.expand(self.source.info(self.name).shape)[index]


class Shape(Lazy):
    """A tensor without its values: enough to see whether the model wants it."""

    def __getitem__(self, index: Any) -> torch.Tensor:
        info = self.source.info(self.name)
        return torch.empty(info.shape, dtype=DTYPES[info.dtype], device="meta")[index]


def check(source: Tensors, names: Iterable[str]) -> None:
    """Whether the files make a model, found without reading a weight. Raises InputError as `build` does."""
    assemble(source, {name: Shape(source, name) for name in names}, "float32", "meta")


def build(source: Tensors, names: Iterable[str], dtype: str, device: str, runtime: str = "dense") -> Any:
    """The model with exactly the named tensors in it, in evaluation mode; how its matrices lie in memory as `runtime` says.

    Raises InputError where a tensor is missing, left over or damaged: transformers itself would fill what is missing
    with random numbers.
    """
    lean = lean_matrices(source, runtime)
    stubs = {name: Stub(source, name, getattr(torch, dtype)) for name in lean}
    state = {name: stubs.get(name) or Lazy(source, name) for name in names}
    if not stubs or not isinstance(source, Stored):
        return assemble(source, state, dtype, device)
    model = assemble(source, state, dtype, "cpu")
    put_in_layers(model, source, stubs, device, runtime)
    return model.to(device)


def lean_matrices(source: Tensors, runtime: str) -> list[str]:
    """The tensors that lie in layers of ours: 8-bit ones, and with `runtime=packed` those that are packed in the file.

    Each is the weight of one linear layer: embeddings are looked up, and transformers holds all experts of a layer in one
    tensor; both are widened.
    """
    if not isinstance(source, Stored):
        return []
    found: list[str] = []
    widened: list[str] = []
    for name, entry in source.entries.items():
        packed = runtime == "packed" and (entry.get("packed") or (source.is_mask and "kept" in entry))
        if not packed and "quantized" not in entry:
            continue
        linear = entry["role"] in ("attention", "mlp") or (entry["role"] == "lm_head" and runtime == "packed")
        linear = linear and len(entry["shape"]) == 2 and ".experts." not in name
        (found if linear else widened).append(name)
    if widened:
        say(
            f"warning: {len(widened)} matrices ({widened[0]}, ...) are no linear layers of their own and lie dense in memory"
        )
    elif runtime == "packed" and not found:
        say("warning: nothing of this ticket is packed: runtime=packed is the same as dense")
    return found


def put_in_layers(model: Any, source: Stored, stubs: Mapping[str, Stub], device: str, runtime: str) -> None:
    """Each stub's layer gives way to one over the stored matrix."""
    waiting = {stub.one.data_ptr(): name for name, stub in stubs.items()}
    homes = [
        (path, module, waiting.pop(weight.data_ptr()))
        for path, module in model.named_modules()
        if isinstance(weight := getattr(module, "weight", None), torch.Tensor) and weight.data_ptr() in waiting
    ]
    assert not waiting, f"no layer took {sorted(waiting.values())[:3]}"
    largest = max(source.info(name).numel for _, _, name in homes)
    scratch = None
    if runtime == "dense" and any(source.entries[name].get("quantized") == "int8" for name in stubs):
        check_int8(device)
    for path, module, name in homes:
        matrix, bias = source.matrix(name), getattr(module, "bias", None)
        if runtime == "dense":
            matrix = matrix.whole()
        if matrix.quantized == "int8" and runtime == "dense":
            layer = int8_linear(matrix, bias, device)
        else:
            scratch = scratch or Scratch(largest, model.dtype, device)
            layer = PackedLinear(matrix, bias, scratch, device, PRODUCTS.get(type(module).__name__, "linear"))
        parent, _, own = path.rpartition(".")
        setattr(model.get_submodule(parent), own, layer.eval())
    model.requires_grad_(False)
    model.save_pretrained = cannot_save


def model_class(config: Any, folder: Path) -> Any:
    """The class that config.json names. Raises InputError where it names none that is known here."""
    architecture = (config.architectures or [None])[0]
    found: Any = getattr(transformers, str(architecture), None)
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise InputError(f"model={folder}: config.json names the architecture {architecture}, unknown here")
    return found


def assemble(source: Tensors, state: Mapping[str, Lazy], dtype: str, device: str) -> Any:
    config = read_config(source.folder)
    found_class = model_class(config, source.folder)
    transformers.logging.disable_progress_bar()  # the stage's own line says that it loads
    with usable(source.folder, "config.json"):
        model, found = found_class.from_pretrained(
            None,
            config=config,
            state_dict=dict(state),
            dtype=getattr(torch, dtype),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are reported below, by name
            **({"device_map": {"": device}} if device != "cpu" else {}),
        )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if found[kind]:
            kind_said = kind.replace("_", " ")
            raise InputError(
                f"model={source.folder}: {kind_said} at loading: {', '.join(map(str, sorted(found[kind])[:3]))}"
            )
    if device != "meta":
        choose_experts(model, source.folder)
    if (source.folder / "generation_config.json").is_file():
        with usable(source.folder, "generation_config.json"):
            model.generation_config = transformers.GenerationConfig.from_pretrained(source.folder)
    return model.eval()


def choose_experts(model: Any, folder: Path) -> None:
    """All experts of a layer in one product, transformers' choice, needs rows of whole 16 bytes; else one after the other."""
    odd = [p for p in model.parameters() if p.dim() == 3 and p.shape[-1] * p.itemsize % 16]
    if odd and getattr(model.config, "_experts_implementation", None) == "grouped_mm":
        model.set_experts_implementation("eager")
        dtype = str(odd[0].dtype).removeprefix("torch.")
        say(
            f"warning: model={folder}: its experts are computed one after the other: rows of {odd[0].shape[-1]} numbers as "
            f"{dtype} are no multiple of 16 bytes, which one product of all would need"
        )


def encode(tokenizer: Any, text: str, special: bool = True) -> list[int]:
    """Token ids, with the tokenizer's own special tokens (a BOS, where it has one) unless told otherwise."""
    return tokenizer(text, verbose=False, add_special_tokens=special)["input_ids"]


# How a layer multiplies, by the name of its class, where it is not torch's own: the order of the operations fixes the bits.
PRODUCTS = {"Conv1D": "conv1d", "FalconLinear": "bias after"}


def cannot_save(*_: Any, **__: Any) -> None:
    raise InputError(
        "save_pretrained: this ticket's layers are packed or in 8 bits in memory, and another library would read them as "
        "something else; the ticket's folder is what to keep"
    )


class Decoder:
    """Greedy decoding at batch 1, a token a call. On a GPU over a cache of fixed size, so that each step is replayed as a
    CUDA graph, from capability 8.0 on one that torch.compile makes: launching kernels would hide the model's own time."""

    def __init__(self, model: Any, tokens: int, static: bool | None = None, graphs: bool | None = None) -> None:
        cuda = model.device.type == "cuda"
        self.model, self.step = model, model
        self.static = cuda if static is None else static
        self.cache: Any = static_cache(model, tokens) if self.static else None
        self.given: dict[str, torch.Tensor] = {}
        if self.static and model.config.model_type == "opt":
            # Without one it asks the GPU how long a mask to make, which no graph can hold.
            self.given["attention_mask"] = torch.ones(1, tokens, dtype=torch.long, device=model.device)
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
        token_11 = self.after(self.prefill(ids_1T))  # the first step of all waits: for kernels to be compiled
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            self.after(token_11)
        except RuntimeError as e:
            if is_of_memory(e) or is_of_gpu(e):
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
            return self.after(token_11).clone()
        except (
            Exception
        ) as e:  # a compiler that is missing or at its limits, a layer that waits for the GPU: many kinds
            if self.step is self.model and not self.to_capture:
                raise
            say(f"warning: no CUDA graph ({type(e).__name__}); decoding step by step, launches included")
            self.step, self.to_capture, self.graph = self.model, False, None
            return self.after(token_11).clone()

    def after(self, token_11: torch.Tensor) -> torch.Tensor:
        given = dict(self.given)
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
                self.said_11 = self.after(self.token_11)
        except Exception:
            torch.cuda.set_stream(stream)  # a failed capture leaves its own behind
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


def kind(thing: Any) -> str:
    return type(thing).__name__


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
    exactly: bool = False,
    until: float = math.inf,
) -> list[str]:
    """One text a prompt, the prompt included, at most `tokens` new ones (`exactly`: no fewer); greedy at temperature 0.

    One prompt after the other: each gets the text that it gets alone, in the memory of one. Raises InputError as
    `check_sampling` and `prompt_ids` do, before anything is generated; TimeoutError at the time `until` of time.monotonic.
    """
    check_sampling(temperature, top_p, top_k)
    prompts_ids = [prompt_ids(model, tokenizer, prompt, tokens) for prompt in prompts]
    own = model.generation_config
    config = transformers.GenerationConfig(
        max_new_tokens=tokens,
        min_new_tokens=tokens if exactly else None,
        do_sample=temperature > 0,
        eos_token_id=own.eos_token_id,
        bos_token_id=own.bos_token_id,
        pad_token_id=own.pad_token_id if own.pad_token_id is not None else tokenizer.eos_token_id or 0,
        **({"temperature": temperature, "top_k": top_k, "top_p": top_p} if temperature > 0 else {}),
    )
    texts = []
    for prompt, ids in zip(prompts, prompts_ids, strict=True):
        if until < math.inf:
            config.max_time = until - time.monotonic()
        ids_1T = torch.tensor([ids], device=model.device)
        with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
            torch.manual_seed(seed)
            out_T = model.generate(ids_1T, attention_mask=torch.ones_like(ids_1T), generation_config=config)[0]
        if time.monotonic() > until:
            raise TimeoutError
        # Decoded together, cut apart: alone, the first new word would lose its space in some tokenizers.
        before = tokenizer.decode(ids, skip_special_tokens=True)
        texts.append(prompt + tokenizer.decode(out_T, skip_special_tokens=True)[len(before) :])
    return texts
