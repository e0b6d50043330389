"""The HTTP interface of the service."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import FastAPI, Form, HTTPException, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from numpy.typing import NDArray

from components.shared.errors import RefusedError
from components.shared.imaging.views import view_parameters
from components.shared.runtime.threads import count_threads
from serving import page
from serving.connections import Tally, most_connections
from serving.decoders import ENDING, Decoders, EndingError
from serving.deployment import Deployment, Serving
from serving.forms import UploadRoute, no_file, problems
from serving.guard import Guard, in_words
from serving.prediction import answer

FORM_BYTES = 64 * 2**10
"""What the multipart form around one file may add to it."""
LOOK_UP = 0.2
"""Seconds between looks at whether the client is still there."""
GONE = 499
"""The status under which the log has a request whose client went away before it was answered; nobody receives it."""

T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """What one request may bring: bytes of a file, files and bytes of a batch; and how many are answered at once."""

    file_bytes: int = 64 * 2**20
    files: int = 64
    batch_bytes: int = 512 * 2**20
    at_once: int = field(default_factory=lambda: most_connections() // 2)


def create_app(deployment: Deployment, limits: Limits | None = None, tally: Tally | None = None) -> FastAPI:
    """The application that answers for what is in service; whoever calls this starts and stops the deployment."""
    service = Service(deployment, limits or Limits())
    # FastAPI's own pages load scripts from the internet, which a hospital's network does not let through.
    app = FastAPI(title="medloop", docs_url=None, redoc_url=None, lifespan=service.lifespan)
    app.state.limits = service.limits
    app.router.route_class = UploadRoute
    app.add_api_route("/", service.home, methods=["GET"], response_class=HTMLResponse, response_model=None)
    app.add_api_route("/health", service.health, methods=["GET"], response_model=None, responses=problems(503))
    app.add_api_route("/model/info", service.model_info, methods=["GET"], response_model=None, responses=problems(503))
    for path, answers in (("/predict", service.predict), ("/predict/batch", service.predict_batch)):
        statuses = problems(400, 408, 413, 422, 503, 507)
        app.add_api_route(path, answers, methods=["POST"], response_model=None, responses=statuses)
    app.add_exception_handler(404, _no_such_path)
    app.add_exception_handler(405, _wrong_method)
    app.add_exception_handler(RequestValidationError, _wrong_form)
    small = dict.fromkeys(("/", "/health", "/model/info", "/openapi.json"), FORM_BYTES)
    one, many = service.limits.file_bytes + FORM_BYTES, service.limits.batch_bytes
    app.state.decoders = service.decoders
    paths = {**small, "/predict": one, "/predict/batch": many}
    app.add_middleware(Guard, limits=paths, most=service.limits.at_once, tally=tally or Tally())
    return app


class Service:
    """Answers requests with the model that is in service when their work begins."""

    def __init__(self, deployment: Deployment, limits: Limits) -> None:
        self.limits = limits
        self._deployment = deployment
        # A pool of its own: predictions queue here while the event loop goes on answering /health.
        self._pool = ThreadPoolExecutor(max(2, count_threads()), "predict")
        self.decoders = Decoders(self._pool)

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        """What stands around the application's life."""
        self.decoders.start()
        yield
        await self.decoders.close()
        self._pool.shutdown()

    async def home(self) -> HTMLResponse:
        """A page for a person: what is in service, and a form to try an image."""
        return HTMLResponse(page.render(self._deployment.state), headers=page.HEADERS)

    async def health(self) -> JSONResponse:
        """Whether there is a model to ask: 200 with one, 503 without.

        Gives status, model_loaded, device, model_version, and signatures (of the release log: verified, refused, or not
        checked where no public key is set); "detail" says why there is none. "warning" says what is wrong
        while an earlier model goes on answering (a damaged new model, a broken release log): the service is healthy
        then, since restarting it would not mend the store and would lose the model that it has.
        """
        state = self._deployment.state
        loaded = state.serving is not None
        body = {
            "status": "healthy" if loaded else "unhealthy",
            "model_loaded": loaded,
            "device": "cpu",
            "model_version": state.serving.version if state.serving else None,
            "signatures": state.signatures,
        }
        if state.problem:
            body["warning" if loaded else "detail"] = state.problem
        return JSONResponse(body, 200 if loaded else 503)

    async def model_info(self) -> JSONResponse:
        """What is in service: version, classes, preprocessing, precision, threshold, and where it came from."""
        return JSONResponse(self._serving().info())

    async def predict(
        self, request: Request, file: UploadFile, return_features: Annotated[bool, Form()] = False
    ) -> JSONResponse:
        """The class of one image (PNG, JPEG or DICOM).

        Gives prediction, confidence (the probability of the predicted class), probabilities by class,
        inference_time_ms (decoding and model, without the upload), model_version, and features when asked for.
        """
        serving = self._serving()
        if (file.size or 0) > self.limits.file_bytes:
            raise HTTPException(413, self._too_large())

        async def work() -> JSONResponse:
            begun = time.perf_counter()
            try:
                view = await self._view(file, serving)
            except ValueError as error:
                raise HTTPException(400, str(error)) from None
            found = (await self._aside(lambda: answer(serving.model, view[None], return_features)))[0]
            return JSONResponse({**found, "inference_time_ms": _since(begun), "model_version": serving.version})

        return await _while_connected(request, work())

    async def predict_batch(
        self, request: Request, files: list[UploadFile], return_features: Annotated[bool, Form()] = False
    ) -> JSONResponse:
        """The classes of several images, which run through the model together.

        Gives predictions (for each file, in order, its filename with what /predict gives, or with an error), count,
        inference_time_ms (the whole batch; each file carries its equal share) and model_version.
        """
        serving = self._serving()
        if len(files) > self.limits.files:
            raise HTTPException(
                413, f"The request has {len(files)} files; at most {self.limits.files} are allowed. Send them in parts."
            )
        return await _while_connected(request, self._batch(serving, files, return_features))

    async def _batch(self, serving: Serving, files: list[UploadFile], return_features: bool) -> JSONResponse:
        begun = time.perf_counter()
        views, errors = [], {}
        for place, file in enumerate(files):
            try:
                views.append(await self._view(file, serving))
            except ValueError as error:
                errors[place] = str(error)
        answers = await self._aside(lambda: answer(serving.model, np.stack(views), return_features)) if views else []
        found = iter(answers)
        taken = _since(begun)
        common = {"inference_time_ms": round(taken / len(files), 3), "model_version": serving.version}
        predictions = [
            {"filename": file.filename, **({"error": errors[place]} if place in errors else {**next(found), **common})}
            for place, file in enumerate(files)
        ]
        return JSONResponse({"predictions": predictions, "count": len(files), **common, "inference_time_ms": taken})

    async def _view(self, file: UploadFile, serving: Serving) -> NDArray[np.uint8]:
        """What the model sees of an image file; a ValueError says in a sentence why the file cannot be used."""
        if (file.size or 0) > self.limits.file_bytes:
            raise RefusedError(self._too_large())
        preprocess = serving.model.preprocess

        def read() -> bytes:
            file.file.seek(0)
            return file.file.read()

        try:
            return await self.decoders.view(read, preprocess["decoding"], view_parameters(preprocess))
        except EndingError:
            raise HTTPException(503, ENDING) from None

    def _serving(self) -> Serving:
        state = self._deployment.state
        if state.serving is None:
            raise HTTPException(503, state.problem)
        return state.serving

    def _too_large(self) -> str:
        return f"The file is larger than the {in_words(self.limits.file_bytes)} allowed. Send a smaller one."

    async def _aside(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)


