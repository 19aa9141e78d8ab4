"""The page at ``/``: one document that needs nothing else, and may load and run nothing else."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

_STYLE, _SCRIPT = "/*STYLE*/", "/*SCRIPT*/"
"""Where the style sheet and the scripts go in ``page/index.html``."""
SCRIPTS = ("elements.js", "requests.js", "chart.js", "learned.js", "asking.js")
"""In the order in which they run."""


def page_router() -> APIRouter:
    """Return the route of the page, which is put together once."""
    router, (document, policy) = APIRouter(), page()
    headers = {
        "Content-Security-Policy": policy,
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
        "Cross-Origin-Opener-Policy": "same-origin",
    }

    @router.get("/", response_class=HTMLResponse)
    async def root() -> HTMLResponse:
        """Return the page, which holds nothing of the run."""
        return HTMLResponse(document, headers=headers)

    return router


def page() -> tuple[str, str]:
    """Return the document, and the policy by which a browser runs and loads nothing but what is in it."""
    folder = files("ray_l4.serve") / "page"
    style = (folder / "page.css").read_text(encoding="utf-8")
    script = "\n".join((folder / name).read_text(encoding="utf-8") for name in SCRIPTS)
    document = (folder / "index.html").read_text(encoding="utf-8").replace(_STYLE, style).replace(_SCRIPT, script)
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return document, policy


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
