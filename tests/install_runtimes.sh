#!/bin/sh
# Makes sure that the programs of the test workers are there: Node (has to be present), the other languages, the
# programs of the examples, and on Linux bubblewrap and the oldest Lua (installed if a package manager and the right to use it are at hand).  What stays missing is
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
            $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$@"
    elif has brew; then
        brew install "$@"
    else
        echo "install_runtimes: no usable package manager (apt-get as root or through sudo -n, or brew)" >&2
        return 1
    fi
}

# program:Debian packages:Homebrew package
wanted="
ruby:ruby:ruby
Rscript:r-base-core r-cran-jsonlite:r
perl:perl:perl
php:php-cli php-xml:php
java:default-jdk-headless:openjdk
lua5.4:lua5.4:lua
go:golang-go:go
guile:guile-3.0 guile-json:guile
tclsh:tcl:tcl-tk
jq:jq:jq
pdftotext:poppler-utils:poppler
"
runtimes=node
packages=
for line in $(echo "$wanted" | tr ' ' ,); do
    runtime=${line%%:*}
    rest=${line#*:}
    runtimes="$runtimes $runtime"
    if ! has "$runtime"; then
        if has apt-get; then name=${rest%%:*}; else name=${rest#*:}; fi
        packages="$packages $(echo "$name" | tr , ' ')"
    fi
done
if [ "$(uname)" = Linux ]; then
    runtimes="$runtimes bwrap lua5.3"
    has bwrap || packages="$packages bubblewrap"
    has lua5.3 || packages="$packages lua5.3"
fi
if [ -n "$packages" ]; then
    echo "install_runtimes: installing$packages"
    # shellcheck disable=SC2086  # one word a package
    install $packages </dev/null || echo "install_runtimes: installing$packages failed" >&2
fi

# What the examples use besides: a library of npm, and a Python environment with another numpy than the tests'.
if has npm && [ ! -d build/examples-node/node_modules/marked ]; then
    npm install --silent --no-audit --no-fund --prefix build/examples-node marked@4 </dev/null ||
        echo "install_runtimes: installing marked failed" >&2
fi
if [ ! -x build/examples-venv/ready ]; then
    # The oldest Python that workers may have, else that of the tests.
    python=python3
    for candidate in python3.8 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.8.*/bin/python .venv/bin/python; do
        if "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
            python=$candidate
            break
        fi
    done
    if "$python" -m venv build/examples-venv &&
        build/examples-venv/bin/python -m pip install --disable-pip-version-check --quiet 'numpy<2' </dev/null; then
        ln -sf bin/python build/examples-venv/ready
    else
        echo "install_runtimes: installing numpy into build/examples-venv failed" >&2
    fi
fi

missing=
for runtime in $runtimes; do
    if has "$runtime"; then
        echo "install_runtimes: $runtime: $(command -v "$runtime")"
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
