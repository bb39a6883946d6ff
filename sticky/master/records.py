"""Attributes as what JSON can carry, for an upgrade in place (``state``). No I/O, no clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import StickyError


def fields(thing: object, names: Sequence[str]) -> dict[str, Any]:
    """These attributes, those that are members of an enum by their names."""
    found = {name: getattr(thing, name) for name in names}
    return {name: getattr(value, "name", value) for name, value in found.items()}


def put_back(thing: Any, packed: Mapping[str, Any], names: Sequence[str], **enums: Any) -> None:
    """The opposite of ``fields``. What was not packed stays as it is.

    Raises:
        StickyError: something was packed that has no place here.
    """
    if unknown := packed.keys() - set(names):
        raise StickyError(f"this code does not know {', '.join(sorted(unknown))}")
    for name, value in packed.items():
        setattr(thing, name, enums[name][value] if name in enums else value)
