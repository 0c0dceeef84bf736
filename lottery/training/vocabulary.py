"""A small vocabulary made from the training text itself: byte-level BPE, as the embedded model has it.

All 256 bytes are tokens, so that every text can be written with it, and `<|endoftext|>`, token 0, begins and ends texts.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from lottery.errors import InputError
from lottery.training.stories import END

SMALLEST = 257  # END and the bytes
MOST_CHARACTERS = 8_000_000  # of a text that are looked at: more of them change few tokens
# The trainer's time grows with the square of a word's length, and a text without spaces is one word: it is cut.
PIECE = re.compile(r".{1,1000}\S{0,200}", re.DOTALL)


def train_vocabulary(text: str, words: int) -> Tokenizer:
    """Returns a tokenizer of `words` tokens. The same text gives the same tokenizer.

    Raises InputError, which begins with `vocabulary`, for fewer words than there are bytes, and for a text that is too
    small to have so many.
    """
    if words < SMALLEST:
        raise InputError(f"vocabulary={words}: every byte needs a token; give {SMALLEST} or more")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=words,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        min_frequency=2,
        show_progress=False,
    )
    documents = text[:MOST_CHARACTERS].split(END)
    tokenizer.train_from_iterator((piece for document in documents for piece in PIECE.findall(document)), trainer)
    if (found := tokenizer.get_vocab_size()) < words:
        raise InputError(f"vocabulary={words}: the training text gives only {found} words; give that, or a longer text")
    return tokenizer


def encode(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """Returns the tokens of a text, int64. Nothing is added at its start or end."""
    return np.array(tokenizer.encode(text).ids, np.int64)


def save_vocabulary(tokenizer: Tokenizer, folder: Path, context: int) -> None:
    """Writes the files that transformers' AutoTokenizer reads. `context` is the longest text that the model takes."""
    from transformers import PreTrainedTokenizerFast

    wrapped: Any = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, model_max_length=context
    )
    wrapped.save_pretrained(folder)
