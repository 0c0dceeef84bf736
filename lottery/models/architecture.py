"""config.json and the tokenizer files of a model are read here with transformers, without its weights.

transformers is imported when it is needed: pruning alone needs it only for a model that it has not seen yet."""

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lottery.errors import InputError, MachineError, is_gpu_error, is_out_of_memory
from lottery.files.facts import find_fact
from lottery.files.reading import read_json
from lottery.models.checkpoint import TOKENIZER_FILES
from lottery.models.headers import TensorInfo
from lottery.models.tensors import DTYPES

MOST_LAYERS = 1000  # no model has more; a damaged config.json may name any number
# Switches of config.json that change what a forward pass returns, and the values that the code here expects.
RETURNS = {"return_dict": True, "output_hidden_states": False, "output_attentions": False, "use_cache": True}
ATTENTION_KEYS = ("attn_implementation", "_attn_implementation")
ATTENTIONS = ("eager", "sdpa", "flex_attention")
ATTENTION_PACKAGES = {  # value in config.json -> the module that transformers imports for it, the name to install
    "flash_attention_2": ("flash_attn", "flash-attn"),
    "flash_attention_3": ("flash_attn_interface", "flash-attn-3"),
}
NO_ATTENTION = "remove that key from config.json, and transformers chooses what works here"


@contextmanager
def transformers_errors(folder: Path, what: str) -> Iterator[None]:
    """Turns whatever transformers raises over a file of the user into InputError, as it has no class for that."""
    with library_errors(f"model={folder}: {what} is not usable"):
        yield


@contextmanager
def library_errors(problem: str) -> Iterator[None]:
    """Turns whatever transformers raises within the block into InputError: the problem, and its reason in parentheses.

    Before it raises, transformers may log a dump of the whole config, which is silenced.
    """
    import transformers

    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    try:
        yield
    except (InputError, MachineError):
        raise
    except Exception as e:  # a bad file may raise KeyError, ZeroDivisionError, a validation class, anything
        if is_out_of_memory(e) or is_gpu_error(e):
            raise
        reason = " ".join(str(e).split())[:200]
        raise InputError(f"{problem} ({type(e).__name__}: {reason})") from e
    finally:
        transformers.logging.set_verbosity(level)


def read_config(folder: Path) -> Any:
    """Returns the config object of transformers. Raises InputError for a config.json that cannot be used.

    Its switches for what a forward pass returns are set to what the code here expects. A `quantization_config` is left
    out: lottery reads only weights that are not quantized, and transformers would quantize them at loading.
    """
    import transformers

    with transformers_errors(folder, "config.json"):
        check_attention(read_json(folder / "config.json"), f"model={folder}")
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, **RETURNS)
        if getattr(config, "quantization_config", None) is not None:
            del config.quantization_config
        layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
        if not 0 < layers <= MOST_LAYERS:
            raise InputError(f"model={folder}: config.json says {layers} layers; give a model with 1 to {MOST_LAYERS}")
        return config


def check_attention(config: Mapping[str, Any], what: str) -> None:
    """Raises InputError, which begins with `what`, where config.json names a way to compute attention that cannot be
    used here, for the model or for a part of it such as `text_config`.

    A name with a slash would make transformers fetch code from the hub and run it.
    """
    for key, named in attention_names(config):
        if named is None or named in ATTENTIONS:
            continue
        package = ATTENTION_PACKAGES.get(named) if isinstance(named, str) else None
        if package is None:
            raise InputError(
                f"{what}: its config.json names {key}={named!r}, which cannot be used here; "
                f"known: {', '.join(ATTENTIONS)}; or {NO_ATTENTION}"
            )
        module, name = package
        if importlib.util.find_spec(module) is None:
            raise InputError(
                f"{what}: its config.json names {key}={named!r}, for which the package {name} is not installed; "
                f"install it, or {NO_ATTENTION}"
            )


def attention_names(config: Mapping[str, Any], inside: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (key, value) of each place of a config.json that names a way to compute attention. A key within
    another one is written as `text_config.attn_implementation`."""
    for key, value in config.items():
        if key in ATTENTION_KEYS:
            yield f"{inside}{key}", value
        elif isinstance(value, dict):
            yield from attention_names(value, f"{inside}{key}.")


def is_tied(folder: Path) -> bool:
    """Returns whether the head is the embedding matrix itself. The default of the config class applies when config.json
    does not say."""

    def find() -> bool:
        return bool(getattr(read_config(folder), "tie_word_embeddings", False))

    return find_fact("tied", [folder / "config.json"], None, find)


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
    if needs_sentencepiece(folder):
        what = f"model={folder}: its tokenizer is a SentencePiece model (tokenizer.model) without"
        if importlib.util.find_spec("sentencepiece") is None:
            way_out = "run `pip install sentencepiece`, or put the tokenizer.json of the model beside it"
            raise InputError(f"{what} tokenizer.json; {way_out}")
        if not (folder / "tokenizer_config.json").is_file():  # transformers would leave out BOS and the leading space
            raise InputError(f"{what} tokenizer_config.json, which says how it splits texts; put the model's beside it")
    import transformers

    with transformers_errors(folder, "its tokenizer"):
        return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def needs_sentencepiece(folder: Path) -> bool:
    """Returns whether the tokenizer can only be read with the package sentencepiece.

    A tokenizer.model of tiktoken has the same name, but is text; the other kind begins with a field of protobuf.
    """
    model = folder / "tokenizer.model"
    if (folder / "tokenizer.json").is_file() or not model.is_file():
        return False
    with open(model, "rb") as f:
        return f.read(1) == b"\n"


def model_class(config: Any, folder: Path) -> Any:
    """Returns the class of transformers that config.json names, and without `architectures` the one of its model_type.

    Raises InputError when there is no such class.
    """
    import transformers

    if not config.architectures and type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        return transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
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


def closes_texts(tokenizer: Any) -> bool:
    """Returns whether the tokenizer closes every text with an end token or a separator."""
    return encode(tokenizer, "a") != encode_prompt(tokenizer, "a")


def encode_prompt(tokenizer: Any, text: str) -> list[int]:
    """Returns the token ids of a text that a model is to continue.

    Some tokenizers close every text with an end token (or a separator). It would tell the model that the text has
    ended, so it is left out; one that the text itself ends with stays.
    """
    ids = encode(tokenizer, text)
    for closing in (tokenizer.eos_token_id, tokenizer.sep_token_id):
        if count_at_end(ids, closing) > count_at_end(encode(tokenizer, text, special=False), closing):
            ids = ids[:-1]
    return ids


def count_at_end(ids: list[int], token: int | None) -> int:
    """Returns how many times a token stands at the end."""
    return next((i for i, id in enumerate(reversed(ids)) if id != token), len(ids))


def kind(thing: Any) -> str:
    """Returns the name of an object's class."""
    return type(thing).__name__
