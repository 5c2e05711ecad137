# shellcheck shell=bash
# Small helpers shared by the scripts in dev/. Sourced, never run.

# Debian keeps mariadbd and friends in /usr/sbin, which ordinary users do not have on their PATH.
PATH=$PATH:/usr/sbin:/sbin

# shellcheck disable=SC2034 # used by those who source this
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/stocklock

# Everything said goes to stderr, so that stdout stays free for what `env` and the like print.
say() { printf '%s\n' "${0##*/}: $*" >&2; }

die() {
  say "$*"
  exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# start_time PID: when the kernel started the process. With the pid it names one process for good,
# while a bare pid may be given to another process later. Prints nothing when the process is gone or
# a zombie.
start_time() {
  local stat
  { stat=$(<"/proc/$1/stat"); } 2>/dev/null || return 0
  # The second field is the command's name, in brackets, and may hold anything: read on from the
  # last bracket.
  stat=${stat##*) }
  local -a field
  read -ra field <<<"$stat"
  [[ ${field[0]} == Z ]] || printf '%s\n' "${field[19]}"
}

# is_running PID START_TIME: the process is alive and the very one that was recorded.
is_running() { [[ -n $2 && $(start_time "$1") == "$2" ]]; }
