"""Real clients, against servers on this machine."""

from __future__ import annotations

import contextlib

import pytest

from tests.commands.conftest import texts, tiny, trained  # noqa: F401 - fixtures


@pytest.fixture(scope="session")
def gcs():
    """gs://bucket, as gcsfs and TensorStore find it: both are told by the environment where the
    service is. The emulator leaves out a header of Google's that TensorStore needs."""
    from gcp_storage_emulator.handlers import objects
    from gcp_storage_emulator.server import create_server

    download = objects.download

    def download_with_generation(request, response, storage, *args, **kwargs):
        place = request.params["bucket_name"], request.params["object_id"]
        with contextlib.suppress(Exception):  # it is not there, which `download` tells
            response["x-goog-generation"] = str(storage.get_file_obj(*place)["generation"])
        download(request, response, storage, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objects, "download", download_with_generation)
        server = create_server("localhost", 0, in_memory=True, default_bucket="bucket")
        server.start()
        address = f"http://localhost:{server._api._httpd.server_address[1]}"
        patch.setenv("STORAGE_EMULATOR_HOST", address)
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", address)
        patch.setenv("GOOGLE_AUTH_TEST_TOKEN", "none")
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        yield "gs://bucket"
        server.stop()


@pytest.fixture(scope="session")
def s3():
    """s3://bucket, as s3fs finds it. TensorStore's own client takes no other address than
    Amazon's, so that arrays cannot be written here."""
    import boto3
    from moto.server import ThreadedMotoServer

    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "none")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        server = ThreadedMotoServer(port=0, verbose=False)
        server.start()
        address = "http://127.0.0.1:{1}".format(*server.get_host_and_port())
        patch.setenv("AWS_ENDPOINT_URL", address)
        boto3.client("s3").create_bucket(Bucket="bucket")
        yield "s3://bucket"
        server.stop()
