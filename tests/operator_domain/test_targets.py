"""Where a resource lies: its own wish over the installation's, and credentials that go nowhere else."""

import pytest

from cluster_samples import settings
from lakehouse.core.errors import Invalid
from lakehouse_operator.targets import target


def test_what_the_resource_leaves_open_comes_from_the_installation() -> None:
    found = target("shop", None, settings())
    assert (found.url, found.endpoint, found.region, found.secret) == (
        "s3://lake/shop",
        "http://minio:9000",
        "us-east-1",
        "lake-s3",
    )
    assert target("shop", {"s3": {"prefix": "/a/b/"}}, settings()).url == "s3://lake/a/b"
    assert target("shop", {"s3": {"prefix": ""}}, settings()).url == "s3://lake"
    assert target("shop", None, settings(default_s3_prefix="all")).url == "s3://lake/all"
    assert target("shop", {"credentialsSecretRef": {"name": "mine"}}, settings()).secret == "mine"


def test_the_default_prefix_holds_the_namespace_of_the_resource() -> None:
    several = settings(watch_namespaces="a,b", default_s3_prefix="team/{namespace}/x")
    assert [target(name, None, several).url for name in ("a", "b")] == [
        "s3://lake/team/a/x",
        "s3://lake/team/b/x",
    ]
    assert target("a", {"s3": {"prefix": "{namespace}"}}, several).url == "s3://lake/{namespace}"
    assert target("shop", None, settings(default_s3_prefix="/")).url == "s3://lake"


def test_the_installations_credentials_go_to_no_other_endpoint() -> None:
    other = {"s3": {"endpoint": "https://elsewhere", "bucket": "mine"}}
    assert target("shop", other, settings()).secret == ""
    assert target("shop", {"s3": {"endpoint": "http://minio:9000"}}, settings()).secret == "lake-s3"
    assert target("shop", {**other, "credentialsSecretRef": {"name": "mine"}}, settings()).secret == "mine"


def test_without_any_bucket_it_says_what_to_do() -> None:
    with pytest.raises(Invalid, match=r"spec\.storage\.s3\.bucket"):
        target("shop", None, settings(default_s3_bucket=""))


def test_places_with_the_same_keys_and_address_are_reached_alike() -> None:
    one = target("shop", None, settings())
    assert one.reached_alike(target("shop", {"s3": {"bucket": "raw", "prefix": "x"}}, settings()))
    assert not one.reached_alike(target("shop", {"credentialsSecretRef": {"name": "x"}}, settings()))
    assert not one.reached_alike(target("other", None, settings()))


def test_a_target_shows_no_certificate() -> None:
    assert "PEM" not in repr(target("shop", {"s3": {"caBundle": "PEM"}}, settings()))


def test_the_installations_certificates_are_for_its_endpoint_alone() -> None:
    usual = settings(default_s3_ca_bundle="PEM")
    assert target("shop", None, usual).ca_bundle == "PEM"
    assert target("shop", {"s3": {"endpoint": usual.default_s3_endpoint}}, usual).ca_bundle == "PEM"
    assert target("shop", {"s3": {"endpoint": "http://another:9000"}}, usual).ca_bundle == ""
    assert target("shop", {"s3": {"caBundle": "MINE"}}, usual).ca_bundle == "MINE"


def test_a_prefix_that_can_be_none_is_told_of_as_one() -> None:
    with pytest.raises(Invalid, match=r"storage\.s3\.prefix cannot be used: .* key=`\.\./x`"):
        target("shop", {"s3": {"prefix": "../x"}}, settings())
