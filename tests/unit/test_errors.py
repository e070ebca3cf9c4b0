"""The tree of errors: codes, and how what another instance told comes back."""

from __future__ import annotations

import pytest

from coordinator import errors
from coordinator.errors import CoordinatorError, LinkLost, NoOwner, from_wire, tree


@pytest.mark.parametrize("code", sorted(tree()))
def test_an_error_comes_back_as_what_it_was(code: str) -> None:
    """Told and told on, an error is the same class with the same detail, delay and extra members."""
    kind = tree()[code]
    sent = kind("why", retry_after_ms=5, services=["a"], detail_of_it=1)
    back = from_wire(sent.code, sent.title, sent.detail, sent.retryable, sent.retry_after_ms, sent.extra)
    assert type(back) is kind
    assert vars(back) == vars(sent)


def test_members_named_like_our_own_arguments_do_no_harm() -> None:
    """Extra members come from outside, and may have any name."""
    extra = {"detail": "x", "retry_after_ms": "y", "self": 1}
    assert from_wire("conflict", "Conflict", "why", False, None, extra).extra == extra


def test_who_says_that_it_can_be_retried_is_believed() -> None:
    """The other instance knows better than the class, and the class stays as it is."""
    back = from_wire("internal", "Internal error", "why", True, 10, {})
    assert back.retryable
    assert not errors.Internal.retryable


@pytest.mark.parametrize(("retryable", "http"), [(True, 503), (False, 500)])
def test_a_code_of_a_later_version_keeps_its_name(retryable: bool, http: int) -> None:
    """It is told on to the client as it was told."""
    back = from_wire("no_cheese", "No cheese", "none left", retryable, None, {})
    assert (back.code, back.title, back.detail, back.retryable) == ("no_cheese", "No cheese", "none left", retryable)
    assert back.http == http
    assert CoordinatorError.code == "internal"


def test_of_two_classes_with_one_code_the_general_one_stands_for_it() -> None:
    """A lost link is seen as no_owner, but no_owner is not a lost link."""
    assert tree()["no_owner"] is NoOwner
    assert LinkLost.code == "no_owner"
    assert type(from_wire("no_owner", "No owner", "", True, None, {})) is NoOwner
