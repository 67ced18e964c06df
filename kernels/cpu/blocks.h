/* Memory that large tensors lie in: see blocks.c. */
#ifndef ACCEL_BLOCKS_H
#define ACCEL_BLOCKS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

int accel_blocks_ready(void);
PyObject *accel_block(PyObject *self, PyObject *size);
PyObject *accel_kept_bytes(PyObject *self, PyObject *unused);

#endif
