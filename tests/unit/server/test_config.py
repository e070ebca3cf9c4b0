"""The configuration: what is allowed, which source wins, and what an operator is told."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from coordinator.errors import ConfigError
from coordinator.model.settings import BreakerSettings, EngineSettings
from coordinator.server.config import Config, Duration, Service, split_address
from coordinator.server.config_sources import load

CONTRACT = """
[coordinator]
name = "orders"
max_commands = 1000
slow_retry_interval = "200ms"
fast_retry_interval = "0ms"
retry_jitter = "100ms"
suspend = "service"
drain_timeout = "25s"

[log]
kind = "sqlite"
data_dir = "coordinator-data"
bootstrap = "127.0.0.1:9092"
topic = "orders.log"
partitions = 6

[listen]
http = "127.0.0.1:8080"
grpc = "127.0.0.1:9090"
tcp  = "127.0.0.1:7070"

[services.payments]
url = "http://127.0.0.1:9001"
timeout = "2s"
breaker = { failures = 5, reset = "5s" }
"""


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "coordinator.toml"
    file.write_text(text)
    return file


def refusal(tmp_path: Path, text: str = "", environ: dict[str, str] | None = None, **flags: str) -> str:
    """What the operator is told."""
    named = {"--" + flag.replace("_", "-"): value for flag, value in flags.items()}
    with pytest.raises(ConfigError) as refused:
        load(written(tmp_path, text), environ or {}, named)
    return str(refused.value)


def test_the_file_of_the_contract_is_accepted(tmp_path: Path) -> None:
    """Each key of API.md means what it says there."""
    config = load(written(tmp_path, CONTRACT), {}).config
    assert config.engine_settings() == EngineSettings()
    payments = config.service_settings()["payments"]
    assert (payments.url, payments.timeout_ms) == ("http://127.0.0.1:9001", 2000)
    assert payments.breaker == BreakerSettings(failures=5, reset_ms=5000)
    assert config.listen.addresses() == {
        "http": ("127.0.0.1", 8080), "grpc": ("127.0.0.1", 9090), "tcp": ("127.0.0.1", 7070),
    }  # fmt: skip


def test_nothing_at_all_is_a_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without file, environment and flags the defaults hold, and they are free of faults."""
    monkeypatch.chdir(tmp_path)
    assert load(None, {}).config == Config().resolved()


def test_a_file_in_the_working_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """coordinator.toml is read without being named; COORDINATOR_CONFIG names another."""
    monkeypatch.chdir(tmp_path)
    written(tmp_path, '[coordinator]\nname = "here"\n')
    (tmp_path / "other.toml").write_text('[coordinator]\nname = "other"\n')
    assert load(None, {}).config.coordinator.name == "here"
    assert load(None, {"COORDINATOR_CONFIG": "other.toml"}).config.coordinator.name == "other"


def test_a_flag_beats_the_environment_beats_the_file(tmp_path: Path) -> None:
    """Precedence, one source at a time."""
    file = written(tmp_path, '[listen]\nhttp = "127.0.0.1:1"\n')
    environ = {"COORDINATOR_LISTEN__HTTP": "127.0.0.1:2"}
    assert load(file, {}).config.listen.http == "127.0.0.1:1"
    assert load(file, environ).config.listen.http == "127.0.0.1:2"
    assert load(file, environ, {"--http": "127.0.0.1:3", "--tcp": None}).config.listen.http == "127.0.0.1:3"


def test_the_environment_reaches_every_depth(tmp_path: Path) -> None:
    """Numbers, truth values, tables and nested keys can be given as text, and names in any case."""
    environ = {
        "COORDINATOR_COORDINATOR__MAX_COMMANDS": "7",
        "coordinator_services__Payments__url": "http://p:1",
        "COORDINATOR_SERVICES__PAYMENTS__TLS_VERIFY": "false",
        "COORDINATOR_SERVICES__PAYMENTS__BREAKER__RESET": "1s",
        "COORDINATOR_SERVICES__STOCK__BREAKER": '{ failures = 3, reset = "2s" }',
        "COORDINATOR_SERVICES__STOCK__HEADERS": '{"x-key": "a"}',
    }
    config = load(written(tmp_path, "[services.stock]\n"), environ).config
    assert config.coordinator.max_commands == 7
    assert (config.services["payments"].url, config.services["payments"].tls_verify) == ("http://p:1", False)
    assert config.services["payments"].breaker.reset == 1000
    assert (config.services["stock"].breaker.failures, config.services["stock"].breaker.reset) == (3, 2000)
    assert config.services["stock"].headers == {"x-key": "a"}


def test_the_environment_finds_the_files_spelling_of_a_service(tmp_path: Path) -> None:
    """A variable cannot hold a dash, so CARD_PAYMENTS means the file's Card-Payments."""
    file = written(tmp_path, '[services.Card-Payments]\nurl = "http://a:1"\n')
    config = load(file, {"COORDINATOR_SERVICES__CARD_PAYMENTS__URL": "http://b:2"}).config
    assert {name: service.url for name, service in config.services.items()} == {"Card-Payments": "http://b:2"}


