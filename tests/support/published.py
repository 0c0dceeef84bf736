"""Published models by their shapes: hyper-parameters, exact sizes, tiny models of every family, names in the hub files."""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

# What config.json on the hub says, for the keys that fix the architecture. Where a key such as tie_word_embeddings is
# missing, the published file does not have it either and the default of the family holds.
CONFIGS: dict[str, dict[str, Any]] = {
    "mistralai/Mistral-7B-v0.1": {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 32768,
        "sliding_window": 4096,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-05,
        "vocab_size": 32000,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    },
    "Qwen/Qwen2.5-7B": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "max_position_embeddings": 131072,
        "max_window_layers": 28,
        "sliding_window": 131072,
        "use_sliding_window": False,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-06,
        "vocab_size": 152064,
        "bos_token_id": 151643,
        "eos_token_id": 151643,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    },
    "Qwen/Qwen2.5-0.5B": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "max_window_layers": 24,
        "sliding_window": 32768,
        "use_sliding_window": False,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-06,
        "vocab_size": 151936,
        "bos_token_id": 151643,
        "eos_token_id": 151643,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    },
    "HuggingFaceTB/SmolLM2-1.7B": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "attention_bias": False,
        "mlp_bias": False,
        "max_position_embeddings": 8192,
        "rope_theta": 130000,
        "rms_norm_eps": 1e-05,
        "vocab_size": 49152,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    },
    "microsoft/phi-2": {
        "architectures": ["PhiForCausalLM"],
        "model_type": "phi",
        "hidden_act": "gelu_new",
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "partial_rotary_factor": 0.4,
        "qk_layernorm": False,
        "max_position_embeddings": 2048,
        "rope_theta": 10000.0,
        "layer_norm_eps": 1e-05,
        "vocab_size": 51200,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
    },
    "meta-llama/Llama-3.1-8B": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "attention_bias": False,
        "mlp_bias": False,
        "max_position_embeddings": 131072,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rms_norm_eps": 1e-05,
        "vocab_size": 128256,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    },
    "TinyLlama/TinyLlama_v1.1": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-05,
        "vocab_size": 32000,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    },
    "Qwen/Qwen3-8B": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "attention_bias": False,
        "max_position_embeddings": 40960,
        "max_window_layers": 36,
        "use_sliding_window": False,
        "rope_theta": 1000000,
        "rms_norm_eps": 1e-06,
        "vocab_size": 151936,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    },
    "microsoft/phi-1_5": {
        "architectures": ["PhiForCausalLM"],
        "model_type": "phi",
        "hidden_act": "gelu_new",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "num_key_value_heads": None,
        "partial_rotary_factor": 0.5,
        "qk_layernorm": False,
        "max_position_embeddings": 2048,
        "rope_theta": 10000.0,
        "layer_norm_eps": 1e-05,
        "vocab_size": 51200,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
    },
    "microsoft/Phi-3-mini-4k-instruct": {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "hidden_act": "silu",
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "sliding_window": 2047,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-05,
        "vocab_size": 32064,
        "bos_token_id": 1,
        "eos_token_id": 32000,
        "pad_token_id": 32000,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    },
    "microsoft/phi-4": {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "hidden_act": "silu",
        "hidden_size": 5120,
        "intermediate_size": 17920,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "num_key_value_heads": 10,
        "max_position_embeddings": 16384,
        "original_max_position_embeddings": 16384,
        "rope_theta": 250000,
        "rms_norm_eps": 1e-05,
        "vocab_size": 100352,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    },
    "google/gemma-2-9b": {
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 3584,
        "intermediate_size": 14336,
        "num_hidden_layers": 42,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "max_position_embeddings": 8192,
        "sliding_window": 4096,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-06,
        "vocab_size": 256000,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "torch_dtype": "float32",
    },
    "google/gemma-3-1b-pt": {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 1152,
        "intermediate_size": 6912,
        "num_hidden_layers": 26,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "max_position_embeddings": 32768,
        "sliding_window": 512,
        "sliding_window_pattern": 6,
        "rope_theta": 1000000,
        "rope_local_base_freq": 10000,
        "rms_norm_eps": 1e-06,
        "vocab_size": 262144,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "torch_dtype": "bfloat16",
    },
    "openai-community/gpt2": {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "n_embd": 768,
        "n_head": 12,
        "n_layer": 12,
        "n_ctx": 1024,
        "n_positions": 1024,
        "layer_norm_epsilon": 1e-05,
        "vocab_size": 50257,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
    },
    "EleutherAI/pythia-6.9b": {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "hidden_act": "gelu",
        "hidden_size": 4096,
        "intermediate_size": 16384,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 2048,
        "rotary_emb_base": 10000,
        "rotary_pct": 0.25,
        "use_parallel_residual": True,
        "layer_norm_eps": 1e-05,
        "vocab_size": 50432,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
    },
    "facebook/opt-6.7b": {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "activation_function": "relu",
        "hidden_size": 4096,
        "ffn_dim": 16384,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "word_embed_proj_dim": 4096,
        "do_layer_norm_before": True,
        "max_position_embeddings": 2048,
        "vocab_size": 50272,
        "bos_token_id": 2,
        "eos_token_id": 2,
        "pad_token_id": 1,
        "torch_dtype": "float16",
    },
    "facebook/opt-350m": {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "activation_function": "relu",
        "hidden_size": 1024,
        "ffn_dim": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "word_embed_proj_dim": 512,
        "do_layer_norm_before": False,
        "max_position_embeddings": 2048,
        "vocab_size": 50272,
        "bos_token_id": 2,
        "eos_token_id": 2,
        "pad_token_id": 1,
        "torch_dtype": "float16",
    },
    "tiiuae/falcon-7b": {
        "architectures": ["FalconForCausalLM"],
        "model_type": "falcon",
        "hidden_size": 4544,
        "num_hidden_layers": 32,
        "num_attention_heads": 71,
        "multi_query": True,
        "parallel_attn": True,
        "new_decoder_architecture": False,
        "alibi": False,
        "bias": False,
        "layer_norm_epsilon": 1e-05,
        "vocab_size": 65024,
        "bos_token_id": 11,
        "eos_token_id": 11,
        "torch_dtype": "bfloat16",
    },
    "stabilityai/stablelm-3b-4e1t": {
        "architectures": ["StableLmForCausalLM"],
        "model_type": "stablelm",
        "hidden_act": "silu",
        "hidden_size": 2560,
        "intermediate_size": 6912,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "partial_rotary_factor": 0.25,
        "use_qkv_bias": False,
        "max_position_embeddings": 4096,
        "rope_theta": 10000,
        "layer_norm_eps": 1e-05,
        "vocab_size": 50304,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    },
    "allenai/OLMo-2-1124-7B": {
        "architectures": ["Olmo2ForCausalLM"],
        "model_type": "olmo2",
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "attention_bias": False,
        "max_position_embeddings": 4096,
        "rope_theta": 500000,
        "rms_norm_eps": 1e-06,
        "vocab_size": 100352,
        "eos_token_id": 100257,
        "pad_token_id": 100277,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    },
    "mistralai/Mixtral-8x7B-v0.1": {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 32768,
        "sliding_window": None,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-05,
        "vocab_size": 32000,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    },
    "Qwen/Qwen1.5-MoE-A2.7B": {
        "architectures": ["Qwen2MoeForCausalLM"],
        "model_type": "qwen2_moe",
        "hidden_act": "silu",
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "norm_topk_prob": False,
        "decoder_sparse_step": 1,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "max_position_embeddings": 8192,
        "max_window_layers": 21,
        "sliding_window": 32768,
        "use_sliding_window": False,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-06,
        "vocab_size": 151936,
        "bos_token_id": 151643,
        "eos_token_id": 151643,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    },
    "Qwen/Qwen3-30B-A3B": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "hidden_act": "silu",
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "attention_bias": False,
        "max_position_embeddings": 40960,
        "max_window_layers": 48,
        "use_sliding_window": False,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-06,
        "vocab_size": 151936,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    },
    "allenai/OLMoE-1B-7B-0924": {
        "architectures": ["OlmoeForCausalLM"],
        "model_type": "olmoe",
        "hidden_act": "silu",
        "hidden_size": 2048,
        "intermediate_size": 1024,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "norm_topk_prob": False,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "attention_bias": False,
        "max_position_embeddings": 4096,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-05,
        "vocab_size": 50304,
        "eos_token_id": 50279,
        "pad_token_id": 1,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    },
}

