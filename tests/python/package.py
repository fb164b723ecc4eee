"""Asks a swarm by the package `umbel`, and compares with stored results of others.

    python package.py PART ADDRESS FOLDER...

The first thing that is not as it should be ends it with an AssertionError. Where a part wants a server
killed or frozen it prints a line, and goes on when it has read one.
"""

import array
import json
import math
import os
import signal
import struct
import sys
import threading
from pathlib import Path

import umbel

HIDDEN_ERROR_MAX = 1e-4
LOSS_ERROR_MAX = 1e-5


def stored(file):
    """The tensors of a safetensors file: flat lists of values, and shapes."""
    data = Path(file).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    tensors = {}
    for name, about in json.loads(data[8 : 8 + length]).items():
        if name == "__metadata__":
            continue
        start, end = (8 + length + offset for offset in about["data_offsets"])
        kind = {"F32": "f", "I64": "q"}[about["dtype"]]
        tensors[name] = (memoryview(data)[start:end].cast(kind).tolist(), about["shape"])
    return tensors


def floats(values, *shape):
    return memoryview(array.array("f", values)).cast("B").cast("f", shape)


def flat(view):
    assert view.format == "f" and view.ndim >= 2, view
    return view.cast("B").cast("f").tolist()


def error_of(found, expected):
    assert len(found) == len(expected), (len(found), len(expected))
    return max(abs(a - b) for a, b in zip(found, expected))


def raises(kind, words, work):
    try:
        work()
    except kind as error:
        assert words in str(error), (words, str(error))
        return
    raise AssertionError(f"nothing raised {kind.__name__} with {words!r}")


def interrupt_after(seconds):
    """Presses Ctrl-C from another thread, which runs only while the interpreter's lock is free."""
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    return timer


def harness(word):
    print(word, flush=True)
    assert sys.stdin.readline().strip() == "done"


def numbers(address, folder):
    golden = stored(f"{folder}/golden.safetensors")
    ids = golden["input_ids"][0]
    greedy = json.loads(Path(folder, "golden.json").read_text())["greedy"]
    with umbel.Swarm(address) as swarm:
        assert sum(len(range(*server["blocks"])) for server in swarm.servers()) == 4, swarm.servers()
        model = swarm.model(folder)
        assert (model.block_count, model.hidden_size, model.vocabulary_size) == (4, 64, 288)

        hidden = model.hidden_states(ids)
        assert hidden.shape == (len(ids), 64)
        logits = model.logits(hidden)
        assert logits.shape == (len(ids), 288)
        assert error_of(flat(logits), golden["logits"][0]) < HIDDEN_ERROR_MAX
        embedded = model.embed(ids)
        assert flat(embedded) == golden["hidden_states.0"][0]

        generation = model.generate(ids, max_tokens=len(greedy), ignore_eos=True, top_logits=3)
        tokens = list(generation)
        assert [token.id for token in tokens] == greedy == generation.tokens
        assert all(token.top_logits[0][0] == token.id for token in tokens)
        assert generation.finish_reason == "length" and generation.prompt == ids
        assert next(generation, None) is None

        sessions(model, ids, greedy, embedded, hidden)
        blocks(model, golden, folder, ids)
        errors(swarm, model, ids, embedded)
    raises(RuntimeError, "the swarm was left", lambda: swarm.model(folder))


def sessions(model, ids, greedy, embedded, hidden):
    with model.session(128) as session:
        first = session.generate(ids, max_tokens=5, ignore_eos=True)
        raises(RuntimeError, "in use", lambda: session.generate([], max_tokens=1))
        assert [token.id for token in first] == greedy[:5]
        assert session.tokens == ids + greedy[:5]
        # One that is given up leaves what it has said.
        with session.generate([], max_tokens=9, ignore_eos=True) as second:
            assert next(second).id == greedy[5]
        assert next(second, None) is None and session.position == len(ids) + 6
        third = session.generate([], max_tokens=6, ignore_eos=True)
        assert [token.id for token in third] == greedy[6:12]
    raises(RuntimeError, "closed", lambda: session.generate([1]))

    with model.session(128) as session:
        rows = flat(embedded)
        for start, end in [(0, 7), (7, 8), (8, len(ids))]:
            left = session.step(floats(rows[start * 64 : end * 64], end - start, 64))
            assert flat(left) == flat(hidden[start:end]) if start else flat(left)
        assert session.position == len(ids)
        again = session.step(floats(rows[3 * 64 : 5 * 64], 2, 64), position=3)
        assert error_of(flat(again), flat(hidden)[3 * 64 : 5 * 64]) == 0
        assert session.position == 5
        raises(ValueError, "beyond the 5 tokens", lambda: session.step(embedded, position=6))
        raises(ValueError, "tokens nobody knows", lambda: session.generate([1]))


