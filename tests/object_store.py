"""A real S3 server on this machine, for tests; they are skipped, saying so, where it is not installed."""

import contextlib
import logging
import os
from collections.abc import Iterator

import pytest

BUCKET = "runs"


@contextlib.contextmanager
def s3_server(mirror) -> Iterator[dict[str, str]]:
    """moto's server with a bucket `runs`, and the environment by which this process and others reach it.

    Args:
      mirror: folder for the local copies.
    """
    s3fs = pytest.importorskip("s3fs", reason="needs the extra [s3]")
    server = pytest.importorskip("moto.server", reason="needs moto[server], an S3 server for tests").ThreadedMotoServer(
        ip_address="127.0.0.1", port=0, verbose=False
    )
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    server.start()
    host, port = server.get_host_and_port()
    found = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
             "AWS_DEFAULT_REGION": "us-east-1", "GSCLIP_MIRROR": str(mirror)}  # fmt: skip
    before = {name: os.environ.get(name) for name in found}
    os.environ.update(found)
    s3fs.S3FileSystem.clear_instance_cache()  # of a former server
    try:
        import boto3

        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield found
    finally:
        server.stop()
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
