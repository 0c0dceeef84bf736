"""A base or a ticket on disk -> a transformers model and its tokenizer. Beside decoding.py the only file that says
transformers."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers

from lottery.checkpoint import DTYPES, TOKENIZER_FILES, TensorInfo
from lottery.failures import is_of_gpu, is_of_memory
from lottery.progress import say
from lottery.runtime import PackedLinear, Scratch, check_int8, int8_linear
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
    if isinstance(head := model.get_output_embeddings(), torch.nn.Linear | PackedLinear):
        head.register_forward_pre_hook(in_one_piece)
    model.save_pretrained = cannot_save


def in_one_piece(_: Any, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """A part of a tensor times a weight without gradients is a batch of products for torch: for the last token of a prompt
    and the head of Mistral 7B, in bfloat16 on a CPU, 700 ms instead of 19."""
    return (given[0].clone(memory_format=torch.contiguous_format), *given[1:])


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


def kind(thing: Any) -> str:
    return type(thing).__name__
