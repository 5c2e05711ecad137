# shellcheck shell=bash
# The part "clients" of install.sh: libraries for the programs in other languages. install.sh
# sources it.

CLIENTS_HOME=$CACHE/clients-$(pinned_digest clients)
AVRO_VERSION=1.12.0
REGISTRY_VERSION=2.5.11.Final
REGISTRY_HOME=$CACHE/apicurio-registry-$REGISTRY_VERSION

# Makes CLIENTS_HOME/python, a virtual environment, and CLIENTS_HOME/java, a folder of jars. In
# CLIENTS_HOME/go are the program go, and the modules of examples/go.
install_clients() {
  mkdir -p "$CLIENTS_HOME"
  install_go_modules
  if [[ ! -e $CLIENTS_HOME/python/complete ]]; then
    say "installing fastavro, confluent-kafka, cloudevents and OpenTelemetry's messages (PyPI," \
      "about 15 MB) ..."
    pip_install clients "$CLIENTS_HOME/python"
  fi
  [[ -d $CLIENTS_HOME/java ]] && return 0
  say "installing Avro $AVRO_VERSION, Kafka's clients $KAFKA_VERSION and Apicurio's serdes for" \
    "Java (Maven Central, about 30 MB) ..."
  maven_install clients clients_pom "$CLIENTS_HOME/java"
}

# examples/go/go.sum has the checksums of the modules.
install_go_modules() {
  local sum example home=$CLIENTS_HOME/go
  example=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../examples/go" && pwd)
  sum=$(sha256sum <"$example/go.sum")
  [[ -e $home/complete-${sum%% *} ]] && return 0
  install_go
  say "installing Avro's and Kafka's modules for Go (Go's module proxy, about 20 MB) ..."
  mkdir -p "$home"
  ln -sfn "$(go_program)" "$home/go"
  GOPATH=$home GOFLAGS=-modcacherw try_thrice "$home/log" "$home/go" -C "$example" mod download ||
    die "Go could not fetch the modules of examples/go"
  touch "$home/complete-${sum%% *}"
}

clients_pom() {
  pom clients "org.apache.avro avro $AVRO_VERSION" "org.apache.kafka kafka-clients $KAFKA_VERSION" \
    "org.slf4j slf4j-nop 2.0.13" \
    "io.apicurio apicurio-registry-serdes-avro-serde $REGISTRY_VERSION"
}

# The part "registry": Apicurio, a schema registry that also has the API of Confluent's.
install_registry() {
  [[ -d $REGISTRY_HOME ]] && return 0
  say "installing the schema registry Apicurio $REGISTRY_VERSION (Maven Central, 140 MB) ..."
  local tmp artifact=io.apicurio:apicurio-registry-app:$REGISTRY_VERSION:tar.gz:all
  rm -rf "$CACHE"/registry.??????
  tmp=$(mktemp -d "$CACHE/registry.XXXXXX")
  if ! mvn -q -B -Dstyle.color=never "$MAVEN_COPY_ONE" -Dartifact="$artifact" \
    -DoutputDirectory="$tmp/archive" >"$tmp/log" 2>&1; then
    tail -n 20 "$tmp/log" >&2
    rm -rf "$tmp"
    die "Maven could not fetch $artifact"
  fi
  verify_downloads registry "$tmp/archive" || {
    rm -rf "$tmp"
    die "the archive of Apicurio does not have the pinned checksum"
  }
  mkdir "$tmp/home"
  tar -xzf "$tmp"/archive/*.tar.gz -C "$tmp/home"
  mv "$tmp/home" "$REGISTRY_HOME"
  rm -rf "$tmp"
}
