# Sourced by quickstart.sh and test.sh: makes .venv where there is none, installs what the named requirements file lists,
# sets what python.sh sets, and goes to the suite's folder. A .venv that is complete is used as it is; a PYTHON of yours
# is used in its place, and nothing is installed.
#   . scripts/setup.sh requirements.txt
suite=$(dirname "${BASH_SOURCE[0]}")/..
if [ -z "${PYTHON:-}" ]; then
    venv=$suite/.venv
    if [ ! -x "$venv/bin/python" ]; then "${PYTHON_FOR_VENV:-python3}" -m venv "$venv"; fi
    stamp=$venv/installed-$(cat "$suite"/requirements*.txt | cksum | cut -d' ' -f1)-$1
    if [ ! -e "$stamp" ]; then
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$suite/$1"
        touch "$stamp"
    fi
fi
. "$suite/scripts/python.sh"
cd "$HERE"
