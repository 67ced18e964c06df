/* What the module in engine.c offers that other files define: the choice of the instruction set, see isa.c, and the
 * memory that large tensors lie in, see blocks.c. */
#ifndef ACCEL_MODULE_H
#define ACCEL_MODULE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

void accel_choose_isa(void);
PyObject *accel_set_isa(PyObject *self, PyObject *name);
PyObject *accel_isa_name(PyObject *self, PyObject *unused);
PyObject *accel_lanes(PyObject *self, PyObject *unused);
PyObject *accel_isas(PyObject *self, PyObject *unused);
PyObject *accel_has_bf16(PyObject *self, PyObject *unused);

int accel_blocks_ready(void);
PyObject *accel_block(PyObject *self, PyObject *size);
PyObject *accel_kept_bytes(PyObject *self, PyObject *unused);

#endif
