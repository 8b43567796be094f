"""What a server is started with: where it listens, who may ask, and how much one client may ask for."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ensemw2s.config.base import PositiveFloat, PositiveInt, Section
from ensemw2s.errors import ConfigError


class ServeSettings(Section):
    """Settings of a server; every limit is per server process."""

    host: str = Field("127.0.0.1", description="address to listen on")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(8000, description="port; 0 takes a free one")
    api_keys: Path | None = Field(
        None,
        description="file with one API key a line, read again when it changes; required off loopback",
    )
    max_body_bytes: PositiveInt = Field(2_000_000, description="largest request body")
    max_prompt_tokens: PositiveInt = Field(4096, description="longest prompt")
    max_output_tokens: PositiveInt = Field(1024, description="longest answer")
    max_rows: PositiveInt = Field(
        128, description="prompts times n of one request; questions of one label request"
    )
    max_choices: PositiveInt = Field(
        2048, description="choices of one label request, those of all its questions together"
    )
    max_n: PositiveInt = Field(16, description="answers to one prompt")
    max_logprobs: Annotated[int, Field(ge=0, le=64)] = Field(20, description="alternatives a token")
    max_concurrent: PositiveInt = Field(64, description="requests that are worked on at a time")
    max_queue: Annotated[int, Field(ge=0)] = Field(
        128, description="requests that wait; the next one gets 429"
    )
    request_seconds: PositiveFloat = Field(
        300.0, description="longest time from a request's body to its answer's end"
    )
    body_seconds: PositiveFloat = Field(30.0, description="longest time to send a body")
    max_decoding_rows: PositiveInt = Field(256, description="texts of one model that are decoded at a time")
    max_decoding_tokens: PositiveInt = Field(
        65536, description="tokens that they may have together, answers included"
    )
    member_seconds: PositiveFloat = Field(
        60.0, description="how long requests wait for a member that is being replaced"
    )
    drain_seconds: PositiveFloat = Field(
        30.0, description="time that requests under way get when the server stops"
    )
    quorum: PositiveInt | None = Field(
        None, description="members that must be alive to answer; default: all of them"
    )
    chat_template: Literal["auto", "tokenizer", "plain"] = Field(
        "auto",
        description="tokenizer: its own template; plain: the run's prompt; auto: its own where it has one",
    )
    log_text: bool = Field(False, description="write prompts and answers to the log")
    min_copies: PositiveInt = Field(1, description="copies of all models on Ray Serve, at least")
    max_copies: PositiveInt | None = Field(
        None, description="at most: Ray Serve adds and removes copies with the load; default: min_copies"
    )
    together: bool = Field(
        False,
        description="on Ray Serve: hold all members in the process that votes, where adapters of one base share it and answer in "
        "one forward; none of them can be replaced by itself (--executor local is always so)",
    )

    @model_validator(mode="after")
    def _together_no_quorum(self) -> Self:
        if self.together and self.quorum is not None:
            raise ValueError("quorum is for members that can die by themselves: leave it out, or together")
        return self

    @model_validator(mode="after")
    def _copies_in_order(self) -> Self:
        if self.most_copies < self.min_copies:
            raise ValueError(f"max_copies {self.max_copies} is less than min_copies {self.min_copies}")
        return self

    @property
    def most_copies(self) -> int:
        """Copies at most."""
        return self.min_copies if self.max_copies is None else self.max_copies

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can connect."""
        return is_loopback(self.host)

    def where(self, models: Sequence[str], port: int) -> str:
        """Where to ask for these models, as a line."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        who = "requests from this machine only" if self.api_keys is None else "an API key is needed"
        return f"serving {' and '.join(models)} at http://{host}:{port}/v1 ({who}); Ctrl-C stops"

    def check_exposure(self) -> None:
        """Refuse to listen to other machines without keys.

        Raises:
            ConfigError: off loopback and no key file.
        """
        if self.api_keys is None and not self.on_loopback:
            raise ConfigError(
                f"host {self.host} can be reached from other machines, which needs API keys: give --api-keys FILE "
                "(one key a line), or listen on 127.0.0.1"
            )


def is_loopback(host: str) -> bool:
    """``localhost``, ``127.0.0.0/8`` or ``::1``."""
    if host.lower() in ("localhost", "localhost."):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
