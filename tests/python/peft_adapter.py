"""Compares adapters in both directions: one that `umbel train` has learned is loaded by PEFT, and one that PEFT
has written is loaded by `umbel generate`, and both give the same logits with the model of the tests.

    python peft_adapter.py target/debug/umbel [--store tests/fixtures/training/peft]

needs torch, transformers and peft. With --store it writes the adapters and PEFT's logits, which the project's own
tests compare with. It prints the largest difference of each adapter, and ends with an AssertionError where one is
larger than implementations in binary32 may differ by.
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import tempfile

import peft
import torch
import transformers

MODEL = pathlib.Path(__file__).parent.parent / "fixtures" / "checkpoints" / "llama"

# Of logits of about 1, over four blocks.
DIFFERENCE_MAX = 1e-4

# What the adapters must change, so that something is compared.
CHANGE_MIN = 1e-2

PROMPTS = [[5], [7, 10, 13, 16, 19, 22, 25], [(place * 31) % 288 for place in range(40)]]

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

TRAINED = {
    "trained-default": [],
    "trained-all": ["--target-modules", ",".join(ALL), "--rank", "2", "--alpha", "6", "--rank-stabilized"],
    "trained-dora": ["--dora", "--target-modules", ",".join(ALL), "--rank", "2"],
    "trained-prompt": ["--method", "ptune", "--prompt-tokens", "5"],
}

FROM_PEFT = {
    "peft-two": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
    "peft-all": {"r": 2, "lora_alpha": 3, "target_modules": ALL, "use_rslora": True},
    "peft-dora": {"r": 2, "lora_alpha": 3, "target_modules": ALL, "use_dora": True},
}


def run(*arguments):
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def base():
    model = transformers.LlamaForCausalLM.from_pretrained(MODEL, torch_dtype=torch.float32)
    # PEFT writes this beside its adapters, where a path of this machine means nothing.
    model.__dict__["name_or_path"] = MODEL.name
    return model.eval()


def logits_of_peft(model):
    with torch.no_grad():
        return [model(input_ids=torch.tensor([prompt])).logits[0, -1].tolist() for prompt in PROMPTS]


def logits_here(umbel, adapter):
    found = []
    for prompt in PROMPTS:
        ids = ",".join(str(id) for id in prompt)
        arguments = [umbel, "generate", MODEL, "--local", "--adapter", adapter, "--prompt-ids", ids]
        report = json.loads(run(*arguments, "--max-tokens", "1", "--json", "--top-logits", "288"))
        logits = dict(report["top_logits"][0])
        found.append([logits[id] for id in range(288)])
    return found


def difference(ones, others):
    pairs = [pair for one, other in zip(ones, others) for pair in zip(one, other)]
    return max(abs(one - other) for one, other in pairs)


def compare(umbel, name, adapter, store):
    model = peft.PeftModel.from_pretrained(base(), adapter).eval()
    expected = logits_of_peft(model)
    changed = difference(expected, logits_of_peft(base()))
    assert changed > CHANGE_MIN, f"{name} changes nothing: {changed}"
    apart = difference(expected, logits_here(umbel, adapter))
    print(f"{name:16} changes logits by up to {changed:.3f}; largest difference {apart:.2e}")
    assert apart < DIFFERENCE_MAX, f"{name}: {apart}"
    if store:
        folder = store / name
        folder.mkdir(parents=True, exist_ok=True)
        for file in ["adapter_config.json", "adapter_model.safetensors"]:
            shutil.copy(adapter / file, folder / file)
        stored = [{"prompt": prompt, "logits": logits} for prompt, logits in zip(PROMPTS, expected)]
        (folder / "logits.json").write_text(json.dumps(stored) + "\n")


def train(umbel, scratch, name, arguments):
    data, out = scratch / "data.jsonl", scratch / name
    texts = [[(start * 7 + place * 3) % 190 for place in range(12)] for start in range(20)]
    data.write_text("\n".join(json.dumps({"token_ids": ids}) for ids in texts))
    fixed = ["--local", "--data", data, "--out", out, "--epochs", "2", "--learning-rate", "0.01"]
    run(umbel, "train", MODEL, *fixed, *arguments)
    return out


def begin(scratch, name, settings):
    torch.manual_seed(11)
    config = peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **settings)
    model = peft.get_peft_model(base(), config)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if "lora_magnitude_vector" in key:
                value.mul_(1 + 0.1 * torch.randn_like(value))
            elif "lora_" in key:
                value.copy_(torch.randn_like(value) * 0.1)
    model.save_pretrained(scratch / name)
    return scratch / name


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("umbel", type=pathlib.Path)
    parser.add_argument("--store", type=pathlib.Path)
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}")
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        for name, more in TRAINED.items():
            adapter = train(arguments.umbel, scratch, name, more)
            compare(arguments.umbel, name, adapter, arguments.store)
        for name, settings in FROM_PEFT.items():
            compare(arguments.umbel, name, begin(scratch, name, settings), arguments.store)


main()
