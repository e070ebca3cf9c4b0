"""Reads definitions: from JSON, which may hold anything, to a `model.definition.Definition`, or all that is wrong.

document     the whole of it: name, version, policies, result
steps        a step of each kind, and the blocks they nest in
requests     what a step sends
order        what comes after what, made flat
"""

from coordinator.model.reading.document import parse
from coordinator.model.reading.fields import Report, Services, did_you_mean

__all__ = ["Report", "Services", "did_you_mean", "parse"]
