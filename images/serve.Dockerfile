# The image of the HTTP service.
#   docker build -f images/serve.Dockerfile -t medloop-serve .
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}
ENV PATH=/opt/medloop/bin:$PATH PYTHONPATH=/medloop PYTHONUNBUFFERED=1 HOME=/tmp USER=medloop
# As in components/__init__.py: libraries send nothing home.
ENV ORT_DISABLE_TELEMETRY=1 MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true \
    OTEL_SDK_DISABLED=true FASTAPI_OTEL_AUTO_CONFIGURE=false

# Dependencies before code, so that a change of code does not fetch them again.
USER 0:0
WORKDIR /medloop
ARG HASHES=yes
COPY pyproject.toml constraints.txt hashes.txt images/install.sh images/choose_constraints.py ./
RUN sh install.sh serve

COPY components/__init__.py components/
COPY components/shared components/shared
COPY serving serving
RUN chmod -R a+rX . && python3 -m compileall -q components serving

USER 10001:10001
EXPOSE 8080
ENV MEDLOOP_USAGE="docker run --publish 8080:8080 medloop-serve"
ENTRYPOINT ["python3", "-m", "serving", "--host", "0.0.0.0"]
CMD ["--store", "/store"]
HEALTHCHECK --interval=15s --timeout=5s --start-period=20s CMD ["python3", "-c", "\
from http.client import HTTPConnection; \
asked = HTTPConnection('127.0.0.1', 8080, timeout=4); \
asked.request('GET', '/health'); \
answer = asked.getresponse(); \
print(answer.read().decode()); \
raise SystemExit(answer.status != 200)"]
