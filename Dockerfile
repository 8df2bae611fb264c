# Two stages: the first makes an environment of locked packages, the second is that environment and Python.
#
#   docker build --build-arg REVISION="$(git rev-parse HEAD)" --tag matview-operator:0.1.0 .

FROM python:3.13-slim-trixie AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
# The locks first: as long as they stay the same, their layers do too.
COPY requirements/build.txt requirements/run.txt requirements/
# The environment is without pip: nothing is ever installed into it later.
RUN python -m venv --without-pip /opt/matview-operator \
 && pip --python /opt/matview-operator/bin/python install \
      --require-hashes --only-binary=:all: --requirement requirements/run.txt
RUN pip install --require-hashes --only-binary=:all: --requirement requirements/build.txt
COPY pyproject.toml README.md LICENSE ./
COPY operator operator
COPY alembic/bookkeeping alembic/bookkeeping
RUN pip wheel --no-build-isolation --no-deps --wheel-dir /wheels . \
 && pip --python /opt/matview-operator/bin/python install --no-index --no-deps /wheels/*.whl

FROM python:3.13-slim-trixie
ARG REVISION=unknown
LABEL org.opencontainers.image.title="matview-operator" \
      org.opencontainers.image.description="Keeps PostgreSQL materialized views fresh: on time, once, and never silently." \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
# The root file system may be read-only: what Python compiles was compiled in the first stage. The user has no home, and
# a library that looks for one while it is imported must find a name.
ENV PATH=/opt/matview-operator/bin:$PATH \
    HOME=/nonexistent \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    MATVIEW_REVISION=${REVISION}
COPY --from=build /opt/matview-operator /opt/matview-operator
# A number, so that the kubelet can see that it is not root; it has no account, no home and no shell.
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["matview-operator"]
CMD ["run"]
