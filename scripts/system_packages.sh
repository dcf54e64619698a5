#!/bin/sh
# The programs of Debian that `make test` talks to: a real PACS, validators of other makers, a browser, a database.
# Finds them, and installs the packages of those that are missing, without letting any service start.
#
#   sh scripts/system_packages.sh            find, install what is missing
#   sh scripts/system_packages.sh --dry-run  find, say what would be run
#
# SYSTEM_ROOT stands before every fixed path (for its own tests); it is empty on a real machine.
set -eu

root=${SYSTEM_ROOT:-}
PATH="$PATH:$root/usr/sbin:$root/sbin" # a user's PATH has no sbin, where Orthanc lives
policy="$root/usr/sbin/policy-rc.d"
dry_run=no
case "${1:-}" in
"") ;;
--dry-run) dry_run=yes ;;
*) echo "system_packages.sh: unknown argument '$1'; give --dry-run or nothing" >&2; exit 2 ;;
esac

# need PACKAGE PATTERN...: a pattern is a program on the PATH, or a file by its full path.
need() {
    package=$1
    shift
    for wanted in "$@"; do
        case "$wanted" in
        /*) # shellcheck disable=SC2086 # a pattern: any version will do
            ls -d $root$wanted >/dev/null 2>&1 && continue ;;
        *) command -v "$wanted" >/dev/null 2>&1 && continue ;;
        esac
        missing="$missing $package"
        return 0
    done
}

find_missing() {
    missing=""
    need orthanc Orthanc
    need orthanc-dicomweb '/usr/share/orthanc/plugins/libOrthancDicomWeb.so*'
    need dcmtk dcmdump dsrdump dsr2xml dcm2json dcm2pnm
    need dicom3tools dciodvfy
    need chromium chromium
    need postgresql '/usr/lib/postgresql/*/bin/initdb' '/usr/lib/postgresql/*/bin/pg_ctl'
    need npm npm
    need xvfb Xvfb # napari draws with OpenGL, on a screen that nobody looks at
    need libgl1 '/usr/lib/*/libGL.so.1'
    need libegl1 '/usr/lib/*/libEGL.so.1'
    need libxcb-cursor0 '/usr/lib/*/libxcb-cursor.so.0'
    need libxcb-icccm4 '/usr/lib/*/libxcb-icccm.so.4'
    need libxcb-keysyms1 '/usr/lib/*/libxcb-keysyms.so.1'
    missing=${missing# }
    [ -n "$missing" ]
}

find_missing || exit 0

give_up() {
    echo "make test needs the Debian packages $missing, and $1: ${2:-install them (sudo apt-get install $missing)}" >&2
    exit 1
}

command -v apt-get >/dev/null 2>&1 || give_up "there is no apt-get here" "install these programs another way"
as_root=""
if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null || give_up "this user may not install packages"
    as_root="sudo -n"
fi
run() {
    if [ "$dry_run" = yes ]; then
        printf 'would run: %s\n' "${as_root:+$as_root }$*"
    else
        # shellcheck disable=SC2086 # empty, or two words
        $as_root "$@" >&2
    fi
}

echo "installing for the tests: $missing" >&2
if [ ! -e "$policy" ] && [ ! -L "$policy" ]; then
    # Debian asks this file before it starts a service of a package that was just installed; 101 means "do not".
    trap 'run rm -f "$policy"' EXIT
    trap 'exit 130' INT TERM
    run sh -c "printf '#!/bin/sh\nexit 101\n' > '$policy' && chmod 755 '$policy'"
fi
run apt-get update -qq || echo "apt-get update failed; trying with the lists that are here" >&2
# shellcheck disable=SC2086 # one word for each package
run env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
    -o DPkg::Lock::Timeout=300 $missing || give_up "apt-get could not install them"
[ "$dry_run" = yes ] || ! find_missing || give_up "their programs are not on the PATH after installing them"
