"""Writes what the tests compare magnitudes (DoRA) with: adapters of PEFT for two models of the tests, one of which has
biases, and one training step of each.

    python peft_dora.py tests/fixtures/training/dora

needs torch, transformers, peft and safetensors. For each model it writes

    adapter_config.json, adapter_model.safetensors   rank 4, alpha 6, all seven matrices; B is not zero
    golden.safetensors   logits [1, T, V]; grad.NAME, the gradient of the loss by the parameter of this name in PEFT;
                         begun.NAME, the magnitudes as PEFT begins them
    golden.json          loss, loss_after (the same text, behind one step of AdamW), lr, betas, eps, weight_decay
"""

import argparse
import json
import pathlib

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file

MODELS = pathlib.Path(__file__).parent.parent / "fixtures" / "checkpoints"

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

ADAMW = {"lr": 1e-2, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.1}


def adapted(name, generator):
    model = transformers.AutoModelForCausalLM.from_pretrained(MODELS / name, dtype=torch.float32)
    # PEFT writes this beside its adapters, where a path of this machine means nothing.
    model.__dict__["name_or_path"] = name
    model.config._name_or_path = name
    settings = {"r": 4, "lora_alpha": 6, "target_modules": ALL, "use_dora": True}
    wrapped = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    begun = {}
    for key, value in wrapped.named_parameters():
        drawn = torch.randn(value.shape, generator=generator)
        if "lora_magnitude_vector" in key:
            begun[f"begun.{key}"] = value.detach().clone()
            value.data = value.data * (1 + 0.1 * drawn)
        elif "lora_" in key:
            value.data = drawn * 0.05
    return wrapped, begun


def write(name, folder):
    wrapped, begun = adapted(name, torch.Generator().manual_seed(20261127))
    wrapped.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    ids = load_file(MODELS / name / "golden.safetensors")["input_ids"].reshape(1, -1)
    optimizer = torch.optim.AdamW([value for value in wrapped.parameters() if value.requires_grad], **ADAMW)

    def loss_of():
        logits = wrapped(ids, use_cache=False).logits
        return logits, torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:])

    logits, loss = loss_of()
    loss.backward()
    found = {f"grad.{key}": value.grad for key, value in wrapped.named_parameters() if value.grad is not None}
    tensors = {"logits": logits.detach(), **found, **begun}
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / "golden.safetensors")
    optimizer.step()
    golden = {"loss": loss.item(), "loss_after": loss_of()[1].item(), **ADAMW}
    (folder / "golden.json").write_text(json.dumps(golden) + "\n")
    print(f"{name}: loss {golden['loss']:.4f} -> {golden['loss_after']:.4f}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=pathlib.Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}")
    for name in ["llama", "qwen2"]:
        folder = arguments.out / name
        folder.mkdir(parents=True, exist_ok=True)
        write(name, folder)


main()
