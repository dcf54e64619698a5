#!/bin/sh
# Makes what compose.yaml needs: an API key, a password for Orthanc, folders for data, and .env. Run once; what is there
# stays. Give other people the key by hand; it is printed nowhere.
set -eu
umask 077
cd "$(dirname "$0")"

uid=$(id -u)
gid=$(id -g)
if [ "$uid" = 0 ]; then
    uid=10001 gid=10001 # containers do not run as root, whoever starts them
fi

random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }

mkdir -p secrets data/orthanc data/serve data/watch
if [ ! -e secrets/api_key ]; then
    key=$(random)
    printf '%s\n' "$key" > secrets/api_key
    printf 'sha256:%s\n' "$(printf '%s' "$key" | sha256sum | cut -d' ' -f1)" > secrets/api_keys
fi
if [ ! -e secrets/orthanc_password ]; then
    password=$(random)
    printf '%s' "$password" > secrets/orthanc_password
    printf '{"RegisteredUsers": {"radglint": "%s"}}\n' "$password" > secrets/orthanc_users.json
fi
[ -e .env ] || printf 'RADGLINT_UID=%s\nRADGLINT_GID=%s\n' "$uid" "$gid" > .env
if [ "$(id -u)" = 0 ]; then
    chown -R "$uid:$gid" secrets data
fi
echo "ready: the API key is in $(pwd)/secrets/api_key"
