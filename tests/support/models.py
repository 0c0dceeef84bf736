"""Small models."""

import shutil
from pathlib import Path
from typing import Any

import torch
import transformers

from lottery.models.checkpoint import BUILTIN


def tiny_model(folder: Path, kind: str = "Llama", dtype: torch.dtype = torch.bfloat16, **changes: Any) -> Path:
    """A random model of the real transformers class, saved as the hub's models are; the embedded tokenizer beside it."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 4096,
        "hidden_size": 48,
        "intermediate_size": 100,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    config = getattr(transformers, f"{kind}Config")(**(sizes | changes))
    model = getattr(transformers, f"{kind}ForCausalLM")(config).to(dtype)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BUILTIN / name, folder / name)
    return folder
