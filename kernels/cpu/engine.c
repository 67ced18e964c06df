/* The Python module: addresses and sizes in by name (as ints), the GIL released while a job runs. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <pthread.h>
#include <stdlib.h>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "engine.h"
#include "module.h"
#include "reader.h"

static int forked_child = 0;

static void note_fork(void) { forked_child = 1; }

int accel_worker(void)
{
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

int accel_threads(int64_t asked) { return forked_child || asked < 1 ? 1 : (int)asked; }

/* A method that fills one record and runs one function on it; with TRY, one that may run out of memory, and tells whether
 * all that it made bytes of was finite. */
#define RUN(name, type) \
    static PyObject *py_##name(ARGUMENTS) \
    { \
        READ(type, job) \
        WITHOUT_GIL(accel_##name(&job)) \
        Py_RETURN_NONE; \
    }
#define TRY(name, type) \
    static PyObject *py_##name(ARGUMENTS) \
    { \
        READ(type, job) \
        int said; \
        WITHOUT_GIL(said = accel_##name(&job)) \
        return said < 0 ? PyErr_NoMemory() : PyBool_FromLong(!said); \
    }

TRY(convolve, Job)
TRY(convolve_footprints, FootprintJob)
TRY(quantize, Quantizing)
RUN(pack, Packing)
RUN(frame, Frame)
RUN(interpolate, Fill)
RUN(interpolate_backward, Fill)
RUN(max_rows, MaxJob)
RUN(place, Placing)
RUN(mean_rows, MeanJob)
RUN(interpolate_fitted_backward, FittedGradJob)
TRY(active, ActiveJob)
RUN(invert, Inversion)
RUN(local_deviation, Deviation)
RUN(select, Selection)
RUN(halting_step, HaltingJob)
RUN(halting_step_backward, HaltingGradJob)
RUN(ponder_cost, PonderJob)
TRY(run_stage, Stage)
TRY(head_scores, HeadJob)
TRY(grad_input, GradJob)
TRY(grad_weight, GradJob)
RUN(column_sums, ColumnSums)

/* After the record, the addresses of what lies outside. */
static PyObject *py_replay(ARGUMENTS)
{
    char *outside[MOST_OUTSIDE];
    Replay replay;
    int said;
    if (given < 1 || read_record(Replay_layout, args[0], args + given, names, &replay) < 0)
        return given < 1 ? PyErr_Format(PyExc_TypeError, "replay expects a packed record") : NULL;
    if (given - 1 != replay.outside_count || given - 1 > MOST_OUTSIDE)
        return PyErr_Format(PyExc_TypeError, "replay expects %lld addresses, at most %d, got %zd",
                            (long long)replay.outside_count, MOST_OUTSIDE, given - 1);
    for (Py_ssize_t i = 0; i < given - 1; i++) {
        const long long address = PyLong_AsLongLong(args[i + 1]);
        if (address == -1 && PyErr_Occurred())
            return NULL;
        outside[i] = (char *)(intptr_t)address;
    }
    WITHOUT_GIL(said = accel_replay(&replay, outside))
    return said < 0 ? PyErr_NoMemory() : PyBool_FromLong(!said);
}

static PyObject *py_packed_size(ARGUMENTS)
{
    READ(PanelSize, size)
    return PyLong_FromLongLong(accel_packed_size(&size));
}

static PyObject *py_use_huge_pages(ARGUMENTS)
{
    READ(HugePages, pages)
    accel_use_huge_pages(pages.buffer, pages.bytes);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    METHOD(convolve, "One forward convolution; whether all bytes stand for finite numbers: Job in record.py."),
    METHOD(convolve_footprints,
           "One forward convolution, rows grouped by footprint; whether all bytes stand for finite "
           "numbers: FootprintJob."),
    METHOD(replay,
           "replay(packed Replay, *addresses of the tensors outside): whether all bytes stand for finite numbers."),
    METHOD(pack, "Weights into panels: Packing."),
    METHOD(packed_size, "Floats that the panels take: PanelSize."),
    METHOD(frame, "A padded NHWC copy: Frame."),
    METHOD(use_huge_pages, "Ask for pages of 2 MiB where a fresh buffer is large: HugePages."),
    METHOD(interpolate, "Rows to maps: Fill."),
    METHOD(interpolate_backward, "Its adjoint: Fill."),
    METHOD(max_rows, "The largest of several rows: MaxJob."),
    METHOD(place, "Rows into columns of others: Placing."),
    METHOD(mean_rows, "The mean of several rows of bytes: MeanJob."),
    METHOD(quantize, "Numbers to bytes; whether all are finite: Quantizing."),
    METHOD(interpolate_fitted_backward, "The adjoint of fitted interpolation: FittedGradJob."),
    METHOD(active, "Mask to positions: ActiveJob."),
    METHOD(invert, "The row of every position: Inversion."),
    METHOD(local_deviation, "The score of adaptive masks: Deviation."),
    METHOD(select, "The highest scores of each image: Selection."),
    METHOD(halting_step, "One step of ACT or SACT: HaltingJob."),
    METHOD(halting_step_backward, "Its gradients: HaltingGradJob."),
    METHOD(ponder_cost, "Sums of each image: PonderJob."),
    METHOD(run_stage, "An ACT or SACT stage: Stage."),
    METHOD(head_scores, "A halting head at every position: HeadJob."),
    METHOD(grad_input, "dX of a convolution: GradJob."),
    METHOD(grad_weight, "dW of a convolution: GradJob."),
    METHOD(column_sums, "The sum of every column: ColumnSums."),
    {"block", accel_block, METH_O, "block(bytes): writable memory for a large tensor, which is kept when it is freed."},
    {"kept_bytes", accel_kept_bytes, METH_NOARGS, "kept_bytes(): how much memory of freed blocks is kept."},
    {"set_isa", accel_set_isa, METH_O, "set_isa(name): use this instruction set from now on; repack all weights."},
    {"isa", accel_isa_name, METH_NOARGS, "isa(): the instruction set in use."},
    {"lanes", accel_lanes, METH_NOARGS, "lanes(): floats of one of its vectors."},
    {"isas", accel_isas, METH_NOARGS, "isas(): the instruction sets that this machine can run, fastest first."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "_engine",
    .m_doc = "The CPU engine: see kernels/cpu/binding.py.",
    .m_size = -1,
    .m_methods = methods,
};

PyMODINIT_FUNC PyInit__engine(void)
{
    accel_choose_isa();
    pthread_atfork(NULL, NULL, note_fork);
    if (accel_blocks_ready() < 0)
        return NULL;
    PyObject *self = PyModule_Create(&module);
    if (self && (add_records(self) < 0 || PyModule_AddIntConstant(self, "CHECKED", ACCEL_CHECKED) < 0))
        Py_CLEAR(self);
    return self;
}
