"""Errors in the shape that OpenAI's clients read: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}

#: Problems of one request that are looked at.
MAX_PROBLEMS = 32


class ApiError(Exception):
    """An answer that is an error.

    Args:
        status: HTTP status.
        message: what came, what is allowed.
        code: word for programs.
        param: the parameter that is wrong.
        headers: further response headers.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON answer."""
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {
            "error": {"message": self.message, "type": kind, "param": self.param, "code": self.code},
        }


def unsupported(param: str, why: str = "is not supported here") -> ApiError:
    """A parameter that would change the answer and cannot be honoured."""
    return ApiError(400, f"{param} {why}", code="unsupported_parameter", param=param)


def invalid(param: str, message: str, code: str = "invalid_value") -> ApiError:
    """A parameter whose value is not allowed."""
    return ApiError(400, message, code=code, param=param)


def from_validation(problems: Sequence[Mapping[str, Any]]) -> ApiError:
    """The first problem that pydantic found, in one sentence. What the client sent is not repeated."""
    problems = problems[:MAX_PROBLEMS]
    first = problems[0]
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not valid JSON: {first.get('ctx', {}).get('error', first['msg'])}")
    path = _within(first)
    if not path:
        return ApiError(400, f"the body must be a JSON object: {first['msg']}")
    param = str(path[0])
    if first["type"] == "extra_forbidden" and len(path) == 1:
        return unsupported(param)
    # A union reports every branch; a deeper path of the same parameter is the branch that came closest.
    same = [p for p in problems if _within(p)[:1] == path[:1]]
    texts = list(dict.fromkeys(str(p["msg"]) for p in same))
    where = ".".join(str(p) for p in path if not str(p).startswith(("list[", "constrained", "function-")))
    return invalid(param, f"{where if len(same) == 1 else param}: {' or: '.join(texts[:4])}")


def _within(problem: Mapping[str, Any]) -> list[Any]:
    """Where a problem is, within the body or the query of the address."""
    path = list(problem["loc"])
    return path[1:] if path[:1] in (["body"], ["query"]) else path
