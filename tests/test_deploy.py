"""The files of deploy/: what they promise is checked by parsing them with what will read them, and by running them."""

from __future__ import annotations

import base64
import configparser
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from orthanc import free_port
from radglint import batch_memory
from radglint.batch_queries import read_queries
from radglint.cli import build_parser
from radglint.pacs.config import load_config
from radglint.server.auth import hash_key, read_keys
from radglint.server.routes_service import router

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
UNITS = ("radglint.service", "radglint-watch.service")
ORTHANC_S = 20


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of deploy/ after `prepare.sh`."""
    folder = tmp_path_factory.mktemp("prepared") / "deploy"
    shutil.copytree(DEPLOY, folder, ignore=shutil.ignore_patterns("secrets", "data", ".env"))
    run_prepare(folder)
    return folder


def run_prepare(folder: Path) -> str:
    return subprocess.run(["sh", folder / "prepare.sh"], check=True, capture_output=True, text=True).stdout


def instructions(name: str) -> list[tuple[str, str]]:
    """(INSTRUCTION, rest) of a Dockerfile, continuation lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (DEPLOY / name).read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(word.upper(), rest.strip()) for word, _, rest in (line.partition(" ") for line in lines) if word]


def last_stage(name: str) -> list[tuple[str, str]]:
    steps = instructions(name)
    return steps[max(k for k, (word, _) in enumerate(steps) if word == "FROM") :]


