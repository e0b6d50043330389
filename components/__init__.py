"""Importing this package sets environment variables that switch off telemetry and limit the threads of libraries.

Libraries read these variables when they are loaded, so this package must be imported first. Child processes and
containers inherit them.
"""

from components.shared import environment
from components.shared.runtime.threads import thread_variables

TELEMETRY_OFF = {
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime: uploads device id and model names, keeps a database in ~/.cache
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "OTEL_SDK_DISABLED": "true",  # FastAPI and MLflow send traces wherever OTEL_EXPORTER_OTLP_ENDPOINT points
    "FASTAPI_OTEL_AUTO_CONFIGURE": "false",
}

THREADS = thread_variables()

environment.update(TELEMETRY_OFF | THREADS)
