"""URIs of run directories: told from folders, joined, and shown."""

from __future__ import annotations

from urllib.parse import urlsplit


def is_uri(text: str) -> bool:
    """Whether this names storage by URI, such as ``s3://bucket/runs``, and not a folder."""
    return "://" in text


def inside(uri: str, name: str) -> str:
    """The URI of something in a folder: ``s3://b/runs?region=x``, ``demo`` -> ``s3://b/runs/demo?region=x``."""
    place, mark, query = uri.partition("?")
    return f"{place.rstrip('/')}/{name}{mark}{query}"


def shown(uri: str) -> str:
    """A URI for messages, without its query."""
    return uri.partition("?")[0].rstrip("/")


def uri_problem(uri: str) -> str | None:
    """What is wrong with a URI that can be seen without looking there; None where nothing is."""
    scheme, _, rest = uri.partition("://")
    if scheme == "file":
        return f"{uri!r} is a URI, and a run directory on a file system is a folder: write {rest!r}"
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        return f"{uri!r} is no URI: {error}"
    if not scheme or not rest.partition("?")[0].strip("/"):
        return f"{uri!r} names no bucket: write for example 's3://bucket/runs'"
    if "@" in parts.netloc and parts.password is not None:
        return (
            f"{scheme}://...@{parts.hostname}{parts.path} holds a password, which would be stored with the run: leave it to the "
            "environment of the nodes, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    return None
