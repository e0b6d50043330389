"""Read the forms of requests within limits."""

from __future__ import annotations

import errno
import logging
import tempfile
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from serving.request_limits import CLIENT_LEFT

log = logging.getLogger("medloop.serve")

FIELDS, FIELD_BYTES = 8, 1024
"""Maximum number of fields in a form besides its files, and maximum size of each."""

STATUSES = {
    400: "The file or the form cannot be read.",
    408: "The request arrived too slowly.",
    413: "The request, a file or the number of files is too large.",
    422: "The form has no file, or a field has an invalid value.",
    503: "No model is in service, or too many requests are being answered.",
    507: "The directory for temporary files is full or cannot be written.",
}


class Problem(BaseModel):
    """An error response."""

    detail: str


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI descriptions of these statuses."""
    return {status: {"model": Problem, "description": STATUSES[status]} for status in statuses}


def no_file(request: Request) -> str:
    """Return the error message for a form without a file."""
    name = "files" if request.url.path.endswith("/batch") else "file"
    return f"The form has no file in the field {name!r}. Send the image in this field, as multipart/form-data."


class UploadRoute(APIRoute):
    """A route that reads the form of a request within limits before it is handled."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle, takes_form = super().get_route_handler(), self.body_field is not None

        async def handle_form(request: Request) -> Response:
            if takes_form:
                try:
                    request._form = await _read(request)  # noqa: SLF001 - Starlette keeps the form here
                except ClientDisconnect:
                    return Response(status_code=CLIENT_LEFT)
            return await handle(request)

        return handle_form


async def _read(request: Request) -> FormData:
    """Return the form of a request; raise an HTTPException if it cannot be read or stored."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
        raise HTTPException(422, no_file(request))  # other forms cannot contain a file
    files = request.app.state.limits.files
    try:
        async with aclosing(request.stream()) as stream:
            return await MultiPartParser(
                request.headers, stream, max_files=files + 1, max_fields=FIELDS, max_part_size=FIELD_BYTES
            ).parse()
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            raise HTTPException(413, f"The request has more than {files} files, the maximum. Split them.") from None
        raise HTTPException(400, f"The form cannot be read: {error.message.rstrip('.')}. Correct it.") from None
    except OSError as error:
        raise _storage_error(error) from None


def _storage_error(error: OSError) -> HTTPException:
    """Log that an upload could not be stored, and return the response."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        status, detail = 503, "Too many files are open. Try again in a second."
    else:
        status, state = 507, "is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "cannot be written"
        detail = f"The service's directory for temporary files {state}, so the upload failed. Contact the operator."
    fields = {"stage": "serve", "directory": tempfile.tempdir, "error": error.strerror or type(error).__name__}
    log.error("the upload was not kept", extra={"fields": fields})
    return HTTPException(status, detail)
