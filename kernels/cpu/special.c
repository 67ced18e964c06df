/* Implicit-reparameterization derivatives of Gamma, Beta, Student t and von Mises samples: the vectorised C core.
 *
 * The mathematics is that of kernels/reference/{gamma,beta,student_t,von_mises}_gradient.py, which also supply the
 * tables (series coefficients, quadrature nodes) that these functions take by address. Every computation is in double
 * precision on blocks of LANES elements: each statement below is a loop over the lanes, which the compiler turns into
 * SIMD code, in three versions of which the loader picks the best one for the processor.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <pthread.h>
#include <stdint.h>

#include "contract.h"
#include "reader.h"
#include "special_math.h"

enum { LANES = 32, SERIES_TERMS = 60, FRACTION_TERMS = 30, NEWTON_STEPS = 5 };

#define PI 3.14159265358979323846
#define EACH_LANE _Pragma("omp simd") for (int i = 0; i < LANES; i++)
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__clang__) && __GNUC__ >= 12
#define EVERY_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EVERY_PROCESSOR
#endif

/* ------------------------------------------------------------------------------------------------------- Gamma */

enum { ORDERS = 12, DEGREE = 32 }; /* of the uniform expansion's table, ORDERS rows of DEGREE + 1 */

INLINE void gamma_uniform(const double *alpha, const double *z, const double *table, double *out)
{
    double ratio[LANES], scale[LANES], eta[LANES], inverse[LANES], sum[LANES], row[LANES];
    EACH_LANE {
        double mu = (z[i] - alpha[i]) / alpha[i], log_ratio = log_one_plus(mu);
        double root = sqrt(2.0 * larger(mu - log_ratio, 0.0));
        eta[i] = mu < 0.0 ? -root : root;
        ratio[i] = mu == 0.0 ? 1.0 : log_ratio / mu;
        scale[i] = 1.0 + mu;
        inverse[i] = 1.0 / alpha[i];
        sum[i] = 0.0;
    }
    for (int order = ORDERS - 1; order >= 0; order--) {
        const double *c = table + order * (DEGREE + 1);
        int degree = DEGREE - 2 * order;
        EACH_LANE
            row[i] = c[degree];
        for (int n = degree - 1; n >= 0; n--)
            EACH_LANE
                row[i] = row[i] * eta[i] + c[n];
        EACH_LANE
            sum[i] = (sum[i] + row[i]) * inverse[i];
    }
    EACH_LANE
        out[i] = scale[i] * (ratio[i] + sum[i]);
}

INLINE void gamma_series(const double *alpha, const double *z, double *out)
{
    double step[LANES], w[LANES], power[LANES], sum[LANES], slope[LANES], common[LANES];
    EACH_LANE {
        step[i] = 1.0 / larger(alpha[i], 1.0);
        w[i] = z[i] * step[i];
        power[i] = sum[i] = common[i] = 1.0;
        slope[i] = 0.0;
    }
    for (int n = 1; n <= SERIES_TERMS; n++)
        EACH_LANE {
            double t = (alpha[i] + n) * step[i];
            power[i] *= w[i];
            slope[i] = slope[i] * t + sum[i] * step[i];
            sum[i] = sum[i] * t + power[i];
            common[i] *= t;
        }
    EACH_LANE {
        double top = alpha[i] + (SERIES_TERMS + 1);
        double difference = digamma_tail(top) + log_positive(top) - log_positive(z[i]);
        out[i] = z[i] / alpha[i] * ((sum[i] * difference - slope[i]) / common[i]);
    }
}

