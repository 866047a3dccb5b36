# Installs harvester from this checkout: docker build -t harvester .
# Base images have a fixed tag; `--build-arg PYTHON=…` names another one.
ARG PYTHON=3.13.9-slim-trixie

FROM python:${PYTHON} AS build
ARG EXTRAS=cloud,metrics,parquet,redis,zstd
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE config.example.toml ./
COPY harvester harvester
RUN python -m venv /opt/harvester \
    && /opt/harvester/bin/pip install --no-cache-dir --constraint constraints.txt ".[${EXTRAS}]"

FROM python:${PYTHON}
COPY --from=build /opt/harvester /opt/harvester
# Both folders exist with their owner, so that new named volumes on them belong to the user too.
RUN useradd --system --uid 10001 --create-home harvester \
    && install --directory --owner=harvester --mode=0750 /lake /state
ENV HARVESTER_STATE_DIR=/state \
    PATH=/opt/harvester/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1
USER 10001
WORKDIR /lake
VOLUME ["/lake", "/state"]
# The list form: a shell as PID 1 would not forward signals.
ENTRYPOINT ["harvester"]
CMD ["--help"]
