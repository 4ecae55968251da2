#!/bin/sh
# A random token in each folder of $1 that has none yet. Only those who are given the volume can read it; they are
# users of their own in their containers, hence the mode.
set -eu
umask 022
for folder in "$1"/*/; do
    [ -s "$folder/token" ] && continue
    # Whole or not at all: a token that was cut off by a stop would be kept.
    head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n' > "$folder/token.new"
    mv "$folder/token.new" "$folder/token"
done
