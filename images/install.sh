#!/bin/sh
# Makes /opt/medloop: a virtual environment of one dependency group. Packages named after it come without what they need.
#   sh install.sh GROUP [PACKAGE …]
set -eu
group=${1:?"names no dependency group. Build with --build-arg STAGE=split, or another stage of pyproject.toml"}
shift

python3 -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || {
  echo "The base image has $(python3 --version 2>&1 || true), and needs Python 3.11 or newer with venv as python3." \
    "Build with --build-arg BASE=python:3.11-slim-bookworm, or on an image that adds Python to yours." >&2
  exit 1
}

# pip serves while the image is built and stays out of it: from a place of its own, it installs into the other.
python3 -m venv /tmp/pip
pins=$(python3 choose_constraints.py "${HASHES:-yes}")
grep '^pip==' "$pins" >/tmp/pip.txt  # the pip that comes with Python takes hashes from requirements alone
/tmp/pip/bin/pip install --no-cache-dir --quiet --disable-pip-version-check --upgrade -r /tmp/pip.txt
pip() { /tmp/pip/bin/pip --python /opt/medloop/bin/python3 --no-cache-dir --quiet --disable-pip-version-check "$@"; }
python3 -m venv --without-pip /opt/medloop
pip install --group "$group" -c "$pins"
pip check
[ $# = 0 ] || pip install --no-deps "$@" -c "$pins"
rm -rf /tmp/pip /tmp/pip.txt

# Packages bring their own tests, which nothing imports: a tenth of the size. Libraries stay, also those not used today.
packages=$(echo /opt/medloop/lib/python3.*/site-packages)
find "$packages" -type d -name tests -prune -exec rm -rf {} +
rm -rf "$packages/onnx/backend/test"

# pip has compiled the packages. Some Python images come without bytecode of the standard library, and a user who may
# write nothing would compile it at each start.
library=$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
python3 -m compileall -q -x '/(site-packages|dist-packages|tests?|lib2to3)/' "$library"
