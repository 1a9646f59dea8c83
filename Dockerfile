# docker build -t came .
# docker run --gpus all --shm-size 16g -v came-runs:/workspace came came-train experiment=quickstart
# The CUDA that torch of constraints.txt is built for. `base` is enough: torch and Triton bring their
# libraries and ptxas along, and no nvcc is needed.
FROM nvidia/cuda:13.0.3-base-ubuntu24.04

# Triton compiles a launcher in C against Python's headers, at the first step; DeepSpeed and the
# kernels for CPUs need C++.
RUN apt-get update \
 && apt-get install -y --no-install-recommends g++ python3-dev python3-venv \
 && rm -rf /var/lib/apt/lists/*

ENV PATH=/opt/came/bin:$PATH \
    PIP_NO_CACHE_DIR=1 \
    DS_BUILD_OPS=0
RUN python3 -m venv /opt/came
WORKDIR /opt/came/src

# What changes seldom comes first: gigabytes of torch, then the other dependencies (for which only the
# version is read from came), then what changes with every commit.
COPY constraints.txt ./
RUN pip install -c constraints.txt torch
COPY pyproject.toml README.md LICENSE ./
COPY came/__init__.py came/
RUN pip install -c constraints.txt '.[train,triton]'
COPY came came
COPY configs configs
COPY launch launch
COPY trainers trainers
RUN pip install --no-deps --force-reinstall . && rm -rf build

# uid 1000 is `ubuntu` in this image. Runs, and data in .cache, lie in /workspace: mount a volume.
RUN install -d -o 1000 -g 1000 /workspace
ENV XDG_CACHE_HOME=/workspace/.cache
USER 1000
WORKDIR /workspace
CMD ["came-train", "--help"]
