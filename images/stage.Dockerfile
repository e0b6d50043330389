# The image of one stage: its dependency group, and the executor of Kubeflow Pipelines, which runs it on a cluster.
#   docker build -f images/stage.Dockerfile --build-arg STAGE=split -t medloop-split .
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}
ARG STAGE
# USER: libraries ask for a name, and the number that a container runs as has none in /etc/passwd.
ENV PATH=/opt/medloop/bin:$PATH PYTHONPATH=/medloop PYTHONUNBUFFERED=1 HOME=/tmp USER=medloop
# As in components/__init__.py: libraries send nothing home.
ENV ORT_DISABLE_TELEMETRY=1 MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true \
    OTEL_SDK_DISABLED=true FASTAPI_OTEL_AUTO_CONFIGURE=false

# Dependencies before code, so that a change of code does not fetch them again.
USER 0:0
WORKDIR /medloop
ARG HASHES=yes
COPY pyproject.toml constraints.txt hashes.txt images/install.sh images/choose_constraints.py ./
RUN sh install.sh "${STAGE}" kfp

# All stages' code (a third of a megabyte): resolve answers for the code of every one of them.
COPY components components
RUN chmod -R a+rX . && python3 -m compileall -q components && \
    python3 -m components.shared.runtime.code_and_package_versions

USER 10001:10001
ENV STAGE=${STAGE} MEDLOOP_USAGE="docker run medloop-${STAGE}"
ENTRYPOINT ["/bin/sh", "-c", "exec python3 -m components \"$STAGE\" \"$@\"", "medloop"]
CMD ["--help"]
