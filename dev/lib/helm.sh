# shellcheck shell=bash
# The part "helm" of install.sh: the tools that check the chart. install.sh sources it.

VALIDATE_HOME=$CACHE/kubernetes-validate
# As in dev/lib/downloads.
VALIDATE_VERSION=1.37.0

# Helm, helm-unittest and helm-docs are one Go module, so what they share is built once. Its go.sum
# has the checksums.
CHART_TOOLS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/chart-tools
CHART_TOOLS_HOME=$CACHE/chart-tools-$(cat "$CHART_TOOLS"/go.{mod,sum} | sha256sum | cut -c1-12)

# The modules that have the custom resources, their checksums, and the folders with their YAML.
CRD_MODULES=(
  "github.com/kedacore/keda/v2@v2.16.1
    h1:LfYsxfSX8DjetLW8q9qnriImH936POrQJvE+caRoScI=
    config/crd/bases/keda.sh_{scaledobjects,triggerauthentications}.yaml"
  "github.com/prometheus-operator/prometheus-operator@v0.85.0
    h1:M5xLCLEoaW2IJfnuCwFzzpL+jSVQu3KGT84Pye+fW8s=
    example/prometheus-operator-crd/monitoring.coreos.com_{podmonitors,prometheusrules}.yaml"
  "sigs.k8s.io/gateway-api@v1.3.0
    h1:q6okN+/UKDATola4JY7zXzx40WO4VISk7i9DIfOvr9M=
    config/crd/standard/gateway.networking.k8s.io_httproutes.yaml"
)
CRDS_HOME=$CACHE/crds-$(printf '%s\n' "${CRD_MODULES[@]}" | sha256sum | cut -c1-12)

# chart_tool NAME: the path of helm, helm-unittest or helm-docs.
chart_tool() { echo "$CHART_TOOLS_HOME/$1"; }

has_chart_tools() { [[ -d $CHART_TOOLS_HOME && -d $CRDS_HOME ]]; }

install_helm() {
  if [[ ! -e $VALIDATE_HOME/complete ]]; then
    say "installing kubernetes-validate $VALIDATE_VERSION (PyPI, about 23 MB) ..."
    pip_install helm "$VALIDATE_HOME"
  fi
  has_chart_tools && return 0
  install_go
  local tmp
  rm -rf "$CACHE"/helm.??????
  tmp=$(mktemp -d "$CACHE/helm.XXXXXX")
  if [[ ! -d $CRDS_HOME ]]; then
    say "fetching custom resources, such as those of KEDA (Go's module proxy, 8 MB) ..."
    fetch_crds "$tmp"
  fi
  if [[ ! -d $CHART_TOOLS_HOME ]]; then
    say "building Helm and its tools (Go's module proxy, about 120 MB, some minutes) ..."
    try_thrice "$tmp/log" build_chart_tools "$tmp" || die "Go could not build Helm and its tools"
    mv "$tmp/bin" "$CHART_TOOLS_HOME"
  fi
  rm -rf "$tmp"
}

# build_chart_tools DIR: makes the programs in DIR/bin. Everything that Go stores is in DIR too, so
# the caller may remove it.
build_chart_tools() {
  mkdir -p "$1/bin"
  env GOPATH="$1" GOCACHE="$1/cache" GOFLAGS=-modcacherw CGO_ENABLED=0 \
    "$(go_program)" build -C "$CHART_TOOLS" -ldflags='-s -w' -o "$1/bin/" tool
}

# fetch_crds DIR: takes the custom resources out of their modules. It uses DIR for what Go stores.
fetch_crds() {
  local entry module sum files found file
  mkdir "$1/crds"
  for entry in "${CRD_MODULES[@]}"; do
    read -rd '' module sum files <<<"$entry" || true
    try_thrice "$1/log" download_module "$1" "$module" || die "Go could not fetch $module"
    found=$(json_field Sum <"$1/module.json")
    [[ $found == "$sum" ]] || die "$module: expected the checksum $sum, found $found"
    # The files of an entry are a pattern with braces.
    for file in $(eval "echo $files"); do
      cp "$(json_field Dir <"$1/module.json")/$file" "$1/crds/"
    done
  done
  mv "$1/crds" "$CRDS_HOME"
}

# download_module DIR MODULE: writes what Go knows of it to DIR/module.json.
download_module() {
  (cd "$1" && env GOPATH="$1" GOFLAGS=-modcacherw \
    "$(go_program)" mod download -json "$2") >"$1/module.json"
}

json_field() { python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"; }
