"""The forms a result takes, by media type.  What this module does not do: encode; `lakehouse.sql.encode` does."""

import enum


class Format(enum.StrEnum):
    """How rows are written."""

    JSON = "json"
    """One object: columns, rows as lists, row_count, truncated."""
    NDJSON = "ndjson"
    """One object per row and line."""
    CSV = "csv"
    PARQUET = "parquet"
    ARROW = "arrow"
    """An Arrow IPC stream."""


MEDIA_TYPES: dict[Format, str] = {
    Format.JSON: "application/json",
    Format.NDJSON: "application/x-ndjson",
    Format.CSV: "text/csv; charset=utf-8",
    Format.PARQUET: "application/vnd.apache.parquet",
    Format.ARROW: "application/vnd.apache.arrow.stream",
}
"""What an answer says it is."""

_ACCEPTED: dict[str, Format] = {
    **{media.partition(";")[0]: form for form, media in MEDIA_TYPES.items()},
    "*/*": Format.JSON,
    "application/*": Format.JSON,
    "text/*": Format.CSV,
    "application/ndjson": Format.NDJSON,
    "application/jsonl": Format.NDJSON,
    "application/x-parquet": Format.PARQUET,
    "application/parquet": Format.PARQUET,
}
ACCEPTABLE = ", ".join(media.partition(";")[0] for media in MEDIA_TYPES.values())


def chosen(accept: str) -> Format | None:
    """The form an Accept header prefers; JSON without one, None when it takes none of ours."""
    if not accept.strip():
        return Format.JSON
    wanted: list[tuple[float, int, Format]] = []
    for order, part in enumerate(accept.split(",")):
        media, *parameters = (piece.strip().lower() for piece in part.split(";"))
        form, quality = _ACCEPTED.get(media), _quality(parameters)
        if form is not None and quality > 0:
            wanted.append((-quality, order, form))
    return min(wanted)[2] if wanted else None


def _quality(parameters: list[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0
