# The image of one stage: its dependency group and nothing else.
#   docker build -f images/stage.Dockerfile --build-arg STAGE=split -t medloop-split .
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}
ARG STAGE
ENV PATH=/opt/medloop/bin:$PATH PYTHONUNBUFFERED=1 PYTHONPATH=/medloop HOME=/tmp

# Dependencies before code, so that a change of code does not fetch them again.
WORKDIR /medloop
COPY pyproject.toml constraints.txt ./
RUN python3 -m venv /opt/medloop \
 && pip install --no-cache-dir --quiet --disable-pip-version-check --upgrade 'pip>=25.1' -c constraints.txt \
 && pip install --no-cache-dir --quiet --disable-pip-version-check --group "${STAGE}" -c constraints.txt \
 && pip install --no-cache-dir --quiet --disable-pip-version-check --no-deps kfp -c constraints.txt

COPY components components
RUN python3 -m compileall -q components

USER 10001:10001
ENV STAGE=${STAGE}
ENTRYPOINT ["/bin/sh", "-c", "exec python3 -m components \"$STAGE\" \"$@\"", "medloop"]
CMD ["--help"]
