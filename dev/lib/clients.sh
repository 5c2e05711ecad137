# shellcheck shell=bash
# The part "clients" of install.sh: libraries for the programs in other languages. install.sh
# sources it.

CLIENTS_HOME=$CACHE/clients
AVRO_VERSION=1.12.0

# Makes CLIENTS_HOME/python, a virtual environment, and CLIENTS_HOME/java, a folder of jars.
install_clients() {
  mkdir -p "$CLIENTS_HOME"
  if [[ ! -e $CLIENTS_HOME/python/complete ]]; then
    say "installing fastavro and confluent-kafka (PyPI, about 8 MB) ..."
    pip_install clients "$CLIENTS_HOME/python"
  fi
  [[ -d $CLIENTS_HOME/java ]] && return 0
  say "installing Avro $AVRO_VERSION and Kafka's clients $KAFKA_VERSION for Java" \
    "(Maven Central, about 25 MB) ..."
  maven_install clients clients_pom "$CLIENTS_HOME/java"
}

clients_pom() {
  pom clients "org.apache.avro avro $AVRO_VERSION" "org.apache.kafka kafka-clients $KAFKA_VERSION" \
    "org.slf4j slf4j-nop 2.0.13"
}
