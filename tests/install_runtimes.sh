#!/bin/sh
# Makes sure that the languages of the test workers are there: Node (has to be present) and Ruby
# (installed if a package manager and the right to use it are at hand).  What stays missing is said
# loudly; with CI=true it is a failure, since a skipped language would pass for a tested one.
set -eu

has() { command -v "$1" >/dev/null 2>&1; }

# Sets the words that put a command into root's hands, or fails.
as_root=
may_be_root() {
    if [ "$(id -u)" = 0 ]; then return 0; fi
    if has sudo && sudo -n true >/dev/null 2>&1; then as_root="sudo -n"; return 0; fi
    return 1
}

install_ruby() {
    if has apt-get && may_be_root; then
        $as_root apt-get update -q &&
            $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends ruby
    elif has brew; then
        brew install ruby
    else
        echo "install_runtimes: no usable package manager (apt-get as root or through sudo -n, or brew)" >&2
        return 1
    fi
}

if ! has ruby; then
    echo "install_runtimes: ruby is missing, installing it"
    install_ruby </dev/null || echo "install_runtimes: installing ruby failed" >&2
fi

missing=
for runtime in node ruby; do
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
