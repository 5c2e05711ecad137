# shellcheck shell=bash
# The part "helm" of install.sh: the tools that check the chart. install.sh sources it.

HELM_VERSION=3.19.5
# The lowest version of Go that builds this Helm.
HELM_GO_VERSION=1.24.11
VALIDATE_HOME=$CACHE/kubernetes-validate
# As in dev/lib/downloads.
VALIDATE_VERSION=1.37.0

helm_program() { command -v helm || echo "$CACHE/helm"; }

install_helm() {
  if [[ ! -e $VALIDATE_HOME/complete ]]; then
    say "installing kubernetes-validate $VALIDATE_VERSION (PyPI, about 23 MB) ..."
    pip_install helm "$VALIDATE_HOME"
  fi
  [[ -x $(helm_program) ]] && return 0
  say "building Helm $HELM_VERSION (Go's module proxy, about 100 MB, some minutes) ..."
  local tmp try
  rm -rf "$CACHE"/helm.??????
  tmp=$(mktemp -d "$CACHE/helm.XXXXXX")
  for try in 1 2 3; do
    if build_helm "$tmp" >"$tmp/log" 2>&1; then
      mv "$tmp/bin/helm" "$CACHE/helm"
      rm -rf "$tmp"
      return 0
    fi
    ((try == 3)) || say "Go failed, trying again ..."
  done
  tail -n 20 "$tmp/log" >&2
  rm -rf "$tmp"
  die "Go could not build Helm $HELM_VERSION"
}

# build_helm DIR: makes DIR/bin/helm. Everything that Go stores is in DIR too, so the caller may
# remove it.
build_helm() (
  export GOPATH=$1 GOCACHE=$1/cache GOBIN=$1/bin GOFLAGS=-modcacherw GOTOOLCHAIN=auto CGO_ENABLED=0
  cd "$1" || return
  # Since 1.21, Go itself fetches a newer one where a module asks for it.
  if ! [[ $(go version) =~ go1\.([0-9]+) ]] || ((BASH_REMATCH[1] < 21)); then
    fetch_go "$1" || return
    unset GOROOT
    PATH=$1/go/bin:$PATH
  fi
  go install -ldflags='-s -w' "helm.sh/helm/v3/cmd/helm@v$HELM_VERSION"
)

# fetch_go DIR: Go as DIR/go, for Debian 12 has an old one. Releases of Go are modules, and their
# checksums are looked at like those of others; in a module nothing is executable.
fetch_go() {
  local release
  release=golang.org/toolchain@v0.0.1-go$HELM_GO_VERSION.$(go env GOOS)-$(go env GOARCH)
  go mod download "$release" || return
  ln -sfn "$1/pkg/mod/$release" "$1/go"
  chmod -R u+x "$1/go/bin" "$1/go/pkg/tool"
}