INLINE void gamma_fraction(const double *alpha, const double *z, double *out)
{
    double r[LANES], p[LANES], q[LANES], dp[LANES], dq[LANES], p0[LANES], q0[LANES], dp0[LANES], dq0[LANES];
    EACH_LANE {
        r[i] = 1.0 / z[i];
        p0[i] = dp0[i] = dp[i] = dq0[i] = 0.0;
        p[i] = q0[i] = 1.0;
        q[i] = (z[i] + 1.0 - alpha[i]) * r[i];
        dq[i] = -r[i];
    }
    for (int k = 1; k <= FRACTION_TERMS; k++)
        EACH_LANE {
            double b = (z[i] + (2 * k + 1) - alpha[i]) * r[i], a = -k * (k - alpha[i]) * r[i] * r[i];
            double da = k * r[i] * r[i];
            double dp1 = b * dp[i] - r[i] * p[i] + a * dp0[i] + da * p0[i];
            double dq1 = b * dq[i] - r[i] * q[i] + a * dq0[i] + da * q0[i];
            double p1 = b * p[i] + a * p0[i], q1 = b * q[i] + a * q0[i];
            p0[i] = p[i], q0[i] = q[i], dp0[i] = dp[i], dq0[i] = dq[i];
            p[i] = p1, q[i] = q1, dp[i] = dp1, dq[i] = dq1;
        }
    EACH_LANE {
        double value = p[i] / q[i], slope = (dp[i] - value * dq[i]) / q[i];
        double log_ratio = log_positive(z[i]) - log_positive(alpha[i]);
        out[i] = slope + value * (log_ratio - digamma_less_log(alpha[i]));
    }
}

EVERY_PROCESSOR static void gamma_block(double *const in[3], const double *table, double *out)
{
    const double *alpha = in[0], *z = in[1];
    double a[LANES], s[LANES], which[LANES], uniform[LANES], series[LANES], fraction[LANES];
    double any_uniform = 0, any_series = 0, any_fraction = 0;
    EACH_LANE { /* table[0]: alpha from which the expansion holds; table[1], table[2]: lambda = z/alpha between which */
        double lambda = z[i] / alpha[i], large = alpha[i] >= table[0];
        double inside = large * (lambda > table[1]) * (lambda < table[2]);
        double edge = large > 0 ? alpha[i] : alpha[i] + 3.5 * sqrt(larger(alpha[i], 0.0)) + 3.0;
        which[i] = inside > 0 ? 0.0 : (z[i] <= edge ? 1.0 : 2.0);
    }
    for (int i = 0; i < LANES; i++) {
        any_uniform += which[i] == 0.0;
        any_series += which[i] == 1.0;
        any_fraction += which[i] == 2.0;
    }
    EACH_LANE
        uniform[i] = series[i] = fraction[i] = 0.0;
    if (any_uniform) { /* lanes of another region compute on harmless numbers */
        EACH_LANE
            a[i] = which[i] == 0.0 ? alpha[i] : 100.0, s[i] = which[i] == 0.0 ? z[i] : 100.0;
        gamma_uniform(a, s, table + 3, uniform);
    }
    if (any_series) {
        EACH_LANE
            a[i] = which[i] == 1.0 ? alpha[i] : 1.0, s[i] = which[i] == 1.0 ? larger(z[i], 0x1p-1022) : 1.0;
        gamma_series(a, s, series);
    }
    if (any_fraction) {
        EACH_LANE
            a[i] = which[i] == 2.0 ? alpha[i] : 1.0, s[i] = which[i] == 2.0 ? z[i] : 10.0;
        gamma_fraction(a, s, fraction);
    }
    EACH_LANE {
        double value = which[i] == 0.0 ? uniform[i] : (which[i] == 1.0 ? series[i] : fraction[i]);
        value = z[i] == 0.0 ? 0.0 : value;
        out[i] = (alpha[i] > 0.0) & (z[i] >= 0.0) ? value : NAN;
    }
}

/* --------------------------------------------------------------------------------------------------- von Mises */

/* table: the number of nodes, the exponent at which a tail is cut, then nodes and weights on [0, 1]. */
EVERY_PROCESSOR static void von_mises_block(double *const in[3], const double *table, double *out)
{
    const double *kappa = in[0], *gap = in[1], *z = in[2];
    const int count = (int)table[0];
    const double *node = table + 2, *weight = node + count;
    double start[LANES], length[LANES], squared[LANES], sum[LANES], cut[LANES];
    EACH_LANE {
        double absolute = smaller(fabs(z[i]), PI), half = sin_quarter(0.5 * absolute);
        start[i] = absolute;
        squared[i] = half * half;
        cut[i] = smaller(1.0, squared[i] + 0.5 * table[1] / larger(kappa[i], 1e-300));
        sum[i] = 0.0;
    }
    for (int i = 0; i < LANES; i++) { /* inwards where the score is positive, outwards where it is negative */
        double end = 2.0 * squared[i] < gap[i] ? 0.0 : 2.0 * asin(sqrt(cut[i]));
        length[i] = end - start[i];
    }
    for (int n = 0; n < count; n++)
        EACH_LANE {
            double half = sin_quarter(0.5 * (start[i] + length[i] * node[n])), square = half * half;
            double exponent = 2.0 * kappa[i] * (squared[i] - square);
            sum[i] += weight[n] * (gap[i] - 2.0 * square) * exp_of(exponent);
        }
    EACH_LANE {
        double value = sum[i] * length[i];
        value = z[i] < 0.0 ? -value : value;
        out[i] = (kappa[i] > 0.0) & (z[i] == z[i]) ? value : NAN;
    }
}

