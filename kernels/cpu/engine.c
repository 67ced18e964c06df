/* The Python module: raw pointers and sizes in (as ints), the GIL released while a job runs. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <pthread.h>
#include <stdlib.h>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "blocks.h"
#include "engine.h"
#include "isa.h"

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

int accel_threads(int64_t asked)
{
    return forked_child || asked < 1 ? 1 : (int)asked;
}

/* Reads exactly `count` ints (pointers are passed as ints too). */
static int read_ints(const char *name, PyObject *const *args, Py_ssize_t given, int64_t *to, Py_ssize_t count)
{
    if (given != count) {
        PyErr_Format(PyExc_TypeError, "%s expects %zd ints, got %zd", name, count, given);
        return -1;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        to[i] = PyLong_AsLongLong(args[i]);
        if (to[i] == -1 && PyErr_Occurred())
            return -1;
    }
    return 0;
}

#define READ(name, count) \
    int64_t a[count]; \
    if (read_ints(name, args, given, a, count) < 0) \
        return NULL;
#define WITHOUT_GIL(...) \
    Py_BEGIN_ALLOW_THREADS \
    __VA_ARGS__; \
    Py_END_ALLOW_THREADS

static PyObject *py_convolve(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    READ("convolve", JOB_FIELDS)
    const Job job = accel_job(a);
    int failed;
    WITHOUT_GIL(failed = accel_convolve(&job))
    if (failed)
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *py_convolve_footprints(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    READ("convolve_footprints", FOOTPRINT_FIELDS)
    const FootprintJob job = accel_footprint_job(a);
    WITHOUT_GIL(accel_convolve_footprints(&job))
    Py_RETURN_NONE;
}

static PyObject *py_replay(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    int64_t a[REPLAY_FIELDS + MOST_OUTSIDE];
    const float *outside[MOST_OUTSIDE];
    if (given < REPLAY_FIELDS || given > REPLAY_FIELDS + MOST_OUTSIDE)
        return PyErr_Format(PyExc_TypeError, "replay expects %d ints and at most %d addresses, got %zd", REPLAY_FIELDS,
                            MOST_OUTSIDE, given);
    if (read_ints("replay", args, given, a, given) < 0)
        return NULL;
    for (Py_ssize_t i = REPLAY_FIELDS; i < given; i++)
        outside[i - REPLAY_FIELDS] = POINTER(const float *, i);
    const Replay replay = {
        .calls = POINTER(const RecordedCall *, 0), .buffers = POINTER(const ReplayBuffer *, 1),
        .memory = POINTER(const float *, 2), .call_count = a[3], .memory_each = a[4], .groups = a[5], .threads = a[6],
        .outside = outside,
    };
    int failed;
    WITHOUT_GIL(failed = accel_replay(&replay))
    if (failed)
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *py_pack(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    READ("pack", 14)
    const Packing p = {
        .w = POINTER(const float *, 0), .packed = POINTER(float *, 1), .stride_g = a[2], .stride_k = a[3],
        .stride_c = a[4], .stride_h = a[5], .stride_w = a[6], .groups = a[7], .k_group = a[8], .c_group = a[9],
        .kh = a[10], .kw = a[11], .most_vectors = a[12], .threads = a[13],
    };
    WITHOUT_GIL(accel_pack(&p))
    Py_RETURN_NONE;
}

static PyObject *py_packed_size(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    READ("packed_size", 4)
    return PyLong_FromLongLong(accel_packed_size(a[0], a[1], a[2], a[3]));
}

static PyObject *py_frame(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    READ("frame", 11)
    const Frame f = {
        .x = POINTER(const float *, 0), .out = POINTER(float *, 1), .pieces = POINTER(const FramePiece *, 2),
        .piece_count = a[3], .images = a[4], .channels = a[5], .pixels = a[6], .stride_n = a[7], .stride_c = a[8],
        .stride_pixel = a[9], .threads = a[10],
    };
    WITHOUT_GIL(accel_frame(&f))
    Py_RETURN_NONE;
}

static PyObject *py_use_huge_pages(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    READ("use_huge_pages", 2)
    accel_use_huge_pages(POINTER(void *, 0), a[1]);
    Py_RETURN_NONE;
}

static PyObject *fill(const char *name, void (*run)(const Fill *), PyObject *const *args, Py_ssize_t given)
{
    READ(name, 10)
    const Fill f = {
        .from = POINTER(const float *, 0), .to = POINTER(float *, 1), .nearest = POINTER(const int32_t *, 2),
        .starts = POINTER(const int32_t *, 3), .targets = POINTER(const int32_t *, 4), .images = a[5], .count = a[6],
        .pixels = a[7], .channels = a[8], .threads = a[9],
    };
    WITHOUT_GIL(run(&f))
    Py_RETURN_NONE;
}

static PyObject *py_interpolate(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    return fill("interpolate", accel_interpolate, args, given);
}

static PyObject *py_interpolate_backward(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    return fill("interpolate_backward", accel_interpolate_backward, args, given);
}

static PyObject *py_max_rows(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    READ("max_rows", 9)
    const MaxJob job = {
        .rows = POINTER(const float *, 0), .out = POINTER(float *, 1), .taps = POINTER(const int32_t *, 2),
        .images = a[3], .count = a[4], .windows = a[5], .tap_count = a[6], .channels = a[7], .threads = a[8],
    };
    WITHOUT_GIL(accel_max_rows(&job))
    Py_RETURN_NONE;
}

static PyObject *py_interpolate_fitted_backward(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    READ("interpolate_fitted_backward", 20)
    const FittedGradJob job = {
        .grad = POINTER(const float *, 0), .rows = POINTER(const float *, 1), .weights = POINTER(const float *, 2),
        .rows_grad = POINTER(float *, 3), .weights_grad = POINTER(float *, 4), .constant_grad = POINTER(float *, 5),
        .positions = POINTER(const int32_t *, 6), .skipped = POINTER(const int32_t *, 7),
        .neighbors = POINTER(const int32_t *, 8), .starts = POINTER(const int32_t *, 9),
        .reader_starts = POINTER(const int32_t *, 10), .reader_pixel = POINTER(const int32_t *, 11),
        .reader_weight = POINTER(const int32_t *, 12), .images = a[13], .count = a[14], .taps = a[15],
        .classes = a[16], .pixels = a[17], .channels = a[18], .threads = a[19],
    };
    WITHOUT_GIL(accel_interpolate_fitted_backward(&job))
    Py_RETURN_NONE;
}

static PyObject *py_active(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    READ("active", 8)
    const ActiveJob job = {
        .mask = POINTER(const uint8_t *, 0), .positions = POINTER(int32_t *, 1), .counts = POINTER(int32_t *, 2),
        .images = a[3], .height = a[4], .width = a[5], .dilate = a[6], .threads = a[7],
    };
    int failed;
    WITHOUT_GIL(failed = accel_active(&job))
    if (failed)
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *py_invert(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    READ("invert", 4)
    WITHOUT_GIL(accel_invert(POINTER(const int32_t *, 0), a[1], POINTER(int32_t *, 2), a[3]))
    Py_RETURN_NONE;
}

static PyObject *py_local_deviation(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    READ("local_deviation", 8)
    WITHOUT_GIL(
        accel_local_deviation(POINTER(const float *, 0), a[1], a[2], a[3], a[4], a[5], POINTER(float *, 6), a[7]))
    Py_RETURN_NONE;
}

static PyObject *py_select(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    READ("select", 6)
    WITHOUT_GIL(accel_select(POINTER(const float *, 0), a[1], a[2], a[3], POINTER(int32_t *, 4), a[5]))
    Py_RETURN_NONE;
}

static PyObject *py_halting_step(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    if (given != 17) {
        PyErr_Format(PyExc_TypeError, "halting_step expects 16 ints and eps, got %zd values", given);
        return NULL;
    }
    const double eps = PyFloat_AsDouble(args[16]);
    if (eps == -1 && PyErr_Occurred())
        return NULL;
    given = 16;
    READ("halting_step", 16)
    const HaltingJob job = {
        .h = POINTER(const float *, 0), .x = POINTER(const float *, 1), .remainder = POINTER(const float *, 2),
        .ponder = POINTER(const float *, 3), .output = POINTER(const float *, 4), .units = POINTER(const int32_t *, 5),
        .new_remainder = POINTER(float *, 6), .new_ponder = POINTER(float *, 7), .new_output = POINTER(float *, 8),
        .weight = POINTER(float *, 9), .new_units = POINTER(int32_t *, 10), .still_running = POINTER(uint8_t *, 11),
        .positions = a[12], .channels = a[13], .last = a[14], .threads = a[15], .eps = (float)eps,
    };
    WITHOUT_GIL(accel_halting_step(&job))
    Py_RETURN_NONE;
}

static PyObject *py_halting_step_backward(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    if (given != 15) {
        PyErr_Format(PyExc_TypeError, "halting_step_backward expects 14 ints and eps, got %zd values", given);
        return NULL;
    }
    const double eps = PyFloat_AsDouble(args[14]);
    if (eps == -1 && PyErr_Occurred())
        return NULL;
    given = 14;
    READ("halting_step_backward", 14)
    const HaltingGradJob job = {
        .h = POINTER(const float *, 0), .x = POINTER(const float *, 1), .remainder = POINTER(const float *, 2),
        .d_remainder = POINTER(const float *, 3), .d_ponder = POINTER(const float *, 4),
        .d_output = POINTER(const float *, 5), .d_weight = POINTER(const float *, 6), .d_h = POINTER(float *, 7),
        .d_x = POINTER(float *, 8), .d_old = POINTER(float *, 9), .positions = a[10], .channels = a[11],
        .last = a[12], .threads = a[13], .eps = (float)eps,
    };
    WITHOUT_GIL(accel_halting_step_backward(&job))
    Py_RETURN_NONE;
}

static PyObject *py_ponder_cost(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    READ("ponder_cost", 6)
    WITHOUT_GIL(accel_ponder_cost(POINTER(const float *, 0), POINTER(const int32_t *, 1), a[2], a[3],
                                  POINTER(float *, 4), POINTER(int64_t *, 5)))
    Py_RETURN_NONE;
}

static PyObject *py_run_stage(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    if (given != 38) {
        PyErr_Format(PyExc_TypeError, "run_stage expects 37 ints and eps, got %zd values", given);
        return NULL;
    }
    const double eps = PyFloat_AsDouble(args[37]);
    if (eps == -1 && PyErr_Occurred())
        return NULL;
    given = 37;
    READ("run_stage", 37)
    const Stage stage = {
        .x = POINTER(const float *, 0), .shortcut = POINTER(const float *, 1), .x_strides = {a[2], a[3], a[4]},
        .shortcut_strides = {a[5], a[6], a[7]}, .memory = POINTER(float *, 8), .output = POINTER(float *, 9),
        .ponder = POINTER(float *, 10), .shares = POINTER(float *, 11), .executed = POINTER(int32_t *, 12),
        .macs = POINTER(int64_t *, 13), .images = a[14], .group = a[15], .threads = a[16], .macs_before = a[17],
        .input_pieces = POINTER(const FramePiece *, 18), .input_count = a[19],
        .shortcut_pieces = POINTER(const FramePiece *, 20), .shortcut_count = a[21],
        .buffers = POINTER(const StageBuffer *, 22), .convs = POINTER(const StageConv *, 23),
        .units = POINTER(const StageUnit *, 24), .head_steps = POINTER(const Step *, 25), .head_step_count = a[26],
        .memory_each = a[27], .unit_count = a[28], .height = a[29], .width = a[30], .channels = a[31], .border = a[32],
        .pitch = a[33], .reach = a[34], .most_pixels = a[35], .spatial = a[36], .eps = (float)eps,
    };
    int failed;
    WITHOUT_GIL(failed = accel_run_stage(&stage))
    if (failed)
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *grad(const char *name, int (*run)(const GradJob *), PyObject *const *args, Py_ssize_t given)
{
    READ(name, 19)
    const GradJob job = {
        .x = POINTER(const float *, 0), .grad = POINTER(const float *, 1), .packed = POINTER(const float *, 2),
        .dx = POINTER(float *, 3), .dw = POINTER(float *, 4), .table = POINTER(const int32_t *, 5),
        .positions = POINTER(const int32_t *, 6), .inverse = POINTER(const int32_t *, 7),
        .row_image = POINTER(const int64_t *, 8), .dynamic = a[9], .images = a[10], .table_rows = a[11],
        .in_pixels = a[12], .in_pitch = a[13], .taps = a[14], .out_pixels = a[15], .out_channels = a[16],
        .groups = a[17], .threads = a[18],
    };
    int failed;
    WITHOUT_GIL(failed = run(&job))
    if (failed)
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *py_grad_input(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    return grad("grad_input", accel_grad_input, args, given);
}

static PyObject *py_grad_weight(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    return grad("grad_weight", accel_grad_weight, args, given);
}

static PyObject *py_column_sums(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    READ("column_sums", 5)
    WITHOUT_GIL(accel_column_sums(POINTER(const float *, 0), a[1], a[2], POINTER(float *, 3), a[4]))
    Py_RETURN_NONE;
}

#define FAST(name, doc) {#name, (PyCFunction)(void (*)(void))py_##name, METH_FASTCALL, doc}

static PyMethodDef methods[] = {
    FAST(convolve, "convolve(27 ints): one forward convolution, the fields of Job in engine.h in order."),
    FAST(convolve_footprints, "convolve_footprints(24 ints): the fields of FootprintJob in engine.h in order."),
    FAST(replay, "replay(7 ints, addresses): the fields of Replay in engine.h in order, then the tensors outside."),
    FAST(pack, "pack(14 ints): weights into panels, the fields of Packing in engine.h in order."),
    FAST(packed_size, "packed_size(groups, k_group, c_group, taps): floats that the panels take."),
    FAST(frame, "frame(11 ints): a padded NHWC copy, the fields of Frame in engine.h in order."),
    FAST(use_huge_pages, "use_huge_pages(address, bytes): ask for pages of 2 MiB where a fresh buffer is large."),
    FAST(interpolate, "interpolate(10 ints): rows to maps, the fields of Fill in engine.h in order."),
    FAST(interpolate_backward, "interpolate_backward(10 ints): its adjoint, the fields of Fill in engine.h in order."),
    FAST(max_rows, "max_rows(9 ints): the largest of several rows, the fields of MaxJob in engine.h in order."),
    FAST(interpolate_fitted_backward, "interpolate_fitted_backward(20 ints): the fields of FittedGradJob in order."),
    FAST(active, "active(8 ints): mask to positions, the fields of ActiveJob in engine.h in order."),
    FAST(invert, "invert(positions, rows, inverse, size): the row of every position, -1 where there is none."),
    FAST(local_deviation, "local_deviation(x, images, height, width, pitch, channels, score, threads): see sets.c."),
    FAST(select, "select(score, images, pixels, budget, positions, threads): the highest scores of each image."),
    FAST(halting_step, "halting_step(16 ints, eps): the fields of HaltingJob in engine.h in order."),
    FAST(halting_step_backward, "halting_step_backward(14 ints, eps): the fields of HaltingGradJob in engine.h in order."),
    FAST(ponder_cost, "ponder_cost(ponder, units, images, pixels, rho, executed): sums of each image."),
    FAST(run_stage, "run_stage(37 ints, eps): an ACT or SACT stage, fields of Stage in engine.h: see kernels/cpu/stage.py."),
    FAST(grad_input, "grad_input(19 ints): dX, the fields of GradJob in engine.h in order."),
    FAST(grad_weight, "grad_weight(19 ints): dW, the fields of GradJob in engine.h in order."),
    FAST(column_sums, "column_sums(rows, count, columns, sums, threads): the sum of every column."),
    {"block", accel_block, METH_O, "block(bytes): writable memory for a large tensor, which is kept when it is freed."},
    {"kept_bytes", accel_kept_bytes, METH_NOARGS, "kept_bytes(): how much memory of freed blocks is kept."},
    {"set_isa", accel_set_isa, METH_O, "set_isa(name): use this instruction set from now on; repack all weights."},
    {"isa", accel_isa_name, METH_NOARGS, "isa(): the instruction set in use."},
    {"lanes", accel_lanes, METH_NOARGS, "lanes(): floats of one of its vectors."},
    {"isas", accel_isas, METH_NOARGS, "isas(): the instruction sets that this machine can run, fastest first."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_engine", "The CPU engine: see kernels/cpu/binding.py.", -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__engine(void)
{
    accel_choose_isa();
    pthread_atfork(NULL, NULL, note_fork);
    if (accel_blocks_ready() < 0)
        return NULL;
    PyObject *self = PyModule_Create(&module);
    if (self && (PyModule_AddIntMacro(self, MAX_VECTORS) < 0 || PyModule_AddIntMacro(self, GRAD_VECTORS) < 0))
        Py_CLEAR(self);
    return self;
}