async def _while_connected(request: Request, work: Coroutine[Any, Any, JSONResponse]) -> JSONResponse:
    """Do the work for a request, unless the client goes away: then it is given up."""
    task = asyncio.create_task(work)
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=LOOK_UP)
            if not task.done() and await request.is_disconnected():
                return JSONResponse({"detail": "The client has gone."}, GONE)
        return task.result()
    finally:
        task.cancel()


def _since(begun: float) -> float:
    return round((time.perf_counter() - begun) * 1000, 3)


async def _no_such_path(_: Request, __: Exception) -> JSONResponse:
    return JSONResponse({"detail": "There is no such path here. /openapi.json lists those that are."}, 404)


async def _wrong_method(request: Request, error: Exception) -> JSONResponse:
    allowed = (getattr(error, "headers", None) or {}).get("Allow", "another method")
    detail = f"This path does not take {request.method}. Use {allowed}."
    return JSONResponse({"detail": detail}, 405, headers={"Allow": allowed})


async def _wrong_form(request: Request, error: Exception) -> JSONResponse:
    """The first thing that is wrong with a form, in a sentence."""
    assert isinstance(error, RequestValidationError)
    named = str(error.errors()[0]["loc"][-1])
    detail = "return_features must be true or false." if named == "return_features" else no_file(request)
    return JSONResponse({"detail": detail}, 422)
