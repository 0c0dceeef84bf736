"""config.json and the tokenizer files of a model are read here with transformers, without its weights."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers

from lottery.errors import InputError, MachineError, is_gpu_error, is_out_of_memory
from lottery.models.checkpoint import TOKENIZER_FILES
from lottery.models.headers import TensorInfo
from lottery.models.tensors import DTYPES
from lottery.progress import say

MOST_LAYERS = 1000  # no model has more; a damaged config.json may name any number


@contextmanager
def transformers_errors(folder: Path, what: str) -> Iterator[None]:
    """Turns whatever transformers raises over a file of the user into InputError, as it has no class for that."""
    try:
        yield
    except (InputError, MachineError):
        raise
    except Exception as e:  # a bad file may raise KeyError, ZeroDivisionError, a validation class, anything
        if is_out_of_memory(e) or is_gpu_error(e):
            raise
        reason = " ".join(str(e).split())[:200]
        raise InputError(f"model={folder}: {what} is not usable ({type(e).__name__}: {reason})") from e


def read_config(folder: Path) -> Any:
    """Returns the config object of transformers. Raises InputError for a config.json that cannot be used."""
    with transformers_errors(folder, "config.json"):
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
        if not 0 < layers <= MOST_LAYERS:
            raise InputError(f"model={folder}: config.json says {layers} layers; give a model with 1 to {MOST_LAYERS}")
        return without_attention(config)


def without_attention(config: Any) -> Any:
    """Returns the config without the attention implementation that it names, unless that is one of torch's own.

    The choice belongs to the machine: the package may not be installed, and a name of the hub would download code.
    """
    if (named := config._attn_implementation) not in (None, "eager", "sdpa"):
        say_once(f"warning: config.json names the attention {named}, which is ignored; torch's own is used")
        config._attn_implementation = None
    return config


@functools.cache
def say_once(line: str) -> None:
    """Prints one line, the first time in this process."""
    say(line)


def is_tied(folder: Path) -> bool:
    """Returns whether the head is the embedding matrix itself. The default of the config class applies when config.json
    does not say."""
    config = read_config(folder)
    return bool(getattr(config, "tie_word_embeddings", False))


def build_meta_model(config: Any, folder: Path) -> Any:
    """Returns the model that a config describes, on the meta device, without weights."""
    with transformers_errors(folder, "config.json"), torch.device("meta"):
        return model_class(config, folder)(config)


def tensors_from_config(folder: Path) -> dict[str, TensorInfo]:
    """Returns name -> shape and type of every parameter of the model that config.json describes, a tied one once."""
    config = read_config(folder)
    dtype = config.dtype if config.dtype in DTYPES.values() else torch.float32
    name_of_dtype = next(name for name, known in DTYPES.items() if known == dtype)
    model = build_meta_model(config, folder)
    return {name: TensorInfo("", name_of_dtype, tuple(p.shape)) for name, p in model.named_parameters()}


def linear_layers(folder: Path) -> dict[str, tuple[str, str]]:
    """Returns the linear layers of the model that config.json describes: name in a checkpoint -> (path in the model,
    name of the class).

    Each layer has an entry without the base model's prefix too, because checkpoints of some families leave it out.
    """
    model = build_meta_model(read_config(folder), folder)
    classes = {path: kind(m) for path, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    short = {path.removeprefix(f"{model.base_model_prefix}."): path for path in classes}
    return {name: (path, classes[path]) for name, path in [*short.items(), *((path, path) for path in classes)]}


def context_length(config: Any) -> int:
    """Returns the longest window that the model takes, in tokens; 2048 when its config does not say."""
    return int(getattr(config.get_text_config(), "max_position_embeddings", None) or 2048)


def read_tokenizer(folder: Path) -> Any | None:
    """Returns the folder's tokenizer, or None when it has none. Code from the folder is never run. Raises InputError
    for a tokenizer that cannot be used."""
    if not any((folder / name).is_file() for name in TOKENIZER_FILES if name != "chat_template.jinja"):
        return None
    with transformers_errors(folder, "its tokenizer"):
        return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def model_class(config: Any, folder: Path) -> Any:
    """Returns the class of transformers that config.json names. Raises InputError when there is no such class."""
    architecture = (config.architectures or [None])[0]
    named: Any = getattr(transformers, str(architecture), None)
    if not (isinstance(named, type) and issubclass(named, transformers.PreTrainedModel)):
        raise InputError(
            f"model={folder}: config.json names the architecture {architecture}, which transformers does not know"
        )
    return named


def encode(tokenizer: Any, text: str, special: bool = True) -> list[int]:
    """Returns the token ids of a text. With `special` the tokenizer adds its special tokens, such as a BOS."""
    return tokenizer(text, verbose=False, add_special_tokens=special)["input_ids"]


def kind(thing: Any) -> str:
    """Returns the name of an object's class."""
    return type(thing).__name__
