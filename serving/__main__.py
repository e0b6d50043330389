"""Runs the service: `python -m serving --store DIR`."""

from __future__ import annotations

import argparse
import sys

from components.shared import environment

MANUAL = """\
Answers over HTTP with the model that a store's release log puts into service.

It reads the log every few seconds and takes up a newly released (or rolled back) model without a restart: requests in
flight finish with the model they began with. A model that cannot be loaded changes nothing: the one in service stays,
and GET /health says so in "warning".

  GET  /health         200 with a model, 503 without
  POST /predict        form field `file`: a PNG, JPEG or DICOM image; `return_features=true` adds the pooled features
  POST /predict/batch  form field `files`, several times: up to 64 images
  GET  /model/info     what is in service and where it came from
  GET  /               a page to try an image; GET /openapi.json is the whole interface

  curl -F file=@scan.png http://127.0.0.1:8080/predict
"""

ENDING = """\
SIGTERM or Ctrl-C end it with status 0 once requests in flight are answered; status 1 means that it could not start.
With MEDLOOP_VERIFY_KEYS (public keys) it takes up only what the log says under their signatures.
Keys for S3-compatible storage come from the environment: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL.
Uploads over 1 MB pass through the directory for temporary files, so that one must be writable (TMPDIR); where it is
full, the answer is 507 and the log names it.

Limits: a file of 64 MiB, a batch of 64 files and 512 MiB; 10 seconds for the header of a request; 20 seconds for its
body and one more for every 4 KiB; 5 seconds without a request; 60 seconds to read an answer. Half of the open files
that the process may have (ulimit -n), at most 2048, can be connections. Above that the slowest ones are closed, and the
log counts them every ten seconds.
"""


def main(argv: list[str]) -> int:
    """Serve what the arguments name; gives the exit status."""
    parser = argparse.ArgumentParser(
        environment.get("MEDLOOP_USAGE", "python -m serving"),  # an image is run otherwise
        description=MANUAL,
        epilog=ENDING,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--store", required=True, metavar="URI", help="where models lie: a directory or s3://bucket/prefix"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="the address to listen on; 0.0.0.0 for all (default 127.0.0.1)"
    )
    parser.add_argument(
        "--port", type=int, default=8080, help="the port to listen on; 0 for any free one (default 8080)"
    )
    parser.add_argument(
        "--poll", type=float, default=2.0, metavar="SECONDS", help="between looks at the log (default 2)"
    )
    arguments = parser.parse_args(argv)

    from components.shared.privacy.redaction import protect_process
    from components.shared.runtime.events import configure_logging
    from serving.serve import serve

    protect_process()
    configure_logging()
    return serve(arguments.store, arguments.host, arguments.port, arguments.poll)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
