# build.sh clones|alone FILES JOBS: compiles so many C files, and prints what came of each.
set -eu
PATH=$PATH:/run/martlet
how=$1 files=$2 jobs=$3
mkdir -p /root/"$how"
cd /root/"$how"
for file in $(seq "$files"); do
    for function in $(seq 60); do
        echo "int f${function}(int a, int b) { for (int i = 0; i < b; i++) a = a * $((file * function)) + i; return a; }"
    done >"$file.c"
done
echo 'all: $(patsubst %.c,%.o,$(wildcard *.c))
%.o: %.c; $(CC) -O2 -c $< -o $@' >Makefile
if [ "$how" = clones ]; then
    update-distcc-symlinks
    distccd --daemon --user daemon --allow 10.78.0.0/16 --log-file /tmp/distccd.log
    # The memory of the clones is this one: distccd runs in them as well.
    ticket=$(martlet-guest ticket "$jobs" | cut -d' ' -f1)
    [ "$(martlet-guest clone "$ticket")" = 0 ] || exec sleep infinity
    DISTCC_HOSTS=$(seq -f 'clone-%g/1' -s ' ' "$jobs")
    export DISTCC_HOSTS DISTCC_FALLBACK=0
    make -s -j"$jobs" CC='distcc gcc' >&2
    martlet-guest kill "$ticket" >&2
else
    make -s CC=gcc >&2
fi
sha256sum [0-9]*.o | sort -k2
