#!/bin/sh
# Builds the driver of the kernels NAME (matmul or quantize) at OUT, under AddressSanitizer, UBSan and libFuzzer.
# CLANGXX picks the compiler; its compiler-rt must be installed (libclang-rt-19-dev on Debian).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
clang=${CLANGXX:-clang++-19}
out=$2
objects=$(dirname "$2")/$1-objects
mkdir -p "$objects"
flags="-std=c++20 -O1 -g -ffp-contract=off -fno-fast-math -fno-omit-frame-pointer"
flags="$flags -fsanitize=address,undefined,fuzzer-no-link -fno-sanitize-recover=undefined"

compile() { # NAME SOURCE [FLAGS...]
  name=$1 source=$2
  shift 2
  # shellcheck disable=SC2086
  "$clang" $flags "$@" -c "$source" -o "$objects/$name.o"
}

avx2="-mavx2 -mfma -mf16c -mpopcnt"
avx512="$avx2 -mavx512f -mavx512bw -mavx512vl -mavx512dq"
rm -f "$objects"/*.o
if [ "$1" = matmul ]; then
  for isa in baseline avx2 avx512 avx512vnni; do
    case $isa in
      baseline) set -- ;;
      avx2) set -- $avx2 ;;
      avx512) set -- $avx512 ;;
      *) set -- $avx512 -mavx512vnni -mavx512vbmi ;;
    esac
    for part in matmul rounding elementwise attention delta table; do
      compile "$isa-$part" "$root/runtime/kernels/cpu/$part.cpp" -DMOEPACK_ISA=$isa "$@"
    done
  done
  compile dispatch "$root/runtime/kernels/cpu/dispatch.cpp"
  compile driver "$here/matmul.cpp" -I"$root/runtime/kernels/cpu"
else
  compile baseline "$root/quantize/native/kernels_baseline.cpp"
  compile avx2 "$root/quantize/native/kernels_avx2.cpp" $avx2
  compile avx512 "$root/quantize/native/kernels_avx512.cpp" $avx512
  compile dispatch "$root/quantize/native/dispatch.cpp"
  compile driver "$here/quantize.cpp" -I"$root/quantize/native"
fi
"$clang" -fsanitize=address,undefined,fuzzer "$objects"/*.o -o "$out"
