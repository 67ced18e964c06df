/* The choice of the instruction set: see isa.c. */
#ifndef ACCEL_ISA_H
#define ACCEL_ISA_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

void accel_choose_isa(void);
PyObject *accel_set_isa(PyObject *self, PyObject *name);
PyObject *accel_isa_name(PyObject *self, PyObject *unused);
PyObject *accel_lanes(PyObject *self, PyObject *unused);
PyObject *accel_isas(PyObject *self, PyObject *unused);

#endif
