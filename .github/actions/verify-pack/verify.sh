#!/usr/bin/env bash
# What the action does, by the environment that action.yml passes; runs anywhere that moe-pack does.
#
# PACK, SCOPE (quick, full, or a subset such as 3/7 or 5%), PUBLIC_KEY or IDENTITY and ISSUER, SIGNATURE, LOCK, SOURCE,
# CALIBRATION, EXPERTS or SAMPLE, TRUNK (true), SOURCE_DIGESTS (true), REPORTS (a folder), MOE_PACK (the program); empty
# means none. Ends with moe-pack's exit code; what it found is in GITHUB_OUTPUT (digest, report, reproduced) either way.
set -euo pipefail

if [[ -z "${PACK:-}" ]]; then
  echo "PACK, the directory of the pack, is not given" >&2
  exit 2
fi
program="${MOE_PACK:-moe-pack}"
reports="${REPORTS:-$(mktemp -d "${RUNNER_TEMP:-/tmp}/moepack-reports.XXXXXX")}"
mkdir -p -- "$reports"

arguments=()
option() { # NAME VALUE: nothing, if the value is empty
  if [[ -n "$2" ]]; then arguments+=("$1" "$2"); fi
}
flag() { # NAME VALUE: nothing, unless the value is true
  if [[ "$2" == true ]]; then arguments+=("$1"); fi
}
run() { # REPORT COMMAND: its exit code; no file is left of a report that is empty
  local code=0
  "$program" "$2" --json "${arguments[@]}" -- "$PACK" >"$reports/$1" || code=$?
  if [[ ! -s "$reports/$1" ]]; then rm -f -- "$reports/$1"; fi
  return "$code"
}

code=0
case "${SCOPE:-full}" in
  quick) arguments+=(--quick) ;;
  full) arguments+=(--full) ;;
  *) option --subset "$SCOPE" ;;
esac
option --signed-by "${PUBLIC_KEY:-}"
option --identity "${IDENTITY:-}"
option --issuer "${ISSUER:-}"
option --signature "${SIGNATURE:-}"
option --lock "${LOCK:-}"
run verify.json verify || code=$?

if [[ $code -eq 0 && -n "${SOURCE:-}" ]]; then
  arguments=(--source "$SOURCE")
  option --calibration "${CALIBRATION:-}"
  option --experts "${EXPERTS:-}"
  option --sample "${SAMPLE:-}"
  option --lock "${LOCK:-}"
  flag --trunk "${TRUNK:-}"
  flag --source-digests "${SOURCE_DIGESTS:-}"
  run reproduce.json reproduce || code=$?
fi

there() { # NAME: its path, if there is such a report
  if [[ -f "$reports/$1" ]]; then printf '%s' "$reports/$1"; fi
}
digest=""
if [[ -f "$reports/verify.json" ]]; then
  digest="$(sed -n 's/^  "pack_digest": "\([0-9a-f]\{64\}\)",\{0,1\}$/\1/p' "$reports/verify.json")"
fi
{
  printf 'digest=%s\n' "$digest"
  printf 'report=%s\n' "$(there verify.json)"
  printf 'reproduced=%s\n' "$(there reproduce.json)"
} >>"${GITHUB_OUTPUT:-/dev/stdout}"
exit "$code"
