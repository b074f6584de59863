"""Takes secrets out of text and out of Kubernetes objects, by what they look like and by what they are called.

It would rather take out too much: a reader of a bundle can do without a value, and nobody can call one back.  What this
module does not do: know a secret that looks like any other word and stands beside nothing that names it.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

GONE = "[redacted]"
_SECRET_NAME = (
    r"(?:secret|passw(?:or)?d|passphrase|token|credential|api[_-]?key|access[_-]?key|peer[_-]?key|private[_-]?key"
    r"|root[_-]?user|session[_-]?key)"
)
_IS_SECRET_NAME = re.compile(_SECRET_NAME, re.IGNORECASE)
_HARMLESS = re.compile(
    r"s?[_-]?(?:name|ref|keyref|secretref|secret|file|path|url|policy|mount\w*|\w*seconds|bytes|kind|count|version)",
    re.IGNORECASE,
)
"""`secretName`, `credentialsSecretRef`, `automountServiceAccountToken…`: they point at secrets, and are none."""

_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(
            r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|\Z)", re.DOTALL
        ),
        f"-----{GONE} private key-----",
    ),
    (re.compile(r"\blh_[A-Za-z0-9_-]{16,}"), f"lh_{GONE}"),
    (re.compile(r"\b(bearer|basic)(\s+|%20)[A-Za-z0-9._~+/=-]{6,}", re.IGNORECASE), rf"\1 {GONE}"),
    (re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*"), f"{GONE} JWT"),
    (re.compile(r"\b(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{16}\b"), f"{GONE} access key"),
    (re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s/@\"'<>]+@"), f"{GONE}@"),
    (
        re.compile(
            r"\?[^\s\"'<>`]*\b(?:x-amz-signature|x-amz-security-token|signature|sig|token|access_token)=[^\s\"'<>`]*",
            re.IGNORECASE,
        ),
        f"?{GONE}",
    ),
    (
        re.compile(
            rf"""(?P<name>["'\\]*[A-Za-z0-9_.-]*{_SECRET_NAME}[A-Za-z0-9_-]*["'\\]*\s*[=:]\s*["'`\\]*)"""
            r"""(?P<value>[^\s"'`,;}\]\\\[]{3,})""",
            re.IGNORECASE,
        ),
        "",
    ),
)
_S3_SECRET = re.compile(r"(?<![A-Za-z0-9/+=_.-])[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+=_.-])")
_MARKS = ("managedFields",)
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


class Redactor:
    """Also knows the values that this very process was given, wherever they turn up."""

    def __init__(self, known: Sequence[str] = ()) -> None:
        self._known = sorted({value for value in known if len(value) >= 6}, key=len, reverse=True)

    def text(self, text: str) -> str:
        """`text` without what is, or may be, a secret."""
        for value in self._known:
            text = text.replace(value, GONE)
        for pattern, instead in _PATTERNS:
            text = pattern.sub(instead or _named, text)
        return _S3_SECRET.sub(_random, text)

    def tree(self, value: Any) -> Any:
        """A JSON value without secrets: Secrets lose their data, variables and fields with such names their values."""
        if isinstance(value, Mapping):
            return self._object(value)
        if isinstance(value, list):
            return [self.tree(each) for each in value]
        return self.text(value) if isinstance(value, str) else value

    def _object(self, value: Mapping[str, Any]) -> dict[str, Any]:
        if value.get("kind") == "Secret":
            value = {name: part for name, part in value.items() if name not in ("data", "stringData")}
        if _is_secret(str(value.get("name", ""))) and isinstance(
            value.get("value"), str
        ):  # of a container's `env`
            value = {**value, "value": GONE}
        return {
            name: GONE if isinstance(part, str) and part and _is_secret(name) else self.tree(part)
            for name, part in value.items()
            if name not in (*_MARKS, _LAST_APPLIED)
        }


def secrets_of(environment: Mapping[str, str]) -> list[str]:
    """The values of a process's own variables that are secrets by their names."""
    return [value for name, value in environment.items() if _is_secret(name)]


def _is_secret(name: str) -> bool:
    found = _IS_SECRET_NAME.search(name)
    return found is not None and _HARMLESS.fullmatch(name[found.end() :]) is None


def _named(found: re.Match[str]) -> str:
    name = re.sub(r"[\s=:\"'`\\]+$", "", found["name"])
    return f"{found['name']}{GONE}" if _is_secret(name.strip("\"'\\")) else found[0]


def _random(found: re.Match[str]) -> str:
    """Forty characters as of an S3 secret key, and not a path, a word or a digest in hex."""
    text = found[0]
    kinds = (any(map(str.isupper, text)), any(map(str.islower, text)), any(map(str.isdigit, text)))
    return f"{GONE} secret key" if all(kinds) and text.count("/") <= 3 else text
