# shellcheck shell=bash
# The part "helm" of install.sh: the tools that check the chart. install.sh sources it.

HELM_VERSION=3.19.5
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
  install_go
  say "building Helm $HELM_VERSION (Go's module proxy, about 100 MB, some minutes) ..."
  local tmp
  rm -rf "$CACHE"/helm.??????
  tmp=$(mktemp -d "$CACHE/helm.XXXXXX")
  try_thrice "$tmp/log" build_helm "$tmp" || die "Go could not build Helm $HELM_VERSION"
  mv "$tmp/bin/helm" "$CACHE/helm"
  rm -rf "$tmp"
}

# build_helm DIR: makes DIR/bin/helm. Everything that Go stores is in DIR too, so the caller may
# remove it.
build_helm() (
  export GOPATH=$1 GOCACHE=$1/cache GOBIN=$1/bin GOFLAGS=-modcacherw CGO_ENABLED=0
  cd "$1" || return
  "$(go_program)" install -ldflags='-s -w' "helm.sh/helm/v3/cmd/helm@v$HELM_VERSION"
)
