#!/usr/bin/env bash
# Prints the Secret `redis-users` with new random passwords, for a first deployment without a vault:
#     k8s/make-secrets.sh [KV_PREFIX] | kubectl apply -n NAMESPACE -f -
# KV_PREFIX is `kv_prefix` of the feature config; who may do what is in redis-users.acl beside this. Nothing is kept here:
# running it again makes other passwords.
set -euo pipefail
prefix="${1:-gyl}"
[[ $prefix =~ ^[a-z0-9_-]+$ ]] || { echo "make-secrets: expected the kv_prefix of a feature config, found '$prefix'" >&2; exit 1; }
acl="$(sed "s/PREFIX/$prefix/g" "$(dirname "$0")/redis-users.acl")"
passwords=
for user in agent trainer controller loader operator backup; do
    password="$(head -c 32 /dev/urandom | base64 | tr -d '+/=')"
    sum="$(printf %s "$password" | sha256sum | cut -d ' ' -f 1)"
    acl="${acl//#${user^^} /#$sum }"
    passwords+="  $user: \"$password\""$'\n'
done
cat <<MANIFEST
apiVersion: v1
kind: Secret
metadata:
  name: redis-users
type: Opaque
stringData:
${passwords}  users.acl: |
$(sed 's/^/    /' <<< "$acl")
MANIFEST