def blocks(model, golden, folder, ids):
    boundary = lambda block: floats(golden[f"hidden_states.{block}"][0], len(ids), 64)
    with model.blocks(1, 3) as middle:
        assert middle.span == (1, 3) and len(middle.route) == 1
        left, passed = middle.forward(boundary(1))
        assert error_of(flat(left), golden["hidden_states.3"][0]) < HIDDEN_ERROR_MAX
        both = floats(golden["hidden_states.1"][0] * 2, 2, len(ids), 64)
        twice, passed_twice = middle.forward(both)
        assert twice.shape == (2, len(ids), 64) and flat(twice) == flat(left) * 2
        back = middle.backward(passed, boundary(2))
        assert flat(middle.backward(passed, boundary(2))) == flat(back)
        gradients = floats(golden["hidden_states.2"][0] * 2, 2, len(ids), 64)
        assert flat(middle.backward(passed_twice, gradients)) == flat(back) * 2
        raises(ValueError, "went forward was", lambda: middle.backward(passed, gradients))
    raises(RuntimeError, "closed", lambda: middle.forward(boundary(1)))

    # The loss that PEFT has with its adapter, and how it changes along its own gradient.
    lora = json.loads(Path(folder, "lora", "golden.json").read_text())
    targets = ids[1:] + [None]
    with model.blocks(adapter=f"{folder}/lora") as adapted:
        left, passed = adapted.forward(boundary(0))
        loss, gradient = model.loss(left, targets)
        assert abs(loss - lora["loss"]) < LOSS_ERROR_MAX, loss
        back = flat(adapted.backward(passed, gradient))
        norm = math.sqrt(sum(value * value for value in back))
        step = 1e-3 / norm

        def loss_along(way):
            pairs = zip(golden["hidden_states.0"][0], back)
            moved = [value + way * step * slope for value, slope in pairs]
            return model.loss(adapted.forward(floats(moved, len(ids), 64))[0], targets)[0]

        slope = (loss_along(1) - loss_along(-1)) / (2 * step)
        assert abs(slope / norm**2 - 1) < 0.01, (slope, norm)


def closing(address, folder):
    golden = stored(f"{folder}/golden.safetensors")
    entering = floats(golden["hidden_states.0"][0], golden["hidden_states.0"][1][1], 64)
    with umbel.Swarm(address) as swarm:
        blocks = swarm.model(folder).blocks()
        expected, _ = blocks.forward(entering)
        found = []

        def call():
            found.append(flat(blocks.forward(entering)[0]))

        def is_in_use():
            try:
                blocks.route
            except RuntimeError as error:
                return "another thread" in str(error)

        harness("freeze")
        thread = threading.Thread(target=call)
        thread.start()
        while thread.is_alive() and not is_in_use():
            pass
        raises(RuntimeError, "another thread", lambda: blocks.forward(entering))
        blocks.close()
        raises(RuntimeError, "closed", lambda: blocks.forward(entering))
        harness("thaw")
        thread.join()
        assert found == [flat(expected)], "the call under way has its answer"
        raises(RuntimeError, "closed", lambda: blocks.forward(entering))
        raises(RuntimeError, "closed", lambda: blocks.route)


