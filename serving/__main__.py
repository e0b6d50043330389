"""Run the service: `python -m serving --store DIR`."""

from __future__ import annotations

import argparse
import sys

from components.shared import environment

MANUAL = """\
Serve over HTTP the model that is in service in a store.

The release log is read every few seconds; a new release or a rollback needs no restart, and requests in progress finish
with the model they began with. If a model cannot be loaded, the previous one stays in service and GET /health reports
the reason in "warning".

  GET  /health         200 with a model, 503 without
  POST /predict        form field `file`: a PNG, JPEG or DICOM image; `return_features=true` adds the pooled features
  POST /predict/batch  form field `files`, several times: up to 64 images
  GET  /model/info     the model in service and its origin
  GET  /               a page to try an image; GET /openapi.json describes the whole interface

  curl -F file=@scan.png http://127.0.0.1:8080/predict
"""

ENDING = """\
SIGTERM or Ctrl-C stop the service after requests in progress are answered. Exit status: 0 stopped, 1 could not start,
2 invalid usage.
With MEDLOOP_VERIFY_KEYS (public keys) only signed entries of the release log are accepted.
Keys for S3-compatible storage come from the environment: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL.
Uploads over 1 MB need a writable directory for temporary files (TMPDIR). If it is full, requests are answered with 507
and the log contains its path.

Limits: 64 MiB per file; 64 files and 512 MiB per batch; 10 seconds for the header of a request; 20 seconds for its body
plus one for every 4 KiB; 5 seconds without a request; 60 seconds to read a response. At most 2048 connections, and at
most half of the open files that the process may have (ulimit -n). If there are more, the slowest are closed, and the
log reports their number every ten seconds.
"""


def main(argv: list[str]) -> int:
    """Serve the store that the arguments name; return the exit status."""
    parser = argparse.ArgumentParser(
        environment.get("MEDLOOP_USAGE", "python -m serving"),  # set in images, which are started in another way
        description=MANUAL,
        epilog=ENDING,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--store", required=True, metavar="URI", help="store of models: a directory or s3://bucket/prefix"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all interfaces (default 127.0.0.1)"
    )
    parser.add_argument("--port", type=int, default=8080, help="port to listen on; 0 for any free port (default 8080)")
    parser.add_argument(
        "--poll",
        type=float,
        default=2.0,
        metavar="SECONDS",
        help="seconds between reads of the release log (default 2)",
    )
    arguments = parser.parse_args(argv)

    from components.shared.privacy.secret_redaction import protect_process
    from components.shared.runtime.events import configure_logging
    from serving.serve import serve

    protect_process()
    configure_logging()
    return serve(arguments.store, arguments.host, arguments.port, arguments.poll)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
