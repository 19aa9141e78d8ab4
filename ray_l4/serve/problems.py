"""Errors of requests, in OpenAI's format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from ray_l4.errors import DataError, RayL4Error, RunDirectoryError

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_CODES = {404: "not_found", 405: "method_not_allowed", 413: "request_too_large"}


class RequestError(Exception):
    """A request that is not answered; the message says why, and what to do."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        """``param``: the field of the request that is wrong. ``retry_after``: seconds after which it may succeed."""
        super().__init__(message)
        self.status, self.code = status, code
        self.message, self.param = _sendable(message), None if param is None else _sendable(param)
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        if status == 401:
            self.headers["WWW-Authenticate"] = "Bearer"

    @property
    def body(self) -> dict[str, Any]:
        """The error object."""
        usual = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = _TYPES.get(self.status, usual)
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """Return the response."""
        return JSONResponse(self.body, self.status, self.headers)


def invalid(error: ValidationError | RequestValidationError) -> RequestError:
    """Return the error about the first field of a request that is wrong."""
    first: Mapping[str, Any] = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part not in ("body", "query"))
    what = str(first["ctx"]["error"]) if first["type"] == "value_error" else str(first["msg"])
    return RequestError(400, f"{where}: {what}" if where else what, "invalid_value", where or None)


def add_handlers(app: FastAPI) -> None:
    """Let an app answer every error in OpenAI's format."""

    @app.exception_handler(RequestError)
    async def own(request: Request, error: RequestError) -> JSONResponse:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def wrong(request: Request, error: RequestValidationError) -> JSONResponse:
        return invalid(error).response()

    @app.exception_handler(HTTPException)
    async def routing(request: Request, error: HTTPException) -> JSONResponse:
        message = {
            404: f"there is nothing at {request.url.path}",
            405: f"{request.url.path} does not take {request.method}",
        }.get(error.status_code, str(error.detail))
        response = RequestError(error.status_code, message, _CODES.get(error.status_code)).response()
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        failed = RequestError(500, f"the service failed ({type(error).__name__}); its log says more", "failed")
        failed.headers["Connection"] = "close"  # as the server does, once it has written the traceback to its log
        return failed.response()

    @app.exception_handler(RayL4Error)
    async def known(request: Request, error: RayL4Error) -> JSONResponse:
        return explained(error).response()


def explained(error: RayL4Error) -> RequestError:
    """Return what a request is told of an error: bad data is the request's fault, damaged files are not."""
    if isinstance(error, DataError):
        return RequestError(400, str(error), "invalid_value")
    code = "run_unreadable" if isinstance(error, RunDirectoryError) else "server_error"
    return RequestError(503 if isinstance(error, RunDirectoryError) else 500, str(error), code)


def _sendable(text: str) -> str:
    """Return a text that can be sent: one that quotes a request may hold half a character."""
    return text.encode("utf-8", "replace").decode("utf-8")
