"""The programs that replace SFTP on a system: texts for `RemoteShell`, and their arguments.

Each text is one line without backslashes, and has an exclamation mark only before a blank, because
the login shell that passes it on may be csh or fish. The texts need POSIX, `stat -c`, `head -c`,
`find -maxdepth` and `dd conv=fsync`, which GNU and busybox have. Paths are absolute.
"""

from __future__ import annotations

_NO = (
    'no() { d=${1%/*}; d=${d:-/}; [ -d "$d" ] || exit 102;'
    ' [ -w "$d" ] && [ -x "$d" ] || exit 103; exit 104; }; '
)  # exits with the reason why the directory of a file refuses a request
_STAT = 'stat -c "%f %s %Y"'
_NEW = 'set -C; true > "$1" || no "$1"; set +C; chmod 600 -- "$1" || exit 104; '
_SYNC = 'dd if=/dev/null "of=$1" conv=notrunc,fsync'
_READABLE = '[ -f "$1" ] || exit 102; [ -r "$1" ] || exit 103; '

MISSING_PROGRAMS = (
    "for p in scp stat find df dd head rm mv cat chmod; do"
    ' command -v "$p" > /dev/null || printf "%s " "$p"; done;'
    ' stat -c %f / > /dev/null || printf "stat -c"'
)
"""Prints which of the other programs are missing."""

SPACE = 'df -Pk -- "$1" || { [ -d "$1" ] || exit 102; exit 104; }'
"""Argument: DIRECTORY. Prints the output of `df`."""

LSTAT = (
    f'{_STAT} -- "$1" && exit 0; [ -e "$1" ] || [ -L "$1" ] && exit 104;'
    ' d=${1%/*}; d=${d:-/}; [ -d "$d" ] || exit 102; [ -x "$d" ] || exit 103; exit 102'
)
"""Argument: PATH. Prints mode, size and time of the last write."""

ENTRIES = (
    'cd -- "$1" || { [ -d "$1" ] && exit 103; exit 102; }; [ -r . ] || exit 103;'
    ' find . -maxdepth 1 ! -name "*[^0-9A-Za-z.]*"'
    ' -exec sh -c \'stat -c "%f %s %Y %n" -- "$@" || true\' sh {} + || exit 104'
)
"""Argument: DIRECTORY. Prints the attributes of each entry as LSTAT, then ` ./` and the name.

Names with other characters than letters, digits and dots are left out: the gateway has no such
files, and a newline in a name would look like the next entry.
"""

REMOVE = f'{_NO}rm -f -- "$@" || no "$1"'
"""Arguments: PATH... Removes files, which need not exist."""

SET_MODE = '[ -f "$1" ] || exit 102; chmod "$2" -- "$1" || exit 104'
"""Arguments: PATH MODE. Sets the mode of a file, in octal digits."""

RENAME = (
    f'{_NO}if [ -d "$2" ]; then [ -L "$2" ] && rm -f -- "$2" || exit 104; fi;'
    ' [ -e "$1" ] || exit 102; mv -f -- "$1" "$2" || no "$2"; d=${2%/*};'
    ' case "$(sync --help 2>&1)" in *FILE*) sync -- "${d:-/}";; esac; exit 0'
)
"""Arguments: OLD NEW. Renames a file and replaces an existing one.

If NEW is a directory, it is refused, because `mv` would move the file into it; a symlink to a
directory is replaced. Then the parent directory is written to the disk, if `sync` takes names;
without a name it would sync all disks.
"""

WHOLE = f'{_NO}umask 077; rm -f -- "$1" "$2"; {_NEW}exec scp -t -- "$1"'
"""Arguments: PATH BESIDE. Creates a file anew and receives it; removes BESIDE."""

EMPTY = (
    '[ -f "$1" ] || exit 102; rm -f -- "$2"; umask 077; chmod 600 -- "$1" || exit 104;'
    ' exec scp -t -- "$1"'
)
"""Arguments: PATH BESIDE. Receives an existing file, which is not replaced; removes BESIDE."""

STRETCH = (
    f'{_NO}umask 077; part=$1; shift; [ -f "$part" ] || exit 102; rm -f -- "$1"; {_NEW}'
    'scp -t -- "$1" || exit 104; [ -f "$part" ] && [ -f "$1" ] || exit 102;'
    ' dd "of=$part" bs=1048576 "seek=$2" conv=notrunc < "$1" || exit 104'
)
"""Arguments: PATH BESIDE PLACE. Receives BESIDE and copies it into PATH, PLACE MiB from its start.

BESIDE is not removed at the end: if the connection broke, another upload may have begun under its
name. If PATH was removed meanwhile, that is an error: `dd` would create a file with a hole.
"""

FINISH = (
    f'[ -f "$1" ] || exit 102; rm -f -- "$2"; chmod 600 -- "$1" && {_SYNC} && {_STAT} -- "$1"'
    " || exit 104"
)
"""Arguments: PATH BESIDE. Sets mode 0600, syncs PATH, prints as LSTAT, and removes BESIDE."""

CREATE = f'{_NO}umask 077; {_NEW}cat >> "$1" && {_SYNC} && cat -- "$1" || exit 104'
"""Argument: PATH. Creates a file from its input, writes it to the disk and prints its content."""

PIECES = (
    f'{_READABLE}f=$1; shift; {_STAT} -- "$f" || exit 104;'
    ' while [ "$#" -gt 0 ]; do dd "if=$f" bs=4096 "skip=$1" "count=$2" || exit 104; shift 2; done'
)
"""Arguments: PATH (FIRST COUNT)... Prints as LSTAT, then blocks of 4096 bytes."""

READ = f'{_READABLE}head -c "$2" -- "$1" || exit 104'
"""Arguments: PATH SIZE. Prints the first bytes of a file."""
