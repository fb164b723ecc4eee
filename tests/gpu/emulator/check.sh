#!/usr/bin/env bash
# The emulator's own test: builds it with the kernels of check/ and runs check/check.cc with it, in
# the usual order of threads and in others, and with each fault that the environment can ask for.
# `check.sh address` does so with the build for AddressSanitizer.
set -euo pipefail
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

UMBEL_EMULATED_SANITIZE=${1:-} ./build.sh check "$work"
"${CXX:-g++}" -std=c++20 -O1 -Wall -Wextra -pthread -I. check/check.cc -o "$work/check" -ldl
preload=
if [ -n "${1:-}" ]; then
    preload=$("${CXX:-g++}" -print-file-name=libasan.so)
    # The fibers' stacks are not the thread's, and the emulator has a handler's stack of its own.
    export ASAN_OPTIONS=detect_leaks=0:use_sigaltstack=0
fi

run() {
    LD_PRELOAD=$preload "$work/check" "$work/libcuda.so.1" "$@" 2>"$work/reports"
}

# The reports of faults that are meant are shown only where a test fails.
check() {
    run "$@" || { cat "$work/reports"; exit 1; }
}

all=(adds_vectors reduces_blocks serves_threads shows_a_missing_barrier
    multiplies_matrices copies_asynchronously shuffles converts_numbers runs_graphs
    records_events refuses_calls)
check "${all[@]}"
for seed in 1 2 3; do
    UMBEL_EMULATED_SEED=$seed check reduces_blocks multiplies_matrices copies_asynchronously \
        shuffles
done
if [ -z "$preload" ]; then
    check reports_faults
else
    # The sanitizer ends the process at the first bad access.
    if run reports_faults || ! grep -q 'kernels.cu:.* in write' "$work/reports"; then
        echo "the sanitizer did not report a bad access"
        exit 1
    fi
fi
UMBEL_EMULATED_DEVICES=0 check has_no_device
UMBEL_EMULATED_DRIVER=11040 check has_an_old_driver
UMBEL_EMULATED_MEMORY=1048576 check has_a_megabyte
UMBEL_EMULATED_REFUSE_AFTER=2 check refuses_the_third_allocation
UMBEL_EMULATED_LOSE_AFTER=2 check is_lost_after_two_launches
