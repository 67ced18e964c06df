/* Reading what a Python call gives by name into a struct, and telling which records this extension was built from: for the
 * one source file of each extension that binds it. */
#ifndef ACCEL_READER_H
#define ACCEL_READER_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stddef.h>
#include <string.h>

#include "record.h"

typedef struct {
    const char *name, *type;
    size_t offset;
} Field;

enum { MOST_FIELDS = 64 }; /* a bit each */

typedef struct {
    const char *name;
    const Field *fields;
    int count;
    size_t size;
    PyObject *names[MOST_FIELDS]; /* interned */
} Layout;

#define FIELD_ENTRY(record, type, name) {#name, type, offsetof(record, name)},
#define FIELD_TABLE(record) \
    static const Field record##_table[] = {record##_FIELDS(FIELD_ENTRY)}; \
    _Static_assert(sizeof record##_table / sizeof(Field) <= MOST_FIELDS, #record);
#define LAYOUT_INDEX(record) record##_layout,
#define LAYOUT(record) {#record, record##_table, (int)(sizeof record##_table / sizeof(Field)), sizeof(record), {NULL}},

EVERY_RECORD(FIELD_TABLE)
enum { EVERY_RECORD(LAYOUT_INDEX) LAYOUTS };
static Layout layouts[] = {EVERY_RECORD(LAYOUT)};

_Static_assert(sizeof(void *) == 8 && sizeof(double) == 8, "every field of a call takes 8 bytes");

/* The place of a field, at first where the one before makes it likely; -1: there is none. */
static int find_field(const Layout *layout, PyObject *name, int likely)
{
    for (int i = 0; i < layout->count; i++) {
        const int place = (likely + i) % layout->count;
        if (layout->names[place] == name)
            return place;
    }
    for (int place = 0; place < layout->count; place++) /* a name that was made at run time is not interned */
        if (!PyUnicode_CompareWithASCIIString(name, layout->fields[place].name))
            return place;
    return -1;
}

static int read_value(const Field *field, PyObject *value, char *record)
{
    if (field->type[0] == 'd') {
        const double number = PyFloat_AsDouble(value);
        memcpy(record + field->offset, &number, sizeof number);
        return number == -1 && PyErr_Occurred() ? -1 : 0;
    }
    const int64_t number = PyLong_AsLongLong(value); /* addresses are passed as ints too */
    memcpy(record + field->offset, &number, sizeof number);
    return number == -1 && PyErr_Occurred() ? -1 : 0;
}

/* What Record.pack made, if anything, and the fields given by name, which together must be all of them. */
static int read_record(int which, PyObject *packed, PyObject *const *values, PyObject *names, void *record)
{
    const Layout *layout = layouts + which;
    uint64_t seen = 0;
    if (packed) {
        if (!PyBytes_Check(packed) || (size_t)PyBytes_GET_SIZE(packed) != sizeof seen + layout->size) {
            PyErr_Format(PyExc_TypeError, "%s: expected what Record.pack made of it, got %R", layout->name, packed);
            return -1;
        }
        memcpy(&seen, PyBytes_AS_STRING(packed), sizeof seen);
        memcpy(record, PyBytes_AS_STRING(packed) + sizeof seen, layout->size);
    }
    const Py_ssize_t given = names ? PyTuple_GET_SIZE(names) : 0;
    for (Py_ssize_t i = 0, place = -1; i < given; i++) {
        PyObject *name = PyTuple_GET_ITEM(names, i);
        place = find_field(layout, name, (int)place + 1);
        if (place < 0 || seen >> place & 1) {
            PyErr_Format(PyExc_TypeError, place < 0 ? "%s has no field %R" : "%s got its field %R twice", layout->name,
                         name);
            return -1;
        }
        seen |= (uint64_t)1 << place;
        if (read_value(layout->fields + place, values[i], record) < 0)
            return -1;
    }
    const uint64_t missing = ~seen & (~(uint64_t)0 >> (MOST_FIELDS - layout->count));
    if (missing) {
        PyErr_Format(PyExc_TypeError, "%s misses its field %s", layout->name,
                     layout->fields[__builtin_ctzll(missing)].name);
        return -1;
    }
    return 0;
}

/* The arguments of a method, METH_FASTCALL | METH_KEYWORDS, into a struct of its own. */
#define READ(type, to) \
    type to; \
    if (given > 1) \
        return PyErr_Format(PyExc_TypeError, "%s takes its fields by name, got %zd values", #type, given); \
    if (read_record(type##_layout, given ? args[0] : NULL, args + given, names, &to) < 0) \
        return NULL;
#define WITHOUT_GIL(...) \
    Py_BEGIN_ALLOW_THREADS \
    __VA_ARGS__; \
    Py_END_ALLOW_THREADS
#define METHOD(name, doc) {#name, (PyCFunction)(void (*)(void))py_##name, METH_FASTCALL | METH_KEYWORDS, doc}
#define ARGUMENTS PyObject *self, PyObject *const *args, Py_ssize_t given, PyObject *names

/* ((name, type, offset), ...) */
static PyObject *describe(const Layout *layout)
{
    PyObject *fields = PyTuple_New(layout->count);
    for (int i = 0; fields && i < layout->count; i++) {
        const Field *field = layout->fields + i;
        PyObject *row = Py_BuildValue("ssn", field->name, field->type, (Py_ssize_t)field->offset);
        if (!row)
            Py_CLEAR(fields);
        else
            PyTuple_SET_ITEM(fields, i, row);
    }
    return fields;
}

#define ADD_CONSTANT(name) || PyModule_AddIntMacro(module, name) < 0

/* Interns the names, and gives the module what accel.kernels.cpu.record.check looks at. */
static int add_records(PyObject *module)
{
    PyObject *all = PyDict_New();
    int failed = !all EVERY_CONSTANT(ADD_CONSTANT);
    for (Layout *layout = layouts; !failed && layout < layouts + LAYOUTS; layout++) {
        PyObject *fields = describe(layout);
        failed = !fields || PyDict_SetItemString(all, layout->name, fields) < 0;
        Py_XDECREF(fields);
        for (int i = 0; !failed && i < layout->count; i++)
            failed = !(layout->names[i] = PyUnicode_InternFromString(layout->fields[i].name));
    }
    failed = failed || PyModule_AddObjectRef(module, "RECORDS", all) < 0;
    Py_XDECREF(all);
    return failed ? -1 : 0;
}

#endif
