/* Which instruction set the engine uses: the fastest of this machine, or the one asked for. */
#include "module.h"

#include <string.h>

#include "engine.h"

const Isa *accel_isa = &accel_portable, *accel_isa_bytes = &accel_portable_bytes,
          *accel_isa_bf16 = &accel_portable_bf16;

/* The instruction sets that this machine can run, fastest first. */
static int supported(const Isa *found[3])
{
    int count = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl"))
        found[count++] = &accel_avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        found[count++] = &accel_avx2;
#endif
    found[count++] = &accel_portable;
    return count;
}

/* AVX-512 machines before VNNI take AVX2 for bytes, and those before AVX512_BF16 for bf16. */
static void use(const Isa *isa)
{
    accel_isa = isa;
    accel_isa_bytes = &accel_portable_bytes;
    accel_isa_bf16 = &accel_portable_bf16;
#if defined(__x86_64__)
    if (isa == &accel_avx512 && __builtin_cpu_supports("avx512vnni"))
        accel_isa_bytes = &accel_vnni_bytes;
    else if (isa != &accel_portable)
        accel_isa_bytes = &accel_avx2_bytes;
    if (isa == &accel_avx512 && __builtin_cpu_supports("avx512bf16"))
        accel_isa_bf16 = &accel_avx512_bf16;
    else if (isa != &accel_portable)
        accel_isa_bf16 = &accel_avx2_bf16;
#endif
}

void accel_choose_isa(void)
{
    const Isa *found[3];
    supported(found);
    use(found[0]);
}

PyObject *accel_set_isa(PyObject *self, PyObject *name)
{
    const char *asked = PyUnicode_AsUTF8(name);
    const Isa *found[3];
    const int count = supported(found);
    if (!asked)
        return NULL;
    for (int i = 0; i < count; i++)
        if (!strcmp(found[i]->name, asked)) {
            use(found[i]);
            Py_RETURN_NONE;
        }
    return PyErr_Format(PyExc_ValueError, "this machine cannot run the instruction set %R; isas() lists what it can",
                        name);
}

PyObject *accel_isa_name(PyObject *self, PyObject *unused) { return PyUnicode_FromString(accel_isa->name); }

PyObject *accel_lanes(PyObject *self, PyObject *unused) { return PyLong_FromLong(accel_isa->lanes); }

PyObject *accel_has_bf16(PyObject *self, PyObject *unused)
{
#if defined(__x86_64__)
    return PyBool_FromLong(accel_isa_bf16 == &accel_avx512_bf16);
#else
    Py_RETURN_FALSE;
#endif
}

PyObject *accel_isas(PyObject *self, PyObject *unused)
{
    const Isa *found[3];
    const int count = supported(found);
    PyObject *names = PyTuple_New(count);
    for (int i = 0; names && i < count; i++) {
        PyObject *name = PyUnicode_FromString(found[i]->name);
        if (!name) {
            Py_DECREF(names);
            return NULL;
        }
        PyTuple_SET_ITEM(names, i, name);
    }
    return names;
}
