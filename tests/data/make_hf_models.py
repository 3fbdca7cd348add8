"""Make hf_models.npz: tiny random models of `transformers`, their weights and their logits.

pip install torch==2.13.0 transformers==5.23.0 && python tests/data/make_hf_models.py
"""

from pathlib import Path

import numpy as np
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

SIZES = dict(
    vocab_size=13, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, intermediate_size=48, rms_norm_eps=1e-5,
    max_position_embeddings=64, rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
)  # fmt: skip
FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM, False),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, True),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, True),
}
NAMES = {
    "input_layernorm.weight": "attn_norm",
    "post_attention_layernorm.weight": "mlp_norm",
    **{f"self_attn.{x}_proj.weight": x for x in "qkvo"},
    **{f"self_attn.{x}_proj.bias": f"{x}_bias" for x in "qkv"},
    **{f"self_attn.{x}_norm.weight": f"{x}_norm" for x in "qk"},
    **{f"mlp.{x}_proj.weight": x for x in ("gate", "up", "down")},
}


def weights(model):
    for name, w in model.state_dict().items():
        value = w.detach().numpy()
        if name == "model.embed_tokens.weight":
            yield "embed", value
        elif name == "model.norm.weight":
            yield "final_norm", value
        elif name == "lm_head.weight":
            if not model.config.tie_word_embeddings:
                yield "head", value.T
        else:
            _, _, layer, rest = name.split(".", 3)
            yield f"layers.{layer}.{NAMES[rest]}", value.T  # a vector is its own transpose


def main():
    arrays = {}
    for family, (config_class, model_class, tied) in FAMILIES.items():
        torch.manual_seed(0)
        model = model_class(config_class(**SIZES, tie_word_embeddings=tied)).eval()
        for p in model.parameters():  # norms and biases away from 1 and 0
            torch.nn.init.normal_(p, mean=float(p.dim() == 1) * 0.5, std=0.3)
        tokens = torch.randint(0, 13, (2, 9))
        with torch.no_grad():
            logits = model(tokens).logits
        arrays |= {f"{family}/params.{name}": value for name, value in weights(model)}
        arrays |= {f"{family}/tokens_BT": tokens.numpy().astype(np.int32)}
        arrays |= {f"{family}/logits_BTV": logits.numpy()}
    np.savez_compressed(Path(__file__).with_name("hf_models.npz"), **arrays)


if __name__ == "__main__":
    main()
