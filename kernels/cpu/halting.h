/* The halting rules, of one unit at one position: see kernels/reference/halting_step.py. */
#ifndef ACCEL_HALTING_H
#define ACCEL_HALTING_H

typedef struct {
    float weight, after, cost; /* of the unit; what is left after it; what the next unit costs, or the end */
    int running;
} Halted;

static inline Halted accel_halt(float left, float h, float eps, int last, int sticks)
{
    const int running = left > 0, going = running && !last && left - h > eps;
    const float halting = running && !going ? left : 0;
    if (sticks) {
        const float weight = last ? left : h * left, after = last ? 0 : (1 - h) * left;
        return (Halted){weight, after, after, running};
    }
    return (Halted){going ? h : halting, going ? left - h : 0, going ? 1 : halting, running};
}

#endif
