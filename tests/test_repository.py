"""What must not be in the repository: keys, passwords, paths of somebody's machine; and versions that nobody tested."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
MAX_TEXT_BYTES = 2_000_000
SECRETS = {
    "a private key": r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY",
    "a GitHub token": r"\bgh[pousr]_[A-Za-z0-9]{30,}",
    "a GitLab token": r"\bglpat-[A-Za-z0-9_-]{20,}",
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{30,}",
    "an AWS key": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "a Google key": r"\bAIza[A-Za-z0-9_-]{35}",
    "a PyPI token": r"\bpypi-[A-Za-z0-9_-]{40,}",
    "an OpenAI or Anthropic key": r"\bsk-[A-Za-z0-9_-]{30,}",
    "a Slack token": r"\bxox[abprs]-[A-Za-z0-9-]{10,}",
    "a JSON web token": r"\beyJ[A-Za-z0-9_-]{20,}\.eyJ[A-Za-z0-9_-]{20,}\.",
    "a password in an address": r"\b(?:https?|postgresql(?:\+\w+)?|ftp|amqp|redis)://[^\s:/@\"'<>{}$]+:(?!(?i:password|secret|change)\w*@)[^\s:/@\"'<>{}$]{6,}@",
}
PLACES = {
    "a home folder": r"/(?:home|Users)/(?!you\b|user\b|me\b|radglint\b)[a-z][\w.-]+/",
    "a folder of root": r"(?<![\w.])/root/",
}
PATTERNS = {name: re.compile(pattern) for name, pattern in (SECRETS | PLACES).items()}
OWN = ("tests/test_repository.py",)


def tracked() -> list[Path]:
    """Files under version control; all files of an export that has none."""
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return [p for p in ROOT.rglob("*") if p.is_file() and ".venv" not in p.parts and "__pycache__" not in p.parts]
    return [ROOT / name for name in listed.decode().split("\0") if name]


def found_in(text: str) -> list[str]:
    return [name for name, pattern in PATTERNS.items() if pattern.search(text)]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("-----BEGIN RSA " + "PRIVATE KEY-----", "a private key"),
        ("token = 'ghp_" + "a1" * 20 + "'", "a GitHub token"),
        ("postgresql://radglint:" + "hunter22" + "@db/x", "a password in an address"),
        ("see /home/" + "alice/data/x", "a home folder"),
    ],
)
def test_the_patterns_find_what_they_are_for(text, name):
    assert found_in(text) == [name]


def test_no_secrets_and_no_paths_of_a_machine():
    problems = []
    for path in tracked():
        name = path.relative_to(ROOT).as_posix()
        if name in OWN or not path.is_file() or path.stat().st_size > MAX_TEXT_BYTES:
            continue
        text = path.read_bytes().decode("utf-8", "replace")
        problems += [f"{name}: {what}" for what in found_in(text)]
    assert not problems, "\n".join(problems)


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if "==" in line and not line.startswith("#")]
    return {canonicalize_name(name): found for name, found in pairs}


def needed(package: str, extras: frozenset[str], seen: set[tuple[str, frozenset[str]]]) -> None:
    """Every package that an installation of this one with these extras draws in."""
    key = (canonicalize_name(package), extras)
    if key in seen:
        return
    seen.add(key)
    for text in requires(package) or ():
        requirement = Requirement(text)
        wanted = [requirement.marker is None or requirement.marker.evaluate({"extra": e}) for e in extras or {""}]
        if any(wanted):
            try:
                version(requirement.name)
            except PackageNotFoundError:
                continue  # of another system, or of an extra that is not installed here
            needed(requirement.name, frozenset(requirement.extras), seen)


def test_constraints_pin_everything_that_setup_installs():
    """`make setup` installs `.[dev]` under these constraints: nothing may come in a version that was not tested."""
    seen: set[tuple[str, frozenset[str]]] = set()
    needed("radglint", frozenset({"", "dev"}), seen)
    names = {name for name, _ in seen} - {"radglint"}
    free = sorted(name for name in names - set(pinned()) if not name.startswith(("nvidia-", "triton", "cuda-")))
    assert not free, f"constraints.txt lacks {', '.join(free)}"
    assert len(names) > 40


PICKLING = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "copyreg"}
PICKLED_BY_DEFAULT = {"torch.load": "weights_only", "torch.save": None, "read_pickle": None, "to_pickle": None}


def pickling(tree: ast.AST) -> Iterator[str]:
    """What in a module reads or writes pickles: modules imported, and calls that would unless told not to."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            above = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            names = [above + alias.name for alias in node.names]
            yield from (f"import {name}" for name in names if PICKLING & set(name.split(".")))
        elif isinstance(node, ast.Call):
            yield from pickling_call(node)


def pickling_call(node: ast.Call) -> Iterator[str]:
    name = ast.unparse(node.func)
    told = {word.arg: getattr(word.value, "value", "unknown") for word in node.keywords}
    if any(value is not False for word, value in told.items() if word == "allow_pickle"):
        yield f"{name}(allow_pickle)"
    for risky, switch in PICKLED_BY_DEFAULT.items():
        if (name == risky or name.endswith(f".{risky}")) and told.get(switch or "") is not True:
            yield name


def test_no_module_reads_or_writes_a_pickle():
    modules = sorted((ROOT / "src").rglob("*.py"))
    found = [f"{path.name}: {what}" for path in modules for what in pickling(ast.parse(path.read_text("utf-8")))]
    assert len(modules) > 100
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import os, pickle", ["import pickle"]),
        ("def f():\n    from ray import cloudpickle", ["import ray.cloudpickle"]),
        ("from ray.cloudpickle import dumps", ["import ray.cloudpickle.dumps"]),
        ("torch.load(path)", ["torch.load"]),
        ("torch.load(path, weights_only=False)", ["torch.load"]),
        ("torch.load(path, weights_only=True)", []),
        ("np.load(path, allow_pickle=True)", ["np.load(allow_pickle)"]),
        ("np.load(path, allow_pickle=chosen)", ["np.load(allow_pickle)"]),
        ("np.load(path, allow_pickle=False)", []),
        ("frame.read_pickle(path)", ["frame.read_pickle"]),
    ],
)
def test_pickles_are_seen(code, found):
    assert list(pickling(ast.parse(code))) == found
