# shellcheck shell=bash
# Go, for Helm and for the example in Go. install.sh sources it.

# The lowest version that builds both.
GO_VERSION=1.24.11
GO_HOME=$CACHE/go-$GO_VERSION

# has_new_go: whether the Go of the machine is new enough. Debian 12 has an old one.
has_new_go() { [[ $(go version 2>/dev/null) =~ go1\.([0-9]+) ]] && ((BASH_REMATCH[1] >= 24)); }

go_program() { if has_new_go; then command -v go; else echo "$GO_HOME/bin/go"; fi; }

# Releases of Go are modules, and their checksums are checked like those of others. The Go of the
# machine fetches the release. In a module nothing is executable.
install_go() {
  [[ -x $(go_program) ]] && return 0
  say "installing Go $GO_VERSION (Go's module proxy, 80 MB) ..."
  local tmp release
  rm -rf "$CACHE"/go.??????
  tmp=$(mktemp -d "$CACHE/go.XXXXXX")
  release=golang.org/toolchain@v0.0.1-go$GO_VERSION.$(go env GOOS)-$(go env GOARCH)
  GOPATH=$tmp GOFLAGS=-modcacherw try_thrice "$tmp/log" go mod download "$release" ||
    die "Go could not fetch $release"
  chmod -R u+x "$tmp/pkg/mod/$release/bin" "$tmp/pkg/mod/$release/pkg/tool"
  rm -rf "$GO_HOME"
  mv "$tmp/pkg/mod/$release" "$GO_HOME"
  rm -rf "$tmp"
}

# try_thrice LOG COMMAND...: a proxy may fail now and then. Prints the end of the log at last.
try_thrice() {
  local log=$1 try
  shift
  for try in 1 2 3; do
    "$@" >"$log" 2>&1 && return 0
    ((try == 3)) || say "Go failed, trying again ..."
  done
  tail -n 20 "$log" >&2
  return 1
}
