"""What a support bundle may not hold, taken out; what helps, left in."""

import pytest

from lakehouse.cli.support.redact import GONE, Redactor, secrets_of

REDACTOR = Redactor()


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("Authorization: Bearer lh_Zm9vYmFyYmF6cXV4Zm9vYmFyYmF6cXV4", "Zm9vYmFyYmF6cXV4Zm9vYmFyYmF6cXV4"),
        ("key lh_abcdefghijklmnopqrstuvwxyz refused", "abcdefghijklmnop"),
        ("authorization=basic dXNlcjpwYXNzd29yZA==", "dXNlcjpwYXNzd29yZA"),
        ("used AKIAIOSFODNN7EXAMPLE for it", "AKIAIOSFODNN7EXAMPLE"),
        ("signed with wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "wJalrXUtnFEMI"),
        ("AWS_SECRET_ACCESS_KEY=hunter2hunter2", "hunter2hunter2"),
        ('{"aws_secret_access_key": "hunter2hunter2"}', "hunter2hunter2"),
        ("secretAccessKey: hunter2hunter2", "hunter2hunter2"),
        ("MINIO_ROOT_PASSWORD='hunter2hunter2'", "hunter2hunter2"),
        ("LAKEHOUSE_PEER_KEY=hunter2hunter2 started", "hunter2hunter2"),
        ('"{\\"password\\": \\"hunter2hunter2\\"}"', "hunter2hunter2"),
        ("GET https://b.s3.example/k?X-Amz-Date=1&X-Amz-Signature=abc123&x=1 403", "abc123"),
        ("https://a.blob.example/k?sv=1&sig=Zm9v%2B", "Zm9v"),
        ("postgres://user:hunter2hunter2@db/x", "hunter2hunter2"),
        (
            "token eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJzeXN0ZW0ifQ.c2lnbmF0dXJl here",
            "eyJzdWIiOiJzeXN0ZW0ifQ",
        ),
        (
            "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEA\n-----END RSA PRIVATE KEY-----",
            "MIIEowIBAAKCAQEA",
        ),
        ("-----BEGIN EC PRIVATE KEY-----\nMIIEowIBAAKCAQEA", "MIIEowIBAAKCAQEA"),
    ],
)
def test_secrets_in_text_go(text: str, secret: str) -> None:
    redacted = REDACTOR.text(text)
    assert secret not in redacted
    assert GONE in redacted


@pytest.mark.parametrize(
    "text",
    [
        "2026-01-02T03:04:05Z INFO lakehouse.server listening url=http://0.0.0.0:3110",
        "secret `creds` not found in namespace shop; secretName: creds",
        "snapshot digest=9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "key=_vectors/products/0000/log/00000000000000000007 attempt=2",
        "credentialsSecretRef: {name: creds}",
        "/apis/apps/v1/namespaces/shop/deployments/products-shard-0 200",
        'lakehouse_requests_total{route="vectors.search",status="200"} 12.0',
        "commit da39a3ee5e6b4b0d3255bfef95601890afd80709",
    ],
)
def test_what_helps_stays(text: str) -> None:
    assert REDACTOR.text(text) == text


def test_objects_keep_their_shape_and_lose_their_secrets() -> None:
    pod = {
        "kind": "Pod",
        "metadata": {
            "name": "products-shard-0",
            "managedFields": [{"manager": "kubectl"}],
            "annotations": {
                "kubectl.kubernetes.io/last-applied-configuration": "{}",
                "note": "Bearer abcdefgh",
            },
        },
        "spec": {
            "env": [
                {"name": "AWS_SECRET_ACCESS_KEY", "value": "plain"},
                {
                    "name": "LAKEHOUSE_PEER_KEY",
                    "valueFrom": {"secretKeyRef": {"name": "k", "key": "peer-key"}},
                },
                {"name": "LAKEHOUSE_DATA", "value": "s3://bucket/shop"},
            ],
            "imagePullSecrets": [{"name": "registry"}],
            "password": "plain",
            "replicas": 2,
        },
    }
    assert REDACTOR.tree(pod) == {
        "kind": "Pod",
        "metadata": {"name": "products-shard-0", "annotations": {"note": f"Bearer {GONE}"}},
        "spec": {
            "env": [
                {"name": "AWS_SECRET_ACCESS_KEY", "value": GONE},
                {
                    "name": "LAKEHOUSE_PEER_KEY",
                    "valueFrom": {"secretKeyRef": {"name": "k", "key": "peer-key"}},
                },
                {"name": "LAKEHOUSE_DATA", "value": "s3://bucket/shop"},
            ],
            "imagePullSecrets": [{"name": "registry"}],
            "password": GONE,
            "replicas": 2,
        },
    }


def test_a_secret_that_came_along_keeps_its_name_alone() -> None:
    secret = {
        "kind": "Secret",
        "metadata": {"name": "creds"},
        "data": {"k": "eA=="},
        "stringData": {"k": "x"},
    }
    assert REDACTOR.tree(secret) == {"kind": "Secret", "metadata": {"name": "creds"}}


def test_values_of_this_process_are_known_wherever_they_are() -> None:
    known = secrets_of({"AWS_SECRET_ACCESS_KEY": "plainword", "AWS_REGION": "eu-north-1", "API_TOKEN": "x"})
    assert known == ["plainword", "x"]
    assert Redactor(known).text("the plainword of eu-north-1 x") == f"the {GONE} of eu-north-1 x"
