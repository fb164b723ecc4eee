"""Runs language models on a swarm of machines: `umbel.Swarm(address).model(name)`."""

from collections.abc import Buffer, Iterator
from os import PathLike
from types import TracebackType
from typing import Any, Literal, Self, TypedDict, Unpack

class Error(Exception):
    """Something that a swarm, or a model's files, could not do; the text says what, and what to do."""

class NotServedError(Error):
    """Nobody in the swarm serves the model, or some of its blocks: later somebody may."""

class Options(TypedDict, total=False):
    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int
    stop: str | list[str]
    ignore_eos: bool
    top_logits: int
    speculate: bool

type Prompt = str | list[int]
type Messages = list[tuple[str, str]]
type ElementType = Literal["f32", "bf16", "f16", "q8"]

class Closing:
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
    def close(self) -> None: ...

class Swarm(Closing):
    """A swarm, come into by the address of a peer or by an invite."""

    def __init__(
        self,
        join: str | list[str],
        *,
        swarm_key: str | PathLike[str] | None = None,
        patience: float = 30.0,
    ) -> None: ...
    @property
    def peer(self) -> str: ...
    def model(
        self, name: str = "smollm2-135m", *, cache_dir: str | PathLike[str] | None = None
    ) -> Model: ...
    def servers(self) -> list[dict[str, Any]]: ...

class Model:
    """The client's part of a model: embedding and head, tokenizer and chat template."""

    @property
    def id(self) -> str: ...
    @property
    def block_count(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def vocabulary_size(self) -> int: ...
    @property
    def context_tokens(self) -> int: ...
    @property
    def eos_token_ids(self) -> list[int]: ...
    def encode(self, text: str) -> list[int]: ...
    def encode_chat(self, messages: Messages) -> list[int]: ...
    def decode(self, ids: list[int]) -> str: ...
    def generate(self, prompt: Prompt, **options: Unpack[Options]) -> Generation: ...
    def chat(self, messages: Messages, **options: Unpack[Options]) -> Generation: ...
    def session(
        self,
        tokens_max: int = 2048,
        *,
        standby: bool = False,
        wire: ElementType = "f32",
        cache: ElementType = "f32",
    ) -> Session: ...
    def hidden_states(self, prompt: Prompt) -> memoryview: ...
    def embed(self, prompt: Prompt) -> memoryview: ...
    def logits(self, hidden: Buffer) -> memoryview: ...
    def loss(self, hidden: Buffer, targets: list[int | None]) -> tuple[float, memoryview]: ...
    def blocks(
        self,
        start: int = 0,
        end: int | None = None,
        *,
        tokens_max: int = 1024,
        adapter: str | PathLike[str] | None = None,
    ) -> Blocks: ...

class Token:
    """One new token; `text` is empty while a character is incomplete."""

    @property
    def id(self) -> int: ...
    @property
    def text(self) -> str: ...
    @property
    def top_logits(self) -> list[tuple[int, float]]: ...

class Generation(Closing):
    """An answer under way: an iterator over its tokens."""

    def __iter__(self) -> Iterator[Token]: ...
    def __next__(self) -> Token: ...
    def text(self) -> str: ...
    @property
    def prompt(self) -> list[int]: ...
    @property
    def tokens(self) -> list[int]: ...
    @property
    def finish_reason(self) -> Literal["stop", "length"] | None: ...

class Session(Closing):
    """A cache on the servers of a route, which several answers share."""

    def generate(self, prompt: Prompt, **options: Unpack[Options]) -> Generation: ...
    def step(self, hidden: Buffer, *, position: int | None = None) -> memoryview: ...
    @property
    def tokens(self) -> list[int]: ...
    @property
    def position(self) -> int: ...

class Blocks(Closing):
    """Remote blocks, forward and back."""

    def forward(self, hidden: Buffer) -> tuple[memoryview, Passed]: ...
    def backward(self, passed: Passed, gradient: Buffer) -> memoryview: ...
    @property
    def span(self) -> tuple[int, int]: ...
    @property
    def route(self) -> list[tuple[str, tuple[int, int]]]: ...

class Passed:
    """What has gone forward, and can be brought back any number of times."""
