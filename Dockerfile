# gsclip serve, on CPUs: no GPU is needed, neither to build nor to run. docs/inspection.md ("Service") says how it is used.
#   docker build -t gsclip .
#   docker run -e GSCLIP_TOKEN -p 127.0.0.1:8000:8000 --read-only --tmpfs /tmp --tmpfs /home/gsclip/.cache gsclip
FROM python:3.12-slim

# What Open3D needs to import and to draw without a display.
COPY setup_system.sh /tmp/
RUN sh /tmp/setup_system.sh && rm -rf /var/lib/apt/lists/* /tmp/setup_system.sh

# `las` and `e57` are formats of their own: --build-arg EXTRAS=infer,serve,las,e57
ARG EXTRAS=infer,serve
COPY . /src
RUN pip install --no-cache-dir "/src[$EXTRAS]" && rm -rf /src

RUN useradd --create-home --uid 10001 gsclip && install -d -o gsclip -g gsclip /home/gsclip/.cache
USER gsclip
WORKDIR /home/gsclip

EXPOSE 8000
# Loading and compiling the model takes up to a minute at the first start.
HEALTHCHECK --interval=30s --timeout=5s --start-period=180s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
# Refuses to start without a token, unless --no-token is added.
ENTRYPOINT ["gsclip", "serve", "--host", "0.0.0.0", "--port", "8000"]
