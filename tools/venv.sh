#!/bin/sh
# Makes a virtual environment: tools/venv.sh FOLDER. Says what is missing when it cannot.
# PYTHON=... chooses the interpreter; otherwise the first of the names below that works.
set -eu
folder=$1

if "$folder/bin/python" -c '' 2>/dev/null; then
    exit 0
fi

right_version='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'
without_venv=
for python in ${PYTHON:-python3.13 python3.12 python3.11 python3 python}; do
    # A name on the PATH may be a shim for a version that is not there: run it, and see.
    "$python" -c "$right_version" 2>/dev/null || continue
    if "$python" -m venv --clear "$folder" >/dev/null 2>&1; then
        echo "Made $folder with $("$python" --version)."
        exit 0
    fi
    rm -rf "$folder"
    without_venv="$without_venv $python"
done

if [ -n "$without_venv" ]; then
    version=$(for python in $without_venv; do
        "$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' && break
    done)
    echo "Found$without_venv, but it cannot make virtual environments." >&2
    echo "On Debian and Ubuntu: sudo apt install python3-venv   (or python$version-venv)" >&2
else
    echo "No working Python 3.11, 3.12 or 3.13 was found${PYTHON:+ as $PYTHON}." >&2
    echo "Install one (Debian and Ubuntu: sudo apt install python3 python3-venv)," >&2
    echo "or name it: make PYTHON=/path/to/python3.12" >&2
fi
exit 1
