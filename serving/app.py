"""The HTTP interface of the service."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
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
from serving.connection_limits import Tally
from serving.decoder_pool import STOPPING, Decoders, StoppingError
from serving.deployment import Deployment, Serving
from serving.forms import UploadRoute, no_file, problems
from serving.prediction import predict
from serving.request_limits import CLIENT_LEFT, Guard, Limits, format_size

FORM_BYTES = 64 * 2**10
"""Maximum size of a multipart form, without its file."""
CLIENT_CHECK_SECONDS = 0.2
"""Seconds between checks that the client is still connected."""

T = TypeVar("T")


def create_app(deployment: Deployment, limits: Limits | None = None, tally: Tally | None = None) -> FastAPI:
    """Return the application that serves a deployment; the caller starts and stops the deployment."""
    service = Service(deployment, limits or Limits())
    # FastAPI's own pages load scripts from the internet, which hospital networks block.
    app = FastAPI(title="medloop", docs_url=None, redoc_url=None, lifespan=service.lifespan)
    app.state.limits = service.limits
    app.router.route_class = UploadRoute
    app.add_api_route("/", service.home, methods=["GET"], response_class=HTMLResponse, response_model=None)
    app.add_api_route("/health", service.health, methods=["GET"], response_model=None, responses=problems(503))
    app.add_api_route("/model/info", service.model_info, methods=["GET"], response_model=None, responses=problems(503))
    for path, endpoint in (("/predict", service.predict), ("/predict/batch", service.predict_batch)):
        statuses = problems(400, 408, 413, 422, 503, 507)
        app.add_api_route(path, endpoint, methods=["POST"], response_model=None, responses=statuses)
    app.add_exception_handler(404, _not_found)
    app.add_exception_handler(405, _method_not_allowed)
    app.add_exception_handler(RequestValidationError, _invalid_form)
    app.state.decoders = service.decoders
    paths = dict.fromkeys(("/", "/health", "/model/info", "/openapi.json"), FORM_BYTES)
    paths |= {"/predict": service.limits.file_bytes + FORM_BYTES, "/predict/batch": service.limits.batch_bytes}
    app.add_middleware(Guard, limits=paths, most=service.limits.at_once, tally=tally or Tally())
    return app


class Service:
    """The endpoints. Each request is answered by the model that is in service when its work begins."""

    def __init__(self, deployment: Deployment, limits: Limits) -> None:
        self.limits = limits
        self._deployment = deployment
        # Predictions wait in this pool, so that the event loop can answer /health.
        self._pool = ThreadPoolExecutor(max(2, count_threads()), "predict")
        self.decoders = Decoders(self._pool)

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        """Start the decoding processes, and end them with the application."""
        self.decoders.start()
        yield
        await self.decoders.close()
        self._pool.shutdown()

    async def home(self) -> HTMLResponse:
        """Show the model in service and a form to try an image."""
        return HTMLResponse(page.render(self._deployment.state), headers=page.HEADERS)

    async def health(self) -> JSONResponse:
        """Report whether a model is in service: 200 with a model, 503 without.

        Returns status, model_loaded, device, model_version, and signatures (of the release log: verified, refused, or
        not checked if no public key is set). "detail" is the reason why there is no model. "warning" describes a
        problem while an earlier model stays in service (a damaged new model, a broken release log): the service is
        healthy then, because a restart would not repair the store and would lose the loaded model.
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
        """Describe the model in service: version, classes, preprocessing, precision, threshold and origin."""
        return JSONResponse(self._serving().info())

    async def predict(
        self, request: Request, file: UploadFile, return_features: Annotated[bool, Form()] = False
    ) -> JSONResponse:
        """Classify one image (PNG, JPEG or DICOM).

        Returns prediction (a class, or the list of findings of a multilabel model), confidence (the probability of
        the predicted class, or of the least certain finding), probabilities by class, positive (the class that is
        predicted if its probability reaches the threshold; null if there are not two classes), threshold (null with
        more classes, one for each finding of a multilabel model), inference_time_ms (decoding and model, without the
        upload), model_version, and features on request.
        """
        serving = self._serving()
        if (file.size or 0) > self.limits.file_bytes:
            raise HTTPException(413, self._too_large())

        async def work() -> JSONResponse:
            start = time.perf_counter()
            try:
                view = await self._view(file, serving)
            except ValueError as error:
                raise HTTPException(400, str(error)) from None
            prediction = (await self._in_pool(lambda: predict(serving.model, view[None], return_features)))[0]
            return JSONResponse({**prediction, "inference_time_ms": _ms_since(start), "model_version": serving.version})

        return await _while_connected(request, work())

    async def predict_batch(
        self, request: Request, files: list[UploadFile], return_features: Annotated[bool, Form()] = False
    ) -> JSONResponse:
        """Classify several images in one batch.

        Returns predictions (for each file, in order, its filename with the fields of /predict, or with an error),
        count, inference_time_ms (of the whole batch; for a file, its equal share) and model_version.
        """
        serving = self._serving()
        if len(files) > self.limits.files:
            raise HTTPException(
                413, f"The request has {len(files)} files; at most {self.limits.files} are allowed. Split them."
            )
        return await _while_connected(request, self._batch(serving, files, return_features))

    async def _batch(self, serving: Serving, files: list[UploadFile], return_features: bool) -> JSONResponse:
        start = time.perf_counter()
        views, errors = [], {}
        for index, file in enumerate(files):
            try:
                views.append(await self._view(file, serving))
            except ValueError as error:
                errors[index] = str(error)
        batch = await self._in_pool(lambda: predict(serving.model, np.stack(views), return_features)) if views else []
        results = iter(batch)
        duration = _ms_since(start)
        common = {"inference_time_ms": round(duration / len(files), 3), "model_version": serving.version}
        predictions = [
            {
                "filename": file.filename,
                **({"error": errors[index]} if index in errors else {**next(results), **common}),
            }
            for index, file in enumerate(files)
        ]
        return JSONResponse({"predictions": predictions, "count": len(files), **common, "inference_time_ms": duration})

    async def _view(self, file: UploadFile, serving: Serving) -> NDArray[np.uint8]:
        """Return the model's view of an image file; raise a ValueError if the file cannot be used."""
        if (file.size or 0) > self.limits.file_bytes:
            raise RefusedError(self._too_large())
        preprocess = serving.model.preprocess

        def read() -> bytes:
            file.file.seek(0)
            return file.file.read()

        try:
            return await self.decoders.view(read, preprocess["decoding"], view_parameters(preprocess))
        except StoppingError:
            raise HTTPException(503, STOPPING) from None

    def _serving(self) -> Serving:
        state = self._deployment.state
        if state.serving is None:
            raise HTTPException(503, state.problem)
        return state.serving

    def _too_large(self) -> str:
        return f"The file is larger than {format_size(self.limits.file_bytes)}, the maximum. Send a smaller file."

    async def _in_pool(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)


async def _while_connected(request: Request, work: Coroutine[Any, Any, JSONResponse]) -> JSONResponse:
    """Return the response of `work`, or cancel it if the client disconnects."""
    task = asyncio.create_task(work)
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=CLIENT_CHECK_SECONDS)
            if not task.done() and await request.is_disconnected():
                return JSONResponse({"detail": "The client disconnected."}, CLIENT_LEFT)
        return task.result()
    finally:
        task.cancel()


def _ms_since(start: float) -> float:
    return round((time.perf_counter() - start) * 1000, 3)


async def _not_found(_: Request, __: Exception) -> JSONResponse:
    return JSONResponse({"detail": "This path does not exist. /openapi.json lists the paths."}, 404)


async def _method_not_allowed(request: Request, error: Exception) -> JSONResponse:
    allowed = (getattr(error, "headers", None) or {}).get("Allow", "another method")
    detail = f"This path does not support {request.method}. Use {allowed}."
    return JSONResponse({"detail": detail}, 405, headers={"Allow": allowed})


async def _invalid_form(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    field = str(error.errors()[0]["loc"][-1])
    detail = "return_features must be true or false." if field == "return_features" else no_file(request)
    return JSONResponse({"detail": detail}, 422)