/* -------------------------------------------------------------------------------------------------------- Beta */

INLINE double softplus_excess(double y) { return log_one_plus(exp_of(-fabs(y))); } /* softplus(y) - max(y, 0) */

/* Loss of log density from u to v <= u, of the logit of Beta(a, b): a log sigmoid + b log(1 - sigmoid). */
INLINE double density_drop(double a, double b, double u, double excess_u, double v, double excess_v)
{
    return a * (smaller(u, 0.0) - smaller(v, 0.0)) + b * (larger(v, 0.0) - larger(u, 0.0)) -
           (a + b) * (excess_u - excess_v);
}

INLINE void beta_tail(const double *a, const double *b, const double *y, const double *table, double *out)
{
    const int count = (int)table[0];
    const double drop = table[1], *node = table + 2, *weight = node + count;
    double sign[LANES], near[LANES], far[LANES], u[LANES], excess[LANES], centre[LANES];
    double length[LANES], longest[LANES], sum[LANES];
    EACH_LANE {
        double total = a[i] + b[i];
        excess[i] = softplus_excess(y[i]);
        centre[i] = log_of(a[i] / total, -b[i] / total) + digamma_less_log(a[i]) - digamma_less_log(total);
        int lower = smaller(y[i], 0.0) - excess[i] < centre[i];
        sign[i] = lower ? -1.0 : 1.0; /* of the direction of the tail; u is mirrored so that it runs to -infinity */
        near[i] = lower ? a[i] : b[i];
        far[i] = total - near[i];
        u[i] = -sign[i] * y[i];
        longest[i] = length[i] = (drop + total * (larger(u[i], 0.0) + excess[i])) / near[i];
        sum[i] = 0.0;
    }
    for (int step = 0; step < NEWTON_STEPS; step++)
        EACH_LANE { /* on the square root of the drop */
            double v = u[i] - length[i], fall = exp_of(-fabs(v));
            double lost = density_drop(near[i], far[i], u[i], excess[i], v, log_one_plus(fall));
            double inside = 1.0 / (1.0 + fall), outside = fall * inside;
            double slope = v < 0.0 ? near[i] * inside - far[i] * outside : near[i] * outside - far[i] * inside;
            double moved = length[i] + 2.0 * (sqrt(larger(drop * lost, 0.0)) - lost) / slope;
            length[i] = smaller(longest[i], larger(0.1 * length[i], moved));
        }
    for (int n = 0; n < count; n++)
        EACH_LANE {
            double v = u[i] - length[i] * node[n], excess_v = softplus_excess(v);
            double lost = density_drop(near[i], far[i], u[i], excess[i], v, excess_v);
            double score = smaller(-sign[i] * v, 0.0) - excess_v - centre[i];
            sum[i] += weight[n] * score * exp_of(-lost);
        }
    EACH_LANE
        out[i] = sign[i] * sum[i] * length[i];
}

