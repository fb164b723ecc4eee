#!/usr/bin/env bash
# Builds the emulated driver: build.sh SOURCES_DIR OUT_DIR compiles every SOURCES_DIR/*.cu, with the
# emulator beside this script, to OUT_DIR/libcuda.so.1 (and libcuda.so, the name tried first).
#
# CXX names the compiler, UMBEL_EMULATED_CXXFLAGS adds options, and UMBEL_EMULATED_SANITIZE=address
# builds for AddressSanitizer (see README.md).
set -euo pipefail

if [ $# != 2 ]; then
    echo "usage: build.sh SOURCES_DIR OUT_DIR" >&2
    exit 2
fi
emulator=$(cd "$(dirname "$0")" && pwd)
sources=$(cd "$1" && pwd)
mkdir -p "$2"
out=$(cd "$2" && pwd)
compiler=${CXX:-g++}
if ! command -v "$compiler" >/dev/null; then
    echo "build.sh: no C++ compiler: '$compiler' is not installed (a package such as g++)" >&2
    exit 1
fi

# Contraction would round a product and a sum once where the source says twice.
flags=(-std=c++20 -O2 -ftree-vectorize -march=native -g1 -fPIC -fvisibility=hidden
    -ffp-contract=off -Wall -Wextra -Wno-unknown-pragmas -Wno-restrict -DUMBEL_EMULATED
    -I"$emulator")
# Checks whose reports signals.cc writes.
checks=(-fsanitize=alignment,bounds,shift-exponent,integer-divide-by-zero
    -fno-sanitize-recover=all)
link=(-shared -Wl,-soname,libcuda.so.1 -Wl,-z,defs)
if [ -n "${UMBEL_EMULATED_SANITIZE:-}" ]; then
    flags+=("-fsanitize=$UMBEL_EMULATED_SANITIZE" -fno-omit-frame-pointer)
    link=(-shared -Wl,-soname,libcuda.so.1 "-fsanitize=$UMBEL_EMULATED_SANITIZE")
fi
read -ra extra <<<"${UMBEL_EMULATED_CXXFLAGS:-}"
flags+=("${extra[@]}")

# The kernels of a file, one `UMBEL_KERNEL(name, bounds)` a line, from its preprocessed text, where
# macros have been expanded.
kernels_of() {
    "$compiler" "${flags[@]}" -DUMBEL_LIST_KERNELS -x c++ -E -P "$1" | tr '\n' ' ' |
        { grep -oE 'extern +"C" +__umbel_kernel__[^;{]*' || true; } |
        sed -E 's/__umbel_bounds__ *\((([^()]|\([^()]*\))*)\)(.*)/\3 BOUNDS \1/' |
        sed -E 's/^[^(]*[^A-Za-z0-9_(]([A-Za-z0-9_]+) *\(.*( BOUNDS (.*))$/UMBEL_KERNEL(\1, \3)/;
                s/^[^(]*[^A-Za-z0-9_(]([A-Za-z0-9_]+) *\(.*$/UMBEL_KERNEL(\1)/' |
        sort -u
}

compile() {
    "$compiler" "${flags[@]}" "${@:3}" -c "$1" -o "$2"
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
shopt -s nullglob
jobs=()
for file in "$sources"/*.cu; do
    name=$(basename "$file" .cu)
    (
        {
            echo "#include \"$file\""
            echo '#include "kernels.h"'
            kernels_of "$file"
        } >"$work/$name.kernels.cc"
        compile "$work/$name.kernels.cc" "$work/$name.kernels.o" "${checks[@]}" -Wno-unused
    ) &
    jobs+=($!)
done
if [ ${#jobs[@]} = 0 ]; then
    echo "build.sh: no .cu file in $sources" >&2
    exit 1
fi
for file in "$emulator"/*.cc; do
    compile "$file" "$work/$(basename "$file" .cc).o" &
    jobs+=($!)
done
for job in "${jobs[@]}"; do
    wait "$job"
done
"$compiler" "${link[@]}" "$work"/*.o -o "$out/libcuda.so.1.new"
mv "$out/libcuda.so.1.new" "$out/libcuda.so.1"
ln -sf libcuda.so.1 "$out/libcuda.so"
