#!/usr/bin/env bash
# As in the image of Kafka: prints TOPIC:PARTITION:OFFSET of the end of each partition.
#   kafka-get-offsets.sh --bootstrap-server HOST:PORT --topic TOPIC
set -euo pipefail

topic=$4
kcat -b "$2" -L -t "$topic" | sed -nE 's/^ +partition ([0-9]+),.*/\1/p' |
  while read -r partition; do
    kcat -b "$2" -Q -t "$topic:$partition:-1" |
      sed -nE 's/^(.*) \[([0-9]+)\] offset ([0-9]+)$/\1:\2:\3/p'
  done
