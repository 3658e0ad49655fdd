#!/usr/bin/env bash
# What the action does, by the environment that action.yml passes; runs anywhere that moe-pack does.
#
# PACK, SCOPE (quick, full, or a subset such as 3/7 or 5%), PUBLIC_KEY, SIGNATURE, SOURCE, EXPERTS, REPORT (a folder);
# empty means none. Ends with moe-pack's exit code; what it found is in GITHUB_OUTPUT (digest, report) either way.
set -euo pipefail

: "${PACK:?the directory of the pack}"
report="${REPORT:-${RUNNER_TEMP:-/tmp}/moepack-reports}"
output="${GITHUB_OUTPUT:-/dev/stdout}"
mkdir -p -- "$report"

verify=(verify "--json")
case "${SCOPE:-full}" in
  quick) verify+=(--quick) ;;
  full) verify+=(--full) ;;
  *) verify+=(--subset "$SCOPE") ;;
esac
if [[ -n "${PUBLIC_KEY:-}" ]]; then verify+=(--signed-by "$PUBLIC_KEY"); fi
if [[ -n "${SIGNATURE:-}" ]]; then verify+=(--signature "$SIGNATURE"); fi

code=0
moe-pack "${verify[@]}" -- "$PACK" >"$report/verify.json" || code=$?
if [[ $code -eq 0 && -n "${SOURCE:-}" ]]; then
  reproduce=(reproduce --json --source "$SOURCE")
  if [[ -n "${EXPERTS:-}" ]]; then reproduce+=(--experts "$EXPERTS"); fi
  moe-pack "${reproduce[@]}" -- "$PACK" >"$report/reproduce.json" || code=$?
fi

digest="$(sed -n 's/^  "pack_digest": "\([0-9a-f]\{64\}\)",\{0,1\}$/\1/p' "$report/verify.json")"
{
  printf 'digest=%s\n' "$digest"
  printf 'report=%s\n' "$report/verify.json"
} >>"$output"
exit "$code"
