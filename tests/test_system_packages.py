"""The script that finds or installs Debian's programs: quiet when all is there, careful when it is not."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "system_packages.sh"
PROGRAMS = ("Orthanc", "dcmdump", "dsrdump", "dsr2xml", "dcm2json", "dcm2pnm", "dciodvfy", "chromium", "npm", "Xvfb")
FILES = (
    "usr/share/orthanc/plugins/libOrthancDicomWeb.so.1.7",
    "usr/lib/postgresql/15/bin/initdb",
    "usr/lib/postgresql/15/bin/pg_ctl",
    *(
        f"usr/lib/x86_64-linux-gnu/{name}"
        for name in ("libGL.so.1", "libEGL.so.1", "libxcb-cursor.so.0", "libxcb-icccm.so.4", "libxcb-keysyms.so.1")
    ),
)


class Machine:
    """A folder that stands for the root of a machine: its programs, and an apt-get that writes down what it is told."""

    def __init__(self, root: Path, user: int = 0) -> None:
        self.root, self.bin, self.log = root, root / "bin", root / "apt.log"
        self.bin.mkdir(parents=True)
        (root / "usr" / "sbin").mkdir(parents=True)
        for name in ("sh", "env", "ls", "rm", "printf", "chmod", "cat", "true"):
            self.bin.joinpath(name).symlink_to(str(shutil.which(name)))
        self.program("id", f"echo {user}")

    def program(self, name: str, body: str = "exit 0") -> None:
        self.bin.joinpath(name).write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        self.bin.joinpath(name).chmod(0o755)

    def complete(self, *, without: tuple[str, ...] = ()) -> None:
        for name in set(PROGRAMS) - set(without):
            self.program(name)
        for name in FILES:
            self.root.joinpath(name).parent.mkdir(parents=True, exist_ok=True)
            self.root.joinpath(name).touch()

    def apt(self, after_install: str = "") -> None:
        policy = self.policy
        self.program(
            "apt-get",
            f'echo "$*" >> {self.log}\n[ -e {policy} ] && cat {policy} >> {self.log}\n'
            f'[ "$1" = install ] || exit 0\n{after_install}',
        )

    @property
    def policy(self) -> Path:
        return self.root / "usr" / "sbin" / "policy-rc.d"

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": str(self.bin), "SYSTEM_ROOT": str(self.root)}
        return subprocess.run(
            [str(shutil.which("sh")), str(SCRIPT), *arguments],
            env=environment, capture_output=True, text=True, timeout=30,
        )  # fmt: skip


def test_silent_when_all_is_there(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.complete()
    machine.apt()
    run = machine.run()
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    assert not machine.log.exists()


def test_installs_only_what_is_missing_and_no_service_starts(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.complete(without=("dciodvfy", "dsrdump"))
    machine.apt(f"for name in dciodvfy dsrdump; do cat {machine.bin}/npm > {machine.bin}/$name; "
                f"chmod 755 {machine.bin}/$name; done")  # fmt: skip
    run = machine.run()
    assert run.returncode == 0, run.stderr
    update, rule, exit_line, install, *again = machine.log.read_text().splitlines()
    assert (update, rule, exit_line) == ("update -qq", "#!/bin/sh", "exit 101")
    assert install.split()[:4] == ["install", "-qq", "-y", "--no-install-recommends"]
    assert install.split()[-2:] == ["dcmtk", "dicom3tools"]
    assert again == ["#!/bin/sh", "exit 101"]
    assert not machine.policy.exists()


def test_a_policy_of_the_machine_is_left_alone(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.complete(without=("npm",))
    machine.policy.write_text("#!/bin/sh\nexit 0\n", encoding="utf-8")
    machine.apt(f"cat {machine.bin}/dcmdump > {machine.bin}/npm; chmod 755 {machine.bin}/npm")
    assert machine.run().returncode == 0
    assert machine.policy.read_text(encoding="utf-8") == "#!/bin/sh\nexit 0\n"


def test_dry_run_says_and_does_nothing(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.apt()
    run = machine.run("--dry-run")
    assert run.returncode == 0
    wanted = " orthanc orthanc-dicomweb dcmtk dicom3tools chromium postgresql npm xvfb libgl1 "
    assert wanted in run.stdout.splitlines()[-2]
    assert not machine.log.exists()
    assert not machine.policy.exists()


@pytest.mark.parametrize("body", ["exit 100", "exit 0"])
def test_a_failed_installation_is_one_line_and_cleans_up(tmp_path: Path, body: str) -> None:
    machine = Machine(tmp_path)
    machine.complete(without=("chromium",))
    machine.apt(body)
    run = machine.run()
    assert run.returncode == 1
    assert "needs the Debian packages chromium, and" in run.stderr.splitlines()[-1]
    assert not machine.policy.exists()


def test_without_apt_or_rights_it_names_the_packages(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "user", user=1000)
    machine.complete(without=("Orthanc",))
    run = machine.run()
    assert run.returncode == 1
    assert run.stderr == (
        "make test needs the Debian packages orthanc, and there is no apt-get here: "
        "install these programs another way\n"
    )
    machine.apt()
    run = machine.run()
    assert run.returncode == 1
    assert "this user may not install packages: install them (sudo apt-get install orthanc)" in run.stderr
    machine.program("sudo", '[ "$1" = -n ] && shift; exec "$@"')
    assert machine.run().returncode == 1
    assert "\ninstall " in machine.log.read_text()


def test_unknown_argument(tmp_path: Path) -> None:
    run = Machine(tmp_path).run("--install")
    assert run.returncode == 2
    assert "unknown argument '--install'" in run.stderr


def test_this_machine_has_them_all() -> None:
    """Where this fails, other tests will: it says what to install."""
    run = subprocess.run(["sh", str(SCRIPT), "--dry-run"], capture_output=True, text=True, timeout=60,
                         env={"PATH": os.environ["PATH"]})  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout == "", run.stderr
