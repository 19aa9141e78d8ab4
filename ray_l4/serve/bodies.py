"""What requests may say, in OpenAI's format where there is one. What would change an answer is never ignored."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal, TypeVar

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ray_l4.serve.asked import Sampling
from ray_l4.serve.problems import RequestError, invalid
from ray_l4.tasks.chat import Message

Body = TypeVar("Body", bound=BaseModel)

_IGNORED = frozenset({"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"})
"""Keys that do not change an answer."""
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "n": (None, 1),
    "best_of": (None, 1),
    "echo": (None, False),
    "suffix": (None, ""),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "logit_bias": (None, {}),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "parallel_tool_calls": (None, True, False),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
}
"""Keys of OpenAI's that are taken only with values that ask for nothing."""
_MOST_STOPS = 4

Tokens = Annotated[int, Field(ge=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(_Strict):
    """Of a streamed answer."""

    include_usage: bool = False
    include_obfuscation: bool = False


class Sampled(_Strict):
    """How new tokens are chosen."""

    max_tokens: Tokens | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: int | None = None

    @property
    def sampling(self) -> Sampling:
        """The same for the model."""
        return Sampling(self.max_tokens, self.temperature, self.top_p, self.seed)


class Generation(Sampled):
    """What completions and conversations have in common."""

    model: str
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_not_done(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        for name, allowed in _NEUTRAL.items():
            if name in given and not any(given[name] == value for value in allowed):
                raise ValueError(f"{name} is not supported; leave it out")
        return {name: value for name, value in given.items() if name not in _NEUTRAL and name not in _IGNORED}

    @field_validator("stop")
    @classmethod
    def _check_stop(cls, stop: str | list[str] | None) -> str | list[str] | None:
        texts = [stop] if isinstance(stop, str) else stop or []
        if len(texts) > _MOST_STOPS or not all(texts):
            raise ValueError(f"expected up to {_MOST_STOPS} texts, none of them empty")
        return stop

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class CompletionBody(Generation):
    """The body of ``/v1/completions``."""

    prompt: str | list[str]

    @field_validator("prompt")
    @classmethod
    def _check_prompt(cls, prompt: str | list[str]) -> str | list[str]:
        if isinstance(prompt, list) and len(prompt) != 1:
            raise ValueError(f"expected one prompt, found a list of {len(prompt)}; send a request for each")
        return prompt

    @property
    def text(self) -> str:
        """The prompt."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[0]


class TextPart(_Strict):
    """A part of a message."""

    type: Literal["text"]
    text: str


class ChatMessage(_Strict):
    """A turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    @property
    def turn(self) -> Message:
        """The same for the model; ``developer`` is OpenAI's newer name for ``system``."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text.strip()}


class ChatBody(Generation):
    """The body of ``/v1/chat/completions``."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Tokens | None = None

    @field_validator("messages")
    @classmethod
    def _check_last(cls, messages: list[ChatMessage]) -> list[ChatMessage]:
        if messages[-1].role != "user":
            raise ValueError(f"expected a message of the user at the end, found one of the {messages[-1].role}")
        return messages

    @property
    def sampling(self) -> Sampling:
        """How new tokens are chosen."""
        most = self.max_completion_tokens or self.max_tokens
        return Sampling(most, self.temperature, self.top_p, self.seed)

    @property
    def turns(self) -> list[Message]:
        """The messages, without blank ones before the last."""
        turns = [message.turn for message in self.messages]
        return [*(turn for turn in turns[:-1] if turn["content"]), turns[-1]]


class AnswerBody(Sampled):
    """The body of ``/v1/answers``."""

    task: str
    context: str = ""
    question: str | None = None
    """The task's own if all its examples have the same."""


def json_body(kind: type[Body]) -> Callable[[Request], Awaitable[Body]]:
    """Return a dependency that reads the body of a request, whatever its content type says.

    It raises RequestError if the body is not a JSON object of this kind.
    """

    async def read(request: Request) -> Body:
        raw = await request.body()
        try:
            value = json.loads(raw)
            if b"\\ud" in raw.lower():  # half a character, perhaps, which JSON can express and no text can hold
                json.dumps(value, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            reason = "it is empty" if not raw else str(error) or type(error).__name__
            raise RequestError(400, f"the body is not JSON ({reason})", "invalid_json") from error
        if not isinstance(value, dict):
            raise RequestError(
                400, f"the body is JSON of type {type(value).__name__}, expected an object", "invalid_json"
            )
        try:
            return kind.model_validate(value)
        except ValidationError as error:
            raise invalid(error) from error

    return read