def test_variables_of_others_are_left_alone(tmp_path: Path) -> None:
    """Container platforms set COORDINATOR_PORT for a service of that name; COORDINATOR_SERVER is the client's."""
    environ = {"COORDINATOR_PORT": "tcp://10.0.0.1:80", "COORDINATOR_SERVER": "http://x", "PATH": "/bin"}
    assert load(written(tmp_path, ""), environ).sources == {}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[coordinator]\nmax_comands = 1", ["coordinator.max_comands", "did you mean max_commands?", "drain_timeout"]),
        ("[logs]\n", ["logs", "did you mean log?", "services"]),
        ("top = 1", ["top", "no such section"]),
        ("[coordinator]\nmax_commands = 0", ["coordinator.max_commands", "from 1 to 1000000", "not 0"]),
        ('[coordinator]\nmax_commands = "7"', ["whole number", "not '7'"]),
        ("[coordinator]\nmax_commands = true", ["whole number", "not True"]),
        ('[coordinator]\nslow_retry_interval = "5"', ["coordinator.slow_retry_interval", "200ms, 1.5s, 24h", "'5'"]),
        ('[coordinator]\nslow_retry_interval = "0ms"', ["longer than 0"]),
        ('[coordinator]\nretry_jitter = "-5ms"', ["coordinator.retry_jitter", "'-5ms'"]),
        ("[coordinator]\nretry_jitter = 5", ["coordinator.retry_jitter", "not 5"]),
        ('[coordinator]\nsuspend = "all"', ['"coordinator" or "service"', "'all'"]),
        ('[coordinator]\nname = "a b"', ["coordinator.name", "A-Z a-z 0-9"]),
        ('[log]\nkind = "redis"', ["log.kind", '"kafka" or "sqlite"']),
        ("[log]\npartitions = 1025", ["log.partitions", "from 1 to 1024"]),
        ('[log]\nbootstrap = "host"', ["log.bootstrap", "host:port"]),
        ('[log]\nbootstrap = "a:1,,b:2"', ["log.bootstrap", "host:port"]),
        ('[log]\ntopic = "a/b"', ["log.topic"]),
        ('[log]\ndata_dir = ""', ["log.data_dir", "not empty"]),
        ('[listen]\nhttp = "127.0.0.1"', ["listen.http", "[::1]:8080", "off disables"]),
        ('[listen]\nhttp = "::1:80"', ["listen.http"]),
        ('[listen]\nhttp = "h:65536"', ["listen.http"]),
        ('[listen]\nhttp = "h:1"\ntcp = "h:1"', ["listen.tcp", "not that of listen.http"]),
        ('[listen]\nhttp = "off"\ntcp = ""\ngrpc = "off"', ["listen", "at least one"]),
        ('[listen]\ncallback_url = "example.com"', ["listen.callback_url", "https://"]),
        ('[listen]\ncallback_url = "grpc://h:1"', ["listen.callback_url", "https://"]),
        ('[listen]\ncallback_url = "https://h/?a=1"', ["listen.callback_url", "without user, password, query"]),
        ('[listen]\ncallback_url = "https://u:p@h"', ["listen.callback_url", "without user, password"]),
        ('[services.p]\nurl = "ftp://x"', ["services.p.url", "grpcs://host:port"]),
        ('[services.p]\nurl = "http://u:p@x"', ["without user and password"]),
        ('[services.p]\nurl = "http://x/?a=1"', ["without query"]),
        ('[services.p]\nurl = "http://x:99999"', ["services.p.url"]),
        ('[services.p]\nurl = "grpc://x"', ["services.p.url"]),
        ('[services.p]\ntimeout = "soon"', ["services.p.timeout"]),
        ("[services.p]\nbreaker = 5", ["services.p.breaker", "a table"]),
        ("[services.p]\nbreaker = { failure = 5 }", ["services.p.breaker.failure", "did you mean failures?"]),
        ("[services.p]\nheaders = { Host = 'x' }", ["services.p.headers.Host", "sets these itself"]),
        ('[services.p]\nheaders = { X = "a\\r\\nb" }', ["services.p.headers.X", "control characters"]),
        ('[services."a/b"]\nurl = "http://x"', ["services.a/b", "a name of"]),
        ("services = 5", ["services", "a table"]),
        ("[limits]\npayload_bytes = 4194304", ["limits.payload_bytes", "at most limits.body_bytes"]),
        ("[logging]\nlevel = 'loud'", ["logging.level", '"debug"']),
        ("[coordinator\n", ["not valid TOML", "line 1"]),
    ],
)  # fmt: skip
def test_a_wrong_key_or_value_names_file_key_and_what_is_allowed(tmp_path: Path, text: str, told: list[str]) -> None:
    """The message is all that an operator needs."""
    message = refusal(tmp_path, text)
    for part in [str(tmp_path / "coordinator.toml"), *told]:
        assert part in message


