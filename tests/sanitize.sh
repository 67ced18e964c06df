#!/usr/bin/env bash
# Runs the tests of the C extensions against a build of them under AddressSanitizer and UndefinedBehaviorSanitizer, in which
# every function looks at its contract (kernels/cpu/contract.h).
# Usage: tests/sanitize.sh [pytest arguments]        (gcc; PYTHON names the interpreter, python3 by default)
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
python="${PYTHON:-python3}"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

# A copy, so that the build of the checkout stays as it is.
cp -r "$root/accel" "$root/kernels" "$root/zoo" "$root/tests" "$root/pyproject.toml" "$work"
rm -f "$work"/kernels/cpu/*.so
suffix="$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')"
include="$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')"
sources="$(sed -n '/name = "accel.kernels.cpu._engine"/,/^]/p' "$root/pyproject.toml" | grep -o 'kernels/cpu/[a-z0-9_]*\.c')"
cd "$work"
# -O1: under the sanitizers the optimisers take minutes over the register kernels.
flags="-fPIC -O1 -g -fno-omit-frame-pointer -fopenmp -fsanitize=address,undefined -fno-sanitize-recover=undefined"
for source in $sources; do
    gcc -c $flags -std=c11 -I"$include" "$source" -o "${source%.c}.o" &
done
gcc -shared $flags -std=gnu11 -I"$include" kernels/cpu/special.c -o "kernels/cpu/_special$suffix" -lm &
wait
gcc -shared $flags $(sed 's/\.c$/.o/' <<<"$sources") -o "kernels/cpu/_engine$suffix"

# Leaks are not looked for: the interpreter and torch leave many of their own.
# -s below: a sanitizer ends the process, and captured output with it.
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH="$work"
export LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)"
"$python" -c "import accel.kernels.cpu._engine as e; assert e.__file__.startswith('$work') and e.CHECKED, e.__file__"
"$python" -m pytest -q -s -p no:cacheprovider tests/kernels/test_cpu_engine.py tests/kernels/test_cpu_reliability.py \
    tests/kernels/test_contracts.py tests/kernels/test_record.py tests/kernels/test_quantized_conv2d.py \
    tests/kernels/test_bf16.py "$@"
"$python" -m pytest -q -s -p no:cacheprovider tests/kernels -k "cpu and not engine and not reliability" "$@"
"$python" -m pytest -q -s -p no:cacheprovider tests/nn/test_replay.py tests/nn/test_replay_bytes.py \
    tests/distributions/test_gradient_ops.py "$@"
