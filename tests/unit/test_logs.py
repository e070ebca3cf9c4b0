"""Events of our modules reach the logs of the process they are in, and nothing else."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import structlog

from coordinator.logs import get_logger


@pytest.fixture
def unconfigured() -> Iterator[None]:
    """structlog as it is in a process that does not know it; what it was before comes back."""
    configured, before = structlog.is_configured(), structlog.get_config()
    structlog.reset_defaults()
    yield
    if configured:
        structlog.configure(**before)


@pytest.mark.usefixtures("unconfigured")
def test_without_structlog_an_event_goes_to_the_standard_library(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """One line under the module's name; nothing is printed."""
    log = get_logger("coordinator.somewhere")
    with caplog.at_level(logging.INFO, "coordinator"):
        log.debug("too little")
        log.info("partition acquired", partition=0, start="the whole log")
        log.warning("nothing more")
    assert [(each.name, each.levelname, each.getMessage()) for each in caplog.records] == [
        ("coordinator.somewhere", "INFO", "partition acquired (partition=0, start='the whole log')"),
        ("coordinator.somewhere", "WARNING", "nothing more"),
    ]
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("unconfigured")
def test_an_exception_keeps_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    """Whether it is being handled, or handed over."""
    log = get_logger("coordinator.somewhere")
    try:
        raise ValueError("bad")
    except ValueError as error:
        log.exception("a mistake")
        log.error("a mistake", exc_info=error, command="o-1")
    assert ["ValueError: bad" in each.exc_text for each in caplog.records if each.exc_text] == [True, True]
    assert caplog.records[1].getMessage() == "a mistake (command='o-1')"


@pytest.mark.usefixtures("unconfigured")
def test_with_structlog_it_goes_where_that_is_configured() -> None:
    """Also when that is done after the module was imported."""
    log = get_logger("coordinator.somewhere")
    with structlog.testing.capture_logs() as events:
        log.info("ready", uncompleted=3)
    assert events == [{"event": "ready", "uncompleted": 3, "log_level": "info"}]
    structlog.reset_defaults()
