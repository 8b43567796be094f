"""The files of the page, as they lie in the package, and the headers that keep the page to itself."""

from __future__ import annotations

from pathlib import Path

from starlette.responses import Response

from ensemw2s.serving.errors import ApiError

FOLDER = Path(__file__).parent / "page"
PREFIX = "/inspector/page/"
START = "index.html"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
NAMES = frozenset(path.name for path in FOLDER.iterdir() if path.suffix in TYPES)

PAGE_PATHS = frozenset({"/", *(PREFIX + name for name in NAMES)})
"""what is given to everybody: the files hold nothing of a run, and ask for a key where the server wants one"""

# Own files only, no inline script or style, no frame around it; text never becomes markup.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "x-frame-options": "DENY",
}


def page_file(name: str) -> Response:
    """One file of the page.

    Raises:
        ApiError: 404.
    """
    if name not in NAMES:
        raise ApiError(404, f"there is no {PREFIX + name[:100]} here")
    path = FOLDER / name
    return Response(path.read_bytes(), headers=HEADERS, media_type=TYPES[path.suffix])