# Every parameter of the model, biases and norms included, buffers not, a tied matrix once.
PARAMETERS: dict[str, int] = {
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "HuggingFaceTB/SmolLM2-1.7B": 1_711_376_384,
    "microsoft/phi-2": 2_779_683_840,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "TinyLlama/TinyLlama_v1.1": 1_100_048_384,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "microsoft/phi-1_5": 1_418_270_720,
    "microsoft/Phi-3-mini-4k-instruct": 3_821_079_552,
    "microsoft/phi-4": 14_659_507_200,
    "google/gemma-2-9b": 9_241_705_984,
    "google/gemma-3-1b-pt": 999_885_952,
    "openai-community/gpt2": 124_439_808,
    "EleutherAI/pythia-6.9b": 6_857_302_016,
    "facebook/opt-6.7b": 6_658_473_984,
    "facebook/opt-350m": 331_196_416,
    "tiiuae/falcon-7b": 6_921_720_704,
    "stabilityai/stablelm-3b-4e1t": 2_795_443_200,
    "allenai/OLMo-2-1124-7B": 7_298_617_344,
    "mistralai/Mixtral-8x7B-v0.1": 46_702_792_704,
    "Qwen/Qwen1.5-MoE-A2.7B": 14_315_784_192,
    "Qwen/Qwen3-30B-A3B": 30_532_122_624,
    "allenai/OLMoE-1B-7B-0924": 6_919_161_856,
}

