"""A chat with a model on a swarm; Ctrl-C ends an answer, and Ctrl-D the chat.

    python chat.py MULTIADDR_OR_INVITE [MODEL]
"""

import sys

import umbel


def main(join, name="smollm2-135m"):
    messages = []
    with umbel.Swarm(join) as swarm:
        model = swarm.model(name)
        while True:
            try:
                messages.append(("user", input("> ")))
            except EOFError:
                return
            answer = ""
            try:
                for token in model.chat(messages, max_tokens=256, speculate=True):
                    answer += token.text
                    print(token.text, end="", flush=True)
            except KeyboardInterrupt:
                pass
            print()
            messages.append(("assistant", answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