INLINE void beta_derivative(const double *a, const double *b, const double *logit, const double *table, double *out)
{
    double y[LANES], raised_a[LANES], raised_b[LANES];
    EACH_LANE {
        y[i] = smaller(larger(logit[i], -1e4), 1e4);
        raised_a[i] = a[i] < 1.0 ? a[i] + 1.0 : a[i];
        raised_b[i] = b[i] < 1.0 ? b[i] + 1.0 : b[i];
    }
    beta_tail(raised_a, raised_b, y, table, out);
    EACH_LANE { /* down again from a + 1 and b + 1 */
        double fall = exp_of(-fabs(y[i])), log_x = smaller(y[i], 0.0) - log_one_plus(fall);
        double x = (y[i] < 0.0 ? fall : 1.0) / (1.0 + fall), rest = (y[i] < 0.0 ? 1.0 : fall) / (1.0 + fall);
        double total = a[i] + raised_b[i], value = out[i];
        double psi = digamma_less_log(a[i]) + log_positive(a[i]);
        double psi_total = digamma_less_log(total) + log_positive(total);
        double lowered = (x * total * value + psi + 1.0 / a[i] - psi_total - log_x) / a[i];
        value = a[i] < 1.0 ? lowered : value;
        total = a[i] + b[i];
        psi_total = digamma_less_log(total) + log_positive(total);
        lowered = (rest * total * value + log_x - psi + psi_total) / b[i];
        out[i] = b[i] < 1.0 ? lowered : value;
    }
}

EVERY_PROCESSOR static void beta_block(double *const in[3], const double *table, double *out)
{
    double a[LANES], b[LANES];
    EACH_LANE
        a[i] = in[0][i] > 0.0 ? in[0][i] : 1.0, b[i] = in[1][i] > 0.0 ? in[1][i] : 1.0;
    beta_derivative(a, b, in[2], table, out);
    EACH_LANE
        out[i] = (in[0][i] > 0.0) & (in[1][i] > 0.0) & (in[2][i] == in[2][i]) ? out[i] : NAN;
}

/* --------------------------------------------------------------------------------------------------- Student t */

/* q / (1 + q) - log(1 + q), by its series where the two nearly cancel. */
INLINE double student_bend(double q, double log_q)
{
    double series = 12.0 / 13;
    series = series * -q + 11.0 / 12;
    series = series * -q + 10.0 / 11;
    series = series * -q + 9.0 / 10;
    series = series * -q + 8.0 / 9;
    series = series * -q + 7.0 / 8;
    series = series * -q + 6.0 / 7;
    series = series * -q + 5.0 / 6;
    series = series * -q + 4.0 / 5;
    series = series * -q + 3.0 / 4;
    series = series * -q + 2.0 / 3;
    series = series * -q + 1.0 / 2;
    return q < 0.03 ? -series * q * q : q / (1.0 + q) - log_q;
}

/* The quadrature for many degrees of freedom; table as for the Beta. */
INLINE void student_quadrature(const double *df, const double *start, const double *table, double *out)
{
    const int count = (int)table[0];
    const double drop = table[1], *node = table + 2, *weight = node + count;
    double centre[LANES], length[LANES], log_start[LANES], sum[LANES];
    EACH_LANE {
        double r = 4.0 / (df[i] * df[i]), q = start[i] * start[i] / df[i];
        /* (psi((df + 1) / 2) - psi(df / 2) - 1 / df) / 2, DLMF 5.11.2 twice */
        centre[i] = 0.5 * r * (1.0 / 8 - r * (1.0 / 64 - r * (1.0 / 128 - r * (17.0 / 2048 - r * (31.0 / 2048)))));
        log_start[i] = log_one_plus(q);
        double score = centre[i] + 0.5 * (student_bend(q, log_start[i]) + q / (df[i] * (1.0 + q)));
        double fall = exp_of(-2.0 * drop / (df[i] + 1.0) - log_start[i]); /* (1 + end^2 / df)^-1 */
        double end = sqrt(df[i] * (1.0 - fall) / fall);
        length[i] = (score > 0.0 ? 0.0 : end) - start[i];
        sum[i] = 0.0;
    }
    for (int n = 0; n < count; n++)
        EACH_LANE {
            double s = start[i] + length[i] * node[n], q = s * s / df[i], log_q = log_one_plus(q);
            double score = centre[i] + 0.5 * (student_bend(q, log_q) + q / (df[i] * (1.0 + q)));
            sum[i] += weight[n] * score * exp_of(-0.5 * (df[i] + 1.0) * (log_q - log_start[i]));
        }
    EACH_LANE
        out[i] = sum[i] * length[i];
}

