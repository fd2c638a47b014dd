# Sourced by the examples: a machine that is ready, and gone at the end.
#
# machine NAME PACKAGES OPTION...    makes base example-NAME, if there is none, and runs machine $name of it
# in_guest LINE                      runs a line of shell in it
# timed WORDS COMMAND...             runs a command and says how long it took
# work WHAT COMMAND...               runs the command for each line of $out/inputs, which is put in for {}: by clones, then in the
#                                    machine itself, and fails if the results differ
#
# With PREPARE=DIR an example goes as far as its work, and leaves the machine, the inputs and the command there for somebody else to do it.
set -euo pipefail
MARTLET=${MARTLET:-martlet}
CLONES=${CLONES:-4}
SIZE=${SIZE:-1}
ON=${ON:+--on $ON}
out=$(mktemp -d)

machine() {
    name=${MACHINE:-$1}
    local base=example-$1 packages=$2
    shift 2
    "$MARTLET" base inspect "$base" >/dev/null 2>&1 || "$MARTLET" base build "$base" --packages "$packages" >/dev/null
    "$MARTLET" run "$base" --name "$name" --memory 1G "$@" >/dev/null
    trap '"$MARTLET" rm --force "$name" >/dev/null; rm -rf "$out"' EXIT
    # What its init still starts would go on in each clone.
    in_guest "until systemctl is-system-running 2>/dev/null | grep -Eq 'running|degraded'; do sleep 1; done"
}

in_guest() {
    "$MARTLET" exec "$name" -- sh -c "$1"
}

timed() {
    local words=$1 begun=$EPOCHREALTIME
    shift
    "$@"
    awk -v words="$words" -v begun="$begun" -v now="$EPOCHREALTIME" 'BEGIN { printf "%s: %.1f s\n", words, now - begun }' >&2
}

by_clones() {
    # shellcheck disable=SC2086 # words of a command
    "$MARTLET" map "$name" -n "$CLONES" $ON --input "$out/inputs" -- "$@" >"$out/clones"
}

alone() {
    while read -r input; do
        "$MARTLET" exec "$name" -- "${@//\{\}/$input}" </dev/null
    done <"$out/inputs" >"$out/alone"
}

prepared() {
    cp "$out/inputs" "$PREPARE/inputs"
    printf '%s\0' "$@" >"$PREPARE/command"
    trap 'rm -rf "$out"' EXIT
}

work() {
    local what=$1
    shift
    [ -z "${PREPARE:-}" ] || { prepared "$@"; exit; }
    timed "$(wc -l <"$out/inputs") $what by $CLONES clones" by_clones "$@"
    timed "by itself" alone "$@"
    [ -s "$out/alone" ] || { echo "there are no results" >&2; exit 1; }
    same "$out/clones" "$out/alone"
}

same() {
    cmp "$1" "$2" || { echo "the clones' results differ from the machine's own" >&2; exit 1; }
    echo "$name: the same results by clones as without"
}
