#!/usr/bin/env bash
# Makes a certificate authority, and a server's certificate that it signs:
#   certificates.sh HOST OWNER
# They go to /certificates (ca.pem, server.pem, server.key), and the authority's certificate to
# /authority too. Those of an earlier start stay, unless they end within 30 days.
set -euo pipefail

host=$1 owner=$2
DAYS=365 MIN_SECONDS=$((30 * 86400))

if openssl x509 -in /certificates/server.pem -noout -checkend "$MIN_SECONDS" >/dev/null 2>&1 &&
  openssl verify -CAfile /authority/ca.pem /certificates/server.pem >/dev/null 2>&1; then
  echo "the certificate of $host is still good"
  exit 0
fi

work=$(mktemp -d)
# The authority's key goes with this folder. A later start makes a new authority.
trap 'rm -rf "$work"' EXIT
cd "$work"
umask 077
openssl req -x509 -newkey rsa:2048 -nodes -sha256 -days "$DAYS" -subj "/CN=stocklock compose" \
  -addext basicConstraints=critical,CA:true -addext keyUsage=critical,keyCertSign,cRLSign \
  -keyout ca.key -out ca.pem 2>/dev/null
openssl req -newkey rsa:2048 -nodes -subj "/CN=$host" -keyout server.key -out server.csr 2>/dev/null
cat >extensions <<EXTENSIONS
basicConstraints=critical,CA:false
keyUsage=critical,digitalSignature,keyEncipherment
extendedKeyUsage=serverAuth
subjectAltName=DNS:$host,DNS:localhost,IP:127.0.0.1
EXTENSIONS
openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -sha256 -days "$DAYS" \
  -extfile extensions -out server.pem 2>/dev/null
# put FILE FOLDER MODE: a new file, since one of another owner may not be changed.
put() {
  rm -f "$2/$1"
  cp "$1" "$2/$1"
  chmod "$3" "$2/$1"
}
put ca.pem /authority 0644
put ca.pem /certificates 0644
put server.key /certificates 0600
# The server's certificate comes last: without it, the next start makes all of them again.
put server.pem /certificates 0644
chown "$owner" /certificates/server.key
echo "made an authority, and a certificate for $host, for $DAYS days; restart $host if it runs"
