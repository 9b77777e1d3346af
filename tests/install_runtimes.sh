#!/bin/sh
# Makes sure that the programs of the test workers are there: Node (has to be present), Ruby, and on Linux
# bubblewrap (installed if a package manager and the right to use it are at hand).  What stays missing is
# said loudly; with CI=true it is a failure, since what was skipped would pass for tested.
set -eu

has() { command -v "$1" >/dev/null 2>&1; }

# Sets the words that put a command into root's hands, or fails.
as_root=
may_be_root() {
    if [ "$(id -u)" = 0 ]; then return 0; fi
    if has sudo && sudo -n true >/dev/null 2>&1; then as_root="sudo -n"; return 0; fi
    return 1
}

install() {
    if has apt-get && may_be_root; then
        $as_root apt-get update -q &&
            $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$1"
    elif has brew; then
        brew install "$1"
    else
        echo "install_runtimes: no usable package manager (apt-get as root or through sudo -n, or brew)" >&2
        return 1
    fi
}

runtimes="node ruby"
if [ "$(uname)" = Linux ]; then runtimes="$runtimes bwrap"; fi

for runtime in $runtimes; do
    package=$runtime
    if [ "$runtime" = bwrap ]; then package=bubblewrap; fi
    if [ "$runtime" != node ] && ! has "$runtime"; then
        echo "install_runtimes: $runtime is missing, installing $package"
        install "$package" </dev/null || echo "install_runtimes: installing $package failed" >&2
    fi
done

missing=
for runtime in $runtimes; do
    if has "$runtime"; then
        echo "install_runtimes: $runtime: $("$runtime" --version)"
    else
        missing="$missing $runtime"
    fi
done

if [ -n "$missing" ]; then
    {
        echo "======================================================================"
        echo "MISSING RUNTIMES:$missing"
        echo "Every test that needs one of them will be SKIPPED, not passed."
        echo "======================================================================"
    } >&2
    if [ "${CI:-}" = true ]; then
        echo "install_runtimes: CI=true, so a missing runtime is a failure" >&2
        exit 1
    fi
fi
