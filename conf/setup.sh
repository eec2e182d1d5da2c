# Set-up that conf/quickstart and tests/run share. bash sources it at the top of the checkout.
# It installs Debian packages with apt-get (as root or through sudo), Python packages into a virtual
# environment beside the checkout: $SHIFTERGW_VENV, or ../shiftergw-venv.

say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }
die() { printf 'shiftergw: %s\n' "$*" >&2; exit 1; }

# usage SCRIPT: print the comment at the head of the script.
usage() { sed -n '2,/^[^#]/s/^#\( \|$\)//p' "$1"; }

# misused SCRIPT ARGUMENT: report an unknown argument, print the usage, and exit with 2.
misused() {
    printf 'shiftergw: %s does not know %s\n\n' "$1" "$2" >&2
    usage "$1" >&2
    exit 2
}

checkout=$(pwd)
venv=${SHIFTERGW_VENV:-$(dirname "$checkout")/shiftergw-venv}

# debian_packages NAME...: install the missing ones of these packages.
debian_packages() {
    command -v dpkg-query >/dev/null || {
        say "not a Debian or Ubuntu machine: expecting these to be installed: $*"
        return 0
    }
    local missing=() name
    for name in "$@"; do
        dpkg-query -W -f '${Status}' "$name" 2>/dev/null | grep -q 'ok installed' || missing+=("$name")
    done
    [ ${#missing[@]} -eq 0 ] && return 0
    local sudo=()
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || die "run as root, or install: ${missing[*]}"
        sudo=(sudo)
    fi
    say "installing Debian packages: ${missing[*]}"
    "${sudo[@]}" apt-get update -q >/dev/null || say "apt-get update failed; trying with the present package lists"
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -q --no-install-recommends "${missing[@]}" >/dev/null ||
        die "apt-get could not install: ${missing[*]}"
}

# find_python: print the path of a Python 3.11 or newer that can make virtual environments.
find_python() {
    local candidate
    for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return 0
        fi
    done
    return 1
}

# virtual_environment EXTRA: make or refresh $venv with this checkout (editable) and its extra.
virtual_environment() {
    local python stamp fingerprint
    python=$(find_python) || { debian_packages python3 python3-venv; python=$(find_python); } ||
        die "Python 3.11 or newer is needed"
    stamp=$venv/.shiftergw-$1
    fingerprint=$(sha256sum pyproject.toml | cut -d' ' -f1)" $checkout"
    [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$fingerprint" ] && return 0
    say "installing Python packages into $venv"
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv" || die "cannot make $venv"
    "$venv/bin/python" -m pip install -q --disable-pip-version-check -e ".${1:+[$1]}" ||
        die "pip could not install the Python packages"
    printf '%s' "$fingerprint" >"$stamp"
}

# oldest_environment: make or refresh $venv-oldest, with the oldest versions that pyproject.toml
# allows of the libraries that TLS depends on. Call virtual_environment first.
oldest_environment() {
    local oldest=$venv-oldest stamp fingerprint requirements
    requirements=$("$venv/bin/python" -m tests.oldest) || die "cannot read pyproject.toml"
    stamp=$oldest/.shiftergw-oldest
    fingerprint=$(printf '%s' "$requirements" | sha256sum | cut -d' ' -f1)
    [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$fingerprint" ] && return 0
    say "installing the oldest versions that are allowed into $oldest"
    "$venv/bin/python" -m venv --clear "$oldest" || die "cannot make $oldest"
    printf '%s\n' "$requirements" >"$oldest/requirements"
    "$oldest/bin/python" -m pip install -q --disable-pip-version-check -r "$oldest/requirements" ||
        die "pip could not install the oldest versions"
    printf '%s' "$fingerprint" >"$stamp"
}
