"""A chat completion request as this package's own engine can meet it; the rest is refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic import field_validator as validator

from ragtuned_pipeline.inference.engine import Message
from ragtuned_pipeline.serving.interface import Body, Refused

# What changes nothing in an answer, or is the gateway's to read.
_READ_ELSEWHERE = {
    *("model", "stream", "stream_options", "user", "metadata", "store", "service_tier"),
    *("safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
    *("tool_choice", "parallel_tool_calls"),  # without tools, which are refused
}
# Values of parameters that cannot be met which ask for nothing.
_ASKS_NOTHING: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}


class _Part(BaseModel):
    type: Literal["text"]
    text: str


class _Message(BaseModel):
    role: Literal["system", "user", "assistant"]
    content: str | list[_Part]

    def plain(self) -> Message:
        content = self.content
        if not isinstance(content, str):
            content = "".join(part.text for part in content)
        return {"role": self.role, "content": content}


class ChatRequest(BaseModel):
    """What an answer depends on.

    Attributes:
        max_tokens, max_completion_tokens: of the answer; the second is the newer name, and wins.
        temperature: 0 (and all below 1e-5) is greedy: always the likeliest token.
        top_p: of sampling: the likeliest tokens whose probabilities make up this share.
        seed: equal ones give equal answers; None is another one each time.
        stop: strings that end the answer and are not part of it.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    messages: list[_Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(0.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: tuple[Annotated[str, StringConstraints(min_length=1)], ...] = ()

    @validator("stop", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @classmethod
    def of(cls, body: Body) -> ChatRequest:
        """Return the request in `body`.

        Raises:
            Refused: 400, naming the parameter that has a wrong value, or that this engine cannot
                meet: one that is passed over would give an answer other than the one that was
                asked for.
        """
        given = {name: value for name, value in body.items() if value is not None}
        for name in given.keys() - cls.model_fields.keys() - _READ_ELSEWHERE:
            if given[name] not in _ASKS_NOTHING.get(name, ()):
                reason = f"the parameter {name} cannot be met by serving.engine = transformers"
                raise Refused(400, reason, name)
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise Refused(400, f"{where}: {first['msg']}", str(first["loc"][0])) from None

    @property
    def conversation(self) -> list[Message]:
        return [message.plain() for message in self.messages]

    @property
    def most(self) -> int | None:
        """Tokens of the answer at most; None is as many as the model's context holds."""
        return self.max_completion_tokens or self.max_tokens
