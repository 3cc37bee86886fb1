# Sourced by the other scripts: makes .venv where there is none, installs what the named requirements file lists, and
# sets PYTHON. A .venv that is complete is used as it is.
#   . scripts/setup.sh requirements.txt
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=.venv/bin/python
if [ ! -x "$PYTHON" ]; then
    "${PYTHON_FOR_VENV:-python3}" -m venv .venv
fi
stamp=.venv/installed-$(cat requirements*.txt | cksum | cut -d' ' -f1)-$1
if [ ! -e "$stamp" ]; then
    "$PYTHON" -m pip install --quiet --disable-pip-version-check -r "$1"
    touch "$stamp"
fi
