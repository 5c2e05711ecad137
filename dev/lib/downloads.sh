# shellcheck shell=bash
# Checksums of what install.sh fetches from the registries of Java and Python, and of MySQL. Sourced
# by it, never run.

DOWNLOADS=$(dirname "${BASH_SOURCE[0]}")/downloads

# pinned_checksum PART FILE_NAME: prints nothing where the file is not among the pinned downloads.
pinned_checksum() {
  awk -v part="$1" -v name="$2" '$1 == part && $3 == name { print $2 }' "$DOWNLOADS"
}

# all_pinned PART FOLDER: whether the names of all files are among the pinned downloads.
all_pinned() {
  local file
  for file in "$2"/*; do
    [[ ! -f $file || -n $(pinned_checksum "$1" "${file##*/}") ]] || return 1
  done
}

# list_unpinned PART FOLDER: the names of the files that are not among the pinned downloads.
list_unpinned() {
  local file
  for file in "$2"/*; do
    [[ ! -f $file || -n $(pinned_checksum "$1" "${file##*/}") ]] ||
      printf '  %s\n' "${file##*/}" >&2
  done
}

# verify_downloads PART FOLDER: fails unless every file has its pinned checksum, and names each file
# that has not.
verify_downloads() {
  local file name expected found wrong=0
  for file in "$2"/*; do
    [[ -f $file ]] || continue
    name=${file##*/}
    expected=$(pinned_checksum "$1" "$name")
    found=$(sha256sum <"$file")
    found=${found%% *}
    [[ $found != "$expected" ]] || continue
    wrong=1
    if [[ -n $expected ]]; then
      say "$name: expected the SHA-256 checksum $expected, found $found. It is not installed."
    else
      say "$name is not in dev/lib/downloads, so it is not installed. If you trust it, add:"
      printf '%-8s %s %s\n' "$1" "$found" "$name" >&2
    fi
  done
  ((wrong == 0))
}

# pinned_wheels PART: the Python packages of a part, as pip reads them: NAME==VERSION.
pinned_wheels() {
  awk -v part="$1" '
    $1 == part && $3 ~ /[.]whl$/ { split($3, word, "-"); print word[1] "==" word[2] }
  ' "$DOWNLOADS" | sort -u
}

# pinned_digest PART: a short digest of a part's pinned downloads. It names the folder of the part,
# so that other versions are installed to another folder.
pinned_digest() {
  awk -v part="$1" '$1 == part' "$DOWNLOADS" | sha256sum | cut -c1-12
}