_COMMON = {"vocab_size": 4096, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
_LLAMA = _COMMON | {
    "hidden_size": 48,
    "intermediate_size": 100,  # not divisible by 8: packed rows end inside a byte
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
_GEMMA = _LLAMA | {"head_dim": 16}  # 4 heads of 16: wider than the hidden size, as published
_OPT = _COMMON | {
    "hidden_size": 48,
    "ffn_dim": 100,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
_FALCON = _COMMON | {
    "hidden_size": 48,
    "ffn_hidden_size": 100,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "parallel_attn": True,
    "alibi": False,
    "bias": False,
}

# A tiny model of every family: arguments of the configuration class, and model_type, which names the class.
TINY: dict[str, dict[str, Any]] = {
    "llama": _LLAMA | {"model_type": "llama", "tie_word_embeddings": False},
    "mistral": _LLAMA | {"model_type": "mistral", "tie_word_embeddings": False, "sliding_window": 64},
    "qwen2": _LLAMA | {"model_type": "qwen2", "tie_word_embeddings": False},
    "qwen2_tied": _LLAMA | {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": _LLAMA | {"model_type": "qwen3", "tie_word_embeddings": False, "head_dim": 16},
    "phi": _LLAMA | {"model_type": "phi", "tie_word_embeddings": False, "partial_rotary_factor": 0.5},
    "phi3": _LLAMA | {"model_type": "phi3", "tie_word_embeddings": False, "original_max_position_embeddings": 128},
    "gemma": _GEMMA | {"model_type": "gemma"},
    "gemma2": _GEMMA | {"model_type": "gemma2", "query_pre_attn_scalar": 16, "sliding_window": 64},
    "gemma3_text": _GEMMA
    | {
        "model_type": "gemma3_text",
        "query_pre_attn_scalar": 16,
        "sliding_window": 64,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "gpt2": _COMMON
    | {"model_type": "gpt2", "n_embd": 48, "n_inner": 100, "n_layer": 3, "n_head": 4, "n_positions": 128},
    "gpt_neox": _COMMON
    | {
        "model_type": "gpt_neox",
        "hidden_size": 48,
        "intermediate_size": 100,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "rotary_pct": 0.5,
        "tie_word_embeddings": False,
    },
    "opt": _OPT | {"model_type": "opt", "word_embed_proj_dim": 48},
    "opt_projected": _OPT | {"model_type": "opt", "word_embed_proj_dim": 24, "do_layer_norm_before": False},
    "falcon": _FALCON | {"model_type": "falcon", "multi_query": True, "new_decoder_architecture": False},
    "falcon_new": _FALCON | {"model_type": "falcon", "num_kv_heads": 2, "new_decoder_architecture": True},
    "stablelm": _LLAMA | {"model_type": "stablelm", "tie_word_embeddings": False, "partial_rotary_factor": 0.5},
    "stablelm_qk": _LLAMA
    | {
        "model_type": "stablelm",
        "tie_word_embeddings": False,
        "partial_rotary_factor": 0.5,
        "qk_layernorm": True,
        "use_qkv_bias": True,
    },
    "olmo": _LLAMA | {"model_type": "olmo", "tie_word_embeddings": False},
    "olmo2": _LLAMA | {"model_type": "olmo2", "tie_word_embeddings": False},
    "granite": _LLAMA | {"model_type": "granite", "tie_word_embeddings": True, "logits_scaling": 8.0},
    "cohere": _LLAMA | {"model_type": "cohere", "tie_word_embeddings": True, "use_qk_norm": True},
    "smollm3": _LLAMA | {"model_type": "smollm3", "tie_word_embeddings": True, "no_rope_layers": [1, 1, 0]},
    "mixtral": _LLAMA | {"model_type": "mixtral", "tie_word_embeddings": False, "num_local_experts": 4},
    "qwen2_moe": _LLAMA
    | {
        "model_type": "qwen2_moe",
        "tie_word_embeddings": False,
        "moe_intermediate_size": 36,
        "shared_expert_intermediate_size": 76,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    },
    "qwen3_moe": _LLAMA
    | {
        "model_type": "qwen3_moe",
        "tie_word_embeddings": False,
        "head_dim": 16,
        "moe_intermediate_size": 36,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "mlp_only_layers": [0],  # a dense layer before the sparse ones
    },
    "olmoe": _LLAMA
    | {
        "model_type": "olmoe",
        "tie_word_embeddings": False,
        "intermediate_size": 36,
        "num_experts": 3,
        "num_experts_per_tok": 2,
    },
}


def make_config(values: dict[str, Any]) -> Any:
    """The transformers configuration for what a config.json holds."""
    return CONFIG_MAPPING[values["model_type"]].from_dict(deepcopy(values))


def causal_class(config: Any) -> Any:
    """The concrete ForCausalLM class of a configuration."""
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]


def tiny_config(label: str) -> Any:
    return make_config(TINY[label])


def tiny_class(label: str) -> Any:
    return causal_class(tiny_config(label))


def real_buffers(model_type: str, config: Any) -> dict[str, Tensor]:
    """The masks and rotary tables that published files of the family carry beside the parameters."""
    if model_type == "gpt2":
        # openai-community/gpt2 has the mask alone; many fine-tuned files, saved later, have both
        mask = torch.ones(config.n_positions, config.n_positions).tril()[None, None]
        return {
            f"h.{layer}.attn.{name}": tensor.clone()
            for layer in range(config.n_layer)
            for name, tensor in (("bias", mask), ("masked_bias", torch.tensor(-10000.0)))
        }
    if model_type == "gpt_neox":
        length = config.max_position_embeddings
        buffers = {
            "bias": torch.ones(length, length, dtype=torch.bool).tril()[None, None],
            "masked_bias": torch.tensor(-1e9),
            "rotary_emb.inv_freq": _inverse_frequencies(config),
        }
        prefix = "gpt_neox.layers.{}.attention."
    elif model_type == "llama":  # files that old transformers wrote
        buffers = {"rotary_emb.inv_freq": _inverse_frequencies(config)}
        prefix = "model.layers.{}.self_attn."
    else:
        return {}
    return {
        prefix.format(layer) + name: tensor.clone()
        for layer in range(config.num_hidden_layers)
        for name, tensor in buffers.items()
    }


def _inverse_frequencies(config: Any) -> Tensor:
    rope = config.rope_parameters
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rotated = int(head * rope.get("partial_rotary_factor", 1.0))
    return rope["rope_theta"] ** -(torch.arange(0, rotated, 2, dtype=torch.float32) / rotated)


def published_names(
    model_type: str, state: dict[str, Tensor], config: Any, *, duplicate_head: bool = False
) -> dict[str, Tensor]:
    """What `save_pretrained` writes, under the names and with the extra tensors of the family's files on the hub.

    OPT has two layouts: `decoder.…` (350m, 6.7b, 13b, 30b), and with `duplicate_head` `model.decoder.…` beside a
    second copy of the embeddings as `lm_head.weight` (125m, 1.3b, 2.7b, 66b). Falcon-7b always has that copy, the new decoder (40b) never.
    """
    published = {_published_name(model_type, name, duplicate_head): tensor for name, tensor in state.items()}
    if model_type == "falcon" and not config.new_decoder_architecture:
        published["lm_head.weight"] = state["transformer.word_embeddings.weight"].clone()
    elif model_type == "opt" and duplicate_head:
        published["lm_head.weight"] = state["model.decoder.embed_tokens.weight"].clone()
    return published | real_buffers(model_type, config)


def _published_name(model_type: str, name: str, duplicate_head: bool) -> str:
    if model_type == "gpt2":
        return name.removeprefix("transformer.")
    if model_type == "opt" and not duplicate_head:
        return name.removeprefix("model.")
    if model_type == "gpt_neox" and name == "lm_head.weight":
        return "embed_out.weight"
    return name
