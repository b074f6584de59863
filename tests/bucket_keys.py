"""Keys of a bucket as pods have them: files that are replaced as a whole, and keys that may only read."""

import json
from pathlib import Path

import boto3

from lakehouse.store.credentials import FILES
from minio_server import MinioServer


class Mounted:
    """A Secret's volume as the kubelet makes it: files behind a link that is renamed over the old one."""

    def __init__(self, path: Path, *keys: str) -> None:
        self.path = path
        self._turns = 0
        path.mkdir()
        self.replace(*keys)

    def replace(self, *keys: str) -> None:
        self._turns += 1
        folder = self.path / f"..{self._turns}"
        folder.mkdir()
        said = dict(zip(FILES, keys, strict=False))
        for name, key in said.items():
            (folder / name).write_text(f"{key}\n")
        (self.path / "..new").symlink_to(folder.name)
        (self.path / "..new").rename(self.path / "..data")
        for name in FILES:
            (self.path / name).unlink(missing_ok=True)
            if name in said:
                (self.path / name).symlink_to(f"..data/{name}")


def for_reading(minio: MinioServer) -> tuple[str, str, str]:
    """Keys that may get and list, and nothing else; for an hour."""
    allowed = {"Effect": "Allow", "Action": ["s3:GetObject", "s3:ListBucket"], "Resource": ["arn:aws:s3:::*"]}
    client = boto3.client(
        "sts",
        endpoint_url=minio.endpoint,
        region_name="us-east-1",
        aws_access_key_id=minio.access_key,
        aws_secret_access_key=minio.secret_key,
    )
    policy = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
    given = client.assume_role(RoleArn="arn:x:ignored:role:x", RoleSessionName="reader", Policy=policy)
    client.close()
    made = given["Credentials"]
    return made["AccessKeyId"], made["SecretAccessKey"], made["SessionToken"]
