# Sourced by every script here: the interpreter, and how a program of the suite is run from any folder. Files are made
# in the folder that a script is called from.
#   PYTHON=    the interpreter: .venv/bin/python where there is one, else python
#   DRY=       not empty: print the commands, run none
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python
    if [ -x "$HERE/.venv/bin/python" ]; then PYTHON=$HERE/.venv/bin/python; fi
fi
case $PYTHON in /*) ;; */*) PYTHON=$PWD/$PYTHON ;; esac # a path stays right where a script changes its folder

# Python with the suite's modules in reach; a module of the same name in the current folder does not replace one
# (from Python 3.11).
python_here() {
    PYTHONSAFEPATH=1 PYTHONPATH=$HERE${PYTHONPATH:+:$PYTHONPATH} "$PYTHON" "$@"
}

# The first word names a program (run.py) or a module (scripts.summary), the others are its flags.
run() {
    local program=$1
    shift
    printf '+ %s' "$program"
    printf ' %q' "$@"
    printf '\n'
    if [ -n "${DRY:-}" ]; then return; fi
    case $program in
        *.py) "$PYTHON" "$HERE/$program" "$@" ;;
        *) python_here -m "$program" "$@" ;;
    esac
}