def errors(swarm, model, ids, embedded):
    raises(ValueError, "no-such-model", lambda: swarm.model("no-such-model"))
    raises(ValueError, "no address and no invite", lambda: umbel.Swarm("nonsense"))
    raises(ValueError, "the prompt has no token", lambda: model.generate([]))
    raises(ValueError, "token 288 does not exist", lambda: model.generate([288]))
    raises(ValueError, "shorten it", lambda: model.generate([1] * model.context_tokens))
    raises(ValueError, "temperature", lambda: model.generate([1], temperature=-1.0))
    raises(TypeError, '"colour"', lambda: model.generate([1], colour=3))
    raises(OverflowError, "", lambda: model.generate([1], max_tokens=-1))
    raises(ValueError, "hidden states of this model", lambda: model.logits(floats([1.0], 1, 1)))
    raises(TypeError, '"d"', lambda: model.logits(memoryview(array.array("d", [0.0] * 64))))
    raises(TypeError, "buffer protocol", lambda: model.logits([[0.0] * 64]))
    raises(ValueError, "wire is one of", lambda: model.session(wire="f64"))
    raises(ValueError, "", lambda: model.blocks(3, 9))
    raises(ValueError, "", lambda: model.blocks(2, 2))
    raises(ValueError, "no row has a target", lambda: model.loss(embedded, [None] * len(ids)))
    with model.blocks(0, 1, tokens_max=4) as short:
        raises(ValueError, "1 to 4 go through together", lambda: short.forward(embedded))
    raises(umbel.Error, "no tokenizer", lambda: model.encode("hello"))


def text(address, cache, golden_file):
    golden = json.loads(Path(golden_file).read_text())["cases"][0]
    with umbel.Swarm(address) as swarm:
        model = swarm.model(cache_dir=cache)
        assert model.encode(golden["prompt"]) == golden["ids"]
        pieces = [str(token) for token in model.generate(golden["prompt"], max_tokens=20)]
        assert len(pieces) == 20 and golden["text"].startswith("".join(pieces)), pieces
        assert model.decode(golden["greedy"][:1]) == " Paris"
        stopped = model.generate(golden["prompt"], stop="answer")
        assert stopped.text() == " Paris.\n\nThe " and stopped.finish_reason == "stop"
        guessed = model.generate(golden["prompt"], max_tokens=20, speculate=True)
        assert guessed.text() == "".join(pieces)
        draw = lambda seed: model.generate("Once", max_tokens=8, temperature=1.0, seed=seed).text()
        assert draw(3) == draw(3) != draw(4)

        messages = [("user", "Say hello")]
        with model.session(512) as session:
            whole = session.generate(model.encode_chat(messages), max_tokens=12).text()
            assert whole == model.chat(messages, max_tokens=12).text()
            more = session.generate(" And then?", max_tokens=4)
            assert model.decode(more.prompt).endswith(" And then?")
            list(more)

        # Ctrl-C in the middle of an answer, after which the session goes on where it was.
        with model.session(2048) as session:
            answer = session.generate("Once upon a time", max_tokens=1500, ignore_eos=True)
            interrupt_after(0.5)
            try:
                for _ in answer:
                    pass
                raise AssertionError("the answer was not interrupted")
            except KeyboardInterrupt:
                pass
            answer.close()
            said = session.tokens
            assert 4 < len(said) < 1500 and said == answer.prompt + answer.tokens
            again = session.generate([], max_tokens=3, ignore_eos=True)
            expected = model.generate(said, max_tokens=3, ignore_eos=True)
            assert [token.id for token in again] == [token.id for token in expected]


def failure(address, folder):
    golden = stored(f"{folder}/golden.safetensors")
    ids = golden["input_ids"][0]
    greedy = json.loads(Path(folder, "golden.json").read_text())["greedy"]
    with umbel.Swarm(address, patience=2.0) as swarm:
        model = swarm.model(folder)
        frozen = model.blocks()
        entering = floats(golden["hidden_states.0"][0], len(ids), 64)
        _, passed = frozen.forward(entering)
        expected = flat(frozen.backward(passed, entering))
        generation = model.generate(ids, max_tokens=len(greedy), ignore_eos=True)
        found = [next(generation).id for _ in range(4)]
        harness("kill one")
        found += [token.id for token in generation]
        assert found == greedy, found
        assert flat(frozen.backward(passed, entering)) == expected

        generation = model.generate(ids, max_tokens=len(greedy), ignore_eos=True)
        next(generation)
        harness("kill the others of its blocks")
        raises(umbel.NotServedError, "block", lambda: list(generation))
        assert next(generation, None) is None
        raises(umbel.NotServedError, "block", lambda: model.generate(ids))
        raises(umbel.Error, "", lambda: frozen.backward(passed, entering))

    # Nobody comes, and Ctrl-C ends the waiting.
    with umbel.Swarm(address, patience=600) as patient:
        model = patient.model(folder)
        interrupt_after(0.5)
        raises(KeyboardInterrupt, "", lambda: model.generate(ids))
        harness("kill the last")
    raises(umbel.Error, address, lambda: umbel.Swarm(address))


