/*
 * Virtual time for several CPUs. QEMU runs the CPUs of a machine that counts instructions in turn, and lets
 * each instruction of any of them take time, so that what two do beside each other takes as long as if one did
 * it. Here CPUs that have something to do share their time: with N of them, N instructions are one step of the
 * clock. The CPU that has run least is next, so that none is ahead of another by more than a turn; and turns are
 * short, so that who spins for a lock sees when it is free for a moment.
 *
 * One file, included in three (tests/lab/qemu/build): icount.c, which asks for the definitions, too.
 */
#ifndef VARVE_PARALLEL_H
#define VARVE_PARALLEL_H

#include "hw/core/cpu.h"
#include "sysemu/cpu-timers.h"
#include "sysemu/cpus.h"

/* The CPU whose turn it is: `cpu` where there is only one, or no instructions are counted. */
CPUState *parallel_turn(CPUState *cpu);
/* How many instructions the turn of `cpu` has, if a timer is due after `limit` steps of the clock. */
int64_t parallel_budget(CPUState *cpu, int64_t limit);
/* `cpu` is interrupted: if another one did that, whose turn it is, the turn ends, as it may have been alone. */
void parallel_interrupt(CPUState *cpu);
/* How many steps the clock makes for `executed` instructions of `cpu`. */
int64_t parallel_steps(CPUState *cpu, int64_t executed);

static inline bool parallel(void)
{
    return icount_enabled() && CPU_NEXT(first_cpu);
}

#ifdef PARALLEL_DEFINE

enum { PARALLEL_CPUS = 64, PARALLEL_TURN = 200 /* instructions */ };

static struct {
    int64_t executed; /* Since the start; who wakes up begins with no less than the others have. */
    bool running;     /* Not idle, as of this turn. */
} parallel_cpus[PARALLEL_CPUS];
static int parallel_running = 1; /* How many are not idle. */
static int64_t parallel_rest;    /* Instructions that were not a whole step yet. */

CPUState *parallel_turn(CPUState *cpu)
{
    CPUState *each, *next = NULL;
    int64_t least = INT64_MAX, most = 0;

    if (!parallel()) {
        return cpu;
    }
    CPU_FOREACH(each) {
        int index = each->cpu_index;

        g_assert(index < PARALLEL_CPUS);
        most = MAX(most, parallel_cpus[index].executed);
        if (parallel_cpus[index].running) {
            least = MIN(least, parallel_cpus[index].executed);
        }
    }
    least = MIN(least, most);

    parallel_running = 0;
    CPU_FOREACH(each) {
        int index = each->cpu_index;
        bool running = cpu_can_run(each) && !cpu_thread_is_idle(each);

        if (running) {
            if (!parallel_cpus[index].running) {
                parallel_cpus[index].executed = MAX(parallel_cpus[index].executed, least);
            }
            if (!next || parallel_cpus[index].executed < parallel_cpus[next->cpu_index].executed) {
                next = each;
            }
            parallel_running++;
        }
        parallel_cpus[index].running = running;
    }
    parallel_running = MAX(parallel_running, 1);
    return next ? next : first_cpu;
}

int64_t parallel_budget(CPUState *cpu, int64_t limit)
{
    CPUState *each;
    int64_t lead = INT64_MAX;

    if (!parallel() || parallel_running == 1) {
        return limit;
    }
    CPU_FOREACH(each) {
        if (each != cpu && parallel_cpus[each->cpu_index].running) {
            lead = MIN(lead, parallel_cpus[each->cpu_index].executed - parallel_cpus[cpu->cpu_index].executed);
        }
    }
    return MIN(limit * parallel_running, MAX(lead, 0) + PARALLEL_TURN);
}

void parallel_interrupt(CPUState *cpu)
{
    if (parallel() && current_cpu && current_cpu != cpu) {
        cpu_exit(current_cpu);
    }
}

int64_t parallel_steps(CPUState *cpu, int64_t executed)
{
    int64_t steps;

    if (!parallel()) {
        return executed;
    }
    parallel_cpus[cpu->cpu_index].executed += executed;
    parallel_rest += executed;
    steps = parallel_rest / parallel_running;
    parallel_rest %= parallel_running;
    return steps;
}

#endif
#endif
