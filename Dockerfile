# One image for the webserver, the daemon, run workers, the server of adapters and the command line;
# the command chooses.
#
#   docker build -t ragtuned:cpu .
#   docker build -t ragtuned:cuda --build-arg VARIANT=cuda .
#
#   docker run -p 127.0.0.1:3000:3000 -v ragtuned:/data ragtuned:cpu        the webserver (default)
#   docker run -v ragtuned:/data ragtuned:cpu dagster-daemon run            the daemon
#   docker run -v ragtuned:/data -v "$PWD/documents:/documents:ro" ragtuned:cpu \
#     ragtuned run /documents --name mine                                   the command line
#
# DockerRunLauncher and K8sRunLauncher give the command themselves (`dagster api execute_run ...`).
# There is no ENTRYPOINT, so that it is run as it stands. docs/deployment.md has the whole set-up.
#
# Build arguments:
#   VARIANT   cpu: torch from PyTorch's index of CPU wheels.
#             cuda: torch from PyPI, which brings the CUDA libraries, and the extras `gpu` (vLLM)
#             and `quantization`.
#   EXTRAS    further extras of this package: by default what the folder deploy/ uses; to add one,
#             name them all, e.g. postgres,docker,kubernetes,documents
#   PACKAGES  further packages, e.g. s3fs for tables on S3
ARG VARIANT=cpu

FROM python:3.11.14-slim-bookworm AS base-cpu

# Triton compiles its kernels' launchers with a C compiler when they are first used.
FROM base-cpu AS base-cuda
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc=4:12.2.* libc6-dev=2.36-* \
    && rm -rf /var/lib/apt/lists/*

FROM base-cpu AS build
ARG VARIANT
ARG EXTRAS="postgres,docker,kubernetes"
ARG PACKAGES=""
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/ragtuned
ENV PATH=/opt/ragtuned/bin:$PATH
WORKDIR /src

# The requirements come first, without the package's own code: a change of code leaves this layer,
# the large one, alone. Hatchling wants the README, the license and dagster.yaml, and reads the
# version from the one module.
COPY pyproject.toml constraints.txt README.md LICENSE dagster.yaml ./
COPY ragtuned_pipeline/__init__.py ragtuned_pipeline/
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
RUN case "$VARIANT" in \
      cpu) pip install --no-cache-dir --no-deps --constraint constraints.txt \
             --index-url https://download.pytorch.org/whl/cpu torch; \
           extras="$EXTRAS" ;; \
      cuda) extras="gpu,quantization${EXTRAS:+,$EXTRAS}" ;; \
      *) echo "VARIANT is '$VARIANT': choose cpu or cuda" >&2; exit 1 ;; \
    esac; \
    read -ra packages <<< "$PACKAGES"; \
    pip install --no-cache-dir --constraint constraints.txt ".${extras:+[$extras]}" "${packages[@]}"

COPY ragtuned_pipeline ragtuned_pipeline
RUN pip install --no-cache-dir --no-deps --force-reinstall .

# DL3006 asks for a tag: the image is one of the two stages above, and their tag is there.
# hadolint ignore=DL3006
FROM base-${VARIANT}
# A fixed number, so that the files of a volume or a bind mount can be given to this user.
RUN groupadd --gid 10001 ragtuned \
    && useradd --uid 10001 --gid ragtuned --create-home ragtuned \
    && install --directory --owner=ragtuned --group=ragtuned /data /data/dagster
COPY --from=build /opt/ragtuned /opt/ragtuned
# DAGSTER_HOME holds configuration only; what Dagster stores lies under RAGTUNED_DAGSTER.
COPY dagster.yaml workspace.yaml /opt/dagster/
# HF_HOME: a base model that was downloaded stays with the volume.
ENV PATH=/opt/ragtuned/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    RAGTUNED_HOME=/data \
    RAGTUNED_DAGSTER=/data/dagster \
    DAGSTER_HOME=/opt/dagster \
    HF_HOME=/data/huggingface
VOLUME /data
# The webserver and the daemon look for workspace.yaml here.
WORKDIR /opt/dagster
USER 10001:10001
EXPOSE 3000 8008
# Asks the webserver, or the server of adapters, where the container runs it; any other command
# counts as healthy while it runs. The first start of a server loads or downloads its base model.
HEALTHCHECK --interval=30s --timeout=10s --start-period=900s CMD ["/bin/sh", "-c", \
    "case \"$(tr '\\0' ' ' < /proc/1/cmdline)\" in \
       *dagster-webserver*) place=3000/server_info ;; \
       *'ragtuned serve'*) place=8008/health ;; \
       *) exit 0 ;; \
     esac; \
     exec python -c \"import urllib.request as u; u.urlopen('http://127.0.0.1:$place', timeout=5)\""]
# The webserver has no authentication: publish the port on loopback, or behind a proxy with a login.
CMD ["dagster-webserver", "--host", "0.0.0.0", "--port", "3000"]
