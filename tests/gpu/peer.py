"""The same passes by transformers: 32 blocks of an 8B Llama in bfloat16, hidden states in and out.

Decoding is a step of so many sessions behind a context of 512 tokens, with a cache of fixed size, as it
is and as a CUDA graph of PyTorch's compiler; prefill is a pass over so many tokens. Medians.
"""

import statistics
import sys
import time

import torch
from transformers import LlamaConfig, LlamaModel, StaticCache

CONTEXT, STEPS = 512, 20


def median(work, runs: int) -> float:
    """The median seconds of `work`, which leaves nothing under way."""
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def model_of(blocks: int) -> LlamaModel:
    config = LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_attention_heads=32,
        num_key_value_heads=8,
        num_hidden_layers=blocks,
        vocab_size=256,
        max_position_embeddings=8192,
        rope_theta=10000.0,
        attn_implementation="sdpa",
        dtype=torch.bfloat16,
    )
    with torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)
        return LlamaModel(config).eval()


def hidden(model: LlamaModel, sessions: int, tokens: int) -> torch.Tensor:
    return torch.randn(sessions, tokens, model.config.hidden_size, device="cuda", dtype=torch.bfloat16)


def decode(model: LlamaModel, sessions: int, forward) -> float:
    """Seconds of a step."""
    room = CONTEXT + 4 * STEPS
    cache = StaticCache(config=model.config, max_cache_len=room)
    model(inputs_embeds=hidden(model, sessions, CONTEXT), past_key_values=cache, use_cache=True)
    token, place = hidden(model, sessions, 1).cpu().pin_memory(), CONTEXT

    def step() -> None:
        nonlocal place
        position = torch.tensor([place], device="cuda")
        place += 1
        ids = position.expand(sessions, 1)
        output = forward(
            inputs_embeds=token.to("cuda", non_blocking=True),
            past_key_values=cache,
            cache_position=position,
            position_ids=ids,
            use_cache=True,
        )
        output.last_hidden_state.cpu()

    median(step, STEPS)
    return median(step, STEPS)


def prefill(model: LlamaModel, tokens: int) -> float:
    text = hidden(model, 1, tokens).cpu().pin_memory()

    def run() -> None:
        model(inputs_embeds=text.to("cuda", non_blocking=True), use_cache=True).last_hidden_state.cpu()

    run()
    return median(run, 3)


@torch.inference_mode()
def main() -> None:
    model = model_of(int(sys.argv[1]) if len(sys.argv) > 1 else 32)
    print("| transformers | pass | time, ms | tokens/s of these blocks |")
    print("|---|---|---|---|")

    def row(kind: str, name: str, tokens: int, seconds: float) -> None:
        print(f"| {kind} | {name} | {seconds * 1e3:.3f} | {tokens / seconds:.0f} |", flush=True)

    for sessions in (1, 8, 64):
        row("eager", f"decode, {sessions} sessions", sessions, decode(model, sessions, model))
    for tokens in (512, 4096):
        row("eager", f"prefill, {tokens} tokens", tokens, prefill(model, tokens))
    compiled = torch.compile(model, mode="reduce-overhead", fullgraph=False)
    row("compiled", "decode, 1 session", 1, decode(model, 1, compiled))


if __name__ == "__main__":
    main()
