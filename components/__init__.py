"""Importing this package switches off the telemetry of every library that a stage, the service or a command loads."""

import os

TELEMETRY_OFF = {
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime: uploads device id and model names, keeps a database in ~/.cache
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "OTEL_SDK_DISABLED": "true",  # FastAPI and MLflow send traces wherever OTEL_EXPORTER_OTLP_ENDPOINT points
    "FASTAPI_OTEL_AUTO_CONFIGURE": "false",
}
"""Environment variables that libraries read when they are imported; processes and containers started here inherit
them."""

os.environ.update(TELEMETRY_OFF)
