# shellcheck shell=bash
# What the image and a release share. Sourced after install.sh, never run.
# shellcheck disable=SC2034 # used by those who source this

# The base images, as Dockerfile names them.
BUILD_IMAGE=$(sed -nE 's/^ARG BUILD_IMAGE=(.*)/\1/p' Dockerfile)
RUNTIME_IMAGE=$(sed -nE 's/^ARG RUNTIME_IMAGE=(.*)/\1/p' Dockerfile)

# cargo_version: the version in Cargo.toml.
cargo_version() { sed -nE '0,/^version = "(.*)"$/s//\1/p' Cargo.toml; }

# commit_time: when HEAD was committed, in seconds. What a release makes has this time.
commit_time() { git log -1 --format=%ct; }
