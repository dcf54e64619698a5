#!/bin/sh
# Starts radglint. Each variable RADGLINT_x_FILE names a mounted secret whose content becomes RADGLINT_x, so that
# passwords stand neither in the image nor in the compose file.
set -eu

for name in $(env | sed -n 's/^\(RADGLINT_[A-Z0-9_]*\)_FILE=.*/\1/p'); do
    eval "file=\${${name}_FILE}"
    if [ ! -r "$file" ]; then
        echo "radglint: error: ${name}_FILE: $file cannot be read; check the secret and its permission" >&2
        exit 2
    fi
    value=$(cat "$file")
    export "$name=$value"
    unset "${name}_FILE"
done

exec radglint "$@"