def unit(name: str) -> dict[str, list[str]]:
    """[Service] of a systemd unit; a key can stand there several times."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in (DEPLOY / name).read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif section == "Service" and "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def test_every_port_is_of_this_machine_only(compose: dict[str, Any]) -> None:
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert len(ports) == 3
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert "ports" not in compose["services"]["watch"]
    assert compose["services"]["watch"]["networks"] == ["archive"]
    assert compose["networks"]["archive"]["internal"] is True


@pytest.mark.parametrize("name", ["orthanc", "serve", "watch"])
def test_every_container_is_a_plain_user_on_a_read_only_root(compose: dict[str, Any], name: str) -> None:
    service = compose["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["user"].startswith("${RADGLINT_UID:?")
    assert service["mem_limit"]
    assert service["pids_limit"]
    assert "privileged" not in service
    assert not any("docker.sock" in volume for volume in service["volumes"])


def test_secrets_are_files_that_prepare_makes(compose: dict[str, Any], prepared: Path) -> None:
    for name, secret in compose["secrets"].items():
        file = prepared / secret["file"]
        assert file.read_text(), name
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    used = [s if isinstance(s, str) else s["source"] for v in compose["services"].values() for s in v["secrets"]]
    assert sorted(set(used)) == sorted(compose["secrets"])
    for service in compose["services"].values():
        for key, value in service.get("environment", {}).items():
            assert key.endswith("_USER") or value.startswith("/run/secrets/")


def test_prepare_can_be_run_again_and_its_key_opens_the_server(prepared: Path) -> None:
    before = {path: path.read_bytes() for path in (prepared / "secrets").iterdir()}
    said = run_prepare(prepared)
    assert {path: path.read_bytes() for path in (prepared / "secrets").iterdir()} == before
    key = (prepared / "secrets" / "api_key").read_text().strip()
    assert key not in said
    assert len(key) == 48
    assert read_keys(prepared / "secrets" / "api_keys") == (hash_key(key),)
    password = (prepared / "secrets" / "orthanc_password").read_text()
    assert password != key
    ids = dict(line.split("=") for line in (prepared / ".env").read_text().split())
    assert set(ids) == {"RADGLINT_UID", "RADGLINT_GID"}
    assert "0" not in ids.values()


def test_what_the_containers_run_is_understood_by_our_command_line(compose: dict[str, Any]) -> None:
    parser = build_parser()
    args = parser.parse_args(compose["services"]["serve"]["command"])
    assert (args.host, args.port, args.keys) == ("0.0.0.0", 8420, "/run/secrets/api_keys")
    assert parser.parse_args(compose["services"]["watch"]["command"]).config == "/etc/radglint/watch.toml"
    [image] = [json.loads(rest) for word, rest in last_stage("Dockerfile") if word == "CMD"]
    assert parser.parse_args(image).keys == "/run/secrets/api_keys"


def test_the_watcher_s_configuration_and_queries_are_valid(compose: dict[str, Any]) -> None:
    config = load_config(DEPLOY / "watch.toml")
    mounted = dict(volume.split(":")[1::-1] for volume in compose["services"]["watch"]["volumes"])
    for rule in config.rules:
        assert read_queries(DEPLOY / mounted[str(rule.queries)])
    assert mounted["/etc/radglint/watch.toml"] == "./watch.toml"
    assert str(config.folder) in mounted
    served = compose["services"]["serve"]["command"]
    assert f"--dicomweb={config.source.url}" in served  # type: ignore[union-attr]


def test_the_images_end_as_plain_users_with_a_health_check_that_the_service_answers() -> None:
    for name in ("Dockerfile", "Dockerfile.orthanc"):
        steps = last_stage(name)
        [user] = [rest for word, rest in steps if word == "USER"]
        assert re.fullmatch(r"1000\d:1000\d", user)
        words = [word for word, _ in steps]
        assert words.index("USER") < words.index("ENTRYPOINT")
        assert words.index("USER") < words.index("HEALTHCHECK")
        assert not [rest for word, rest in instructions(name) if word == "ADD"]
    [check] = [rest for word, rest in last_stage("Dockerfile") if word == "HEALTHCHECK"]
    path = re.search(r"http://127\.0\.0\.1:8420(/\w+)", check)
    assert path is not None
    assert path[1] in {route.path for route in router.routes}  # type: ignore[attr-defined]


def test_what_the_image_is_built_from_is_in_the_context_and_secrets_are_not() -> None:
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for word, rest in instructions("Dockerfile"):
        if word != "COPY" or "--from" in rest:
            continue
        sources = [part for part in shlex.split(rest)[:-1] if not part.startswith("--")]
        for source in sources:
            assert (ROOT / source).exists(), source
            assert any(source == name or source.startswith(f"{name}/") for name in allowed), source
    assert not any("secret" in name or name == "deploy" for name in allowed)
    assert (ROOT / ".dockerignore").read_text().splitlines()[1] == "*"


def test_torch_is_the_tested_version_for_cpus() -> None:
    [step] = [rest for word, rest in instructions("Dockerfile") if word == "RUN" and "TORCH_INDEX" in rest]
    script = re.search(r"\$\((sed .*?)\)\"", step)
    assert script is not None
    found = subprocess.run(["sh", "-c", script[1]], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert re.fullmatch(r"torch==[\d.]+\+cpu\n", found)


def run_entry(folder: Path, *args: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """`entry.sh` with a `radglint` that prints its arguments and variables."""
    stand_in = folder / "radglint"
    stand_in.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\nenv | grep ^RADGLINT_ | sort\n')
    stand_in.chmod(0o755)
    path = {"PATH": f"{folder}:{os.environ['PATH']}"}
    return subprocess.run(
        ["sh", DEPLOY / "entry.sh", *args], env=path | variables, capture_output=True, text=True, check=False
    )


def test_the_entry_turns_secret_files_into_variables(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("a $(touch x) 'b\"\n")
    done = run_entry(tmp_path, "watch", "a b", RADGLINT_X_PASSWORD_FILE=str(secret), RADGLINT_X_USER="u")
    assert done.stdout.splitlines() == ["watch", "a b", "RADGLINT_X_PASSWORD=a $(touch x) 'b\"", "RADGLINT_X_USER=u"]
    assert not (tmp_path / "x").exists()


def test_the_entry_names_a_secret_that_is_missing(tmp_path: Path) -> None:
    done = run_entry(tmp_path, "watch", RADGLINT_X_TOKEN_FILE=str(tmp_path / "gone"))
    assert done.returncode == 2
    assert done.stderr.startswith("radglint: error: RADGLINT_X_TOKEN_FILE: ")
    assert not done.stdout


class _Answers(BaseHTTPRequestHandler):
    """GET /NUMBER is answered with that status."""

    def do_GET(self) -> None:
        self.send_response(int(self.path[1:]))
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def answering() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("status", "wanted", "code"), [("200", [], 0), ("503", [], 1), ("401", ["401"], 0)])
def test_the_health_check_tells_by_its_exit_code(answering: str, status: str, wanted: list[str], code: int) -> None:
    command = [sys.executable, str(DEPLOY / "healthcheck.py"), f"{answering}/{status}", *wanted]
    assert subprocess.run(command, capture_output=True, check=False).returncode == code


def test_the_health_check_fails_where_nothing_answers() -> None:
    command = [sys.executable, str(DEPLOY / "healthcheck.py"), f"http://127.0.0.1:{free_port()}/health"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no answer" in done.stdout


def test_orthanc_starts_with_our_settings_and_lets_nobody_in_without_the_password(
    prepared: Path, tmp_path: Path
) -> None:
    """Only ports and folders are others; as in the container, it reads all files of its folder together."""
    settings = json.loads((DEPLOY / "orthanc.json").read_text())
    port = settings["HttpPort"] = free_port()
    settings |= {
        "DicomPort": free_port(),
        "StorageDirectory": str(tmp_path / "s"),
        "IndexDirectory": str(tmp_path / "i"),
    }
    folder = tmp_path / "etc"
    folder.mkdir()
    (folder / "orthanc.json").write_text(json.dumps(settings))
    (folder / "users.json").write_text((prepared / "secrets" / "orthanc_users.json").read_text())
    program = shutil.which("Orthanc", path=f"{os.environ['PATH']}:/usr/sbin")
    assert program is not None, "Orthanc is missing: install Debian's packages orthanc and orthanc-dicomweb"
    process = subprocess.Popen([program, str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}/dicom-web/studies"
        assert wait_for_status(url, process) == 401
        pair = f"radglint:{(prepared / 'secrets' / 'orthanc_password').read_text()}"
        headers = {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
        request = urllib.request.Request(url, headers=headers | {"Accept": "application/dicom+json"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert json.loads(answer.read()) == []
    finally:
        process.kill()
        process.wait()


def wait_for_status(url: str, process: subprocess.Popen[bytes]) -> int:
    end = time.monotonic() + ORTHANC_S
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            time.sleep(0.05)
    return 0


@pytest.mark.parametrize("name", UNITS)
def test_the_units_start_what_our_command_line_understands_with_few_rights(name: str) -> None:
    service = unit(name)
    [start] = service["ExecStart"]
    program, *arguments = start.split()
    assert program == "/opt/radglint/bin/radglint"
    args = build_parser().parse_args(arguments)
    assert args.command == ("serve" if name == "radglint.service" else "watch")
    assert getattr(args, "host", "127.0.0.1") == "127.0.0.1"
    for key in ("DynamicUser", "NoNewPrivileges", "PrivateTmp", "PrivateDevices", "RestrictNamespaces"):
        assert service[key] == ["yes"]
    assert service["ProtectSystem"] == ["strict"]
    assert service["CapabilityBoundingSet"] == [""]
    assert service["MemoryMax"] == ["8G"]
    assert service["IPAddressDeny"] == ["any"]
    assert "MemoryDenyWriteExecute" not in service  # PyTorch compiles kernels at run time and would not start
    assert not any("PASSWORD" in value for value in service["Environment"])


@pytest.mark.parametrize("name", UNITS)
def test_the_units_are_well_formed(name: str) -> None:
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    parser.read(DEPLOY / name)
    assert parser.sections() == ["Unit", "Service", "Install"]
    assert parser["Install"]["WantedBy"] == "multi-user.target"


@pytest.mark.parametrize(("group", "limits", "expected"), [
    ("0::/\n", {"": "1000"}, 800),  # in a container the group's own files are at the top
    ("0::/system.slice/radglint.service\n", {"system.slice": "max", "system.slice/radglint.service": "500"}, 400),
    ("0::/system.slice/radglint.service\n", {"system.slice": "300", "system.slice/radglint.service": "500"}, 240),
    ("", {}, None),
])  # fmt: skip
def test_the_limit_of_a_container_or_a_unit_is_what_images_are_held_against(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: str, limits: dict[str, str], expected: int | None
) -> None:
    (tmp_path / "own").write_text(group)
    for folder, limit in limits.items():
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "memory.max").write_text(f"{limit}\n")
    whole = batch_memory.usable_bytes()
    monkeypatch.setattr(batch_memory, "_CGROUPS", tmp_path)
    monkeypatch.setattr(batch_memory, "_OWN_CGROUP", tmp_path / "own")
    found = batch_memory.usable_bytes()
    assert found == expected if expected is not None else found >= whole
