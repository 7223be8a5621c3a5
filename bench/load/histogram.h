// A log-linear histogram of durations in ns: 64 steps for each power of two, so a quantile is right to 1.6 %.
#pragma once
#include <stdint.h>

#define HISTOGRAM_BUCKETS (64 * 64)

struct histogram {
    uint64_t buckets[HISTOGRAM_BUCKETS];
    uint64_t count;
    uint64_t max;
};

void histogram_clear(struct histogram *h);
void histogram_add(struct histogram *h, uint64_t ns);

// The value in microseconds below which the share `p` (0..1) of all values lies; 0 when there are none.
double histogram_us(const struct histogram *h, double p);
