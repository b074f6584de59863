"""How a method made from a call's description looks to people: its words, its parameters, its result."""

import inspect
import typing
from collections.abc import Callable
from typing import Any, TypeVar

M = TypeVar("M", bound=Callable[..., Any])


def described(method: M, build: Callable[..., Any]) -> M:
    """`method` with the signature of `build`, whose first parameter becomes `self`, whose `Call[T]` becomes `T`."""
    signature = inspect.signature(build)
    _fresh, *rest = signature.parameters.values()
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    (result,) = typing.get_args(signature.return_annotation)
    shown = signature.replace(parameters=[own, *rest], return_annotation=result)
    setattr(method, "__signature__", shown)  # noqa: B010 - functions have no such attribute to the type checker
    return method
