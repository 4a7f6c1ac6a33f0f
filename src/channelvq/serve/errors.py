"""Refusals in the form of OpenAI's API: `{"error": {"message", "type", "param", "code"}}`."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from channelvq.errors import InputError

RETRY_AFTER = 2  # seconds
_TYPES = {401: "authentication_error", 429: "rate_limit_error"}


class RefusedError(Exception):
    """A request that is not served, and why."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    @property
    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """Beside those of every answer."""
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        return {"Retry-After": str(RETRY_AFTER)} if self.status in (429, 503) else {}

    def response(self) -> JSONResponse:
        """The whole answer."""
        return JSONResponse(self.body, self.status, self.headers)


def queue_full(waiting: int) -> RefusedError:
    """For a request that finds no place."""
    return RefusedError(
        429, f"the server is busy: {waiting} image(s) are waiting already; try again", code="rate_limit_exceeded"
    )


def too_late(seconds: float) -> RefusedError:
    """For a request that could not be answered in time."""
    return RefusedError(504, f"there was no answer within {seconds:g} seconds; ask for fewer images, or later")


def add_handlers(app: FastAPI) -> None:
    """Give every error of an app this form."""

    @app.exception_handler(RefusedError)
    async def refused(_: Request, error: RefusedError) -> JSONResponse:
        return error.response()

    @app.exception_handler(InputError)
    async def wrong(_: Request, error: InputError) -> JSONResponse:
        return RefusedError(400, str(error)).response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return _of_validation(error).response()

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        return RefusedError(error.status_code, str(error.detail)).response()

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> JSONResponse:
        # What went wrong inside is in the log, not for a stranger.
        return RefusedError(500, "the server failed to answer this request").response()


def _of_validation(error: RequestValidationError) -> RefusedError:
    first = error.errors()[0]
    where = [str(part) for part in first["loc"] if part != "body"]
    if first["type"] == "json_invalid":
        return RefusedError(400, f"the body is not valid JSON: {first.get('ctx', {}).get('error', first['msg'])}")
    param = ".".join(where)[:80] or None
    message = f"{param or 'body'}: {first['msg']}"
    if first["type"] == "extra_forbidden":
        message = f"unknown parameter: {param!r}"
    return RefusedError(400, message, param=param)
