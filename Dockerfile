# docker build -t pyrllama .
# docker run --rm -it pyrllama --prompt "Once upon a time"
# docker run --rm -it -v "$PWD:/models:ro" -v pyrllama-cache:/home/rllama/.cache pyrllama \
#     --model-path /models/model.gguf --prompt "Once upon a time"
#
# Kernels are compiled for the CPU that the container runs on; the volume keeps them.
FROM python:3.12-slim

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY pyrllama ./pyrllama
RUN pip install --no-cache-dir . && rm -rf /src/*

# The cache exists and belongs to the user, so that a volume mounted on it does too.
RUN useradd --create-home rllama && install -d -o rllama -g rllama /home/rllama/.cache
USER rllama
WORKDIR /home/rllama

ENTRYPOINT ["rllama"]