def test_a_wrong_variable_is_named(tmp_path: Path) -> None:
    """A fault from the environment names the variable as it was spelled."""
    message = refusal(tmp_path, "", {"COORDINATOR_LOG__KIN": "kafka"})
    assert "environment variable COORDINATOR_LOG__KIN: log.kin" in message
    assert "did you mean kind?" in message


def test_a_wrong_flag_is_named(tmp_path: Path) -> None:
    """A fault from the command line names the flag."""
    assert "--http: listen.http: allowed is host:port" in refusal(tmp_path, http="nowhere")
    assert "sqlite, or kafka://host:port" in refusal(tmp_path, log="postgres")
    assert "--log: log.bootstrap" in refusal(tmp_path, log="kafka://nowhere/topic")


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    """A file is mended in one round, even where a flag would have overridden the wrong value."""
    message = refusal(tmp_path, '[listen]\nhttp = "x"\n[log]\nkind = "y"\n', {"COORDINATOR_A__B": "1"}, http="[::1]:0")
    assert "3 faults" in message
    for part in ("listen.http", "log.kind", "COORDINATOR_A__B"):
        assert part in message


def test_a_missing_file_is_a_fault(tmp_path: Path) -> None:
    """A file that was named must be there."""
    with pytest.raises(ConfigError, match=r"gone.toml: the configuration file cannot be read: No such file"):
        load(tmp_path / "gone.toml", {})


def test_a_file_that_is_not_text_is_a_fault(tmp_path: Path) -> None:
    """Bytes that are not UTF-8 are told as such, with their place."""
    file = tmp_path / "coordinator.toml"
    file.write_bytes(b"a = \xff")
    with pytest.raises(ConfigError, match="not UTF-8 at byte 4"):
        load(file, {})


@pytest.mark.parametrize(
    ("flag", "bootstrap", "topic"),
    [
        ("kafka://h:1/t", "h:1", "t"),
        ("kafka://a:1,b:2/orders.log", "a:1,b:2", "orders.log"),
        ("kafka://[::1]:9092/t", "[::1]:9092", "t"),
        ("kafka://h:1", "h:1", "shop.log"),
    ],
)
def test_the_log_flag_points_at_kafka(tmp_path: Path, flag: str, bootstrap: str, topic: str) -> None:
    """Brokers and topic come out of one URL; without a topic the name of the group gives it."""
    log = load(written(tmp_path, '[coordinator]\nname = "shop"\n'), {}, {"--log": flag}).config.log
    assert (log.kind, log.bootstrap, log.topic) == ("kafka", bootstrap, topic)


def test_the_log_flag_points_back_at_sqlite(tmp_path: Path) -> None:
    """``--log sqlite`` beats a file that says kafka."""
    assert load(written(tmp_path, '[log]\nkind = "kafka"\n'), {}, {"--log": "sqlite"}).config.log.kind == "sqlite"


def test_a_service_needs_no_key(tmp_path: Path) -> None:
    """An empty table declares a service whose client the application plugs in."""
    assert load(written(tmp_path, "[services.local]\n"), {}).config.service_settings()["local"].url == ""


def test_the_printed_configuration_means_the_same_when_read_again(tmp_path: Path) -> None:
    """--print-config writes a file, with the source of what is not a default beside it."""
    text = CONTRACT + '[services."odd.name"]\nheaders = { X-Key = "quote \\" and \\\\ and ü" }\ntls_ca = "/ca.pem"\n'
    first = load(written(tmp_path, text), {"COORDINATOR_LOG__PARTITIONS": "3"}, {"--data-dir": "x\ny\x7f"})
    printed = first.to_toml()
    assert 'data_dir = "x\\ny\\u007f"  # --data-dir' in printed
    assert "partitions = 3  # environment variable COORDINATOR_LOG__PARTITIONS" in printed
    assert load(written(tmp_path, printed), {}).config == first.config
    assert tomllib.loads(printed)["services"]["payments"]["breaker"] == {"failures": 5, "reset": "5s"}


def test_a_connection_never_outlives_its_call() -> None:
    """A total timeout shorter than the connect timeout bounds both."""
    settings = Config(services={"p": Service(timeout=Duration(500))}).service_settings()["p"]
    assert (settings.timeout_ms, settings.connect_timeout_ms) == (500, 500)


def test_callbacks_come_to_where_the_operator_says(tmp_path: Path) -> None:
    """A slash at its end is not doubled; without it the engine has none, and is told when the listener has its port."""
    text = '[listen]\ncallback_url = "https://orders.example/in/"'
    assert load(written(tmp_path, text), {}).config.engine_settings().callback_url == "https://orders.example/in"
    assert Config().engine_settings().callback_url == ""


@pytest.mark.parametrize(
    ("text", "address"),
    [("127.0.0.1:8080", ("127.0.0.1", 8080)), ("[::1]:0", ("::1", 0)), ("a-b.example:65535", ("a-b.example", 65535))],
)
def test_an_address_is_host_and_port(text: str, address: tuple[str, int]) -> None:
    """IPv6 stands in brackets; port 0 is a port."""
    assert split_address(text) == address
