/* Memory for large maps, kept for the next map of the same size.
 *
 * malloc gives blocks of 32 MiB and more back to the system when they are freed, and the pages of the next one are made
 * and zeroed again: HED on 8 pictures at half the positions took 655 ms beside a dense network that does the same, of
 * which more than 160 ms were page faults. Freed blocks are kept as long as all together are no more than twice what was
 * in use at one time. The GIL guards the lists. */
#define _DEFAULT_SOURCE /* madvise */
#include "module.h"

#include <stdlib.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "engine.h"

enum { MOST_KEPT = 16, BLOCK_PAGE = 1 << 21 };

typedef struct {
    void *data;
    size_t bytes;
} Memory;

typedef struct {
    PyObject_HEAD
    Memory memory;
} Block;

static Memory kept[MOST_KEPT]; /* oldest first */
static int kept_count = 0;
static size_t kept_bytes = 0, used = 0, most_used = 0;

/* malloc returns large freed buffers to the system, so that the pages of the next one are first touched by our stores:
 * 27 ms for 102 MB in pages of 4 KiB, 4.3 ms in pages of 2 MiB. */
void accel_use_huge_pages(void *buffer, int64_t bytes)
{
    REQUIRE(buffer && bytes >= 0);
#ifdef MADV_HUGEPAGE
    const uintptr_t page = (uintptr_t)1 << 21, start = ((uintptr_t)buffer + page - 1) & ~(page - 1);
    const uintptr_t end = ((uintptr_t)buffer + (uintptr_t)bytes) & ~(page - 1);
    if (end > start)
        (void)madvise((void *)start, end - start, MADV_HUGEPAGE); /* only a hint: failure changes nothing */
#else
    (void)buffer, (void)bytes;
#endif
}

static Memory take_kept(int i)
{
    const Memory memory = kept[i];
    kept_bytes -= memory.bytes;
    for (kept_count--; i < kept_count; i++)
        kept[i] = kept[i + 1];
    return memory;
}

static void keep(Memory memory)
{
    if (kept_count == MOST_KEPT)
        free(take_kept(0).data);
    kept[kept_count++] = memory;
    kept_bytes += memory.bytes;
    while (kept_count && used + kept_bytes > 2 * most_used)
        free(take_kept(0).data);
}

static Memory obtain(size_t bytes)
{
    for (int i = kept_count - 1; i >= 0; i--)
        if (kept[i].bytes == bytes)
            return take_kept(i);
    Memory memory = {aligned_alloc(BLOCK_PAGE, bytes), bytes};
    while (!memory.data && kept_count) {
        free(take_kept(0).data);
        memory.data = aligned_alloc(BLOCK_PAGE, bytes);
    }
    if (memory.data)
        accel_use_huge_pages(memory.data, (int64_t)bytes);
    return memory;
}

static void block_dealloc(PyObject *self)
{
    const Memory memory = ((Block *)self)->memory;
    if (memory.data) {
        used -= memory.bytes;
        keep(memory);
    }
    Py_TYPE(self)->tp_free(self);
}

static int block_getbuffer(PyObject *self, Py_buffer *view, int flags)
{
    const Memory memory = ((Block *)self)->memory;
    return PyBuffer_FillInfo(view, self, memory.data, (Py_ssize_t)memory.bytes, 0, flags);
}

static PyBufferProcs block_buffer = {.bf_getbuffer = block_getbuffer};
static PyTypeObject block_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "_engine.Block",
    .tp_basicsize = sizeof(Block),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_dealloc = block_dealloc,
    .tp_as_buffer = &block_buffer,
};

int accel_blocks_ready(void) { return PyType_Ready(&block_type); }

PyObject *accel_block(PyObject *self, PyObject *size)
{
    (void)self;
    const size_t asked = PyLong_AsSize_t(size);
    if (asked == (size_t)-1 && PyErr_Occurred())
        return NULL;
    Block *block = PyObject_New(Block, &block_type);
    if (!block)
        return NULL;
    block->memory = obtain((asked + BLOCK_PAGE - 1) / BLOCK_PAGE * BLOCK_PAGE);
    if (!block->memory.data) {
        Py_DECREF(block);
        return PyErr_NoMemory();
    }
    used += block->memory.bytes;
    most_used = used > most_used ? used : most_used;
    return (PyObject *)block;
}

PyObject *accel_kept_bytes(PyObject *self, PyObject *unused)
{
    (void)self, (void)unused;
    return PyLong_FromSize_t(kept_bytes);
}
