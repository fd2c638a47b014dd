# The program of the tests, with the command: see clients/programs.rs.

say() { printf ': %s\n' "$*"; }

fail() { # the command's words
    printf '%s\n' "$1" >&2
    kind=${1#martlet-guest: }
    say "error ${kind%%: *}"
    exit 1
}

call() { # what it prints is left in $answer, with its errors
    answer=$("$MARTLET_GUEST" "$@" 2>&1) || fail "$answer"
}

case $1 in
fork)
    call ticket "$2" ${3:+--hierarchical} --timeout 30
    ticket=${answer% *}
    say "ticket $answer"
    call clone "$ticket"
    printf '%s\n' "$answer" | sed -n 's/^martlet-guest: clone \([0-9]*\) did not start: /: failed \1 /p'
    for id in $(printf '%s\n' "$answer" | grep -v '^martlet-guest'); do
        say "cloned $id"
        if [ "$id" = 0 ]; then
            answer=$("$MARTLET_GUEST" join "$ticket" 2>&1) # fails as well when a clone has
            last=$(printf '%s\n' "$answer" | tail -n 1)
            case $last in martlet-guest:*) fail "$last" ;; esac
            printf '%s\n' "$answer" | sed 's/^/: exited /'
            say joined
        else
            "$MARTLET_GUEST" exit --id "$id" $((id + 10)) "from $id" &
        fi
    done
    wait
    ;;
checkpoint)
    call ticket 2
    ticket=${answer% *}
    call checkpoint
    set -- $answer
    if [ "$1" != 0 ]; then
        say "cloned $1"
        exec "$MARTLET_GUEST" exit --id "$1" 0
    fi
    say "saved $2"
    call create-clones "$2" "$ticket" --no-wait
    call kill "$ticket"
    say "killed $answer"
    call me
    set -- $answer
    say "vmid $1"
    say "family $2 $3 $4"
    ;;
exit)
    answer=$(head -c "$2" /dev/zero | tr '\0' '\377' | "$MARTLET_GUEST" exit 0 - 2>&1) || fail "$answer"
    ;;
esac
