"""Learns a prompt of vectors: what stands before a text is trained, the model and its servers are not.

    python autograd.py MULTIADDR_OR_INVITE [--model NAME] [--steps 20]

The blocks of the model are on the servers of a swarm. `RemoteBlocks` takes hidden states through them,
and gradients back, as a function of PyTorch's autograd; `Loss` does so for the end of the model, which
is in this process. Whatever else PyTorch has may stand before and between them.
"""

import argparse

import torch
import umbel


def tensor(view):
    return torch.frombuffer(view, dtype=torch.float32).reshape(view.shape)


class RemoteBlocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, blocks, hidden):
        left, passed = blocks.forward(hidden.detach().numpy())
        ctx.blocks, ctx.passed = blocks, passed
        return tensor(left)

    @staticmethod
    def backward(ctx, gradient):
        return None, tensor(ctx.blocks.backward(ctx.passed, gradient.contiguous().numpy()))


class Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, model, hidden, targets):
        loss, gradient = model.loss(hidden.detach().numpy(), targets)
        ctx.gradient = tensor(gradient)
        return torch.tensor(loss)

    @staticmethod
    def backward(ctx, gradient):
        return None, gradient * ctx.gradient, None


def learn(model, prompt, text, steps, vectors=8):
    """Vectors after which `prompt` is followed by `text`, and the loss of each step."""
    before, after = model.encode(prompt), model.encode(text)
    ids = before + after
    embedded = tensor(model.embed(ids))
    # Each token is foretold by the row before it, and only those of the text count.
    targets = [None] * (vectors + len(before) - 1) + after + [None]
    start = tensor(model.embed(ids[:1])).repeat(vectors, 1)
    learned = torch.nn.Parameter(start + 0.02 * torch.randn(start.shape))
    optimizer = torch.optim.Adam([learned], lr=0.02)
    losses = []
    with model.blocks(tokens_max=len(targets)) as blocks:
        for _ in range(steps):
            left = RemoteBlocks.apply(blocks, torch.cat([learned, embedded]))
            loss = Loss.apply(model, left, targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return learned.detach(), losses


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("join")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--cache-dir")
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    with umbel.Swarm(arguments.join) as swarm:
        model = swarm.model(arguments.model, cache_dir=arguments.cache_dir)
        _, losses = learn(model, "The capital of France is", " a small fishing village.", arguments.steps)
    for step, loss in enumerate(losses, 1):
        print(f"step {step}: loss {loss:.3f}")


if __name__ == "__main__":
    main()
