"""Makes a checkpoint of random weights in the shapes of Mistral 7B, as the hub's cache holds one."""

import hashlib
import json
from pathlib import Path

import click
import torch

MISTRAL = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
SHARD_LAYERS = 6
COMMIT = "0" * 40


def layer_shapes(layer: int) -> dict[str, tuple[int, ...]]:
    hidden, ffn = 4096, 14336
    at = f"model.layers.{layer}"
    return {
        f"{at}.self_attn.q_proj.weight": (hidden, hidden),
        f"{at}.self_attn.k_proj.weight": (1024, hidden),
        f"{at}.self_attn.v_proj.weight": (1024, hidden),
        f"{at}.self_attn.o_proj.weight": (hidden, hidden),
        f"{at}.mlp.gate_proj.weight": (ffn, hidden),
        f"{at}.mlp.up_proj.weight": (ffn, hidden),
        f"{at}.mlp.down_proj.weight": (hidden, ffn),
        f"{at}.input_layernorm.weight": (hidden,),
        f"{at}.post_attention_layernorm.weight": (hidden,),
    }


def make_checkpoint(cache: Path, layers: int) -> None:
    """Writes the model as the hub's cache does: its files are named by their sha256, and the snapshot of a commit links
    to them."""
    from safetensors.torch import save_file

    repo = cache / "models--random--mistral-shaped"
    blobs, snapshot = repo / "blobs", repo / "snapshots" / COMMIT
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    groups = [dict[str, tuple[int, ...]]() for _ in range(-(-layers // SHARD_LAYERS))]
    for layer in range(layers):
        groups[layer // SHARD_LAYERS] |= layer_shapes(layer)
    groups[0]["model.embed_tokens.weight"] = (32000, 4096)
    groups[-1] |= {"lm_head.weight": (32000, 4096), "model.norm.weight": (4096,)}
    random, index = torch.Generator().manual_seed(0), dict[str, str]()
    for i, shapes in enumerate(groups, 1):
        name = f"model-{i:05d}-of-{len(groups):05d}.safetensors"
        state = {n: torch.randn(s, generator=random, dtype=torch.bfloat16).mul_(0.02) for n, s in shapes.items()}
        save_file(state, blobs / "new", {"format": "pt"})
        index |= dict.fromkeys(state, name)
        with open(blobs / "new", "rb") as f:
            sha256 = hashlib.file_digest(f, "sha256").hexdigest()
        (blobs / "new").rename(blobs / sha256)
        (snapshot / name).symlink_to(blobs / sha256)
    (snapshot / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (snapshot / "config.json").write_text(json.dumps(MISTRAL | {"num_hidden_layers": layers}))


def find_or_make_checkpoint(cache: Path, layers: int) -> Path:
    """Returns the model's folder. The model is made if the folder does not exist yet."""
    model = cache / "models--random--mistral-shaped" / "snapshots" / COMMIT
    if not model.exists():
        click.echo("making the checkpoint", err=True)
        make_checkpoint(cache, layers)
    return model


def weight_files(folder: Path) -> list[Path]:
    return sorted(p.resolve() for p in folder.glob("*.safetensors"))
