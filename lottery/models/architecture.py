"""What config.json and the tokenizer files say of a model, read with transformers; no weights."""

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

MOST_LAYERS = 1000  # of any model there is, and more: a config.json may say what it likes


@contextmanager
def transformers_errors(folder: Path, what: str) -> Iterator[None]:
    """Whatever transformers raises over a file of the user's is an InputError: it has no class of its own for that."""
    try:
        yield
    except (InputError, MachineError):
        raise
    except Exception as e:  # KeyError, ZeroDivisionError, a validation class of its own: anything, over a bad file
        if is_out_of_memory(e) or is_gpu_error(e):
            raise
        reason = " ".join(str(e).split())[:200]
        raise InputError(f"model={folder}: {what} is not usable ({type(e).__name__}: {reason})") from e


def read_config(folder: Path) -> Any:
    with transformers_errors(folder, "config.json"):
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
        if not 0 < layers <= MOST_LAYERS:
            raise InputError(f"model={folder}: config.json says {layers} layers; give a model with 1 to {MOST_LAYERS}")
        return config


def is_tied(folder: Path) -> bool:
    """Whether the head is the embedding matrix itself; where config.json does not say, its class's own default holds."""
    config = read_config(folder)
    return bool(getattr(config, "tie_word_embeddings", False))


def build_meta_model(config: Any, folder: Path) -> Any:
    """The model that a config describes, without weights."""
    with transformers_errors(folder, "config.json"), torch.device("meta"):
        return model_class(config, folder)(config)


def tensors_from_config(folder: Path) -> dict[str, TensorInfo]:
    """Name -> shape and type of every parameter of the model that config.json describes, a tied one once; no weights."""
    config = read_config(folder)
    dtype = config.dtype if config.dtype in DTYPES.values() else torch.float32
    name_of_dtype = next(name for name, known in DTYPES.items() if known == dtype)
    model = build_meta_model(config, folder)
    return {name: TensorInfo("", name_of_dtype, tuple(p.shape)) for name, p in model.named_parameters()}


def linear_layers(folder: Path) -> dict[str, tuple[str, str]]:
    """What a checkpoint may call each linear layer of the model that config.json describes -> (its path in memory, the
    name of its class). Checkpoints of some families leave out the first part of the path."""
    model = build_meta_model(read_config(folder), folder)
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
    with transformers_errors(folder, "its tokenizer"):
        return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def model_class(config: Any, folder: Path) -> Any:
    """The class that config.json names. Raises InputError where it names none that is known here."""
    architecture = (config.architectures or [None])[0]
    found: Any = getattr(transformers, str(architecture), None)
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise InputError(f"model={folder}: config.json names the architecture {architecture}, unknown here")
    return found


def encode(tokenizer: Any, text: str, special: bool = True) -> list[int]:
    """Token ids, with the tokenizer's own special tokens (a BOS, where it has one) unless told otherwise."""
    return tokenizer(text, verbose=False, add_special_tokens=special)["input_ids"]


def kind(thing: Any) -> str:
    return type(thing).__name__
