# shellcheck shell=bash
# The part "fuzz" of install.sh: what compares the HTTP API with its OpenAPI document. install.sh
# sources it.

SCHEMATHESIS_HOME=$CACHE/schemathesis-$(pinned_digest fuzz)

install_fuzz() {
  [[ -e $SCHEMATHESIS_HOME/complete ]] && return 0
  say "installing schemathesis (PyPI, about 13 MB) ..."
  pip_install fuzz "$SCHEMATHESIS_HOME"
}
