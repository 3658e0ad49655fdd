#!/usr/bin/env bash
# Install moepack where nothing else of the workflow looks; `program` in GITHUB_OUTPUT is its moe-pack.
#
# MOEPACK is what pip installs, this checkout unless given; SIGNED is not empty if signatures are to be judged.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)"
place="$(mktemp -d "${RUNNER_TEMP:-/tmp}/moepack.XXXXXX")"
python3 -m venv "$place"
if [[ -n "${MOEPACK:-}" ]]; then
  "$place/bin/pip" install --quiet "$MOEPACK"
else
  "$place/bin/pip" install --quiet --constraint "$here/.ci/constraints.txt" "$here${SIGNED:+[sign]}"
fi
printf 'program=%s\n' "$place/bin/moe-pack" >>"${GITHUB_OUTPUT:-/dev/stdout}"
