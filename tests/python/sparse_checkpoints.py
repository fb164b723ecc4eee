"""Writes the checkpoints of sparse Qwen3 models, with what transformers computes from them in float32.

    python sparse_checkpoints.py FOLDER [NAME ...]

needs torch and transformers (5.23 wrote those in tests/fixtures/checkpoints). Each FOLDER/NAME is a checkpoint of
random weights with golden.safetensors and golden.json, as the README beside the checkpoints describes them.
"""

import json
import pathlib
import sys

import safetensors.torch
import torch
import transformers

SHAPE = {
    "vocab_size": 288,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "rope_theta": 1_000_000.0,
}

QWEN = {**SHAPE, "head_dim": 24}

# Each with its seed. The weights of a token's experts add up to 1 in the first one and not in the second. The sizes
# are all different, so that none can stand for another.
MODELS = {
    "qwen3-moe": (1, dict(num_experts=6, num_experts_per_tok=3, moe_intermediate_size=48, norm_topk_prob=True)),
    "qwen3-moe-raw": (2, dict(num_experts=3, num_experts_per_tok=2, moe_intermediate_size=40, norm_topk_prob=False)),
}

PROMPT_TOKENS = 21
NEW_TOKENS = 24


def draw(model, numbers):
    """Random weights by which every block, and every expert, changes the result."""
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=numbers)
        if weight.dim() == 1:
            weight.data = 1.0 + 0.1 * noise
        elif "embed" in name:
            weight.data = 0.05 * noise
        else:
            weight.data = noise * 1.6 / weight.shape[-1] ** 0.5


@torch.no_grad()
def golden(model, ids):
    """Hidden states at every boundary, logits, and what greedy decoding appends."""
    states = []
    layers = model.model.layers
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, given, named: states.append(given[0] if given else named["hidden_states"]), with_kwargs=True
        )
        for layer in layers
    ]
    hooks.append(
        layers[-1].register_forward_hook(
            lambda _, __, left: states.append(left[0] if isinstance(left, tuple) else left)
        )
    )
    logits = model(ids, use_cache=False).logits
    for hook in hooks:
        hook.remove()
    text = ids
    for _ in range(NEW_TOKENS):
        token = model(text, use_cache=False).logits[:, -1:].argmax(-1)
        text = torch.cat([text, token], dim=1)
    return states, logits, text[0, ids.shape[1] :].tolist()


def write(name, folder):
    seed, experts = MODELS[name]
    numbers = torch.Generator().manual_seed(seed)
    config = transformers.Qwen3MoeConfig(**QWEN, **experts)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    draw(model, numbers)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    ids = torch.randint(3, SHAPE["vocab_size"], (1, PROMPT_TOKENS), generator=numbers)
    states, logits, greedy = golden(model, ids)
    tensors = {f"hidden_states.{place}": state.contiguous() for place, state in enumerate(states)}
    tensors |= {"input_ids": ids, "logits": logits.contiguous()}
    safetensors.torch.save_file(tensors, folder / "golden.safetensors")
    loss = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:]).item()
    about = {"greedy": greedy, "loss": loss, "transformers": transformers.__version__, "seed": seed}
    (folder / "golden.json").write_text(json.dumps(about, indent=1))
    print(f"{name}: loss {loss:.4f}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[2:] or MODELS:
        write(name, pathlib.Path(sys.argv[1]) / name)
