"""The package as such: lazy names, one version, no heavy import, no network in tests."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import radglint

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "numpy", "transformers", "pydicom", "nibabel", "PIL", "scipy", "pydantic")


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("module", ["radglint", "radglint.cli", "radglint.registry", "radglint.errors"])
def test_light_modules_import_nothing_heavy(module):
    loaded = json.loads(run_python(f"import json, sys, {module}; print(json.dumps(list(sys.modules)))"))
    assert module in loaded
    assert not set(HEAVY) & set(loaded)


def test_help_and_version_import_nothing_heavy():
    code = (
        "import sys; from radglint.cli import main; main(['ask', '--help']); main(['--version']); print(*sys.modules)"
    )
    assert not set(HEAVY) & set(run_python(code).splitlines()[-1].split())


def test_version_is_the_one_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert radglint.__version__ == project["version"]


def test_version_without_installation(monkeypatch):
    from importlib import metadata

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert radglint._installed_version() == "0+not.installed"


def test_every_public_name_can_be_had():
    assert dir(radglint) == sorted(radglint.__all__)
    for name in radglint.__all__:
        assert getattr(radglint, name) is not None


def test_a_public_name_is_the_object_of_its_module():
    from radglint.image import MedicalImage

    assert radglint.MedicalImage is MedicalImage


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'radglint' has no attribute 'nothing'"):
        _ = radglint.nothing


def test_readme_names_every_module():
    tree = (ROOT / "README.md").read_text(encoding="utf-8")
    package = ROOT / "src" / "radglint"
    modules = {path.name for path in package.glob("*.py")} - {"__init__.py"}
    folders = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    unnamed = {name for name in modules | folders if f"  {name} " not in tree}
    assert unnamed == set(), "give each a clause in README.md"


@pytest.mark.parametrize("address", [("203.0.113.7", 80), ("2001:db8::1", 80)])
def test_network_is_blocked(address):
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.socket(family) as client, pytest.raises(pytest.fail.Exception, match="tests run offline"):
        client.connect(address)


def test_name_lookup_is_blocked_but_this_machine_is_not():
    with pytest.raises(pytest.fail.Exception, match="tests run offline"):
        socket.getaddrinfo("host.invalid", 80)
    with socket.socket() as server, socket.socket() as client:
        server.bind(("127.0.0.1", 0))
        server.listen()
        client.connect(server.getsockname())
