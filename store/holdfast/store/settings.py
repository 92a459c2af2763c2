"""Where the servers are and how long to wait for them.

Each adapter reads every field here; a field that nothing reads does not belong. Secrets are `SecretStr`, so that
neither a traceback nor a dump of the settings shows them.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, field_validator, model_validator

Seconds = Annotated[float, Field(gt=0, le=3600)]
Subject = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$", max_length=128)]


def number(value: object) -> object:
    """For literals that are numbers: the environment has texts only, and a literal takes none for a number."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


class TlsSettings(BaseModel):
    """Certificates for a connection. With none of them set, the system's authorities are trusted."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    tls_ca_file: Path | None = Field(
        None, description="PEM file with the authorities that signed the servers' certificates."
    )
    tls_cert_file: Path | None = Field(
        None, description="PEM file with the client's certificate, where servers ask for one."
    )
    tls_key_file: Path | None = Field(None, description="PEM file with the key of the client's certificate.")

    @model_validator(mode="after")
    def _key_goes_with_certificate(self) -> Self:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("tls_cert_file and tls_key_file are set together or not at all")
        return self

    def tls_context(self) -> ssl.SSLContext:
        """A context that verifies the server. Raises `OSError` or `ssl.SSLError` on an unreadable file."""
        context = ssl.create_default_context(cafile=self.tls_ca_file)
        if self.tls_cert_file is not None:
            context.load_cert_chain(self.tls_cert_file, self.tls_key_file)
        return context


class JetStreamSettings(TlsSettings):
    """How to reach JetStream, and the stream that holds the log. Reasons for the numbers: docs/decisions/002."""

    urls: tuple[str, ...] = Field(
        ("nats://127.0.0.1:4222",),
        min_length=1,
        description="Servers, as nats://host:port or tls://host:port. Further servers of the cluster are discovered.",
    )
    stream: str = Field(
        "HOLDFAST", pattern=r"^[A-Za-z0-9_-]{1,64}$", description="The stream's name: one for each Holdfast cluster."
    )
    subject_prefix: Subject = Field(
        "holdfast", description="Put before every subject of the log on the server, so that clusters may share one."
    )
    user: str | None = Field(None, description="User name, together with `password`.")
    password: SecretStr | None = Field(None, description="Password of `user`.")
    token: SecretStr | None = Field(None, description="Token, for servers that use one instead of a user.")
    credentials_file: Path | None = Field(
        None, description="A .creds file (JWT and seed). Needs `pip install 'nats-py[nkeys]'`."
    )
    nkey_seed_file: Path | None = Field(
        None, description="A file with an nkey seed. Needs `pip install 'nats-py[nkeys]'`."
    )
    replicas: Annotated[Literal[1, 3, 5], BeforeValidator(number)] = Field(
        1,
        description="Copies of the stream. 3 or 5 need as many servers; 1 survives no lost disk. "
        "`holdfast up --servers 3` sets 3.",
    )
    max_bytes: int = Field(
        1 << 30,
        ge=1 << 16,
        le=1 << 50,
        description="Size of the stream in bytes at which it refuses appends. History is never dropped to make room.",
    )
    max_message_bytes: int = Field(
        1 << 20, ge=1 << 10, le=64 << 20, description="Largest message in bytes, headers included."
    )
    duplicate_window_s: Seconds = Field(
        120.0, description="Seconds for which the servers remember message ids. An optimisation, never a fence."
    )
    append_timeout_s: Seconds = Field(
        20.0, description="Seconds in which an append is retried and resolved. Longer than an election (up to 9)."
    )
    publish_timeout_s: Seconds = Field(2.0, description="Seconds to wait for one try's acknowledgement.")
    read_timeout_s: Seconds = Field(10.0, description="Seconds in which a read is retried.")
    open_timeout_s: Seconds = Field(
        15.0, description="Seconds in which the first connection and the stream must be there."
    )
    connect_timeout_s: Seconds = Field(2.0, description="Seconds for one connection attempt to one server.")
    reconnect_wait_min_s: Seconds = Field(
        0.05, description="Seconds of the first pause between attempts, before jitter."
    )
    reconnect_wait_max_s: Seconds = Field(2.0, description="Longest pause in seconds between attempts, before jitter.")
    ping_interval_s: Seconds = Field(5.0, description="Seconds between pings on a connection.")
    pings_outstanding: int = Field(2, ge=1, le=10, description="Unanswered pings after which a connection is given up.")
    follow_heartbeat_s: float = Field(
        1.0, ge=0.5, le=30, description="Idle heartbeat of a follow in seconds; after three missed ones it starts anew."
    )
    follow_batch_messages: int = Field(
        500, ge=1, le=10_000, description="Messages of one pull; a follow holds at most twice as many."
    )

    @field_validator("urls")
    @classmethod
    def _nats_urls(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        return _checked_urls(urls, ("nats://", "tls://"))

    @model_validator(mode="after")
    def _one_kind_of_credentials(self) -> Self:
        kinds = [self.user, self.token, self.credentials_file, self.nkey_seed_file]
        if sum(kind is not None for kind in kinds) > 1:
            raise ValueError("set only one of user, token, credentials_file and nkey_seed_file")
        if (self.user is None) != (self.password is None):
            raise ValueError("user and password are set together or not at all")
        return self

    @property
    def uses_tls(self) -> bool:
        return self.tls_ca_file is not None or any(url.startswith("tls://") for url in self.urls)


class EtcdSettings(TlsSettings):
    """How to reach etcd. Its JSON gateway is on the client port; see docs/decisions/001."""

    endpoints: tuple[str, ...] = Field(
        ("http://127.0.0.1:2379",),
        min_length=1,
        description="Client URLs of the members, as http://host:port or https://host:port.",
    )
    prefix: str = Field(
        "/holdfast/",
        pattern=r"^[ -~]{1,128}$",
        description="Put before every key on the server, so that clusters may share one.",
    )
    user: str | None = Field(None, description="User name, together with `password`.")
    password: SecretStr | None = Field(None, description="Password of `user`.")
    request_timeout_s: Seconds = Field(5.0, description="Seconds in which a call is tried on the endpoints, in turn.")
    try_timeout_s: Seconds = Field(1.5, description="Seconds for one try on one endpoint.")
    retry_wait_min_s: Seconds = Field(
        0.05, description="Seconds of the first pause after all endpoints failed, before jitter."
    )
    retry_wait_max_s: Seconds = Field(1.0, description="Longest pause in seconds, before jitter.")
    watch_silence_s: Seconds = Field(
        5.0, description="Seconds without a word on a watch after which it is opened again, where a quorum answers."
    )

    @field_validator("endpoints")
    @classmethod
    def _http_urls(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        return _checked_urls(tuple(url.rstrip("/") for url in urls), ("http://", "https://"))

    @model_validator(mode="after")
    def _password_goes_with_user(self) -> Self:
        if (self.user is None) != (self.password is None):
            raise ValueError("user and password are set together or not at all")
        return self

    @property
    def uses_tls(self) -> bool:
        return any(url.startswith("https://") for url in self.endpoints)


def _checked_urls(urls: tuple[str, ...], schemes: tuple[str, ...]) -> tuple[str, ...]:
    for url in urls:
        if not url.startswith(schemes):
            raise ValueError(f"{_without_userinfo(url)}: the URL must start with {' or '.join(schemes)}")
        parts = urlsplit(url)
        if not parts.hostname or parts.port == 0:
            raise ValueError(f"{_without_userinfo(url)}: the URL needs a host, and a port of 1 or more")
        if "@" in url:
            raise ValueError(f"{_without_userinfo(url)}: put credentials in their own settings, not in the URL")
    if len(set(urls)) != len(urls):
        raise ValueError("a URL is given twice")
    return urls


def _without_userinfo(url: str) -> str:
    return url.rpartition("@")[2]
