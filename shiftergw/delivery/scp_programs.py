"""The programs that stand in for SFTP on a system: texts for `Shell`, with their parameters.

Each is one line, without backslashes, and with an exclamation mark only before a blank: the shell
of the account, which hands them on, may be csh or fish. They need no more than POSIX, `stat -c`,
`head -c`, `find -maxdepth` and `dd conv=fsync`, as GNU and busybox have them. Paths are absolute.
"""

from __future__ import annotations

_NO = (
    'no() { d=${1%/*}; d=${d:-/}; [ -d "$d" ] || exit 102;'
    ' [ -w "$d" ] && [ -x "$d" ] || exit 103; exit 104; }; '
)  # ends with the reason why a file's directory refuses it
_STAT = 'stat -c "%f %s %Y"'
_NEW = 'set -C; true > "$1" || no "$1"; set +C; chmod 600 -- "$1" || exit 104; '
_SYNC = 'dd if=/dev/null "of=$1" conv=notrunc,fsync'
_READABLE = '[ -f "$1" ] || exit 102; [ -r "$1" ] || exit 103; '

NEEDED = (
    "for p in scp stat find df dd head rm mv cat chmod; do"
    ' command -v "$p" > /dev/null || printf "%s " "$p"; done;'
    ' stat -c %f / > /dev/null || printf "stat -c"'
)
"""Says which of the other programs are not there."""

SPACE = 'df -Pk -- "$1" || { [ -d "$1" ] || exit 102; exit 104; }'
"""DIRECTORY: says what `df` says."""

LSTAT = (
    f'{_STAT} -- "$1" && exit 0; [ -e "$1" ] || [ -L "$1" ] && exit 104;'
    ' d=${1%/*}; d=${d:-/}; [ -d "$d" ] || exit 102; [ -x "$d" ] || exit 103; exit 102'
)
"""PATH: says mode, size and time of the last write of what has this name."""

ENTRIES = (
    'cd -- "$1" || { [ -d "$1" ] && exit 103; exit 102; }; [ -r . ] || exit 103;'
    ' find . -maxdepth 1 ! -name "*[^0-9A-Za-z.]*"'
    ' -exec sh -c \'stat -c "%f %s %Y %n" -- "$@" || true\' sh {} + || exit 104'
)
"""DIRECTORY: says the same of each of its entries, and ` ./` and its name.

Names of other characters are left out: they are nobody's, and could be taken for lines.
"""

REMOVE = f'{_NO}rm -f -- "$@" || no "$1"'
"""PATH...: removes files, which need not be there."""

RENAME = (
    f'{_NO}if [ -d "$2" ]; then [ -L "$2" ] && rm -f -- "$2" || exit 104; fi;'
    ' [ -e "$1" ] || exit 102; mv -f -- "$1" "$2" || no "$2"; d=${2%/*};'
    ' case "$(sync --help 2>&1)" in *FILE*) sync -- "${d:-/}";; esac; exit 0'
)
"""OLD NEW: renames a file over another one; a directory of that name would be moved into.

Then the directory is brought to the disk, where `sync` takes names: the other one takes all disks.
"""

WHOLE = f'{_NO}umask 077; rm -f -- "$1" "$2"; {_NEW}exec scp -t -- "$1"'
"""PATH BESIDE: makes a file anew and is the sink for it; what lies beside it goes."""

EMPTY = (
    '[ -f "$1" ] || exit 102; rm -f -- "$2"; umask 077; chmod 600 -- "$1" || exit 104;'
    ' exec scp -t -- "$1"'
)
"""PATH BESIDE: is the sink for a file that is there, and stays the same one; as WHOLE otherwise."""

STRETCH = (
    f'{_NO}umask 077; part=$1; shift; [ -f "$part" ] || exit 102; rm -f -- "$1"; {_NEW}'
    'scp -t -- "$1" || exit 104; [ -f "$part" ] && [ -f "$1" ] || exit 102;'
    ' dd "of=$part" bs=1048576 "seek=$2" conv=notrunc < "$1" || exit 104'
)
"""PATH BESIDE PLACE: is the sink for BESIDE and copies it into a file, so many MiB from its start.

BESIDE stays: another one may have been begun under its name when the connection broke. What is gone
meanwhile is missed: `dd` would make a file with a hole.
"""

FINISH = (
    f'[ -f "$1" ] || exit 102; rm -f -- "$2"; chmod 600 -- "$1" && {_SYNC} && {_STAT} -- "$1"'
    " || exit 104"
)
"""PATH BESIDE: brings a file to the disk, 0600, and says what LSTAT says; BESIDE goes."""

CREATE = f'{_NO}umask 077; {_NEW}cat >> "$1" && {_SYNC} && cat -- "$1" || exit 104'
"""PATH: makes a file of its input, which was not there, brings it to the disk and says it."""

PIECES = (
    f'{_READABLE}f=$1; shift; {_STAT} -- "$f" || exit 104;'
    ' while [ "$#" -gt 0 ]; do dd "if=$f" bs=4096 "skip=$1" "count=$2" || exit 104; shift 2; done'
)
"""PATH (FIRST COUNT)...: says what LSTAT says, and blocks of 4096 bytes."""

READ = f'{_READABLE}head -c "$2" -- "$1" || exit 104'
"""PATH SIZE: says the beginning of a file."""
