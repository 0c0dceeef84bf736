"""Decodes with llama.cpp, in a process and an interpreter of its own that has the packages llama-cpp-python and gguf:

    python llama_worker.py FOLDER HIDDEN KEYS FFN LAYERS THREADS

It writes a model of random weights in two types to FOLDER, unless they are there, and loads both. Then it reads lines from
stdin: the name of a type and a number of tokens. It answers each with the seconds that a token takes, of which one more
than so many is decoded first. The vocabulary is tiny, so that the layers take all of the time.
"""

import sys
import time
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

WORDS = 64
HEAD = 128  # numbers in an attention head
TYPES = {"Q8_0": gguf.GGMLQuantizationType.Q8_0, "F16": gguf.GGMLQuantizationType.F16}


def weights(kind: str, rows: int, columns: int) -> np.ndarray:
    random = np.random.default_rng(0)
    if kind == "F16":
        return (0.02 * random.standard_normal((rows, columns), np.float32)).astype(np.float16)
    blocks = random.integers(0, 256, (rows, columns // 32, 34), np.uint8)  # a scale in 16 bits, and 32 codes
    blocks[..., :2] = np.array([2e-4], np.float16).view(np.uint8)
    return blocks.reshape(rows, -1)


def write_model(path: Path, kind: str, hidden: int, keys: int, ffn: int, layers: int) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(layers)
    writer.add_context_length(512)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(hidden // HEAD)
    writer.add_head_count_kv(keys // HEAD)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(WORDS)
    writer.add_tokenizer_model("no_vocab")

    def add(name: str, rows: int, columns: int) -> None:
        writer.add_tensor(f"{name}.weight", weights(kind, rows, columns), raw_dtype=TYPES[kind])

    def add_norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(hidden, np.float32))

    add("token_embd", WORDS, hidden)
    for layer in range(layers):
        at = f"blk.{layer}"
        add_norm(f"{at}.attn_norm")
        add(f"{at}.attn_q", hidden, hidden)
        add(f"{at}.attn_k", keys, hidden)
        add(f"{at}.attn_v", keys, hidden)
        add(f"{at}.attn_output", hidden, hidden)
        add_norm(f"{at}.ffn_norm")
        add(f"{at}.ffn_gate", ffn, hidden)
        add(f"{at}.ffn_up", ffn, hidden)
        add(f"{at}.ffn_down", hidden, ffn)
    add_norm("output_norm")
    add("output", WORDS, hidden)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def load(path: Path, threads: int) -> object:
    """Returns a context of llama.cpp."""
    model_params = llama_cpp.llama_model_default_params()
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_params)
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_threads, params.n_threads_batch = 512, threads, threads
    context = llama_cpp.llama_init_from_model(model, params)
    assert context, f"llama.cpp does not load {path}"
    return context


def decode(context: object, tokens: int) -> float:
    """Returns the seconds of a token, of `tokens` that follow a first one."""
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
    word = (llama_cpp.llama_token * 1)(7)
    begin = 0.0
    for number in range(tokens + 1):
        if number == 1:
            begin = time.perf_counter()
        assert llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(word, 1)) == 0
        llama_cpp.llama_get_logits(context)  # waits for them
    return (time.perf_counter() - begin) / tokens


def main() -> None:
    folder = Path(sys.argv[1])
    hidden, keys, ffn, layers, threads = map(int, sys.argv[2:])
    llama_cpp.llama_backend_init()
    contexts = {}
    for kind in TYPES:
        path = folder / f"{kind}-{hidden}-{keys}-{ffn}-{layers}.gguf"
        if not path.exists():
            partial = path.with_suffix(".partial")
            write_model(partial, kind, hidden, keys, ffn, layers)
            partial.rename(path)
        contexts[kind] = load(path, threads)
    print(llama_cpp.llama_print_system_info().decode().strip(), flush=True)
    for line in sys.stdin:
        kind, tokens = line.split()
        print(decode(contexts[kind], int(tokens)), flush=True)


if __name__ == "__main__":
    main()