def other_model(address, folder):
    with umbel.Swarm(address) as swarm:
        model = swarm.model(folder)
        raises(umbel.NotServedError, "no server of the swarm serves", lambda: model.generate([1]))


def reference(weights, config, hidden):
    """What enters and leaves each block, by PyTorch and nothing else."""
    import torch

    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    theta = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
    tokens = hidden.shape[0]
    angle = torch.outer(torch.arange(tokens), theta ** (-torch.arange(0, size, 2) / size)).repeat(1, 2)
    turn = lambda x: torch.cat([-x[..., size // 2 :], x[..., : size // 2]], -1)
    rope = lambda x: x * angle.cos() + turn(x) * angle.sin()
    norm = lambda x, w: x * torch.rsqrt((x * x).mean(-1, keepdim=True) + config["rms_norm_eps"]) * w
    mask = torch.full((tokens, tokens), -math.inf).triu(1)
    for block in range(config["num_hidden_layers"]):
        weight = lambda name: weights[f"model.layers.{block}.{name}.weight"]
        x = norm(hidden, weight("input_layernorm"))
        split = lambda name: (x @ weight(f"self_attn.{name}_proj").T).view(tokens, -1, size).transpose(0, 1)
        q, k, v = rope(split("q")), rope(split("k")), split("v")
        k, v = (x.repeat_interleave(heads // kv_heads, 0) for x in (k, v))
        chances = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(size) + mask, -1)
        mixed = (chances @ v).transpose(0, 1).reshape(tokens, -1)
        hidden = hidden + mixed @ weight("self_attn.o_proj").T
        x = norm(hidden, weight("post_attention_layernorm"))
        inner = torch.nn.functional.silu(x @ weight("mlp.gate_proj").T) * (x @ weight("mlp.up_proj").T)
        hidden = hidden + inner @ weight("mlp.down_proj").T
    return hidden


def autograd(address, folder, smol_address, cache, examples):
    import torch

    sys.path.insert(0, examples)
    import autograd as example

    golden = stored(f"{folder}/golden.safetensors")
    config = json.loads(Path(folder, "config.json").read_text())
    raw = stored(f"{folder}/model.safetensors")
    weights = {name: torch.tensor(values).view(shape) for name, (values, shape) in raw.items()}
    shape = golden["hidden_states.0"][1][1:]
    start = torch.tensor(golden["hidden_states.0"][0]).view(shape)
    direction = torch.sin(torch.arange(start.numel())).view(shape)
    ours, theirs = (start.clone().requires_grad_() for _ in range(2))
    (reference(weights, config, theirs * 1.5) * direction).sum().backward()
    with umbel.Swarm(address) as swarm, swarm.model(folder).blocks() as blocks:
        left = example.RemoteBlocks.apply(blocks, ours * 1.5)
        (left * direction).sum().backward()
    error = (ours.grad - theirs.grad).abs().max() / theirs.grad.abs().max()
    assert error < 1e-4, error

    torch.manual_seed(0)
    with umbel.Swarm(smol_address) as swarm:
        model = swarm.model(cache_dir=cache)
        _, losses = example.learn(model, "The capital of France is", " a small fishing village.", 4)
    assert losses[-1] < 0.9 * losses[0], losses


if __name__ == "__main__":
    # Whoever was started in the background has been told to ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    globals()[sys.argv[1]](*sys.argv[2:])
