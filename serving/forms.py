"""Reads the forms that requests bring, within limits, and says why one cannot be read or kept."""

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

from serving.guard import GONE

log = logging.getLogger("medloop.serve")

FIELDS, FIELD_BYTES = 8, 1024
"""Fields of a form besides its files, and bytes of each."""

STATUSES = {
    400: "The file or the form cannot be read.",
    408: "The request arrived too slowly.",
    413: "The request, a file or the number of files is over the limit.",
    422: "The form lacks its file, or a field has a value that it cannot have.",
    503: "No model is in service, or too many requests are being answered.",
    507: "The directory for temporary files is full or cannot be written.",
}


class Problem(BaseModel):
    """Why a request was not answered."""

    detail: str


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What the description of the interface says of these statuses."""
    return {status: {"model": Problem, "description": STATUSES[status]} for status in statuses}


def no_file(request: Request) -> str:
    """The sentence for a form without a file."""
    name = "files" if request.url.path.endswith("/batch") else "file"
    return f"The form has no file in the field {name!r}. Send the image there, as multipart/form-data."


class UploadRoute(APIRoute):
    """A route whose form, where it takes one, is read within limits before it is answered."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what answers a request."""
        handle, takes_form = super().get_route_handler(), self.body_field is not None

        async def handle_form(request: Request) -> Response:
            if takes_form:
                try:
                    request._form = await _read(request)  # noqa: SLF001 - where Starlette keeps a form that was read
                except ClientDisconnect:
                    return Response(status_code=GONE)
            return await handle(request)

        return handle_form


async def _read(request: Request) -> FormData:
    """The form of a request; an HTTPException says why it cannot be read or kept."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
        raise HTTPException(422, no_file(request))  # a form of another kind cannot hold a file
    files = request.app.state.limits.files
    try:
        async with aclosing(request.stream()) as stream:
            return await MultiPartParser(
                request.headers, stream, max_files=files + 1, max_fields=FIELDS, max_part_size=FIELD_BYTES
            ).parse()
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            raise HTTPException(413, f"The request has more than {files} files. Send them in parts.") from None
        raise HTTPException(400, f"The form cannot be read: {error.message.rstrip('.')}. Check it.") from None
    except OSError as error:
        raise _not_kept(error) from None


def _not_kept(error: OSError) -> HTTPException:
    """The answer where an upload cannot be kept, which the log tells too."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        status, sentence = 503, "Too many files are open at this moment. Try again in a second."
    else:
        status, why = 507, "is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "cannot be written"
        sentence = f"The service's directory for temporary files {why}, so the upload was not kept. Tell the operator."
    fields = {"stage": "serve", "directory": tempfile.tempdir, "error": error.strerror or type(error).__name__}
    log.error("the upload was not kept", extra={"fields": fields})
    return HTTPException(status, sentence)