EVERY_PROCESSOR static void student_block(double *const in[3], const double *table, double *out)
{
    const double *df = in[0], *t = in[1];
    double a[LANES], b[LANES], y[LANES], absolute[LANES], few_result[LANES];
    double many[LANES], start[LANES], many_result[LANES];
    double any_few = 0.0;
    EACH_LANE {
        absolute[i] = smaller(larger(fabs(t[i]), 1e-300), 1e300);
        many[i] = df[i] >= 100.0 ? df[i] : 100.0;
        start[i] = df[i] >= 100.0 ? smaller(absolute[i], 1e150) : 1.0;
        a[i] = (df[i] < 100.0) & (df[i] > 0.0) ? 0.5 * df[i] : 1.0;
        b[i] = 0.5;
        y[i] = log_positive(2.0 * a[i]) - 2.0 * log_positive(absolute[i]);
        few_result[i] = 0.0;
    }
    for (int i = 0; i < LANES; i++)
        any_few += df[i] < 100.0;
    if (any_few)
        beta_derivative(a, b, y, table, few_result);
    student_quadrature(many, start, table, many_result);
    EACH_LANE {
        double few = 0.5 * absolute[i] * (0.5 / a[i] - 0.5 * few_result[i]);
        double value = df[i] < 100.0 ? few : many_result[i];
        value = t[i] < 0.0 ? -value : value;
        out[i] = (df[i] > 0.0) & (t[i] == t[i]) ? value : NAN;
    }
}

/* ------------------------------------------------------------------------------------------- driver and binding */

static int forked_child = 0; /* where the thread pool did not survive */

static void note_fork(void) { forked_child = 1; }

typedef void (*block_function)(double *const in[3], const double *table, double *out);

static double load(const void *array, int64_t i, int64_t is_double)
{
    return is_double ? ((const double *)array)[i] : (double)((const float *)array)[i];
}

static void run(block_function block, const Elementwise *job)
{
    const void *const in[3] = {job->first, job->second, job->third};
    REQUIRE(job->size >= 0 && IS_ARRAY(job->table, 1));
    REQUIRE(is_array(job->first, job->size, job->is_double ? sizeof(double) : sizeof(float)));
    REQUIRE(is_array(job->out, job->size, job->is_double ? sizeof(double) : sizeof(float)));
    const int64_t size = job->size, is_double = job->is_double, blocks = (size + LANES - 1) / LANES;
    const int threads = forked_child || job->threads < 1 ? 1 : (int)job->threads;
#pragma omp parallel for schedule(static) num_threads(threads) if (blocks > 16)
    for (int64_t number = 0; number < blocks; number++) {
        double buffer[3][LANES], result[LANES];
        double *const columns[3] = {buffer[0], buffer[1], buffer[2]};
        int64_t first = number * LANES, count = size - first < LANES ? size - first : LANES;
        for (int column = 0; column < 3; column++)
            for (int i = 0; in[column] && i < LANES; i++) /* the last block is filled up with its own last element */
                buffer[column][i] = load(in[column], first + (i < count ? i : count - 1), is_double);
        block(columns, job->table, result);
        for (int i = 0; i < count; i++) {
            if (is_double)
                ((double *)job->out)[first + i] = result[i];
            else
                ((float *)job->out)[first + i] = (float)result[i];
        }
    }
}

#define GRADIENT(name, block) \
    static PyObject *py_##name(ARGUMENTS) \
    { \
        (void)self; \
        READ(Elementwise, job) \
        WITHOUT_GIL(run(block, &job)) \
        Py_RETURN_NONE; \
    }

GRADIENT(gamma_gradient, gamma_block)
GRADIENT(von_mises_gradient, von_mises_block)
GRADIENT(beta_gradient, beta_block)
GRADIENT(student_t_gradient, student_block)

static PyMethodDef methods[] = {
    METHOD(gamma_gradient, "dz/dalpha at (alpha, z): Elementwise in record.py."),
    METHOD(von_mises_gradient, "dz/dkappa at (kappa, 1 - A, z): Elementwise."),
    METHOD(beta_gradient, "dy/da at (a, b, y): Elementwise."),
    METHOD(student_t_gradient, "dt/ddf at (df, t): Elementwise."),
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_special", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__special(void)
{
    pthread_atfork(NULL, NULL, note_fork);
    PyObject *self = PyModule_Create(&module);
    if (self && add_records(self) < 0)
        Py_CLEAR(self);
    return self;
}
