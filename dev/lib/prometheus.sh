# shellcheck shell=bash
# The part "prometheus" of install.sh: Prometheus and promtool. install.sh sources it.

PROMETHEUS_HOME=$CACHE/prometheus

# prometheus_program NAME: prints the path of prometheus or of promtool.
prometheus_program() { command -v "$1" || echo "$PROMETHEUS_HOME/usr/bin/$1"; }

# install_prometheus: unpacks Debian's package to a folder of its own. The package itself would set
# up a service. The programs need no library but that of C.
install_prometheus() {
  [[ -x $(prometheus_program prometheus) && -x $(prometheus_program promtool) ]] && return 0
  have apt-get || die "apt-get is missing: please install prometheus and promtool"
  say "installing Prometheus beside the system (Debian, about 19 MB) ..."
  local tmp
  rm -rf "$CACHE"/prometheus.??????
  tmp=$(mktemp -d "$CACHE/prometheus.XXXXXX")
  mkdir "$tmp/apt"
  if ! fetch_prometheus "$tmp/apt" >"$tmp/log" 2>&1; then
    tail -n 10 "$tmp/log" >&2
    rm -rf "$tmp"
    die "apt-get could not fetch prometheus"
  fi
  if all_pinned prometheus "$tmp/apt"; then
    verify_downloads prometheus "$tmp/apt" || {
      rm -rf "$tmp"
      die "Prometheus is not installed: the package does not have the pinned checksum"
    }
  else
    say "note: this Debian has another package than dev/lib/downloads. Its signature is right:"
    list_unpinned prometheus "$tmp/apt"
  fi
  dpkg-deb -x "$tmp"/apt/*.deb "$tmp/home"
  rm -rf "$PROMETHEUS_HOME"
  mv "$tmp/home" "$PROMETHEUS_HOME"
  rm -rf "$tmp"
}

# fetch_prometheus FOLDER: apt-get checks the signature. It fetches the package lists if the first
# try fails, since the lists are then missing or old.
fetch_prometheus() (
  cd "$1" || return
  apt-get -qq -o APT::Sandbox::User=root download prometheus && return
  rm -f ./*
  apt_run update || true
  apt-get -qq -o APT::Sandbox::User=root download prometheus
)
